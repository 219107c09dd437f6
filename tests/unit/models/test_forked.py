"""A fork: equal vectors, a frozen target side, files that come back; evaluation, index and serving unchanged."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_artifacts import stage_of

from cirray.core.errors import ArtifactError, ConfigError, IndexMismatchError
from cirray.data.benchmark import Protocol
from cirray.evaluation.evaluate import evaluate_retriever
from cirray.image_text import load_models
from cirray.models.base import RETRIEVERS
from cirray.models.batch import RetrievalBatch, Wanted
from cirray.models.config import DualEncoderConfig
from cirray.models.dual import build_dual
from cirray.models.forked import ForkedRetriever, fork, fork_for_query_tuning
from cirray.models.retriever_files import load_retriever
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.search.index import run_index
from cirray.search_engine import SearchEngine
from cirray.serving.app import check_pair
from cirray.types import Query

SERVICE = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "tiny_service.py")))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return SERVICE.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def one_thread():
    """Equal to the bit: with more, a matrix product's sums depend on how many rows share it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tuned(retriever, seed=0):
    """The fork after some training of its query side."""
    made = fork(retriever)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in made.query.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    return made.eval()


def write_fork(uri, checkpoint, seed=0):
    """A checkpoint artifact whose retriever was forked from another's and tuned."""
    encoder, vision, _ = load_models(checkpoint)
    stage = stage_of(str(uri), "checkpoint", {"fork": seed})
    tuned(encoder, seed).save(stage.local / "model")
    (stage.local / "model" / "vision").mkdir()
    vision.save(stage.local / "model" / "vision")
    stage.publish({"steps": 1})
    return str(uri)


def batch_of(retriever, patches, texts):
    keys = torch.arange(3)
    return RetrievalBatch(patches, patches.flip(0), retriever.tokenize(texts), keys, keys + 3, torch.ones(3))


def test_a_fork_gives_the_vectors_of_what_was_forked_and_its_halves_share_nothing(make, patches, texts, one_thread):
    plain = make()
    wanted = plain(batch_of(plain, patches, texts), Wanted(references=True, text_only=True))
    made = fork_for_query_tuning(plain)
    found = made(batch_of(made, patches, texts), Wanted(references=True, text_only=True))
    for name in ("query_BD", "target_BQD", "reference_BQD", "text_query_BD"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    places = [{weight.data_ptr() for weight in half.parameters()} for half in (made.query, made.gallery)]
    assert not places[0] & places[1] and made.target_digest == plain.digest
    assert fork_for_query_tuning(made) is made
    assert not any(weight.requires_grad for weight in made.target_weights().values()) and made.target_weights()


def test_the_frozen_half_has_no_dropout_in_training(make, patches):
    from cirray.models.config import QFormerConfig

    sizes = QFormerConfig(width=16, layers=2, heads=2, queries=3, intermediate=32, dropout=0.5)
    made = fork_for_query_tuning(make(qformer=sizes)).train()
    assert torch.equal(made.encode_gallery(patches), made.encode_gallery(patches))
    assert not torch.equal(made.query.encode_gallery(patches), made.query.encode_gallery(patches))


@pytest.mark.parametrize("trains", ["query_side", "second_pass"])
def test_a_fork_comes_back_with_its_vectors_and_digests(make, patches, texts, tmp_path, trains):
    made = tuned(make()) if trains == "query_side" else fork_for_query_tuning(make(), "second_pass").eval()
    with torch.no_grad():
        made.query.text_projection.weight.add_(0.5)
    made.save(tmp_path)
    again = load_retriever(tmp_path)
    assert isinstance(again, ForkedRetriever) and again.trains == trains
    assert (again.digest, again.target_digest) == (made.digest, made.target_digest)
    text = made.tokenize(texts)
    assert torch.equal(again.compose(again.encode_reference(patches), text), made.compose(patches, text))
    assert torch.equal(again.encode_gallery(patches), made.encode_gallery(patches))


def test_a_second_pass_alone_leaves_the_prompts_as_they_were(make, patches, texts):
    plain, made = make(), fork_for_query_tuning(make(), "second_pass").eval()
    text = made.tokenize(texts)
    with torch.no_grad():
        for weight in made.query.parameters():
            weight.add_(0.2)
    assert torch.allclose(made.query.fuse(patches, text).prototype_BQW, plain.prototypes(patches, text), atol=1e-5)
    assert not torch.allclose(made.compose(patches, text), plain.compose(patches, text), atol=1e-3)
    with pytest.raises(ConfigError, match="forked to train its 'second_pass', the run asks for 'query_side'"):
        fork_for_query_tuning(made, "query_side")


def test_a_dual_encoder_is_forked_only_where_its_images_have_weights(patches):
    text = {"width": 16, "layers": 1, "heads": 2, "intermediate": 16}
    words = ["red", "blue"]
    bare = build_dual(DualEncoderConfig(embed_dim=6, text=text), words, 6)
    mapped = build_dual(DualEncoderConfig(embed_dim=8, text=text, image_projection=True), words, 6)
    assert fork_for_query_tuning(bare) is bare and bare.target_weights() == {}
    forked = fork_for_query_tuning(mapped)
    assert isinstance(forked, ForkedRetriever) and set(forked.target_weights()) == {
        "image_projection.weight", "image_projection.bias",
    }  # fmt: skip
    before = bare.target_digest, bare.digest
    with torch.no_grad():
        next(bare.text_encoder.parameters()).add_(1)
    assert bare.target_digest == before[0] and bare.digest != before[1]
    with pytest.raises(ConfigError, match="has no second pass to train alone"):
        fork_for_query_tuning(bare, "second_pass")


def test_a_fork_cannot_start_from_random_weights():
    with pytest.raises(ConfigError, match="starts from a trained checkpoint"):
        RETRIEVERS.get("forked").build({}, [], 6, 0)
    with pytest.raises(ConfigError, match="Unknown part of the query side to train 'second_pas'. Did you mean"):
        ForkedRetriever(torch.nn.Identity(), torch.nn.Identity(), "second_pas")


def test_a_new_query_encoder_searches_the_old_index_without_indexing_again(tiny, tmp_path):
    """And only one whose target side is the index's may."""
    checkpoint = write_fork(tmp_path / "fork", tiny.checkpoint)
    old, new = SearchEngine.open(tiny.checkpoint, tiny.index), SearchEngine.open(checkpoint, tiny.index)
    asked = {"text": "blue circle", "gallery_id": "plain/00", "k": 24}
    assert new.search(**asked).scores != old.search(**asked).scores
    check_pair(checkpoint, tiny.index)
    own = tmp_path / "index"
    run_index(IndexRun(checkpoint=checkpoint, images=str(tiny.images), out=str(own)))
    assert SearchEngine.open(checkpoint, str(own)).search(**asked).scores == new.search(**asked).scores
    assert SearchEngine.open(tiny.checkpoint, str(own)).search(**asked).scores == old.search(**asked).scores
    other = write_fork(tmp_path / "other", SERVICE.write_checkpoint(tmp_path / "base", seed=3))
    for refuse in (SearchEngine.open, check_pair):
        with pytest.raises(IndexMismatchError, match="vectors cannot be compared"):
            refuse(other, tiny.index)


def test_evaluation_takes_a_fork_like_any_retriever(make):
    class Features:
        def get(self, ids):
            rows = [torch.randn(5, 6, generator=torch.Generator().manual_seed(int(name))).numpy() for name in ids]
            return np.stack(rows).astype(np.float16)

        def missing(self, ids):
            return []

        def __contains__(self, name):
            return True

    queries = [Query(f"q{n}", str(n), "paint the red circle blue", (str(n + 1),)) for n in range(6)]
    ids, protocol = [str(n) for n in range(12)], Protocol("toy", ks=(1, 5))
    plain = make()
    found = [evaluate_retriever(model, Features(), queries, ids, protocol) for model in (plain, fork(plain))]
    assert found[0].metrics == found[1].metrics
    other = evaluate_retriever(tuned(make()), Features(), queries, ids, protocol)
    assert [row.ids for row in other.rankings] != [row.ids for row in found[0].rankings]


def test_a_fork_can_be_exported_as_a_model_folder(tiny, tmp_path):
    from cirray.models.opening import model_folder

    folder, kind = model_folder(Path(write_fork(tmp_path / "fork", tiny.checkpoint)))
    assert kind == "retriever" and (folder / "config.json").is_file()
    (folder / "config.json").write_text(
        (folder / "config.json").read_text().replace('"kind": "qformer"', '"kind": "forked"')
    )
    with pytest.raises(ArtifactError, match="fork of a fork"):
        load_retriever(folder)
