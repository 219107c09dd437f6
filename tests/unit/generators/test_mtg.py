import pytest
import torch
import torch.nn.functional as F
from modes import generator_mode

from cirray.core.config import validate
from cirray.core.errors import ConfigError
from cirray.data.config import TransformConfig
from cirray.generators.config import GeneratorConfig
from cirray.models.config import VisionTowerConfig
from cirray.models.towers.hf_blip2 import build_vision_tower
from cirray.training.tracing import Saved

ALL = ("reference", "target", "difference")
TEXTS = ["make it red", "add blue round small", "remove it", "make it blue", "add red"]


def test_loss_is_the_answer_and_its_end_token_whatever_the_padding(model_of, images_BPD):
    model = model_of(passes=ALL)
    reference, target = images_BPD
    together = model(reference, target, model.encode_answers(TEXTS))
    assert int(together.tokens) == sum(len(text.split()) + 1 for text in TEXTS)
    alone = [
        model(reference[i : i + 1], target[i : i + 1], model.encode_answers([text])).total
        for i, text in enumerate(TEXTS)
    ]
    assert torch.allclose(together.total, torch.stack(alone).sum(), rtol=1e-4)


def test_loss_equals_a_loop_over_the_answer_tokens(model_of, images_BPD):
    model = model_of()
    reference, target = images_BPD[:, :1]
    prefix = model.pair_prefix(reference, target)
    ids = [*model.language.token_ids("make it red"), model.language.end_id]
    total = torch.zeros(())
    for number, token in enumerate(ids):
        words = model.lm.get_input_embeddings()(torch.tensor([ids[:number]], dtype=torch.int64))
        logits = model.lm(inputs_embeds=torch.cat([prefix, words], dim=1)).logits[0, -1]
        total = total + F.cross_entropy(logits[None], torch.tensor([token]))
    assert torch.allclose(model(reference, target, model.encode_answers(["make it red"])).total, total, rtol=1e-4)


def test_a_long_answer_is_cut_on_the_right_and_keeps_its_end_token(model_of):
    model = model_of(answer_length=3)
    answers = model.encode_answers(["make it red blue", "add"])
    assert answers.ids_BT[0].tolist() == [*model.language.token_ids("make it"), model.language.end_id]
    assert answers.mask_BT.tolist() == [[True, True, True], [True, True, False]]


def test_a_long_instruction_is_cut_on_the_left(model_of, images_BPD):
    model = model_of(instruction_length=2)
    prefix = model.pair_prefix(*images_BPD)
    last = model.language.token_ids(model.instruction)[-2:]
    assert prefix.shape[1] == 6 + 2
    assert torch.equal(prefix[0, -2:], model.lm.get_input_embeddings()(torch.tensor(last)))


def test_prefix_is_reference_target_difference_instruction(model_of, images_BPD):
    model = model_of(passes=ALL)
    reference, target = images_BPD
    prefix = model.pair_prefix(reference, target)
    parts = [model.read_image(reference), model.read_image(target), model.read_pair(reference, target)]
    assert torch.allclose(prefix[:, :9], torch.cat(parts, dim=1), atol=1e-5)
    assert prefix.shape[1] == 9 + len(model.language.token_ids(model.instruction))


TURNS = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} remove {% endfor %}make"


def test_a_chat_frame_stands_around_soft_tokens_and_instruction(model_of, images_BPD):
    plain = model_of()
    plain.language.tokenizer.chat_template = TURNS
    chat = model_of(frame="chat")
    before, after = plain.pair_prefix(*images_BPD), chat.pair_prefix(*images_BPD)
    table, ids = chat.lm.get_input_embeddings().weight, chat.language.token_ids
    assert model_of().frame == chat.frame and plain.frame.kind == "plain"
    assert torch.equal(after[0, :1], table[ids("user")]) and torch.equal(after[0, -2:], table[ids("remove make")])
    assert torch.allclose(after[:, 1:-2], before)
    alone = chat.image_prefix(chat.read_image(images_BPD[0]), "make it red")
    assert torch.equal(alone[0, -5:], table[ids("make it red remove make")])


@pytest.mark.parametrize("given", ["make it red", "file"])
def test_an_instruction_of_ones_own_is_read_from_the_configuration_or_a_file(model_of, tmp_path, given):
    path = tmp_path / "own.txt"
    path.write_text("make it\n red\n")
    config = validate(GeneratorConfig, {"prompt": str(path) if given == "file" else given})
    assert config.instruction == "make it red" and config.prompt_version.startswith("own#")
    path.unlink()
    assert validate(GeneratorConfig, config.to_dict()) == config
    assert model_of(prompt=config.prompt).instruction == "make it red"


@pytest.mark.parametrize(("given", "said"), [("chnage/1", "change/1"), ("one", "at least two words")])
def test_an_instruction_that_is_neither_version_nor_words_is_refused(tmp_path, monkeypatch, given, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one").write_text("describe")
    with pytest.raises(ConfigError, match=said):
        validate(GeneratorConfig, {"prompt": given})


def test_the_head_computes_logits_of_answer_tokens_alone(model_of, images_BPD):
    model, rows = model_of(), []
    model.lm.get_output_embeddings().register_forward_hook(lambda module, given, made: rows.append(made.shape[:2]))
    answers = model.encode_answers(["make it red blue round small", "add", "add", "add", "add"])
    model(*images_BPD, answers)
    assert rows == [(1, 7 + 4 * 2)]


@pytest.mark.parametrize("tuning", ["frozen", "full"])
def test_recomputing_layers_saves_memory_and_changes_no_gradient(model_of, images_BPD, tuning):
    found, kept = {}, {}
    for saving in (False, True):
        model = model_of(gradient_checkpointing=saving, tuning=tuning).train()
        answers = model.encode_answers(TEXTS)
        with Saved(model) as saved:
            model(*images_BPD, answers)
        kept[saving] = saved.bytes
        model(*images_BPD, answers).total.backward()
        found[saving] = model.projection.weight.grad.clone()
        model.zero_grad()
        for layer in model.lm.model.layers:
            layer.__dict__.pop("forward", None)
    assert torch.allclose(found[True], found[False], atol=1e-5) and float(found[True].abs().sum()) > 0
    assert kept[True] < 0.7 * kept[False]


def test_separators_stand_before_their_group(model_of, images_BPD):
    plain, separated = model_of(), model_of(separators=("make", "it red"))
    before, after = plain.pair_prefix(*images_BPD), separated.pair_prefix(*images_BPD)
    assert after.shape[1] == before.shape[1] + 3
    assert torch.allclose(after[:, 1:4], before[:, :3])
    assert torch.allclose(after[:, 6:9], before[:, 3:6])


def test_difference_pass_ignores_the_order_of_the_images_without_role_tags(model_of, images_BPD):
    model = model_of(passes=ALL)
    reference, target = images_BPD
    assert torch.allclose(model.read_pair(reference, target), model.read_pair(target, reference), atol=1e-5)


def test_difference_pass_knows_the_order_with_role_tags(model_of, images_BPD):
    model = model_of(passes=ALL, role_tags=True)
    torch.nn.init.normal_(model.role_tags_RD)
    reference, target = images_BPD
    assert not torch.allclose(model.read_pair(reference, target), model.read_pair(target, reference), atol=1e-3)


def test_swapping_the_images_changes_what_the_language_model_reads(model_of, images_BPD):
    model = model_of(passes=ALL)
    reference, target = images_BPD
    forward, reverse = model.pair_prefix(reference, target), model.pair_prefix(target, reference)
    assert not torch.allclose(forward, reverse, atol=1e-3)
    assert torch.allclose(forward[:, 3:6], reverse[:, :3], atol=1e-5)


def test_no_gradient_reaches_a_frozen_language_model_or_the_vision_tower(model_of):
    tower = build_vision_tower(
        VisionTowerConfig(image_size=16, patch_size=8, width=12, layers=1, heads=2, intermediate=16),
        TransformConfig(size=16),
    )
    model = model_of(passes=ALL, role_tags=True).train()
    pixels = torch.randint(256, (2, 3, 16, 16, 3), dtype=torch.uint8)
    model(tower(pixels[0]), tower(pixels[1]), model.encode_answers(TEXTS[:3])).total.backward()
    assert all(weight.grad is None for weight in [*model.lm.parameters(), *tower.parameters()])
    trained = [
        model.projection.weight, model.qformer.query_tokens, model.qformer.vision_norm.weight, model.role_tags_RD
    ]  # fmt: skip
    assert all(weight.grad is not None and float(weight.grad.abs().sum()) > 0 for weight in trained)


def test_a_tuned_language_model_does_get_gradients(model_of, images_BPD):
    model = model_of(tuning="full").train()
    model(*images_BPD, model.encode_answers(TEXTS)).total.backward()
    assert all(weight.grad is not None for weight in model.lm.parameters())


def test_lora_trains_adapters_alone_and_starts_as_the_frozen_model(model_of, images_BPD):
    pytest.importorskip("peft")
    answers = model_of().encode_answers(TEXTS)
    frozen = model_of()(*images_BPD, answers).total
    model = model_of(tuning="lora").train()
    loss = model(*images_BPD, answers).total
    assert torch.allclose(loss, frozen, rtol=1e-4)
    loss.backward()
    touched = {name for name, weight in model.lm.named_parameters() if weight.grad is not None}
    assert touched and all("lora_" in name for name in touched)


def test_cached_tokens_give_the_loss_of_live_encoding(model_of):
    tower = build_vision_tower(
        VisionTowerConfig(image_size=16, patch_size=8, width=12, layers=1, heads=2, intermediate=16),
        TransformConfig(size=16),
    )
    model = model_of()
    pixels = torch.randint(256, (2, 3, 16, 16, 3), dtype=torch.uint8)
    answers = model.encode_answers(TEXTS[:3])
    live = model(tower(pixels[0]), tower(pixels[1]), answers).total
    cached = [tower(images).half().float() for images in pixels]
    assert torch.allclose(model(*cached, answers).total, live, rtol=5e-3)
    assert not torch.allclose(model(cached[1], cached[0], answers).total, live, rtol=5e-3)


def test_a_frozen_language_model_stays_in_eval_mode(model_of):
    assert model_of().train().lm.training is False
    assert model_of(tuning="full").train().lm.training is True


def test_configurations_that_mean_nothing_are_refused():
    with pytest.raises(ConfigError, match="name each pass once"):
        validate(GeneratorConfig, {"passes": ["target", "target"]})
    with pytest.raises(ConfigError, match="one text per pass"):
        validate(GeneratorConfig, {"separators": ["first"]})
    with pytest.raises(ConfigError, match="role_tags act on the difference pass"):
        validate(GeneratorConfig, {"role_tags": True})


def test_paper_mode_reads_all_three_passes_without_aids():
    paper = generator_mode("paper")
    assert paper.passes == ALL and not paper.role_tags and not paper.separators and paper.tuning == "frozen"
