import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cirray.core.errors import ArtifactError, DataError, IndexMismatchError
from cirray.image_text import clean_text
from cirray.models.scoring import score
from cirray.search_engine import SearchEngine

TINY = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "fixtures" / "tiny_service.py")))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return TINY.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def retriever(tiny):
    return SearchEngine.open(tiny.checkpoint, tiny.index)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("  make\tit \n blue ", "make it blue"), ("e\u0301", "\u00e9"), ("größer 更大 👍🏽", "größer 更大 👍🏽")],
)
def test_texts_are_brought_into_one_form(given, wanted):
    assert clean_text(given) == wanted


@pytest.mark.parametrize(
    ("bad", "words"),
    [("", "empty"), ("  \n", "empty"), ("x" * 513, "513"), ("a\x07b", r"U\+0007"), ("a\ud800", r"U\+D800")],
)
def test_texts_that_cannot_be_used_are_refused_in_words(bad, words):
    with pytest.raises(DataError, match=words):
        clean_text(bad)


def test_a_text_of_the_longest_length_is_taken():
    assert len(clean_text("x" * 512)) == 512


def test_answers_are_scored_by_the_packages_one_scorer(tiny, retriever):
    query = retriever.prepare("make it blue", gallery_id="plain/06", k=24, exclude_reference=False)
    vectors = torch.from_numpy(retriever.encode([query]))
    tokens = torch.from_numpy(np.load(Path(tiny.index) / "tokens.npy").astype(np.float32))
    wanted = dict(zip(retriever.gallery.ids, score(vectors, tokens)[0].tolist(), strict=True))
    answer = retriever.search_many([query])[0]
    assert dict(zip(answer.ids, answer.scores, strict=True)) == pytest.approx(wanted, abs=1e-6)
    assert list(answer.scores) == sorted(answer.scores, reverse=True)


def test_the_text_matters_and_the_image_matters(retriever):
    rankings = [
        retriever.search(text, gallery_id=name, k=24, exclude_reference=False)
        for text, name in [("blue circle", "plain/00"), ("green star", "plain/00"), ("blue circle", "plain/02")]
    ]
    assert len({ranking.scores for ranking in rankings}) == 3


def test_a_batch_answers_as_its_queries_do_alone(retriever):
    queries = [
        retriever.prepare("blue", gallery_id="plain/00", k=3, query_id="one"),
        retriever.prepare("add a small green star", image=TINY.picture(77), k=24, query_id="two"),
        retriever.prepare("red", gallery_id="plain/02", k=5, exclude_reference=False, query_id="three"),
    ]
    together = retriever.search_many(queries)
    for query, answer in zip(queries, together, strict=True):
        alone = retriever.search_many([query])[0]
        assert (answer.query_id, answer.ids) == (alone.query_id, alone.ids)
        assert answer.scores == pytest.approx(alone.scores, abs=1e-6)
    assert [len(answer.ids) for answer in together] == [3, 24, 5]


def test_the_reference_is_excluded_by_id_only(retriever, tiny):
    data = (tiny.images / "plain" / "00.png").read_bytes()
    assert "plain/00" not in retriever.search("blue", gallery_id="plain/00", k=24).ids
    assert len(retriever.search("blue", gallery_id="plain/00", k=24).ids) == 23
    assert "plain/00" in retriever.search("blue", image=data, k=24).ids


def changed(query, **fields):
    return replace(query, terms=(replace(query.terms[0], **fields),))


def test_a_failing_query_is_a_value_and_its_neighbours_are_answered(retriever):
    good = retriever.prepare("blue", gallery_id="plain/00", k=2)
    answers = retriever.search_many([good, changed(good, gallery_id="nobody"), changed(good, text=" "), good])
    assert answers[0] == answers[3]
    assert isinstance(answers[1], DataError) and isinstance(answers[2], DataError)
    assert retriever.search_many([]) == []


def test_references_without_stored_features_go_through_their_thumbnails(tmp_path, retriever, tiny):
    lean = TINY.make(tmp_path, reference_features_gb=0.0)
    assert not (Path(lean.index) / "patches.npy").exists()
    other = SearchEngine.open(lean.checkpoint, lean.index)
    asked = {"text": "blue", "gallery_id": "plain/04", "k": 9}
    assert other.search(**asked).ids == retriever.search(**asked).ids


def test_an_index_without_pictures_and_features_says_what_is_missing(tmp_path):
    bare = TINY.make(tmp_path, reference_features_gb=0.0, thumbnail_size=0)
    other = SearchEngine.open(bare.checkpoint, bare.index)
    with pytest.raises(DataError, match="keeps neither vision features nor a picture of 'plain/04'"):
        other.search("blue", gallery_id="plain/04")
    assert other.search("blue", image=TINY.picture(1)).ids


def test_an_index_of_another_encoder_is_refused(tmp_path, tiny):
    other = TINY.write_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(IndexMismatchError, match="their vectors cannot be compared"):
        SearchEngine.open(other, tiny.index)


def test_a_missing_checkpoint_is_named(tmp_path, tiny):
    with pytest.raises(ArtifactError, match="checkpoint"):
        SearchEngine.open(str(tmp_path / "nowhere"), tiny.index)


def test_queries_need_something_to_search_by_one_reference_at_most_and_a_positive_k(retriever):
    with pytest.raises(DataError, match="nothing to search by"):
        retriever.search()
    with pytest.raises(DataError, match="both"):
        retriever.search("blue", image=b"x", gallery_id="plain/00")
    with pytest.raises(DataError, match="k is 0"):
        retriever.search("blue", gallery_id="plain/00", k=0)


def test_a_reference_that_is_asked_about_again_is_not_read_by_the_tower_again(tiny, retriever):
    keeping = SearchEngine.open(tiny.checkpoint, tiny.index, kept_references=2)
    read, tower = [], keeping.vision
    keeping.vision = lambda images: read.append(len(images)) or tower(images)
    for text, seed in (("blue", 77), ("red circle", 77), ("blue", 78), ("green", 77)):
        found, wanted = (item.search(text, image=TINY.picture(seed), k=24) for item in (keeping, retriever))
        assert found.ids == wanted.ids and found.scores == pytest.approx(wanted.scores, abs=1e-6)
    assert read == [1, 1]
    both = [keeping.prepare("blue", image=TINY.picture(seed), k=3) for seed in (79, 78, 79)]
    assert [answer.ids for answer in keeping.search_many(both)] == [
        answer.ids for answer in retriever.search_many(both)
    ] and read == [1, 1, 1]  # fmt: skip


def test_an_answer_says_what_its_steps_took(tiny, monkeypatch):
    """On a clock that only the tower (1 s), the text (2 s) and the index (3 s) move."""
    clock = [0.0]

    def slow(work, seconds):
        def run(*given):
            clock[0] += seconds
            return work(*given)

        return run

    keeping = SearchEngine.open(tiny.checkpoint, tiny.index, kept_references=2)
    keeping.vision = slow(keeping.vision, 1.0)
    monkeypatch.setattr(keeping.encoder, "compose", slow(keeping.encoder.compose, 2.0))
    monkeypatch.setattr(keeping.gallery.search_index, "search", slow(keeping.gallery.search_index.search, 3.0))
    monkeypatch.setattr(keeping, "_now", lambda: clock[0])
    first, again = (keeping.search("blue", image=TINY.picture(91)).times for _ in range(2))
    assert (first.image, first.text, first.rank) == (1000, 2000, 3000) and first.decode > 0
    assert (again.image, again.text, again.rank) == (0, 2000, 3000)
    pair = keeping.search_many([keeping.prepare("red", gallery_id=name) for name in ("plain/00", "plain/02")])
    assert pair[0].times == pair[1].times and pair[0].times.decode == 0 and pair[0].times.text == 2000


def test_references_by_id_are_kept_too_and_a_failing_one_is_not(tiny, retriever):
    keeping = SearchEngine.open(tiny.checkpoint, tiny.index, kept_references=8)
    good = retriever.prepare("blue", gallery_id="plain/00", k=2)
    asked = [good, changed(good, gallery_id="nobody"), changed(good, text="red")]
    for _ in range(2):
        found, wanted = keeping.search_many(asked), retriever.search_many(asked)
        assert isinstance(found[1], DataError)
        assert [found[at].ids for at in (0, 2)] == [wanted[at].ids for at in (0, 2)]


def test_a_retriever_whose_states_hold_the_text_keeps_none(tiny, retriever, monkeypatch):
    """The released SPN code keeps them by image and composes a row with another row's prompts."""
    monkeypatch.setattr(type(retriever.encoder), "state_depends_on_text", True)
    keeping = SearchEngine.open(tiny.checkpoint, tiny.index, kept_references=8)
    asked = {"gallery_id": "plain/00", "k": 24}
    assert [keeping.search(text, **asked) for text in ("blue", "red")] == [
        retriever.search(text, **asked) for text in ("blue", "red")
    ]
    assert keeping._states is None
