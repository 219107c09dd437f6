import json
import os
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from cirr_layout import write_cirr
from PIL import Image

from cirray.core.errors import DataError
from cirray.data.benchmark import Protocol
from cirray.data.config import FolderConfig
from cirray.data.folder import read_folder
from jobs.data.nlvr import Change, Item, cell_words, difference, meanings, read_boxes, split_boxes, write_nlvr

ROOT = Path(__file__).resolve().parents[3]
SHARED = ROOT.parent / "shared" / "data"
VAL_KEYS = {"pairid", "reference", "target_hard", "target_soft", "caption", "img_set"}
SET_KEYS = {"id", "members", "reference_rank", "target_rank"}


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def cirr(world, tmp_path_factory):
    dataset = read_folder(FolderConfig(root=str(world)))
    out = tmp_path_factory.mktemp("cirr") / "c"
    return dataset, out, write_cirr(dataset, out)["counts"]


def test_cirr_records_hold_what_the_data_set_holds(cirr):
    dataset, out, counts = cirr
    assert counts == {"train_images": 60, "train_queries": 48, "val_images": 45, "val_queries": 40}
    for split, expected in (
        ("train", [(t.reference_id, t.target_id, t.modification) for t in dataset.split("train")]),
        ("val", [(q.reference_id, q.target_ids[0], q.modification) for q in dataset.queries]),
    ):
        records = load(out / "cirr" / "captions" / f"cap.rc2.{split}.json")
        assert [(r["reference"], r["target_hard"], r["caption"]) for r in records] == expected
        pairids = [record["pairid"] for record in records]
        assert len(set(pairids)) == len(pairids) and pairids != list(range(pairids[0], pairids[0] + len(pairids)))


def test_cirr_subsets_hold_six_images_with_reference_and_target(cirr):
    _, out, _ = cirr
    for split in ("train", "val"):
        names = load(out / "cirr" / "image_splits" / f"split.rc2.{split}.json")
        for record in load(out / "cirr" / "captions" / f"cap.rc2.{split}.json"):
            img_set = record["img_set"]
            members = img_set["members"]
            assert len(set(members)) == 6 and set(members) <= set(names)
            assert members[img_set["reference_rank"]] == record["reference"]
            assert members[img_set["target_rank"]] == record["target_hard"]
            assert record["target_soft"] == {record["target_hard"]: 1.0}
            assert set(record) == VAL_KEYS and set(img_set) == SET_KEYS


def test_cirr_images_lie_where_the_split_file_says(cirr):
    dataset, out, _ = cirr
    for split, folder in (("train", "./train/"), ("val", "./dev/")):
        for name, path in load(out / "cirr" / "image_splits" / f"split.rc2.{split}.json").items():
            assert path.startswith(folder) and path.endswith(f"/{name}.png")
            assert path.count("/") == (3 if split == "train" else 2)
            assert (out / path).read_bytes() == dataset.images.path(name).read_bytes()


def test_a_data_set_too_small_for_subsets_is_refused(tmp_path):
    for number in range(3):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{number}.png")
    (tmp_path / "triplets.jsonl").write_text('{"reference": "0", "target": "1", "modification": "x"}\n')
    with pytest.raises(DataError, match="at least 6 images in split 'train'"):
        write_cirr(read_folder(FolderConfig(root=str(tmp_path))), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_crops_and_pictures_inside_shards_cannot_be_copied_into_the_layout(world, tmp_path):
    from dataclasses import replace

    dataset = read_folder(FolderConfig(root=str(world)))
    images = replace(dataset.images, boxes={name: (0.0, 0.0, 5.0, 5.0) for name in dataset.images})
    with pytest.raises(DataError, match="whole image files only"):
        write_cirr(replace(dataset, images=images), tmp_path / "out")


@pytest.mark.skipif(not (SHARED / "cirr").is_dir(), reason="the published CIRR files are not here")
def test_our_cirr_files_have_the_schema_of_the_published_ones(cirr):
    def schema(value):
        if isinstance(value, dict):
            return {key: schema(item) for key, item in value.items()}
        return [schema(value[0])] if isinstance(value, list) else type(value)

    published = load(SHARED / "cirr" / "captions" / "cap.rc2.val.json")[0]
    ours = load(cirr[1] / "cirr" / "captions" / "cap.rc2.val.json")[0]
    for record in (published, ours):
        record["target_soft"] = {type(key).__name__: value for key, value in record["target_soft"].items()}
    assert schema(ours) == schema(published) and list(ours) == list(published)
    paths = load(SHARED / "cirr" / "image_splits" / "split.rc2.val.json")
    assert all(path.startswith("./dev/") for path in paths.values())


def nlvr_box(*objects):
    return [dict(zip(("size", "color", "type", "x_loc", "y_loc"), item, strict=True)) for item in objects]


@pytest.fixture
def nlvr_root(tmp_path):
    """24 pictures of three scenes: a blue square, alone or with one more object, at changing places."""
    rng, lines = np.random.default_rng(0), []
    for number in range(24):
        x, kind = number * 3 % 70, ("circle", "square", "triangle")[number % 3]
        boxes = [
            nlvr_box((20, "#0099ff", "square", x, 40)),
            nlvr_box((20, "#0099ff", "square", x, 40), (10, "Yellow", kind, 5, 5)),
            nlvr_box((30, ("Black", "Yellow")[number % 2], kind, x, 10), (10, "#0099ff", kind, 85, 85)),
        ]
        lines.append(json.dumps({"identifier": f"{number}-0", "directory": "1", "structured_rep": boxes}))
        path = tmp_path / "nlvr" / "dev" / "images" / "1" / f"dev-{number}-0-0.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (100, 400, 4), dtype=np.uint8)
        pixels[..., 3] = 255
        Image.fromarray(pixels).save(path)
    (tmp_path / "nlvr" / "dev" / "dev.json").write_text("\n".join(lines) + "\n")
    return tmp_path


BLUE = Item("small", "blue", "square")


def test_nlvr_scenes_differ_in_exactly_one_thing_or_not_at_all():
    other = Item("large", "black", "circle")
    assert difference([BLUE], [BLUE, other]) == Change("add", other)
    assert difference([BLUE, other], [other]) == Change("remove", BLUE)
    assert difference([BLUE, other], [BLUE._replace(colour="black"), other]) == Change("recolour", BLUE, "black")
    assert difference([BLUE], [BLUE._replace(size="large")]) == Change("resize", BLUE, "large")
    assert difference([BLUE], [BLUE._replace(shape="circle")]) == Change("reshape", BLUE, "circle")
    assert difference([BLUE], [BLUE]) is None and difference([BLUE], [other]) is None
    assert difference([BLUE, BLUE], [BLUE, other, other]) is None


def test_nlvr_becomes_a_data_set_that_the_folder_reader_takes(nlvr_root, tmp_path):
    counts = write_nlvr(nlvr_root, tmp_path / "out", seed=1)["counts"]
    dataset = read_folder(FolderConfig(root=str(tmp_path / "out")))
    assert dataset.name == "nlvr" and len(dataset.images) == counts["images"] == len(set(dataset.images.ids))
    contents = {
        json.loads(line)["image"]: json.loads(line)["objects"] for line in (tmp_path / "out" / "objects.jsonl").open()
    }
    assert set(contents) == set(dataset.images.ids) and len({json.dumps(v) for v in contents.values()}) == len(contents)
    items = {name: sorted(Item(*entry[:3]) for entry in objects) for name, objects in contents.items()}
    pairs = [(t.reference_id, t.target_id, t.edit) for t in dataset.triplets]
    said = meanings()
    assert all(said[t.modification] == difference(items[t.reference_id], items[t.target_id]) for t in dataset.triplets)
    pairs += [(q.reference_id, target, q.edit) for q in dataset.queries for target in q.target_ids]
    assert pairs and all(difference(items[a], items[b]).kind == edit for a, b, edit in pairs)
    assert dataset.images.path(dataset.gallery_ids[0]).is_file()
    assert all(Image.open(dataset.images.path(name)).size == (100, 100) for name in dataset.images)


def test_nlvr_parts_share_no_scene_even_if_moved(nlvr_root):
    boxes = read_boxes(nlvr_root / "nlvr" / "dev" / "dev.json")
    parts = split_boxes(boxes, seed=0)
    contents = {name: {box.content for box in members} for name, members in parts.items()}
    assert sum(len(found) for found in contents.values()) == len({box.content for box in boxes})
    assert Counter(box.name for members in parts.values() for box in members) == Counter(box.name for box in boxes)


def test_nlvr_scenes_are_cut_at_their_place(nlvr_root, tmp_path):
    write_nlvr(nlvr_root, tmp_path / "out")
    picture = np.asarray(Image.open(nlvr_root / "nlvr/dev/images/1/dev-3-0-0.png").convert("RGB"))
    cut = next((tmp_path / "out").rglob("dev-3-0-0-box1.png"))
    assert np.array_equal(np.asarray(Image.open(cut)), picture[:, 150:250])


def test_nlvr_captions_say_places(nlvr_root, tmp_path):
    write_nlvr(nlvr_root, tmp_path / "out")
    captions = read_folder(FolderConfig(root=str(tmp_path / "out"))).captions
    assert captions and all("small yellow" not in text or "in the top left" in text for text in captions.values())


def test_a_caption_of_nlvr_is_the_words_of_nine_cells():
    cells = cell_words("a small blue square in the top left and a large black circle in the top left")
    assert cells[0] == ("small", "blue", "square", "large", "black", "circle", "top", "left")
    assert cells[8] == ("empty", "bottom", "right") and len(cells) == 9


def test_nlvr_files_that_are_not_as_published_are_refused(nlvr_root, tmp_path):
    with pytest.raises(DataError, match=r"no dev/dev\.json"):
        write_nlvr(tmp_path / "nowhere", tmp_path / "out")
    path = nlvr_root / "nlvr" / "dev" / "dev.json"
    path.write_text(path.read_text().replace("#0099ff", "pink", 1))
    with pytest.raises(DataError, match=r"dev\.json', line 1: not an NLVR record"):
        write_nlvr(nlvr_root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_nlvr_job_says_its_counts_and_answers_bad_input_with_one_sentence(nlvr_root, tmp_path):
    def job(*arguments):
        command = [sys.executable, "jobs/data/nlvr.py", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "."})

    done = job(f"root={nlvr_root}", f"out={tmp_path / 'out'}")
    assert done.returncode == 0 and "triplets" in done.stdout
    failed = job(f"root={tmp_path / 'out'}", f"out={tmp_path / 'b'}")
    assert failed.returncode == 2 and "dev/dev.json" in failed.stderr and "Traceback" not in failed.stderr


def test_a_protocol_describes_itself_in_one_line():
    line = Protocol("shapes", reference_rule="keep", ks=(1, 5)).describe()
    assert line == "shapes/test: all gallery images; own reference kept; any target is a hit; recall at 1, 5"


def test_texts_of_nlvr_pairs_are_judged_by_what_they_mean(nlvr_root, tmp_path):
    write_nlvr(nlvr_root, tmp_path / "out")
    bench = runpy.run_path(str(Path(__file__).parents[3] / "jobs" / "benchmarks" / "bench_comparison.py"))
    lines = [json.loads(line) for line in (tmp_path / "out" / "triplets.jsonl").open()]
    rows = [{**row, "generated": row["modification"].upper(), "reverse": row["modification"]} for row in lines]
    rows += [{**row, "generated": None, "reverse": "make it so"} for row in rows]
    judged = bench["judge_nlvr"](tmp_path / "out", rows)
    assert judged == {"forward": {"exact": 0.5, "parses": 0.5}, "reverse": {"exact": 0.0, "parses": 0.5}}
