"""Five lines of Python: a model, a folder of pictures, three kinds of search, answers that show themselves."""

import os
import shutil
from pathlib import Path

import numpy as np
import published
import pytest
import tiny_service
from PIL import Image

import cirray
from cirray.core.artifacts import read_manifest
from cirray.core.errors import ArtifactError, ConfigError, DataError


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("five")
    tiny_service.write_pictures(home / "pictures")
    published.clip(home / "clip")
    return home


@pytest.fixture(scope="module")
def gallery(home):
    return cirray.load(str(home / "clip")).index(home / "pictures", root=str(home / "root"))


def path_of(gallery, name):
    return next(row.path for row in gallery.search(text="all of them", k=len(gallery)) if row.id == name)


def test_a_folder_becomes_a_gallery_that_is_opened_again_by_its_place(home, gallery):
    assert len(gallery) == 24 and "plain/02" in gallery.ids
    assert gallery.source == f"{home}/root/indexes/pictures-clip"
    again = cirray.load(gallery.source)
    assert again.ids == gallery.ids and "24 pictures" in repr(again)
    before = read_manifest(gallery.source).created
    cirray.load(str(home / "clip")).index(home / "pictures", root=str(home / "root"))
    assert read_manifest(gallery.source).created == before


def test_a_folder_with_one_picture_more_gives_a_gallery_with_one_more_and_the_open_one_stays(home, tmp_path, caplog):
    shutil.copytree(home / "pictures", tmp_path / "trip")
    model, place = cirray.load(str(home / "clip")), {"root": str(tmp_path / "root")}
    before = model.index(tmp_path / "trip", **place)
    (tmp_path / "trip" / "new.png").write_bytes(tiny_service.picture(77, (90, 60)))
    caplog.set_level("INFO")
    after = model.index(tmp_path / "trip", **place)
    assert set(after.ids) - set(before.ids) == {"new"} and after.source == before.source
    assert "26 pictures: 25 as before, 1 new" in caplog.text  # a broken one is tried again
    assert "encode the gallery: 2/2 images" in caplog.text
    assert [row.id for row in before.search(text="blue", k=30)] and before.search("plain/02")[0].picture
    assert after.search("new", k=1)[0].id in before.ids


def test_it_is_searched_by_picture_and_text_by_text_alone_and_by_picture_alone(home, gallery):
    model, picture = cirray.load(str(home / "clip")), str(home / "pictures" / "plain" / "02.png")
    vectors = model.images([path_of(gallery, name) for name in gallery.ids])
    for asked, query in (
        (gallery.search(picture, "paint it blue"), model.queries([picture], ["paint it blue"])),
        (gallery.search(text="paint it blue"), model.texts(["paint it blue"])),
        (gallery.search(picture), model.images([picture])[:, 0]),
        (gallery.search(picture, "paint it blue", weight=0.2), model.queries([picture], ["paint it blue"], [0.2])),
    ):
        scores = model.score(query, vectors)[0]
        assert [row.id for row in asked] == [gallery.ids[at] for at in np.argsort(-scores, kind="stable")[:10]]
        assert asked[0].score == pytest.approx(scores.max(), abs=1e-3)
    assert gallery.search(picture)[0].id == "plain/02"
    assert "plain/02" not in [row.id for row in gallery.search("plain/02", k=24)]


def test_a_reference_may_be_an_id_a_file_bytes_or_a_picture(home, gallery):
    path = home / "pictures" / "plain" / "02.png"
    with Image.open(path) as image:
        forms = [str(path), path, path.read_bytes(), image.copy()]
    first, *others = [[row.id for row in gallery.search(form, "blue", k=3)] for form in forms]
    assert all(other == first for other in others)


def test_answers_show_themselves_as_lines_and_as_a_strip_of_pictures(home, gallery, tmp_path):
    found = gallery.search("plain/02", "<b>paint</b> it", k=3)
    assert repr(found).splitlines()[0].split(maxsplit=2) == ["1", f"{found[0].score:.4f}", found[0].id]
    shown = found._repr_html_()
    assert shown.count("<img") == 4 and "&lt;b&gt;paint" in shown and "<b>paint" not in shown
    assert len(found[:2]) == 2 and found[:2].text == found.text and found[:2]._repr_html_().count("<img") == 3
    assert found[0].image.size == (64, 48) or max(found[0].image.size) <= 256
    assert os.path.isfile(found[0].path)
    assert gallery.search(text="blue", k=2)._repr_html_().count("<img") == 2
    page = Path(found.save(tmp_path / "answers.html")).read_text()
    assert page.count("<figure") == 4 and "<b>paint" not in page


def test_what_cannot_be_searched_is_told_in_one_sentence(home, gallery):
    with pytest.raises(DataError, match=r"'a dog' is neither a picture file nor an id of this gallery.*text="):
        gallery.search("a dog")
    with pytest.raises(DataError, match="nothing to search by"):
        gallery.search()
    with pytest.raises(DataError, match="weight 2 is no share"):
        gallery.search("plain/02", "blue", weight=2)
    with pytest.raises(ConfigError, match="composition and weight are a model.s, and .* holds an index"):
        cirray.load(gallery.source, composition="sum")
    with pytest.raises(ArtifactError, match="no folder here"):
        cirray.load("nobody/nothing")


def test_the_composition_that_was_asked_for_is_the_gallery_s(home):
    model = cirray.load(str(home / "clip"), composition="slerp", weight=0.3)
    gallery = model.index(home / "pictures", root=str(home / "root"))
    assert gallery.engine.composition.name == "slerp" and gallery.engine.composition.weight == 0.3
    assert "slerp" in repr(model) and gallery.source != f"{home}/root/indexes/pictures-clip"


def test_an_export_on_the_hub_is_loaded_by_its_id(home, gallery, tmp_path, monkeypatch):
    from cirray.pipelines.weights.config import ExportRun
    from cirray.pipelines.weights.export import run_export

    checkpoint = read_manifest(gallery.source).config["checkpoint"]
    run_export(ExportRun(model=checkpoint, out=str(tmp_path / "export")))
    published.put_in_hub_cache(tmp_path / "hub", "owner/name", tmp_path / "export")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    model = cirray.load("owner/name")
    picture = str(home / "pictures" / "plain" / "02.png")
    assert np.allclose(model.queries([picture], ["blue"]), cirray.load(checkpoint).queries([picture], ["blue"]))


def test_progress_shows_a_bar_below_a_notebook_s_cell(monkeypatch):
    import sys
    import types

    from cirray.core.progress import progress

    told = []
    handle = types.SimpleNamespace(update=lambda item: told.append(item))
    shell = types.SimpleNamespace(kernel=object())
    display = types.ModuleType("IPython.display")
    display.HTML, display.display = str, lambda *_, **__: handle
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: shell
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    with progress("encode <all>", 4, "images") as advance:
        advance(4)
    assert told[-1].startswith("<progress value='4' max='4'>") and "encode &lt;all&gt;: 4 of 4 done" in told[-1]
    del shell.kernel
    with progress("encode", 4, "images") as advance:
        advance(4)
    assert "encode:" not in told[-1]


def test_the_five_lines_of_the_readme_run_as_they_are(home, tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "README.md").read_text()
    block = text.split("<!-- five lines of Python: begin -->")[1].split("```")[1].removeprefix("python\n")
    published.put_in_hub_cache(tmp_path / "hub", "openai/clip-vit-base-patch32", home / "clip")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("CIRRAY_ROOT", str(tmp_path / "root"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(home / "pictures", "photos")
    with Image.open("photos/plain/02.png") as image:
        image.convert("RGB").save("photos/beach.jpg")
    names = {}
    exec(block, names)  # noqa: S102
    assert len(names["gallery"]) == 25 and names["gallery"].search("beach")[0].id == "plain/02"
    assert (tmp_path / "root" / "indexes" / "photos-openai-clip-vit-base-patch32").is_dir()
    home_of_user = tmp_path / "root"
    monkeypatch.setenv("HOME", str(home_of_user))
    assert len(cirray.load("~/indexes/photos-openai-clip-vit-base-patch32")) == 25


def test_a_gallery_answers_every_shape_of_query(tmp_path):
    import tiny_service

    from cirray.gallery import Gallery
    from cirray.queries import Further, Negative, Reference

    lines = ["id,price,shelf", *(f"plain/{number:02d},{number},s{number}" for number in range(0, 24, 2))]
    (tmp_path / "m.csv").write_text("\n".join(lines))
    gallery = Gallery(tiny_service.make(tmp_path, metadata=str(tmp_path / "m.csv")).index)
    found = gallery.search("plain/00", "blue", 3, filter="price < 9", exclude=["plain/04"])
    assert sorted(row.id for row in found) == ["plain/02", "plain/06", "plain/08"]
    assert found[0].metadata["price"] < 9 and "shelf: s" in repr(found) and "shelf: s" in found.page()
    told = Further(references=(Reference(gallery_id="plain/00"), Reference(gallery_id="plain/02", weight=2.0)))
    wanted = gallery.engine.search("blue", further=told).ids
    assert (
        tuple(row.id for row in gallery.search(["plain/00", Reference(gallery_id="plain/02", weight=2.0)], "blue"))
        == wanted
    )
    less = gallery.engine.search(
        "blue", gallery_id="plain/00", further=Further(negative=Negative("red"), box=(0, 0, 0.5, 1))
    )
    assert tuple(row.id for row in gallery.search("plain/00", "blue", unwanted="red", box=(0, 0, 0.5, 1))) == less.ids
