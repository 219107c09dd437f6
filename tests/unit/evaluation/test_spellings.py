"""Image ids in people's spellings are understood where they mean one image, and left alone where they do not."""

import pytest

from cirray.core.errors import DataError
from cirray.data.benchmark import CirDataset, ImageTable, Protocol
from cirray.evaluation.spellings import Spellings, spellings_of
from cirray.types import Query

CIRR = {"dev-1-0-img0": "/d/cirr/dev/dev-1-0-img0.png", "train-7-1-img1": "/d/cirr/train/34/train-7-1-img1.png"}
SHOES = {"img_womens_pumps_2.jpg": "/d/attributedata/womens_pumps/1/img_womens_pumps_2.jpg"}
CROPS = {"55@1,2,4,6.5": "/d/VG_100K_all/55.jpg", "55@2,2,4,6.5": "/d/VG_100K_all/55.jpg"}
WORLD = {"a/x": "/d/gallery/a/x.png", "b/x": "/d/gallery/b/x.png", "b/y": "/d/gallery/b/y.png"}
LASCO = {"42": "/d/val2014/COCO_val2014_000000000042.jpg"}


@pytest.mark.parametrize(
    ("paths", "name", "own"),
    [
        (CIRR, "dev-1-0-img0.png", "dev-1-0-img0"),
        (CIRR, "./dev/dev-1-0-img0.png", "dev-1-0-img0"),
        (CIRR, "dev\\dev-1-0-img0.PNG", "dev-1-0-img0"),
        (CIRR, "train/34/train-7-1-img1.png", "train-7-1-img1"),
        ({"B0001": "/d/images/B0001.jpg"}, "images/B0001.png", "B0001"),
        (SHOES, "img_womens_pumps_2", "img_womens_pumps_2.jpg"),
        (SHOES, "womens_pumps/1/img_womens_pumps_2.jpg", "img_womens_pumps_2.jpg"),
        (LASCO, "COCO_val2014_000000000042.jpg", "42"),
        (LASCO, "000000000042", "42"),
        (dict.fromkeys(["000000000042"], "x.jpg"), "42", "000000000042"),
        (CROPS, "55@1.0,2.0,4.0,6.50", "55@1,2,4,6.5"),
        (CROPS, "('55', [2, 2, 4, 6.5])", "55@2,2,4,6.5"),
        (WORLD, "gallery/b/y.png", "b/y"),
    ],
)
def test_a_spelling_that_means_one_image_is_accepted_and_reported(paths, name, own):
    spellings = Spellings(paths, paths)
    assert spellings.own(name) == own and spellings.own(own) == own
    assert spellings.note() == (
        f"1 image ids have another spelling in the file and were recognised: {name!r} as {own!r}.",
    )


@pytest.mark.parametrize(
    ("paths", "name"), [(WORLD, "x.png"), (CROPS, "55.jpg"), (CROPS, "55"), (CIRR, "dev-2"), (CIRR, "")]
)
def test_a_spelling_that_means_none_or_several_is_left_alone(paths, name):
    spellings = Spellings(paths, paths)
    assert spellings.own(name) == name and spellings.note() == ()


def test_without_a_gallery_list_every_number_is_an_id_and_a_word_is_refused():
    dataset = CirDataset(
        "circo", ImageTable({"7": "/d/000000000007.jpg"}), Protocol("CIRCO"), queries=(Query("0", "7", "t", ("8",)),)
    )
    spellings = spellings_of(dataset)
    assert spellings.gallery(["000000000008.jpg", "8", "/x/000000000121506.jpg"]) == ("8", "121506")
    with pytest.raises(DataError, match="are whole numbers, and 'cat' is none"):
        spellings.gallery(["8", "cat"])
