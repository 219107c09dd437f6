import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from cirray.core.errors import DataError
from cirray.data.config import DataConfig, GeneCisConfig, ImageLimits
from cirray.data.genecis import TASKS, read_genecis
from cirray.data.images import crop_to_box, open_image, open_place
from cirray.data.places import Place

MADE = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "benchmarks.py")))
published = pytest.mark.skipif(not (MADE.SHARED / "genecis").is_dir(), reason="the published files are not here")


def read(root, **fields):
    return read_genecis(GeneCisConfig(root=str(root), **fields))


def ramp(width, height):
    """Red is x, green is y: a pixel tells where it was."""
    y_HW, x_HW = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x_HW, y_HW, np.full_like(x_HW, 255)], axis=-1).astype(np.uint8))


def test_candidates_are_the_target_and_the_gallery(tmp_path):
    dataset = read(MADE.write_genecis(tmp_path))
    query = next(q for q in dataset.queries if q.edit == "focus_object")
    assert (query.reference_id, query.target_ids, query.modification) == ("7", ("8",), "wall")
    assert dataset.galleries[query.gallery] == ("8", *(str(100 + number) for number in range(14)))
    assert {q.tags for q in dataset.queries} == {(task,) for task in TASKS} and len(dataset.queries) == 4
    assert dataset.images.path("8").name == "000000000008.jpg" and not dataset.images.place("8").box


def test_every_crop_is_an_image_of_its_own(tmp_path):
    dataset = read(MADE.write_genecis(tmp_path), task="focus_attribute")
    assert dataset.queries[0].target_ids == ("55@1,2,4,6.5",) and dataset.queries[0].reference_id == "55@0,2,4,6.5"
    assert len(dataset.images) == 9 and len(set(dataset.images.paths.values())) == 2
    place = dataset.images.place("60@-0.5,0,10,5")
    assert place == Place(str(tmp_path / "VG_100K_all" / "60.jpg"), box=(-0.5, 0.0, 10.0, 5.0))


def test_published_oddities_stay_and_are_noted(tmp_path):
    dataset = read(MADE.write_genecis(tmp_path), task="focus_attribute")
    assert len(dataset.galleries["focus_attribute-0"]) == 10
    text = " ".join(dataset.notes)
    assert "1 templates have their target in the gallery" in text and "1 templates have their reference" in text
    assert "1 crops have a box with a negative corner" in text and "another number" not in text


def test_the_protocol_keeps_references_and_names_task_and_candidates(tmp_path):
    protocol = read(MADE.write_genecis(tmp_path), task="change_object").protocol
    assert (protocol.reference_rule, protocol.metrics, protocol.ks) == ("keep", ("task_recall",), (1, 2, 3))
    assert "change_object 15 candidates" in protocol.describe()


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ({"image_id": "1", "instance_bbox": [1, 2, 3]}, "is not x, y, width, height"),
        ({"image_id": "1", "instance_bbox": [1, 2, 0, 4]}, "is empty"),
        ({"image_id": "1", "instance_bbox": [1, 2, "3", 4]}, "which is not a number"),
        ({"image": 5}, "key 'image_id' is missing"),
        (5, "gallery image 1 is 5, which is not an object"),
    ],
)
def test_a_wrong_image_is_named(tmp_path, image, words):
    root = MADE.write_genecis(tmp_path)
    rows = MADE.json.loads((root / "genecis/focus_attribute.json").read_text())
    rows[0]["gallery"][1] = image
    MADE.put_json(root / "genecis/focus_attribute.json", rows)
    with pytest.raises(DataError, match=words):
        read(root)


@pytest.mark.parametrize(
    ("box", "left", "top", "right", "bottom"),
    [
        ((40, 30, 10, 20), 33, 16, 50, 50),
        ((2, 30, 20, 20), 0, 16, 34, 50),
        ((90, 70, 20, 20), 76, 56, 100, 80),
        ((-3, -2, 10, 10), 0, 0, 17, 17),
    ],
)
def test_a_box_is_cut_by_the_official_rule(box, left, top, right, bottom):
    """Unclamped it grows left and up by 0.7 of its sides and ends where it ended: 50 = 33 + 1.7 x 10."""
    crop = np.asarray(crop_to_box(ramp(100, 80), box)).astype(int)
    side = max(right - left, bottom - top)
    assert crop.shape == (side, side, 3)
    across, down = (side - (right - left)) // 2, (side - (bottom - top)) // 2
    assert crop[down, across].tolist() == [left, top, 255]
    assert crop[down + bottom - top - 1, across + right - left - 1].tolist() == [right - 1, bottom - 1, 255]
    assert int((crop[..., 2] == 0).sum()) == side * side - (right - left) * (bottom - top)


def test_a_crop_is_that_of_the_stored_pixels_without_turning_or_shrinking(tmp_path):
    image = ramp(200, 160)
    exif = Image.Exif()
    exif[274] = 6
    image.save(tmp_path / "a.png", exif=exif)
    box = (40.0, 30.0, 10.0, 20.0)
    opened = open_place(Place(str(tmp_path / "a.png"), box=box), ImageLimits(draft_side=16))
    assert np.array_equal(np.asarray(opened), np.asarray(crop_to_box(image, box)))
    assert open_image(tmp_path / "a.png").size == (160, 200)


def test_a_box_outside_its_image_is_an_error_that_names_both(tmp_path):
    ramp(50, 40).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="'crop-7'.*lies outside its 50 x 40 pixels"):
        open_place(Place(str(tmp_path / "a.png"), box=(90.0, 0.0, 10.0, 10.0)), name="crop-7")


def test_crops_travel_through_the_embedding_pipeline(tmp_path):
    from cirray.data.config import TransformConfig
    from cirray.pipelines.data.datasets import list_images
    from cirray.pipelines.features.actors import decode_images
    from cirray.transforms import build_transform

    root = MADE.write_genecis(tmp_path)
    (root / "VG_100K_all").mkdir()
    ramp(100, 80).save(root / "VG_100K_all" / "55.jpg", quality=100, subsampling=0)
    data = DataConfig(format="genecis", genecis=GeneCisConfig(root=str(root), task="focus_attribute"))
    images = list_images(data, ("gallery",))
    columns = decode_images({"image_id": images.ids, "place": images.places}, {"size": 16}, {})
    errors = dict(zip(columns["image_id"], columns["error"], strict=True))
    assert [name for name, error in errors.items() if error] == ["60@-0.5,0,10,5"]
    row = list(columns["image_id"]).index("55@4,2,4,6.5")
    whole = open_image(root / "VG_100K_all" / "55.jpg")
    expected = build_transform(TransformConfig(size=16))(crop_to_box(whole, (4.0, 2.0, 4.0, 6.5)))
    assert np.array_equal(columns["pixels"][row], expected)
    assert not np.array_equal(columns["pixels"][row], build_transform(TransformConfig(size=16))(whole))


@published
def test_the_published_files_have_their_sizes_and_their_quirks():
    dataset = read(MADE.SHARED / "genecis")
    by_task = {task: [q for q in dataset.queries if q.edit == task] for task in TASKS}
    assert {task: len(rows) for task, rows in by_task.items()} == {
        "focus_attribute": 2000, "change_attribute": 2112, "focus_object": 1960, "change_object": 1960,
    }  # fmt: skip
    assert all(len(dataset.galleries[q.gallery]) == TASKS[q.edit] + 1 for q in dataset.queries)
    repeated = [q.query_id for q in dataset.queries if q.target_ids[0] in dataset.galleries[q.gallery][1:]]
    assert repeated == ["focus_attribute-14", "change_object-19"]
    inside = [q.edit for q in dataset.queries if q.reference_id in dataset.galleries[q.gallery]]
    assert inside == ["change_attribute"] * 79
    assert len(dataset.images.boxes) + len({q.reference_id for q in by_task["focus_object"]}) < len(dataset.images)
