"""Shapes of query: what each of them means in vectors, and which are refused in which words."""

import io

import numpy as np
import pytest
import tiny_service
from PIL import Image

from cirray.core.errors import DataError
from cirray.models.base import Retriever
from cirray.queries import Further, Negative, Reference
from cirray.query_pictures import cut
from cirray.search_engine import SearchEngine

A, B, C = "plain/00", "plain/02", "a b/pïc 05"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    lines = [
        "id,price,kind",
        *(f"plain/{number:02d},{number},{'odd' if number % 4 else 'even'}" for number in range(0, 24, 2)),
    ]
    (root / "m.csv").write_text("\n".join(lines))
    return tiny_service.make(root, metadata=str(root / "m.csv"))


@pytest.fixture(scope="module")
def engine(tiny):
    return SearchEngine.open(tiny.checkpoint, tiny.index)


def vector(engine, text=None, image=None, gallery_id=None, weight=None, **further):
    return engine.encode([engine.prepare(text, image, gallery_id, weight=weight, further=Further(**further))])[0]


def unit(vector):
    return vector / np.linalg.norm(vector)


def near(one, other):
    return np.abs(one - other).max() < 1e-5


def test_references_are_a_weighted_mean_of_what_each_gives_with_the_text(engine):
    several = (
        Reference(gallery_id=A, weight=3.0),
        Reference(gallery_id=B),
        Reference(tiny_service.picture(7), weight=0.5),
    )
    alone = [vector(engine, "blue", gallery_id=A), vector(engine, "blue", gallery_id=B)]
    alone.append(vector(engine, "blue", image=tiny_service.picture(7)))
    wanted = unit(3 * alone[0] + alone[1] + 0.5 * alone[2])
    assert near(vector(engine, "blue", references=several), wanted)
    assert not near(vector(engine, "blue", references=several[:2]), wanted)
    pictures = unit(3 * vector(engine, gallery_id=A) + vector(engine, gallery_id=B))
    assert near(vector(engine, references=several[:2]), pictures)


def test_what_is_not_wanted_is_taken_away_with_its_weight(engine):
    query, text, picture = (vector(engine, "blue", gallery_id=A), vector(engine, "red"), vector(engine, gallery_id=C))
    assert near(vector(engine, "blue", gallery_id=A, negative=Negative("red", weight=0.3)), unit(query - 0.3 * text))
    other = Negative(picture=Reference(gallery_id=C))
    assert near(vector(engine, "blue", gallery_id=A, negative=other), unit(query - 0.5 * picture))
    assert near(vector(engine, "blue", gallery_id=A, negative=Negative("red", weight=0)), query)


def test_a_query_of_one_vector_is_that_vector_bit_by_bit(engine):
    assert (
        vector(engine, "blue", gallery_id=A).tobytes()
        == vector(engine, "blue", references=(Reference(gallery_id=A, weight=7),)).tobytes()
    )


def test_nothing_left_of_a_query_is_told(engine):
    with pytest.raises(DataError, match="Nothing is left of the query"):
        engine.search(gallery_id=A, further=Further(negative=Negative(picture=Reference(gallery_id=A), weight=1.0)))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_box_is_a_part_of_the_upright_picture(engine, orientation):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    upright = Image.fromarray(pixels)
    turned = upright.transpose({1: 1, 3: 3, 6: 2, 8: 4}[orientation]) if orientation != 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    turned.save(stream, "PNG", exif=exif)
    part = io.BytesIO()
    upright.crop((40, 60, 120, 180)).save(part, "PNG")
    wanted = vector(engine, "blue", part.getvalue())
    assert near(vector(engine, "blue", stream.getvalue(), box=(0.25, 0.25, 0.5, 0.5)), wanted)
    assert near(vector(engine, "blue", stream.getvalue(), box=(40, 60, 80, 120)), wanted)
    assert not near(vector(engine, "blue", stream.getvalue()), wanted)


def test_a_box_of_a_large_jpeg_is_cut_before_it_is_made_small(engine):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).resize((3200, 3200), 0)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=95)
    one, other = (cut(Image.open(stream), box).size for box in ((0, 0, 0.1, 0.1), (0, 0, 320, 320)))
    assert one == other == (320, 320)
    near_enough = vector(engine, image=stream.getvalue(), box=(0, 0, 0.1, 0.1)) @ vector(
        engine, image=stream.getvalue(), box=(0, 0, 320, 320)
    )
    assert near_enough > 0.9999


def test_a_box_of_a_gallery_image_is_cut_from_its_file(engine, tiny):
    file = (tiny.images / "plain" / "00.png").read_bytes()
    box = (0.0, 0.0, 0.5, 1.0)
    assert near(vector(engine, "blue", gallery_id=A, box=box), vector(engine, "blue", image=file, box=box))
    assert A not in engine.search("blue", gallery_id=A, k=24, further=Further(box=box)).ids


def test_excluded_ids_are_not_answered_and_others_come_after_them(engine):
    every = engine.search("blue", gallery_id=A, k=24)
    told = Further(exclude=(*every.ids[:3], "never heard of"), offset=2)
    found = engine.search("blue", gallery_id=A, k=5, further=told)
    assert found.ids == every.ids[5:10] and found.scores == pytest.approx(every.scores[5:10])


def test_pages_by_offset_are_the_whole_ranking(engine):
    every = engine.search("blue", gallery_id=A, k=23).ids
    pages = [engine.search("blue", gallery_id=A, k=5, further=Further(offset=start)).ids for start in range(0, 25, 5)]
    assert tuple(name for page in pages for name in page) == every


def test_a_filter_answers_k_images_that_pass_it(engine):
    every = [name for name in engine.search("blue", gallery_id=A, k=24).ids if name.startswith("plain/")]
    found = engine.search("blue", gallery_id=A, k=4, further=Further(filter="price >= 4 and kind = 'odd'"))
    wanted = [name for name in every if int(name[-2:]) >= 4 and int(name[-2:]) % 4]
    assert list(found.ids) == wanted[:4]
    assert engine.search("blue", gallery_id=A, further=Further(filter="price > 99")).ids == ()


def test_queries_of_all_shapes_answer_in_one_batch_as_alone(engine):
    shapes = [
        engine.prepare("blue", gallery_id=A), engine.prepare("red"), engine.prepare(gallery_id=B),
        engine.prepare("blue", further=Further(references=(Reference(gallery_id=A), Reference(gallery_id=B)))),
        engine.prepare("blue", gallery_id=A, further=Further(negative=Negative("red"), filter="price < 9")),
        engine.prepare("blue", gallery_id=A, further=Further(filter="price < 9", offset=1, exclude=(B,))),
    ]  # fmt: skip
    for together, query in zip(engine.search_many(shapes), shapes, strict=True):
        alone = engine.search_many([query])[0]
        assert together.ids == alone.ids and together.scores == pytest.approx(alone.scores, abs=1e-6)


@pytest.mark.parametrize(
    ("fields", "further", "sentence"),
    [
        ({"text": "x", "k": 0}, {}, "k is 0"),
        ({"text": "x"}, {"offset": -1}, "offset -1 with k 10 is out of range"),
        ({"text": "x"}, {"offset": 9_991}, "offset . k may be up to 10,000"),
        ({"text": "x"}, {"box": (0, 0, 1, 1)}, "A box is a part of a reference"),
        ({"gallery_id": A}, {"box": (0, 0, 0, 1)}, r"The box \[0, 0, 0, 1\] is none"),
        ({"gallery_id": A}, {"box": (0, 0, 30, 30)}, "must be in shares, 0 to 1"),
        ({"image": tiny_service.picture(1)}, {"box": (500, 0, 30, 30)}, "outside of the picture, which has 40 x 32"),
        ({"image": tiny_service.picture(1)}, {"box": (0, 0, float("nan"), 1)}, "is none"),
        ({"gallery_id": A}, {"references": (Reference(gallery_id=B),)}, "Several references stand in `references`"),
        ({}, {"references": (Reference(),)}, "an image or a gallery id, one of them"),
        ({}, {"references": (Reference(gallery_id=A, weight=0),)}, "weight 0 of a reference is out of range"),
        ({}, {"references": (Reference(gallery_id=A),) * 9}, "9 references; at most 8"),
        ({"text": "x"}, {"negative": Negative()}, "a text or a picture, one of them"),
        ({"text": "x"}, {"negative": Negative("y", weight=1.5)}, "1.5 of what is not wanted is out of range"),
        ({"text": "x"}, {"negative": Negative("  ")}, "The text is empty"),
        ({"text": "x"}, {"exclude": ("a",) * 1001}, "leaves out 1,001 ids"),
        ({"text": "x"}, {"filter": "prize < 5"}, "Unknown column 'prize'. Did you mean 'price'"),
        ({}, {}, "nothing to search by"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused_in_words(engine, fields, further, sentence):
    with pytest.raises(DataError, match=sentence):
        engine.prepare(**fields, further=Further(**further))


def test_a_model_without_texts_alone_says_what_it_can_do(engine, monkeypatch):
    monkeypatch.setattr(type(engine.encoder), "encode_text", Retriever.encode_text)
    assert "text" not in engine.shapes and "picture and text" in engine.shapes
    with pytest.raises(
        DataError, match="reads a text only beside a picture; give a picture beside the text. It can do: pict"
    ):
        engine.prepare("blue")
    with pytest.raises(DataError, match="say what is not wanted by a picture"):
        engine.prepare("blue", gallery_id=A, further=Further(negative=Negative("red")))
    assert engine.search("blue", gallery_id=A, further=Further(negative=Negative(picture=Reference(gallery_id=B)))).ids
