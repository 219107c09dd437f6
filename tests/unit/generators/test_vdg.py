"""VDG's generator: role slots, what is trained in which stage, sampling, and the adapter's rank on load."""

import json

import pytest
import torch
from modes import decoding_preset, generator_mode

from cirray.core.errors import ArtifactError
from cirray.generators.config import DecodingConfig, GeneratorConfig
from cirray.generators.decoding import decode, row_uniforms
from cirray.generators.mtg import ModificationTextModel
from cirray.generators.prompts import all_prompts, prompt
from cirray.generators.store import load_generator, load_model, save_generator
from cirray.generators.writer import TextWriter
from cirray.models.towers.config import LanguageModelConfig
from cirray.models.towers.language import build_language_model, build_word_tokenizer
from cirray.types import Pair

pytest.importorskip("peft")
END = 3
TEXTS = ["make it red", "add blue round small", "remove it", "make it blue", "add red"]
LORA = {"rank": 4, "alpha": 16, "dropout": 0.05, "modules": ("q_proj", "v_proj"), "in_alignment": False}


@pytest.fixture
def language():
    """A language model that knows the words of the role slots."""
    torch.manual_seed(0)
    words = [*all_prompts(), prompt("delta/1"), prompt("response/1"), "Reference: Target:", "make it red add remove"]
    tokenizer = build_word_tokenizer([*words, "blue round small"])
    sizes = LanguageModelConfig(width=16, layers=2, heads=2, intermediate=32, positions=160, initializer_range=0.4)
    made = build_language_model(sizes, tokenizer)
    made.model.eval()
    return made


@pytest.fixture
def vdg(model_of):
    """VDG's layout at toy size: a generator with its adapters away from their start."""

    def build(**fields):
        made = generator_mode("vdg", **{"lora": LORA, **fields})
        named = {name: getattr(made, name) for name in GeneratorConfig.model_fields if name != "qformer"}
        model = model_of(**named)
        for name, weight in model.lm.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight)
        return model

    return build


def test_the_preset_is_the_papers_layout_and_adapter():
    config = generator_mode("vdg")
    assert config.passes == ("reference", "target") and config.separators == ("Reference:", "Target:")
    assert (config.lora.rank, config.lora.alpha, config.lora.dropout) == (64, 16, 0.05)
    assert config.lora.modules == ("q_proj", "v_proj") and config.tuning == "lora"
    assert not config.projection_bias and config.reader_tuning == "never"
    sampled = decoding_preset("vdg")
    assert (sampled.sample, sampled.temperature, sampled.top_k, sampled.max_new_tokens) == (True, 0.2, 50, 32)


def test_the_language_model_reads_system_lines_then_named_slots_then_the_response_cue(vdg, images_BPD):
    model = vdg()
    reference, target = images_BPD
    prefix, ids = model.pair_prefix(reference, target)[0], model.language.token_ids
    opening = [*ids(prompt("delta/1")), *ids("Reference:")]
    middle, cue = ids("Target:"), ids(prompt("response/1"))
    words = model.lm.get_input_embeddings()
    begin = len(opening)
    assert torch.equal(prefix[:begin], words(torch.tensor(opening)))
    assert torch.allclose(prefix[begin : begin + 3], model.read_image(reference)[0], atol=1e-5)
    assert torch.equal(prefix[begin + 3 : begin + 3 + len(middle)], words(torch.tensor(middle)))
    assert torch.allclose(prefix[-len(cue) - 3 : -len(cue)], model.read_image(target)[0], atol=1e-5)
    assert torch.equal(prefix[-len(cue) :], words(torch.tensor(cue)))


def test_swapping_the_images_changes_what_the_language_model_reads(vdg, images_BPD):
    model = vdg().eval()
    reference, target = images_BPD
    forward, reverse = model.pair_prefix(reference, target), model.pair_prefix(target, reference)
    assert forward.shape == reverse.shape and not torch.allclose(forward, reverse, atol=1e-3)
    same = model.pair_prefix(reference, reference)
    assert torch.allclose(same, model.pair_prefix(reference.clone(), reference), atol=1e-6)
    answers = model.encode_answers(TEXTS)
    losses = [float(model(*pair, answers).total.detach()) for pair in ((reference, target), (target, reference))]
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def touched(model):
    return {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.abs().sum()}


def test_instruction_tuning_trains_projection_and_adapters_alone(vdg, images_BPD):
    model = vdg().train()
    model.enter("answers")
    model(*images_BPD, model.encode_answers(TEXTS)).total.backward()
    found = touched(model)
    assert "projection.weight" in found and any("lora_A" in name for name in found)
    assert all(name == "projection.weight" or "lora_" in name for name in found)
    adapted = {name.split(".")[-4] for name in found if "lora_" in name} | {
        part for name in found if "lora_" in name for part in name.split(".") if part.endswith("_proj")
    }
    assert {part for part in adapted if part.endswith("_proj")} == {"q_proj", "v_proj"}


def test_alignment_trains_the_projection_alone_and_the_reader_where_none_is_pretrained(vdg, images_BPD):
    for reader, wanted in (("never", {"projection"}), ("alignment", {"projection", "qformer"})):
        model = vdg(reader_tuning=reader).train()
        model.enter("alignment")
        soft = model.read_image(images_BPD[0])
        model.answer_loss(model.image_prefix(soft, "make"), model.encode_answers(TEXTS)).total.backward()
        assert {name.split(".")[0] for name in touched(model)} == wanted
        model.enter("answers")
        assert not any(weight.requires_grad for weight in model.qformer.parameters())


def test_the_loss_is_the_response_and_its_end_token_alone(vdg, images_BPD):
    model = vdg().eval()
    loss = model(*images_BPD, model.encode_answers(TEXTS))
    assert int(loss.tokens) == sum(len(text.split()) + 1 for text in TEXTS)
    alone = [
        model(images_BPD[0, i : i + 1], images_BPD[1, i : i + 1], model.encode_answers([text])).total
        for i, text in enumerate(TEXTS)
    ]
    assert torch.allclose(loss.total, torch.stack(alone).sum(), rtol=1e-4)


def test_a_frozen_reader_is_in_eval_mode_and_a_trained_one_is_not(vdg, model_of):
    model = vdg(reader_tuning="alignment")
    model.enter("alignment")
    assert model.train().qformer.training
    model.enter("answers")
    assert not model.train().qformer.training and model.lm.training
    assert model_of().train().qformer.training


def test_cached_decoding_equals_uncached_greedy_decoding(vdg, images_BPD):
    model = vdg().eval()
    prefix = model.pair_prefix(*images_BPD).detach()
    cached = decode(model.lm, prefix, DecodingConfig(max_new_tokens=10), END)
    for row in range(len(prefix)):
        ids: list[int] = []
        with torch.no_grad():
            while len(ids) < 10 and (not ids or ids[-1] != END):
                words = model.lm.get_input_embeddings()(torch.tensor([ids], dtype=torch.int64))
                inputs = torch.cat([prefix[row : row + 1], words], dim=1)
                logits = model.lm(inputs_embeds=inputs, use_cache=False).logits[0, -1]
                logits[END] = -torch.inf if not ids else logits[END]
                ids.append(int(logits.argmax()))
        assert cached[row].ids == (ids[:-1] if ids[-1] == END else ids)
    assert len({tuple(item.ids) for item in cached}) > 1


def test_top_k_sampling_draws_the_best_tokens_alone_in_their_own_proportions(language):
    prefix = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(1)).expand(800, -1, -1)
    uniforms = row_uniforms(range(800), 1)
    settings = {"sample": True, "max_new_tokens": 1, "temperature": 2.0}
    few = [tuple(row.ids) for row in decode(language.model, prefix, DecodingConfig(top_k=3, **settings), END, uniforms)]
    many = {tuple(row.ids) for row in decode(language.model, prefix, DecodingConfig(**settings), END, uniforms)}
    with torch.no_grad():
        logits = language.model(inputs_embeds=prefix[:1]).logits[0, -1]
    logits[END] = -torch.inf
    best = logits.topk(3)
    assert set(few) == {(int(token),) for token in best.indices} and len(many) > 3
    wanted = (best.values / 2.0).softmax(dim=0)
    shares = [few.count((int(token),)) / 800 for token in best.indices]
    assert shares == pytest.approx(wanted.tolist(), abs=0.06)


def test_a_saved_vdg_writes_the_same_texts_in_its_own_decoding(vdg, features, tmp_path):
    pairs = [Pair("p1", "a", "b"), Pair("p2", "c", "d")]
    model = vdg()
    save_generator(model, tmp_path)
    decoding = decoding_preset("vdg")
    wanted = TextWriter(model, decoding, seed=2).generate(pairs, features)
    assert load_generator(tmp_path, seed=2, decoding=decoding).generate(pairs, features) == wanted
    assert load_generator(tmp_path, seed=3, decoding=decoding).generate(pairs, features) != wanted
    assert load_model(tmp_path).projection.bias is None


def test_an_adapter_of_another_rank_is_refused_on_load(vdg, tmp_path):
    save_generator(vdg(), tmp_path / "four")
    save_generator(vdg(lora={**LORA, "rank": 2}), tmp_path / "two")
    path = tmp_path / "four" / "config.json"
    described = json.loads(path.read_text())
    described["generator"]["lora"]["rank"] = 2
    path.write_text(json.dumps(described))
    with pytest.raises(ArtifactError, match=r"rank \[4\].*configuration rank 2"):
        load_model(tmp_path / "four")
    settings = tmp_path / "two" / "adapter" / "adapter_config.json"
    settings.write_text(settings.read_text().replace('"lora_alpha": 16', '"lora_alpha": 32'))
    with pytest.raises(ArtifactError, match="alpha 32"):
        load_model(tmp_path / "two")


def test_checkpointing_changes_no_gradient(vdg, images_BPD):
    found = {}
    for saving in (False, True):
        torch.manual_seed(0)
        model = vdg(lora={**LORA, "dropout": 0.0}, gradient_checkpointing=saving).train()
        torch.manual_seed(1)
        for name, weight in model.lm.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight)
        model(*images_BPD, model.encode_answers(TEXTS)).total.backward()
        found[saving] = model.projection.weight.grad
    assert torch.allclose(found[True], found[False], atol=1e-5) and float(found[True].abs().sum()) > 0


def test_a_layout_without_opening_reads_as_before(model_of, images_BPD):
    plain = model_of().pair_prefix(*images_BPD)
    assert plain.shape[1] == 6 + len(model_of().language.token_ids(prompt("change/1")))
    assert isinstance(model_of(opening="describe/1"), ModificationTextModel)
    assert model_of(opening="describe/1").pair_prefix(*images_BPD).shape[1] == plain.shape[1] + 3
