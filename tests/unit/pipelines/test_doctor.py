"""The doctor: every planted fault is found and named, clean data sets are clean, exit statuses are for scripts."""

import json
import os
import runpy
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from PIL import Image

from cirray.cli.main import main
from cirray.core.artifacts import read_manifest
from cirray.core.errors import ArtifactError, ConfigError, DataError
from cirray.data.config import DataConfig, FolderConfig, ImageLimits
from cirray.data.doctor import check_image
from cirray.data.places import Place
from cirray.pipelines.cluster.config import RayConfig
from cirray.pipelines.data import doctor
from cirray.pipelines.data.config import DoctorRun
from cirray.pipelines.data.doctor import run_doctor

MADE = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "benchmarks.py")))
published = pytest.mark.skipif(not (MADE.SHARED / "cirr").is_dir(), reason="the published files are not here")
SIZES = ("query_count", "gallery_size")


@pytest.fixture
def cirr(tmp_path):
    root = MADE.write_cirr(tmp_path / "cirr")
    for split in ("train", "val", "test1"):
        folder = {"train": "train/34", "val": "dev"}.get(split, split)
        MADE.put_images(root / folder / f"{name}.png" for name in MADE.cirr_names(split))
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        Image.new("RGB", (20, 20 + number)).save(path)
    return root


def run(root, **fields):
    settings = {
        "folder": str(root),
        "dataset": "cirr",
        "accept": SIZES,
        "ray": RayConfig(enabled=False),
        "shard_rows": 4,
    }
    return run_doctor(DoctorRun(**{**settings, **fields}))


def problems(report):
    return {f.code: f.items for f in report.findings if f.level == "problem"}


def test_a_whole_data_set_is_clean_but_for_its_small_size(cirr):
    report = run(cirr)
    assert problems(report) == {} and report.exit_status == 0 and report.text().endswith("clean")
    assert [(g.name, g.listed, g.usable, g.official) for g in report.galleries] == [
        ("train", 6, 6, 16_939), ("val", 6, 6, 2_297), ("test1", 6, 6, 2_315),
    ]  # fmt: skip
    assert set(problems(run(cirr, accept=()))) == set(SIZES)


def test_every_planted_fault_of_images_is_found_and_named(cirr):
    dev = cirr / "dev"
    names = MADE.cirr_names("val")
    (dev / f"{names[0]}.png").unlink()
    (dev / f"{names[1]}.png").write_bytes(b"")
    (dev / f"{names[2]}.png").write_bytes(b"<html>404 not found</html>")
    whole = dev / f"{names[3]}.png"
    big = Image.effect_noise((200, 200), 40).convert("RGB")
    big.save(whole)
    whole.write_bytes(whole.read_bytes()[:20_000])
    big.save(dev / f"{names[4]}.png", "JPEG")
    (dev / f"{names[5]}.png").write_bytes((cirr / "test1" / "test1-0-0-img0.png").read_bytes())
    Image.new("RGB", (4000, 10)).save(cirr / "test1" / "test1-1-0-img1.png")
    found = problems(run(cirr))
    assert found == {
        "missing": (names[0],), "empty": (names[1],), "undecodable": (names[2],), "truncated": (names[3],),
        "wrong_extension": (names[4],), "limits": ("test1-1-0-img1",),
        "duplicate": (f"{names[5]}=test1-0-0-img0",),
    }  # fmt: skip
    report = run(cirr)
    assert report.exit_status == 1 and [g.usable for g in report.galleries] == [6, 2, 5]
    assert run(cirr, accept=(*SIZES, *found)).exit_status == 0


def test_a_truncated_jpeg_is_seen_although_it_is_decoded_small(tmp_path):
    Image.effect_noise((400, 400), 60).convert("RGB").save(tmp_path / "a.jpg")
    assert check_image(Place(str(tmp_path / "a.jpg")), ImageLimits()).code == ""
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) * 9 // 10])
    assert check_image(Place(str(tmp_path / "a.jpg")), ImageLimits()).code == "truncated"


def test_a_part_of_a_file_is_checked_as_that_part(tmp_path):
    MADE.put_image(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "shard.tar").write_bytes(b"x" * 100 + data + b"y" * 50)
    good = check_image(Place(str(tmp_path / "shard.tar"), (100, len(data))), ImageLimits())
    assert good == check_image(Place(str(tmp_path / "a.png")), ImageLimits()) and good.width == 24
    assert check_image(Place(str(tmp_path / "shard.tar"), (90, len(data))), ImageLimits()).code == "undecodable"


def test_annotations_that_name_no_image_or_have_new_blank_texts_are_problems(cirr):
    path = cirr / "cirr/captions/cap.rc2.val.json"
    rows = json.loads(path.read_text())
    rows[0]["target_hard"], rows[1]["caption"] = "dev-77-0-img0", "  "
    rows[2]["target_hard"] = rows[2]["reference"]
    MADE.put_json(path, rows)
    found = problems(run(cirr, decode=False))
    assert found["absent_ids"] == ("dev-77-0-img0",) and found["outside_gallery"] == ("12",)
    assert found["blank"] == ("40",) and found["same_image"] == ("41",)


def test_known_oddities_are_notes_and_do_not_count(cirr):
    notes = {f.code: f for f in run(cirr).findings if f.level == "note"}
    assert "as published" in notes["blank"].words and notes["blank"].items == ("41",)
    assert {"double_space", "non_ascii", "soft"} <= set(notes)


def test_a_missing_split_is_a_note_and_a_requested_one_a_problem(cirr):
    (cirr / "cirr/captions/cap.rc2.test1.json").unlink()
    assert run(cirr).exit_status == 0 and any(f.code == "absent_split" for f in run(cirr).findings)
    assert "annotations" in problems(run(cirr, splits=("val", "test1")))
    with pytest.raises(ConfigError, match="Unknown split 'dev'"):
        run(cirr, splits=("dev",))


def test_annotations_that_cannot_be_read_are_a_problem_of_their_split(cirr):
    (cirr / "cirr/captions/cap.rc2.test1.json").write_text("[")
    report = run(cirr)
    assert any("test1" in f.words and "not a JSON file" in f.words for f in report.findings if f.code == "annotations")
    assert [gallery.name for gallery in report.galleries] == ["train", "val"]


def test_crops_of_one_file_are_read_once_and_a_box_outside_is_found(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(doctor, "check_image", lambda place, limits: seen.append(place) or check_image(place, limits))
    root = MADE.write_genecis(tmp_path)
    MADE.put_image(root / "VG_100K_all" / "55.jpg", size=(5, 50))
    MADE.put_image(root / "VG_100K_all" / "60.jpg", size=(50, 50))
    fields = {"dataset": "genecis", "splits": ("focus_attribute",), "limits": ImageLimits(min_side=2)}
    found = problems(run(root, **fields))
    assert found == {"box_outside": ("55@8,2,4,6.5",)} and len(seen) == 2
    MADE.put_image(root / "VG_100K_all" / "55.jpg", size=(40, 50))
    assert problems(run(root, **fields)) == {}


def test_the_artifact_holds_a_hash_for_every_image(cirr, tmp_path):
    report = run(cirr, out=str(tmp_path / "out"))
    rows = pq.read_table(tmp_path / "out" / "images.parquet").to_pylist()
    assert len(rows) == 18 and all(len(row["digest"]) == 32 and row["format"] == "PNG" for row in rows)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["digest"] == report.digest
    assert read_manifest(tmp_path / "out", "doctor").counts["problems"] == 0
    path = cirr / "dev" / "dev-0-0-img0.png"
    Image.new("RGB", (33, 33)).save(path)
    assert run(cirr).digest != report.digest


def test_a_folder_of_own_images_can_be_checked_too(tmp_path):
    MADE.put_images(tmp_path / f"{name}.png" for name in "abc")
    (tmp_path / "b.png").write_bytes(b"no")
    data = DataConfig(folder=FolderConfig(root=str(tmp_path)))
    report = run("", dataset="", data=data)
    assert problems(report) == {"undecodable": ("b",)} and report.counts["images"] == 3


def test_no_file_of_a_folder_is_skipped_silently(tmp_path):
    MADE.put_images(tmp_path / name for name in ("a.jpe.png", "ok.png"))
    (tmp_path / "ok.png").rename(tmp_path / "no-suffix")
    with open(os.path.join(os.fsencode(tmp_path), b"caf\xe9.HEIC"), "wb") as stream:
        stream.write(b"no picture")
    (tmp_path / "line\nbreak.jxl").write_bytes(b"nor this")
    (tmp_path / "gone.tif").symlink_to("nowhere")
    (tmp_path / "notes.txt").write_text("hello")
    os.mkfifo(tmp_path / "pipe.jpg")
    report = run("", dataset="", data=DataConfig(folder=FolderConfig(root=str(tmp_path))), out=str(tmp_path / "out"))
    assert problems(report) == {
        "undecodable": ("caf%E9", "line\nbreak"), "missing": ("gone",), "unreadable": ("pipe",),
    }  # fmt: skip
    assert report.counts["images"] == 6 and "'notes.txt'" in report.text() and "line\\nbreak" in report.text()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["clean"] is False


def test_one_category_of_fashioniq_is_compared_with_its_own_size(tmp_path):
    root = MADE.write_fashioniq(tmp_path)
    report = run(root, dataset="fashioniq", decode=False, accept=(), data={"fashioniq": {"category": "dress"}})
    assert {g.name: g.official for g in report.galleries}["val/dress/dress"] == 3817
    assert any("2,017 are published" in f.words for f in report.findings)


def test_the_command_line_takes_a_root_a_data_set_and_json(cirr, capsys):
    words = ["doctor", str(cirr), "--dataset", "cirr", "ray.enabled=false", "accept=[query_count,gallery_size]"]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["clean"] is True
    (cirr / "dev" / "dev-0-0-img0.png").unlink()
    assert main(words) == 1
    assert "problem: 1 images are missing on disk, e.g. dev-0-0-img0  [missing]" in capsys.readouterr().out
    assert main(["doctor", str(cirr / "nowhere"), "--dataset", "cirr", "ray.enabled=false"]) == 2
    assert main(["doctor", str(cirr), "--dataset", "cir", "ray.enabled=false"]) == 2
    assert main([*words[:-1], "accept=[typo]"]) == 2


def test_few_images_are_checked_without_a_cluster(cirr, monkeypatch):
    asked = []
    real = doctor.each_part
    monkeypatch.setattr(
        doctor, "each_part", lambda parts, ray: asked.append(ray.enabled) or real(parts, RayConfig(enabled=False))
    )
    run(cirr, ray=RayConfig())
    run(cirr, ray=RayConfig(), ray_from=18)
    assert asked == [False, True]


def test_nothing_that_can_be_read_is_an_error(tmp_path):
    with pytest.raises(DataError, match="There is no file"):
        run(tmp_path)


@published
@pytest.mark.parametrize(
    ("dataset", "folder", "notes"),
    [("cirr", ".", {"blank", "soft"}), ("fashioniq", "fashioniq", {"blank"}), ("genecis", "genecis", {"reader"}),
     ("shoes", "shoes", {"same_image"}), ("imagenet_r", "imgnet", {"reader"})],
)  # fmt: skip
def test_the_published_annotations_are_clean_and_their_quirks_told(dataset, folder, notes):
    report = run(MADE.SHARED / folder, dataset=dataset, decode=False, accept=())
    assert problems(report) == {} and notes <= {f.code for f in report.findings}


@published
def test_without_the_image_list_circo_has_a_problem_and_only_that():
    assert set(problems(run(MADE.SHARED / "circo", dataset="circo", decode=False, accept=()))) == {"gallery_size"}


def test_half_a_surrogate_pair_in_a_text_is_a_problem_and_reads_on(cirr):
    file = cirr / "cirr/captions/cap.rc2.val.json"
    file.write_text(file.read_text(encoding="utf-8").replace("make it blue", "make it blue \\ud83d"), encoding="utf-8")
    found = problems(run(cirr))
    assert list(found) == ["broken_text"] and "41" in found["broken_text"]


def test_a_taken_place_is_told_before_any_image_is_read(cirr, tmp_path, monkeypatch):
    run(cirr, out=str(tmp_path / "seen"))
    monkeypatch.setattr(doctor, "each_part", lambda *args: pytest.fail("images were read first"))
    with pytest.raises(ArtifactError, match=r"made by a different run \(accept"):
        run(cirr, out=str(tmp_path / "seen"), accept=("duplicate",))
