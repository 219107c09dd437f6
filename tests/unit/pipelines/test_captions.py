"""The caption stage without a cluster, and the way from captions through a generator to triplets."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
from interrupted import interrupted
from made_artifacts import stage_of
from PIL import Image

from cirray.core.artifacts import read_manifest
from cirray.core.config import validate
from cirray.core.errors import ArtifactError, ConfigError, DataError
from cirray.data.config import ShapesConfig
from cirray.data.readers import read_dataset
from cirray.data.shapes.world import write_world
from cirray.generators.captioners.config import CAPTIONERS, CaptionerConfig
from cirray.mining.pairs import pair_id
from cirray.pipelines.captions.caption import run_caption, run_caption_generator
from cirray.pipelines.captions.config import CaptionGeneratorRun, CaptionRun
from cirray.pipelines.cluster.parts import run_parts
from cirray.pipelines.texts.config import GenerateRun
from cirray.pipelines.texts.generate import run_generate
from cirray.triplets.captions import caption_table, read_captions, rejected_captions, write_captions
from cirray.triplets.store import TripletStore
from cirray.types import Pair

TINY = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "tiny_pipeline.py")))
CALLS = []


class CountedConfig(CaptionerConfig):
    """Settings of the captioner of these tests."""

    words: int = 10


class Counted:
    """Tells the name; remembers what it was asked."""

    def __init__(self, settings, setup):
        self.digest = f"counted/{settings.words}"

    def content(self, picture):
        if picture.image_id.endswith("-2"):
            raise DataError(f"Image {picture.image_id!r} is broken.")
        return picture.image_id.encode()

    def caption(self, pictures):
        CALLS.append([picture.image_id for picture in pictures])
        return [f"a picture of {picture.image_id.replace('-', ' ')}" for picture in pictures]


@pytest.fixture(scope="module", autouse=True)
def registered():
    CAPTIONERS.register("counted", settings=CountedConfig)(Counted)
    yield
    del CAPTIONERS._items["counted"], CAPTIONERS._settings["counted"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("w") / "world"
    sizes = {"labelled_families": 4, "heldout_families": 2, "pool_families": 3, "gallery_references": 0}
    write_world(ShapesConfig(**sizes), root)
    return {"folder": {"root": str(root)}}


def run_of(world, out, **fields):
    tree = {"data": world, "captioner": "counted", "part_rows": 5, "ray": {"enabled": False}}
    return validate(CaptionRun, {**tree, **fields, "out": str(out)})


def test_every_image_is_captioned_or_rejected_with_a_reason(world, tmp_path):
    manifest = run_caption(run_of(world, tmp_path / "c"))
    assert manifest.kind == "captions" and manifest.counts == {"images": 12, "captions": 9, "rejected": 3}
    rows = caption_table(str(tmp_path / "c")).to_pylist()
    assert rows[0]["caption"] == "a picture of pool 00000 0" and rows[0]["captioner"] == "counted/10"
    assert rejected_captions(str(tmp_path / "c")).column("reason").to_pylist()[0] == "Image 'pool-00000-2' is broken."
    assert len({row["key"] for row in rows}) == 9


def test_a_stopped_run_goes_on_after_its_last_finished_part(world, tmp_path):
    run = run_of(world, tmp_path / "c")
    with interrupted(Counted, "caption", CALLS, after=2):
        run_caption(run)
    run_caption(run)
    assert sorted(image for call in CALLS for image in call) == sorted(read_captions([str(tmp_path / "c")]))


def test_captions_of_a_part_that_was_stopped_are_not_asked_for_again(world, tmp_path, monkeypatch):
    monkeypatch.setattr("cirray.pipelines.cluster.answers._FIRST_PIECE", 2)
    monkeypatch.setattr("cirray.pipelines.cluster.answers.PIECE_S", 1e-9)
    fields = {"part_rows": 20, "batch": 1}
    whole = run_caption(run_of(world, tmp_path / "whole", **fields))
    with interrupted(Counted, "caption", CALLS, after=3):
        run_caption(run_of(world, tmp_path / "c", **fields))
    assert run_caption(run_of(world, tmp_path / "c", **fields)).digest == whole.digest
    assert [len(call) for call in CALLS] == [2, 1, 1, 2, 1, 1, 1] and len({i for call in CALLS for i in call}) == 9
    assert not (tmp_path / "c" / "answers").exists()


def test_captions_of_a_picture_that_was_replaced_are_not_taken_for_its_own(tmp_path):
    for name in "ab":
        Image.new("RGB", (16, 16), (9, 9, 9)).save(tmp_path / f"{name}.png")
    own = {"folder": {"root": str(tmp_path)}}
    done = run_caption(run_of(own, tmp_path.parent / "captions"))
    assert run_caption(run_of(own, tmp_path.parent / "captions")).digest == done.digest
    Image.new("RGB", (16, 16), (9, 9, 8)).save(tmp_path / "b.png")
    with pytest.raises(ArtifactError, match="different run .inputs.data"):
        run_caption(run_of(own, tmp_path.parent / "captions"))


def test_known_captions_give_no_model_call_and_identical_triplets(world, tmp_path, monkeypatch):
    sums = []
    counted = lambda *given: sums.append(run_parts(*given)) or sums[-1]  # noqa: E731
    monkeypatch.setattr("cirray.pipelines.captions.caption.run_parts", counted)
    CALLS.clear()
    run_caption(run_of(world, tmp_path / "first"))
    asked = len(CALLS)
    again = run_caption(run_of(world, tmp_path / "second", reuse=[str(tmp_path / "first")]))
    assert len(CALLS) == asked > 0 and again.extra["reused"] == 9
    assert [made["asked"] for made in sums] == [9, 0]  # parts of known captions say nothing of a captioner's pace
    assert caption_table(str(tmp_path / "second")) == caption_table(str(tmp_path / "first"))
    assert run_caption(run_of(world, tmp_path / "first")).counts and len(CALLS) == asked
    other = {"kind": "counted", "settings": {"words": 5}}
    other = run_caption(run_of(world, tmp_path / "third", reuse=[str(tmp_path / "first")], captioner=other))
    assert other.extra["reused"] == 0 and len(CALLS) > asked
    ids = list(read_dataset(validate(CaptionRun, {"data": world}).data).pool_ids)
    TINY.write_features(
        tmp_path / "features",
        {image: vector for image, vector in zip(ids, TINY.random_vectors(12).values(), strict=False)},
    )
    TINY.write_pairs_artifact(
        tmp_path / "pairs", [Pair(pair_id(a, b), a, b) for a, b in zip(ids, ids[1:], strict=False)]
    )
    tables = []
    for name in ("first", "second"):
        captions, made = str(tmp_path / name), str(tmp_path / f"{name}-generator")
        run_caption_generator(CaptionGeneratorRun(captions=(captions,), templates=("0", "1"), out=made))
        settings = {
            "pairs": str(tmp_path / "pairs"),
            "features": [str(tmp_path / "features")],
            "generator": {"kind": "caption_template", "settings": {"source": made}},
        }
        more = {"source": "spn", "weight": 0.5, "out": str(tmp_path / f"{name}-rows"), "ray": {"enabled": False}}
        manifest = run_generate(validate(GenerateRun, {**settings, **more}))
        tables.append(TripletStore.open(more["out"]).table())
        assert manifest.counts["rejected"] > 0 and "no caption" in manifest.extra["reasons"][0][0]
    assert tables[0] == tables[1] and len(tables[0]) > 0
    row = tables[0].to_pylist()[0]
    assert (
        row["weight"] == 0.5 and row["source"] == "spn" and row["prompt_version"].startswith("caption_templates/1:0+1#")
    )
    assert row["reverse_modification"] and row["modification"] != row["reverse_modification"]


def test_the_captions_of_the_data_set_are_exact_and_images_without_one_are_rejected(world, tmp_path):
    run = run_of(world, tmp_path / "c", captioner="existing", parts=["labelled"])
    manifest = run_caption(run)
    assert manifest.counts == {"images": 30, "captions": 20, "rejected": 10}
    dataset = read_dataset(run.data)
    rows = read_captions([str(tmp_path / "c")])
    assert {image: row["caption"] for image, row in rows.items()} == dict(dataset.captions)


def test_the_judge_counts_captions_that_tell_the_whole_scene(world, tmp_path, monkeypatch):
    from cirray.core.seeding import numpy_generator
    from cirray.data.shapes.grammar import caption
    from cirray.data.shapes.world import read_scenes

    scenes = read_scenes(Path(world["folder"]["root"]))

    def tells(self, pictures):
        names = [picture.image_id for picture in pictures]
        return [caption(scenes[n], numpy_generator(0, n)) if n.endswith(("-0", "-1")) else "a red star" for n in names]

    monkeypatch.setattr(Counted, "caption", tells)
    manifest = run_caption(run_of(world, tmp_path / "c", judge=world["folder"]["root"]))
    assert manifest.metrics == {"exact": pytest.approx(6 / 9), "judged": 9}


def test_one_image_with_two_captions_is_refused(tmp_path):
    row = {"captioner": "x", "key": "k", "image_id": "a"}
    for name in ("one", "two"):
        stage = stage_of(str(tmp_path / name), "captions", {})
        write_captions(stage.work_uri, "part-00000", [{**row, "caption": f"caption {name}"}])
        stage.publish({})
    with pytest.raises(DataError, match="'a' has two captions, 'caption one' and 'caption two'"):
        run_caption_generator(
            CaptionGeneratorRun(captions=(str(tmp_path / "one"), str(tmp_path / "two")), out=str(tmp_path / "g"))
        )


def test_what_cannot_be_captioned_is_refused_before_anything_is_written(world, tmp_path):
    for fields, error, words in (
        ({"captioner": "counter"}, ConfigError, "Unknown captioner 'counter'. Did you mean 'counted'"),
        ({"captioner": {"kind": "hf", "settings": {"source": "x", "prompt": "caption/7"}}}, ConfigError,
         "Unknown caption prompt"),
        ({"captioner": "hf"}, ConfigError, "captioner.settings.source"),
        ({"captioner": {"kind": "cells", "settings": {"features": []}}}, ConfigError, "captioner.settings.features"),
        ({"parts": ["gallery"]}, DataError, "No image in the parts gallery"),
        ({"captioner": {"kind": "small", "settings": {"source": "nowhere"}}}, ArtifactError, "'nowhere' does not"),
    ):  # fmt: skip
        with pytest.raises(error, match=words):
            run_caption(run_of(world, tmp_path / "c", **fields))
    assert list(tmp_path.iterdir()) == []


def test_a_generator_of_captions_counts_what_it_holds(world, tmp_path):
    run_caption(run_of(world, tmp_path / "c"))
    run = CaptionGeneratorRun(captions=(str(tmp_path / "c"),), templates=("2",), out=str(tmp_path / "g"))
    manifest = run_caption_generator(run)
    assert manifest.counts == {"captions": 9, "templates": 1} and run_caption_generator(run) == manifest
    assert read_manifest(tmp_path / "g", "generator").extra["prompt_version"] == "caption_templates/1"
