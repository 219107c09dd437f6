import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from cirray.core.errors import DataError
from cirray.data.config import Fashion200kConfig, ImageNetRConfig, LascoConfig, ShoesConfig
from cirray.data.fashion200k import change, clean_caption, read_fashion200k
from cirray.data.imagenet_r import read_imagenet_r
from cirray.data.lasco import read_lasco
from cirray.data.shoes import read_shoes

MADE = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "benchmarks.py")))
published = pytest.mark.skipif(not (MADE.SHARED / "shoes").is_dir(), reason="the published files are not here")


def test_shoes_pairs_go_where_both_names_are_listed(tmp_path):
    dataset = read_shoes(ShoesConfig(root=str(MADE.write_shoes(tmp_path))))
    assert [(q.query_id, q.reference_id, q.target_ids) for q in dataset.queries] == [
        ("eval-2", "img_womens_pumps_1.jpg", ("img_womens_pumps_2.jpg",))
    ]
    assert [t.triplet_id for t in dataset.triplets] == ["shoes-train-0"] and len(dataset.gallery_ids) == 3
    text = " ".join(dataset.notes)
    assert "1 pairs left out: in neither list, e.g. 'row 3'" in text and "1 train pairs left out" in text
    assert dataset.protocol.metrics == ("recall", "mean_recall") and dataset.protocol.reference_rule == "remove"


def test_shoes_images_are_found_on_disk_or_expected_where_the_list_says(tmp_path):
    root = MADE.write_shoes(tmp_path)
    MADE.put_image(root / "attributedata/womens_boots/7/img_womens_boots_1.jpg")
    images = read_shoes(ShoesConfig(root=str(root))).images
    folder = root / "attributedata"
    assert images.path("img_womens_boots_1.jpg") == folder / "womens_boots/7/img_womens_boots_1.jpg"
    assert images.path("img_womens_pumps_2.jpg") == folder / "womens_pumps/1/img_womens_pumps_2.jpg"
    assert images.path("img_womens_boots_2.jpg") == folder / "womens_boots/0/img_womens_boots_2.jpg"


@published
def test_published_shoes_have_their_sizes_and_one_pair_that_cannot_be_hit():
    dataset = read_shoes(ShoesConfig(root=str(MADE.SHARED / "shoes")))
    assert (len(dataset.queries), len(dataset.gallery_ids), len(dataset.pool_ids)) == (1732, 4621, 10_000)
    assert len(dataset.triplets) == 8990 - 26
    assert sum(q.reference_id in q.target_ids for q in dataset.queries) == 1
    assert any("29 pairs left out" in note for note in dataset.notes)


def test_lasco_corpora_and_triplets_name_the_same_files(tmp_path):
    dataset = read_lasco(LascoConfig(root=str(MADE.write_lasco(tmp_path))))
    assert [(q.query_id, q.reference_id, q.target_ids) for q in dataset.queries] == [
        ("420", "42", ("73",)), ("740", "74", ("42",)),
    ]  # fmt: skip
    assert dataset.gallery_ids == ("42", "73", "74")
    assert dataset.images.path("42") == tmp_path / "val2014" / "COCO_val2014_000000000042.jpg"
    assert [t.triplet_id for t in dataset.triplets] == ["lasco-train-1"] and "5" in dataset.images
    assert any("2 train triplets left out" in note for note in dataset.notes)
    assert dataset.protocol.ks == (1, 5, 10, 50, 500) and dataset.protocol.reference_rule == "remove"


def test_a_lasco_id_that_stands_twice_gives_two_queries(tmp_path):
    root = MADE.write_lasco(tmp_path)
    path = root / "downloads/lasco_val.json"
    rows = MADE.json.loads(path.read_text())
    MADE.put_json(path, [*rows, {**rows[0], "query-text": "again"}])
    queries = read_lasco(LascoConfig(root=str(root))).queries
    assert [q.query_id for q in queries] == ["420", "740", "420-2"] and queries[2].modification == "again"


def test_a_lasco_image_that_is_no_pair_is_refused(tmp_path):
    root = MADE.write_lasco(tmp_path)
    path = root / "downloads/lasco_val.json"
    rows = MADE.json.loads(path.read_text())
    MADE.put_json(path, [{**rows[0], "target-image": [73]}])
    with pytest.raises(DataError, match=r"'target-image' has the value \[73\]; \[id, path\] is expected"):
        read_lasco(LascoConfig(root=str(root)))


@published
def test_the_published_lasco_corpus_is_the_gallery(tmp_path):
    root = MADE.write_lasco(tmp_path)
    corpus = MADE.SHARED / "lasco" / "downloads" / "lasco_val_corpus.json"
    (root / "downloads" / corpus.name).write_bytes(corpus.read_bytes())
    assert len(read_lasco(LascoConfig(root=str(root))).gallery_ids) == 39_826


def test_every_image_with_the_targets_caption_is_a_fashion200k_target(tmp_path):
    dataset = read_fashion200k(Fashion200kConfig(root=str(MADE.write_fashion200k(tmp_path))))
    base = "women/dresses/test"
    first, second = dataset.queries
    assert (first.reference_id, first.modification) == (f"{base}/red.jpeg", "replace red with blue")
    assert first.target_ids == (f"{base}/blue.jpeg", f"{base}/again.jpeg")
    assert second.modification == "replace blue with red" and second.target_ids == (f"{base}/red.jpeg",)
    assert "any image with the target's caption" in dataset.protocol.describe() and len(dataset.gallery_ids) == 4


def test_fashion200k_trains_on_captions_one_word_apart(tmp_path):
    root = MADE.write_fashion200k(tmp_path)
    dataset = read_fashion200k(Fashion200kConfig(root=str(root)))
    base = "women/dresses/train"
    assert {t.reference_id for t in dataset.triplets} == {f"{base}/{name}.jpeg" for name in ("red", "blue", "again")}
    assert all(dataset.captions[t.reference_id] != dataset.captions[t.target_id] for t in dataset.triplets)
    assert any("1 train images have no caption one word away" in note for note in dataset.notes)
    assert dataset == read_fashion200k(Fashion200kConfig(root=str(root)))
    assert not read_fashion200k(Fashion200kConfig(root=str(root), triplets_per_image=0)).triplets


def test_fashion200k_captions_spell_their_signs_out():
    assert clean_caption(" a.b? c & d* ") == "adotmarkbquestionmark c andmark dstarmark"
    assert change("red wool coat", "red silk coat") == "replace wool with silk"


@pytest.mark.parametrize(
    ("name", "line", "words"),
    [
        ("labels/dress_test_detect_all.txt", "women/x.jpeg only two", "path, score and caption with tabs"),
        ("test_queries.txt", "women/a.jpeg women/b.jpeg", "line 1: image 'women/a.jpeg' is in no test label file"),
        ("test_queries.txt", "women/dresses/test/red.jpeg", "source and target are expected"),
    ],
)
def test_a_wrong_fashion200k_line_is_named(tmp_path, name, line, words):
    root = MADE.write_fashion200k(tmp_path)
    MADE.put_lines(root / name, line)
    with pytest.raises(DataError, match=words):
        read_fashion200k(Fashion200kConfig(root=str(root)))


def test_domain_conversion_wants_the_same_class_in_another_domain(tmp_path):
    dataset = read_imagenet_r(ImageNetRConfig(root=str(MADE.write_imagenet_r(tmp_path / "imgnet"))))
    queries = {q.query_id: q for q in dataset.queries}
    assert set(queries) == {"cartoon-0", "toy-0", "toy-1"}
    assert queries["cartoon-0"].target_ids == ("imgnet/imagenet-r/a/cartoon_1.jpg", "imgnet/imagenet-r/a/cartoon_2.jpg")
    assert queries["toy-1"].tags == ("toy",) and queries["toy-1"].modification == "toy"
    assert dataset.images.path("imgnet/real/a/1.JPEG") == tmp_path / "imgnet/real/a/1.JPEG"
    assert dataset.protocol.metrics == ("set_recall", "precision") and len(dataset.gallery_ids) == 6
    assert any("5 queries left out" in note for note in dataset.notes)
    assert any("multiply our means by cartoon 0.5000" in note for note in dataset.notes)


def test_the_text_of_domain_conversion_is_a_field_and_is_printed(tmp_path):
    config = ImageNetRConfig(root=str(MADE.write_imagenet_r(tmp_path)), text="a {domain} of it", domain="toy")
    dataset = read_imagenet_r(config)
    assert {q.modification for q in dataset.queries} == {"a toy of it"}
    assert "'a {domain} of it'" in dataset.protocol.describe()


@pytest.mark.parametrize(
    ("line", "words"), [("imgnet/a.JPEG", "a path and a whole number"), ("a b -1", "whole number")]
)
def test_a_wrong_line_of_domain_conversion_is_named(tmp_path, line, words):
    root = MADE.write_imagenet_r(tmp_path)
    MADE.put_lines(root / "imgnet_targets.txt", line)
    with pytest.raises(DataError, match=f"line 1: .*{words}"):
        read_imagenet_r(ImageNetRConfig(root=str(root)))


@published
def test_published_domain_conversion_has_its_sizes():
    dataset = read_imagenet_r(ImageNetRConfig(root=str(MADE.SHARED / "imgnet")))
    assert len(dataset.gallery_ids) == 16_983
    assert len({q.reference_id for q in dataset.queries}) <= 10_000
    sizes = {domain: {i for q in dataset.queries if q.edit == domain for i in q.target_ids} for domain in
             ("cartoon", "origami", "toy", "sculpture")}  # fmt: skip
    assert {domain: len(ids) for domain, ids in sizes.items()} == {
        "cartoon": 3726, "origami": 550, "toy": 1511, "sculpture": 1196,
    }  # fmt: skip
