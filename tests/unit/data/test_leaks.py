import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from cirray.core.errors import DataError
from cirray.data.benchmark import CirDataset, ImageTable, Protocol
from cirray.data.circo import read_circo
from cirray.data.cirr import read_cirr
from cirray.data.config import CircoConfig, CirrConfig, FashionIQConfig
from cirray.data.fashioniq import read_fashioniq
from cirray.data.leaks import find_leaks, image_key, refuse_leaks
from cirray.types import Query

MADE = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "benchmarks.py")))


@pytest.mark.parametrize(
    ("image_id", "key"),
    [
        ("2366050@264,295,236.5,52", "2366050"),
        ("000000189213", "189213"),
        ("271520", "271520"),
        ("pool/COCO_val2014_000000000042.jpg", "42"),
        ("dev-244-0-img0.png", "dev-244-0-img0"),
        ("nlvr2/test1/test1-3-1-img1.png", "test1-3-1-img1"),
        ("images/B0084Y8XIU.jpg", "B0084Y8XIU"),
        ("pool/17", "pool/17"),
        ("me@home", "me@home"),
        ("a/cartoon_2.jpg", "a/cartoon_2"),
    ],
)
def test_ids_are_compared_by_the_image_that_they_mean(image_id, key):
    assert image_key(image_id) == key


def test_leaks_are_found_by_benchmark_and_listed(tmp_path):
    guards = {
        "cirr": read_cirr(CirrConfig(root=str(MADE.write_cirr(tmp_path / "a")))).guarded_ids,
        "circo": read_circo(CircoConfig(root=str(MADE.write_circo(tmp_path / "b")))).guarded_ids,
        "fashioniq": read_fashioniq(FashionIQConfig(root=str(MADE.write_fashioniq(tmp_path / "c")))).guarded_ids,
    }
    ids = ["train-0-0-img0", "x/dev-0-0-img0.png", "COCO_unlabeled2017_17", "000000000003", "other", "test1-2-0-img0"]
    assert find_leaks(ids, guards) == {"cirr": ("test1-2-0-img0", "x/dev-0-0-img0.png"), "circo": ("000000000003",)}
    assert find_leaks(["train-0-0-img0", "dress-train-0", "99"], guards) == {}


def test_a_leak_is_refused_with_the_list_and_an_override_is_recorded():
    guards = {"cirr": frozenset(f"dev-{number}-0-img0" for number in range(40))}
    with pytest.raises(
        DataError, match="The pool holds 2 val or test images of cirr: dev-3-0-img0, dev-4-0-img0.*allow"
    ):
        refuse_leaks(["a", "dev-4-0-img0", "dev-3-0-img0"], guards, what="The pool")
    with pytest.raises(DataError, match="40 val or test images of cirr: .* and 20 more"):
        refuse_leaks(guards["cirr"], guards)
    record = refuse_leaks(["a", "dev-4-0-img0"], guards, allow=True)
    assert record == {"guarded": {"cirr": 40}, "leaks": {"cirr": ["dev-4-0-img0"]}, "allowed": True}
    assert refuse_leaks(["a"], guards, allow=True) == {"guarded": {"cirr": 40}, "leaks": {}, "allowed": False}


def test_a_data_set_that_names_no_guarded_images_guards_what_its_queries_search():
    queries = (Query("q", "r", "m", ("t",), subset=("s",)),)
    dataset = CirDataset("own", ImageTable(), Protocol("own"), queries=queries, gallery_ids=("t", "g"))
    assert dataset.guarded_ids == {"r", "t", "s", "g"}
