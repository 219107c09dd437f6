"""The full-size architectures, at small size: cirray's modules and the libraries' own, with the same random weights.

fp32 on the CPU. Every assertion states the largest difference it allows; every parity has a control that must differ.
"""

import importlib.util
import runpy
from pathlib import Path

import pytest
import torch
from modes import generator_mode, retriever_mode, training_mode

from cirray.generators.store import generator_from
from cirray.generators.trainable import Answers
from cirray.image_text import load_models
from cirray.models.batch import RetrievalBatch
from cirray.models.sources.blip2 import open_blip2, retriever_from
from cirray.models.text import encode_texts
from cirray.models.towers.hf_blip2 import load_vision_tower
from cirray.models.towers.language import load_language_model
from cirray.pipelines.weights.config import ConvertRun
from cirray.pipelines.weights.convert import run_convert
from cirray.training.gather import NoGather
from cirray.training.objectives import retrieval_loss

_SPEC = importlib.util.spec_from_file_location("small_blip2", Path(__file__).parents[1] / "fixtures" / "small_blip2.py")
small = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(small)
lavis = runpy.run_path(str(Path(__file__).parents[1] / "fixtures" / "lavis_layout.py"))
forward = runpy.run_path(str(Path(__file__).parents[1] / "fixtures" / "lavis_forward.py"))
linear, eva, bert = (forward[name] for name in ("linear", "eva", "bert"))

TEXTS = ["paint the red circle blue", "remove it", "move the small square to the top left"]
CLOSE = 2e-5
"""Two LayerNorms in a row where LAVIS has one cost some 1e-6; the rest is the order of fp32 sums."""


@pytest.fixture(scope="module")
def stage1(tmp_path_factory):
    """transformers' stage 1 model, our tower and our retriever from its files."""
    model = small.retrieval()
    folder = small.save_retrieval(model, tmp_path_factory.mktemp("stage1"), max_shard_size="20KB")
    retriever = retriever_from(open_blip2(folder), retriever_mode("paper")).eval()
    return model, load_vision_tower(folder), retriever


@pytest.fixture(scope="module")
def instructed(tmp_path_factory):
    """transformers' InstructBLIP, our tower and our generator from its files."""
    model = small.instruct()
    folder = small.save_instruct(model, tmp_path_factory.mktemp("instruct"), max_shard_size="20KB")
    config = generator_mode("paper")
    generator = generator_from(open_blip2(folder), config, load_language_model(folder), small.PATCH_WIDTH)
    return model, load_vision_tower(folder), generator.eval()


def pixels_of(tower, images):
    return ((images.float() - tower.mean_C) / tower.std_C).permute(0, 3, 1, 2)


def tokens(retriever, texts=TEXTS):
    return encode_texts(retriever.tokenizer, texts, 32)


def apart(ours, theirs):
    return float((ours - theirs).abs().max())


def differs(output, module, name):
    """A control: the output after one weight was changed (and put back)."""
    weight = dict(module.named_parameters())[name]
    kept = weight.clone()
    weight.copy_(kept + torch.linspace(-0.3, 0.3, kept.numel()).view_as(kept))
    changed = output()
    weight.copy_(kept)
    return changed


@torch.inference_mode()
def test_the_image_pass_is_that_of_transformers(stage1):
    model, tower, retriever = stage1
    images = small.images()
    patches = model.vision_model(pixels_of(tower, images)).last_hidden_state
    queries = model.query_tokens.expand(len(images), -1, -1)
    theirs = model.qformer(query_embeds=queries, encoder_hidden_states=patches).last_hidden_state
    ours = retriever.qformer.image(tower(images))
    assert apart(ours, theirs) < CLOSE
    name = "qformer.encoder.layer.2.crossattention.attention.value.weight"
    assert apart(differs(lambda: retriever.qformer.image(tower(images)), retriever.qformer, name), theirs) > 100 * CLOSE


@torch.inference_mode()
def test_the_image_and_text_pass_is_that_of_transformers(stage1):
    model, tower, retriever = stage1
    images, text = small.images(), tokens(retriever)
    patches = model.vision_model(pixels_of(tower, images)).last_hidden_state
    queries = model.query_tokens.expand(len(images), -1, -1)
    embedded = model.embeddings(input_ids=text.ids_BT, query_embeds=queries)
    mask = torch.cat([text.mask_BT.new_ones(queries.shape[:2]), text.mask_BT], dim=1)
    theirs = model.qformer(
        query_embeds=embedded, query_length=small.QUERIES, attention_mask=mask, encoder_hidden_states=patches
    ).last_hidden_state
    ours = retriever.qformer.image_and_text(tower(images), text)
    assert apart(ours.queries_BQD, theirs[:, : small.QUERIES]) < CLOSE
    seen = text.mask_BT.bool()
    assert apart(ours.text_BTD[seen], theirs[:, small.QUERIES :][seen]) < CLOSE
    other = retriever.qformer.image_and_text(tower(images), tokens(retriever, TEXTS[::-1]))
    assert apart(other.queries_BQD, theirs[:, : small.QUERIES]) > 100 * CLOSE


@torch.inference_mode()
def test_the_text_only_pass_is_that_of_transformers_and_takes_the_text_feed_forward(stage1):
    model, _, retriever = stage1
    text = tokens(retriever)
    theirs = model.qformer(
        query_embeds=model.embeddings(input_ids=text.ids_BT), query_length=0, attention_mask=text.mask_BT
    ).last_hidden_state
    seen, qformer = text.mask_BT.bool(), retriever.qformer

    def ours():
        return qformer.text_only(qformer.embed_text(text), text.mask_BT)[seen]

    assert apart(ours(), theirs[seen]) < CLOSE
    assert (
        apart(differs(ours, qformer, "qformer.encoder.layer.0.intermediate.dense.weight"), theirs[seen]) > 100 * CLOSE
    )
    unused = differs(ours, qformer, "qformer.encoder.layer.0.intermediate_query.dense.weight")
    assert apart(unused, theirs[seen]) < CLOSE


@torch.inference_mode()
def test_image_text_similarity_is_that_of_the_retrieval_model(stage1):
    model, tower, retriever = stage1
    images, text = small.images(), tokens(retriever)
    theirs = model(
        pixel_values=pixels_of(tower, images), input_ids=text.ids_BT, attention_mask=text.mask_BT,
        use_image_text_matching_head=False, return_dict=True,
    ).logits_per_image  # fmt: skip
    first = retriever.qformer.text_only(retriever.qformer.embed_text(text), text.mask_BT)[:, 0]
    ours = retriever.score(retriever.project_text(first), retriever.encode_gallery(tower(images))).T
    assert apart(ours, theirs) < CLOSE
    assert apart(ours.T, theirs) > 100 * CLOSE


def sprc(model, tower, text, reference, target, temperature=0.07):
    """SPRC as its paper and code describe it, written out on transformers' modules (Qformer of LAVIS = both paths)."""
    queries = model.query_tokens.expand(len(reference), -1, -1)
    ones = text.mask_BT.new_ones(queries.shape[:2])
    mask = torch.cat([ones, text.mask_BT], dim=1)
    seen_reference, seen_target = (
        model.vision_model(pixels_of(tower, images)).last_hidden_state for images in (reference, target)
    )
    sentence = model.qformer(
        query_embeds=model.embeddings(input_ids=text.ids_BT, query_embeds=queries), query_length=small.QUERIES,
        attention_mask=mask, encoder_hidden_states=seen_reference,
    ).last_hidden_state[:, : small.QUERIES]  # fmt: skip
    fused = model.qformer(
        query_embeds=model.embeddings(input_ids=text.ids_BT, query_embeds=sentence), query_length=0, attention_mask=mask
    ).last_hidden_state
    query = torch.nn.functional.normalize(model.text_projection(fused[:, small.QUERIES]), dim=-1)
    seen = model.qformer(query_embeds=queries, encoder_hidden_states=seen_target).last_hidden_state
    tokens_NQD = torch.nn.functional.normalize(model.vision_projection(seen), dim=-1)
    scores = torch.stack([torch.stack([(tokens_QD @ q).max() for tokens_QD in tokens_NQD]) for q in query])
    loss = torch.nn.functional.cross_entropy(scores / temperature, torch.arange(len(query)))
    return query, scores, loss, sentence


@torch.inference_mode()
def test_an_sprc_forward_written_out_naively_gives_the_same_query_scores_and_loss(stage1):
    model, tower, retriever = stage1
    reference, target, text = small.images(seed=1), small.images(seed=2), tokens(retriever)
    query, scores, loss, sentence = sprc(model, tower, text, reference, target)
    ours = retriever.changed({"fusion": "two_pass"}).eval()
    ours.config = retriever.config.model_copy(update={"readout": "cls"})
    fused = ours.fuse(tower(reference), text)
    assert apart(fused.query_BD, query) < CLOSE
    assert apart(fused.prototype_BQW, sentence) < CLOSE
    our_scores = ours.score(fused.query_BD, ours.encode_gallery(tower(target)))
    assert apart(our_scores, scores) < CLOSE
    our_loss = torch.nn.functional.cross_entropy(our_scores / ours.temperature, torch.arange(len(scores)))
    assert apart(our_loss, loss) < 20 * CLOSE
    mean_readout = retriever.fuse(tower(reference), text).query_BD
    assert apart(mean_readout, query) > 100 * CLOSE


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """An SPRC file in the authors' layout, and what `cirray convert` makes of it."""
    root = tmp_path_factory.mktemp("sprc")
    state = lavis["write"](root / "tuned.pt", "sprc", words=len(small.reader()))
    small.reader().save_pretrained(str(root / "words"))
    fields = {"tokenizer": str(root / "words"), "qformer_heads": 2, "vision_heads": 2, "to": "checkpoint"}
    run_convert(ConvertRun(source=str(root / "tuned.pt"), out=str(root / "checkpoint"), **fields))
    return state, *load_models(str(root / "checkpoint"))[:2]


@torch.inference_mode()
def test_a_converted_checkpoint_computes_what_the_authors_code_computes(released):
    state, retriever, tower = released
    images, text = small.images(), tokens(retriever)
    seen = eva(state, pixels_of(tower, images))
    assert apart(retriever.qformer.vision_norm(tower(images)), seen) < CLOSE
    queries = state["query_tokens"].expand(len(images), -1, -1)
    mask = torch.cat([text.mask_BT.new_ones(queries.shape[:2]), text.mask_BT], dim=1)
    sentence = bert(state, queries, text.ids_BT, mask, seen)[:, : small.QUERIES]
    fused = bert(state, sentence, text.ids_BT, mask)[:, small.QUERIES]
    query = torch.nn.functional.normalize(linear(state, "text_proj", fused), dim=-1)
    gallery = torch.nn.functional.normalize(linear(state, "vision_proj", bert(state, queries, patches=seen)), dim=-1)
    ours = retriever.compose(retriever.encode_reference(tower(images)), text)
    assert apart(ours, query) < CLOSE
    assert apart(retriever.encode_gallery(tower(images)), gallery) < CLOSE
    swapped = {**state, "visual_encoder.blocks.0.norm1.bias": state["visual_encoder.blocks.0.norm2.bias"]}
    assert apart(retriever.qformer.vision_norm(tower(images)), eva(swapped, pixels_of(tower, images))) > 100 * CLOSE


@torch.inference_mode()
def test_the_sprc_objective_is_the_loss_of_the_authors_code(released):
    """L_itc + 0.4 L_rtc + 0.4 L_align in one direction over the batch, written out on the authors' tensors."""
    state, retriever, tower = released
    reference, target, text = small.images(seed=1), small.images(seed=2), tokens(retriever)
    seen, sought = (eva(state, pixels_of(tower, images)) for images in (reference, target))
    queries = state["query_tokens"].expand(3, -1, -1)
    mask = torch.cat([text.mask_BT.new_ones(queries.shape[:2]), text.mask_BT], dim=1)
    sentence = bert(state, queries, text.ids_BT, mask, seen)[:, : small.QUERIES]
    fused = bert(state, sentence, text.ids_BT, mask)[:, small.QUERIES]
    words = state["Qformer.bert.embeddings.word_embeddings.weight"][text.ids_BT]
    mixed = torch.cat([words[:, :1], state["prompt_tokens"].expand(3, -1, -1), words[:, 1:]], dim=1)
    mixed = mixed + state["Qformer.bert.embeddings.position_embeddings.weight"][: mixed.shape[1]]
    alone = bert(state, mixed, mask=mask)[:, 0]
    gallery = torch.nn.functional.normalize(linear(state, "vision_proj", bert(state, queries, patches=sought)), dim=-1)

    def contrast(summary):
        query = torch.nn.functional.normalize(linear(state, "text_proj", summary), dim=-1)
        scores = torch.einsum("bd,nqd->bnq", query, gallery).amax(-1) / state["temp"]
        return torch.nn.functional.cross_entropy(scores, torch.arange(3))

    align = (sentence.mean(1) - state["prompt_tokens"].mean(1)).square().mean()
    theirs = contrast(fused) + 0.4 * contrast(alone) + 0.4 * align
    settings = training_mode("paper", objective="sprc", batch=3)
    keys = torch.arange(3)
    batch = RetrievalBatch(tower(reference), tower(target), text, keys, keys + 3, torch.ones(3))
    ours = retrieval_loss(retriever, batch, settings, NoGather())
    assert apart(ours.total, theirs) < 20 * CLOSE
    other = retrieval_loss(
        retriever, batch, training_mode("paper", objective="sprc", terms={"rtc": 0.5}, batch=3), NoGather()
    )
    assert apart(other.total, theirs) > 1000 * CLOSE


def question_of(generator):
    return encode_texts(generator.reader, [generator.instruction], generator.config.instruction_length)


@torch.inference_mode()
def test_the_instructed_pass_and_the_projection_are_those_of_instructblip(instructed):
    """q_c of one image twice is InstructBLIP's own pass: doubled keys leave the attention's weights as they are."""
    model, tower, generator = instructed
    images, question = small.images(), question_of(generator)
    theirs = model.get_image_features(
        pixels_of(tower, images), qformer_input_ids=question.ids_BT.expand(3, -1),
        qformer_attention_mask=question.mask_BT.expand(3, -1), return_dict=True,
    ).pooler_output  # fmt: skip
    patches = tower(images)
    assert apart(generator.read_pair(patches, patches), theirs) < 5 * CLOSE
    assert apart(generator.read_pair(patches, patches.flip(0)), theirs) > 100 * CLOSE


@torch.inference_mode()
def test_prefix_and_loss_are_those_of_instructblip_where_the_two_coincide(instructed):
    """With the difference pass alone, and one image for both, the generator is InstructBLIP."""
    model, tower, generator = instructed
    images, language = small.images(), generator.language
    rows = [[5, 6, 7, language.end_id], [8, language.end_id], [9, 10, 11, language.end_id]]
    width = max(map(len, rows))
    answers = Answers(
        torch.tensor([row + [language.pad_id] * (width - len(row)) for row in rows]),
        torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows]),
    )
    words = language.token_ids(generator.instruction)
    head = [model.config.image_token_index] * small.QUERIES + words
    ids = torch.cat([torch.tensor([head] * 3), answers.ids_BT], dim=1)
    labels = torch.full_like(ids, -100)
    labels[:, len(head) :] = answers.ids_BT.masked_fill(~answers.mask_BT, -100)
    seen = torch.cat([torch.ones(3, len(head), dtype=torch.int64), answers.mask_BT.long()], dim=1)
    question = question_of(generator)
    theirs = model(
        pixel_values=pixels_of(tower, images), qformer_input_ids=question.ids_BT.expand(3, -1),
        qformer_attention_mask=question.mask_BT.expand(3, -1), input_ids=ids, attention_mask=seen, labels=labels,
    ).loss  # fmt: skip
    patches = tower(images)
    difference = generator.read_pair(patches, patches)
    alone = torch.cat([difference, *generator._words(generator.instruction, difference)], dim=1)
    ours = generator.answer_loss(alone, answers)
    assert apart(ours.total / ours.tokens, theirs) < 5 * CLOSE
    full = generator.answer_loss(generator.pair_prefix(patches, patches), answers)
    assert apart(full.total / full.tokens, theirs) > 100 * CLOSE
