"""Files of LAVIS, SPRC and MTST_PTHA: what is read, what is refused, and that they come back bit for bit."""

import os
import pickle
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import Blip2ForImageTextRetrieval

from cirray.core.artifacts import read_manifest
from cirray.core.errors import ArtifactError, ConfigError
from cirray.image_text import load_models
from cirray.models.conversion import FORMATS, find_format
from cirray.models.conversion_files import convert, read_original
from cirray.models.sources.blip2 import check_temperature, open_blip2, retriever_from
from cirray.models.towers.hf_blip2 import load_vision_tower
from cirray.pipelines.weights.config import ConvertRun
from cirray.pipelines.weights.convert import run_convert

FIXTURES = Path(__file__).parents[2] / "fixtures"
lavis = SimpleNamespace(**runpy.run_path(str(FIXTURES / "lavis_layout.py")))
small = SimpleNamespace(**runpy.run_path(str(FIXTURES / "small_blip2.py")))
HEADS = {"qformer_heads": 2, "vision_heads": 2}


@pytest.fixture
def words(tmp_path):
    """A tokenizer with one token fewer than the tables: [DEC] is missing."""
    small.reader().save_pretrained(str(tmp_path / "bert"))
    return str(tmp_path / "bert")


ROWS = len(small.reader()) + 1


def run(source, out, **fields):
    return run_convert(ConvertRun(**HEADS, source=str(source), out=str(out), **fields))


def equal(first, second):
    return first.dtype == second.dtype and first.shape == second.shape and torch.equal(first, second)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_comes_back_bit_for_bit(kind, half, tmp_path):
    state = lavis.write(tmp_path / "in.pt", kind, half_tower=half)
    manifest = run(tmp_path / "in.pt", tmp_path / "ours")
    assert manifest.extra["format"] == kind and manifest.counts["tensors"] > 100
    run(tmp_path / "ours", tmp_path / "theirs", to="original")
    again = torch.load(tmp_path / "theirs" / "weights.pt", weights_only=True)
    assert set(again) == {lavis.WRAPPERS[kind]} | ({"epoch"} if kind in ("sprc", "ptha") else set())
    back = again[lavis.WRAPPERS[kind]]
    assert set(back) == set(state)
    assert [name for name in state if not equal(back[name], state[name])] == []


def test_frozen_weights_that_lavis_left_out_are_not_missed(tmp_path):
    state = lavis.write(tmp_path / "in.pth", "blip2", tower=False)
    run(tmp_path / "in.pth", tmp_path / "ours")
    run(tmp_path / "ours", tmp_path / "theirs", to="original")
    assert set(torch.load(tmp_path / "theirs" / "weights.pt", weights_only=True)["model"]) == set(state)
    with pytest.raises(ArtifactError, match="lacks .* tensors of its vision tower"):
        load_vision_tower(tmp_path / "ours")


def test_eva_biases_are_fused_with_zeros_for_the_keys_and_split_again(tmp_path):
    state = lavis.write(tmp_path / "in.pt", "sprc")
    ours, _ = convert(read_original(tmp_path / "in.pt"))
    fused = ours["vision_model.encoder.layers.1.self_attn.qkv.bias"].view(3, -1)
    assert torch.equal(fused[0], state["visual_encoder.blocks.1.attn.q_bias"]) and not fused[1].any()
    assert torch.equal(fused[2], state["visual_encoder.blocks.1.attn.v_bias"])


def test_a_key_bias_has_no_place_on_the_way_back(tmp_path):
    lavis.write(tmp_path / "in.pt", "sprc")
    run(tmp_path / "in.pt", tmp_path / "ours")
    from safetensors.torch import load_file, save_file

    weights = tmp_path / "ours" / "model.safetensors"
    tensors = load_file(weights)
    tensors["vision_model.encoder.layers.0.self_attn.qkv.bias"][30] = 1.0
    save_file(tensors, weights)
    with pytest.raises(ArtifactError, match="key bias inside .*layers.0.* is not zero"):
        run(tmp_path / "ours", tmp_path / "theirs", to="original")


def test_transformers_own_model_reads_the_converted_folder(tmp_path):
    lavis.write(tmp_path / "in.pt", "blip2")
    run(tmp_path / "in.pt", tmp_path / "ours")
    model, report = Blip2ForImageTextRetrieval.from_pretrained(str(tmp_path / "ours"), output_loading_info=True)
    assert not report["missing_keys"] and all(
        name.startswith(("lm_head.", "temperature")) for name in report["unexpected_keys"]
    )
    assert model.config.vision_config.image_size == 16 and model.config.num_query_tokens == 3
    check_temperature(open_blip2(str(tmp_path / "ours")))  # LAVIS' own, for `temperature: source`
    model.save_pretrained(tmp_path / "theirs")
    with pytest.raises(ArtifactError, match="holds no temperature"):
        check_temperature(open_blip2(str(tmp_path / "theirs")))


@pytest.mark.parametrize("kind", ["sprc", "ptha", "blip2"])
def test_the_authors_checkpoint_becomes_one_that_can_be_served(kind, tmp_path, words):
    state = lavis.write(tmp_path / "in.pt", kind, words=ROWS)
    manifest = run(tmp_path / "in.pt", tmp_path / "out", to="checkpoint", tokenizer=words)
    assert manifest.kind == "checkpoint" == read_manifest(tmp_path / "out").kind
    encoder, vision, transform = load_models(str(tmp_path / "out"))
    assert encoder.active_readout == "cls" and transform.config.mode == "target_pad" and transform.size == 16
    assert torch.equal(encoder.qformer.vision_norm.weight, state["ln_vision.weight"])
    assert encoder.temperature.item() == pytest.approx(state["temp"].item())
    if kind != "blip2":
        assert torch.equal(encoder.prompts, state["prompt_tokens"][0])
    assert encoder.tokenizer.convert_tokens_to_ids("[DEC]") == ROWS - 1
    assert vision.digest == manifest.extra["encoder_digest"]
    assert not (tmp_path / "out" / "work").exists()


def test_a_checkpoint_of_ours_is_written_in_the_authors_layout_and_read_again(tmp_path, words):
    state = lavis.write(tmp_path / "in.pt", "ptha", words=ROWS)
    run(tmp_path / "in.pt", tmp_path / "first", to="checkpoint", tokenizer=words)
    run(tmp_path / "first", tmp_path / "back", to="original")
    written = torch.load(tmp_path / "back" / "weights.pt", weights_only=True)["Blip2Qformer4TGIRCESIM"]
    kept = {name for name in state if not name.startswith("Qformer.cls.")}
    assert set(written) == kept and all(equal(written[name], state[name]) for name in kept)
    run(tmp_path / "back" / "weights.pt", tmp_path / "second", to="checkpoint", tokenizer=words)
    first, second = (load_models(str(tmp_path / name))[0].digest for name in ("first", "second"))
    assert first == second


def test_a_file_without_tower_or_tokenizer_says_what_to_name(tmp_path, words):
    lavis.write(tmp_path / "in.pth", "blip2", tower=False, words=ROWS)
    with pytest.raises(ArtifactError, match="has no tokenizer.*tokenizer=FOLDER"):
        run(tmp_path / "in.pth", tmp_path / "a", to="checkpoint")
    with pytest.raises(ArtifactError, match="holds no vision tower.*vision=Salesforce"):
        run(tmp_path / "in.pth", tmp_path / "b", to="checkpoint", tokenizer=words)
    lavis.write(tmp_path / "whole.pt", "sprc", words=ROWS)
    run(tmp_path / "whole.pt", tmp_path / "whole")
    run(tmp_path / "in.pth", tmp_path / "c", to="checkpoint", tokenizer=words, vision=str(tmp_path / "whole"))
    assert load_models(str(tmp_path / "c"))[1].width == 24


def test_instructblip_files_start_a_retriever(tmp_path, words):
    state = lavis.write(tmp_path / "in.pth", "instructblip-vicuna", words=ROWS)
    run(tmp_path / "in.pth", tmp_path / "ours", tokenizer=words)
    from cirray.models.config import RetrieverConfig

    retriever = retriever_from(open_blip2(str(tmp_path / "ours")), RetrieverConfig())
    assert torch.equal(retriever.qformer.query_tokens, state["query_tokens"])


def edited(tmp_path, kind="sprc", **changes):
    """A file with some tensors replaced (None: removed)."""
    state = lavis.write(tmp_path / "in.pt", kind)
    state.update({name: value for name, value in changes.items() if value is not None})
    for name in [name for name, value in changes.items() if value is None]:
        del state[name]
    torch.save({"model": state}, tmp_path / "in.pt")
    return tmp_path / "in.pt"


def test_missing_and_left_over_tensors_are_listed(tmp_path):
    gone, odd = "Qformer.bert.encoder.layer.3.output.dense.bias", "adapter.down.weight"
    path = edited(tmp_path, **{gone: None, odd: torch.zeros(2)})
    with pytest.raises(ArtifactError, match=rf"1 missing: {gone}; 1 left over: {odd}"):
        run(path, tmp_path / "ours")


def test_a_tensor_of_another_width_is_named(tmp_path):
    path = edited(tmp_path, **{"Qformer.bert.encoder.layer.1.attention.self.query.weight": torch.zeros(16, 17)})
    with pytest.raises(ArtifactError, match=r"layer.1.attention.self.query.weight'.*\(16, 17\).*\(16, 16\)"):
        run(path, tmp_path / "ours")


def test_a_position_table_of_no_square_image_is_refused(tmp_path):
    path = edited(tmp_path, **{"visual_encoder.pos_embed": torch.zeros(1, 7, 24)})
    with pytest.raises(ArtifactError, match="position table of the checkpoint has 7 places.*square"):
        run(path, tmp_path / "ours")


def test_position_ids_that_mean_something_are_refused(tmp_path):
    path = edited(tmp_path, **{"Qformer.bert.embeddings.position_ids": torch.arange(32).flip(0)[None]})
    with pytest.raises(ArtifactError, match="does not count from 0"):
        run(path, tmp_path / "ours")


def test_packed_weights_are_refused(tmp_path):
    path = edited(tmp_path, **{"text_proj.weight": torch.zeros(8, 16, dtype=torch.int8)})
    with pytest.raises(ArtifactError, match="text_proj.weight.*type int8; float64"):
        run(path, tmp_path / "ours")


def test_another_architecture_is_refused_with_the_known_ones(tmp_path):
    torch.save({"visual.conv1.weight": torch.zeros(2), "text_projection": torch.zeros(2)}, tmp_path / "clip.pt")
    with pytest.raises(ArtifactError, match="wrong architecture.*visual.conv1.weight.*sprc: vision_proj.weight"):
        run(tmp_path / "clip.pt", tmp_path / "a")
    torch.save({"state_dict": {"visual.conv1.weight": torch.zeros(2)}}, tmp_path / "nested.pt")
    with pytest.raises(ArtifactError, match="wrong architecture.*query_tokens"):
        run(tmp_path / "nested.pt", tmp_path / "b")
    lavis.write(tmp_path / "blip2.pth", "blip2")
    with pytest.raises(ArtifactError, match="are not those of ptha"):
        run(tmp_path / "blip2.pth", tmp_path / "c", format="ptha")


def test_formats_are_told_apart_by_their_tensors():
    assert {kind: find_format(lavis.model(kind).state_dict()) for kind in FORMATS} == {kind: kind for kind in FORMATS}


class Canary:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_pickle_is_refused_and_never_run(tmp_path):
    trace = tmp_path / "trace"
    torch.save({"model": {"query_tokens": torch.zeros(1, 3, 16), "x": Canary(str(trace))}}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"model": Canary(str(trace))}))
    for name in ("evil.pth", "plain.pth"):
        with pytest.raises(ArtifactError, match="holds more than weights and was not read.*state_dict"):
            run(tmp_path / name, tmp_path / "out")
        assert not trace.exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)  # the canary does sing when it is let
    assert trace.exists()


def test_a_truncated_file_is_refused(tmp_path):
    lavis.write(tmp_path / "in.pt", "sprc")
    data = (tmp_path / "in.pt").read_bytes()
    (tmp_path / "in.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(ArtifactError, match="is a truncated torch file or zip archive"):
        run(tmp_path / "in.pt", tmp_path / "out")


def test_heads_that_do_not_divide_the_width_are_refused(tmp_path):
    lavis.write(tmp_path / "in.pt", "sprc")
    with pytest.raises(ConfigError, match="qformer_heads=5 does not divide the width 16"):
        run_convert(ConvertRun(source=str(tmp_path / "in.pt"), out=str(tmp_path / "o"), qformer_heads=5))


def test_optimiser_states_beside_the_weights_are_left_out_by_name(tmp_path):
    state = lavis.write(tmp_path / "in.pt", "sprc")
    torch.save({"model": state, "optimizer": {"state": {}}, "epoch": 3}, tmp_path / "in.pt")
    assert run(tmp_path / "in.pt", tmp_path / "ours").extra["left_out"] == ["optimizer"]


def test_a_finished_conversion_is_recognised_and_nothing_at_all_is_explained(tmp_path):
    lavis.write(tmp_path / "in.pt", "sprc")
    assert run(tmp_path / "in.pt", tmp_path / "ours") == run(tmp_path / "in.pt", tmp_path / "ours")
    with pytest.raises(ArtifactError, match="converted already; use to=checkpoint or to=original"):
        run(tmp_path / "ours", tmp_path / "twice")
    with pytest.raises(ArtifactError, match="There is no checkpoint at"):
        run(tmp_path / "absent.pt", tmp_path / "x")
