"""`cirray generate` with a large model behind an endpoint: two pictures in, checked texts out, every pair accounted."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from made_artifacts import stage_of
from PIL import Image

from cirray.core.config import validate
from cirray.core.errors import ConfigError, DataError, GenerationError
from cirray.data.config import ImageLimits
from cirray.generators.config import GENERATORS, PicturesConfig
from cirray.generators.engines import http
from cirray.generators.languages import foreign_language
from cirray.generators.lmm import parse_answers
from cirray.generators.pictures import Shots
from cirray.pipelines.texts.config import GenerateRun
from cirray.pipelines.texts.generate import run_generate
from cirray.triplets.captions import write_captions
from cirray.triplets.store import TripletStore
from cirray.types import Generation

FIXTURES = Path(__file__).parents[2] / "fixtures"
TINY = SimpleNamespace(**runpy.run_path(str(FIXTURES / "tiny_pipeline.py")))
PUBLIC = SimpleNamespace(**runpy.run_path(str(FIXTURES / "public_annotations.py")))
LMM = SimpleNamespace(**runpy.run_path(str(FIXTURES / "lmm_stub.py")))
DRIVER = """
import json, sys
from cirray.core.config import validate
from cirray.pipelines.texts.config import GenerateRun
from cirray.pipelines.texts.generate import run_generate
run_generate(validate(GenerateRun, json.loads(sys.argv[1])))
"""


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr(http, "FIRST_PAUSE_S", 0.01)
    (tmp_path / "photos").mkdir(parents=True)
    for number in range(13):
        Image.new("RGB", (40, 40), (20 * number, 0, 0)).save(tmp_path / "photos" / f"img-{number:04d}.png")
    TINY.write_pairs_artifact(tmp_path / "pairs", TINY.chain(12))
    return tmp_path


def tree(world, url, engine=None, **fields):
    server = {"kind": "http", "settings": {"endpoints": [url], "model": "tiny-vl", "tries": 2, **(engine or {})}}
    settings = {"engine": server, "data": {"folder": {"root": str(world / "photos")}}, "side": 32}
    settings |= fields.pop("settings", {})
    return {
        "pairs": str(world / "pairs"), "generator": {"kind": "lmm", "settings": settings}, "out": str(world / "out"),
        "part_rows": 4, "ray": {"enabled": False}, **fields,
    }  # fmt: skip


def generate(world, url, engine=None, **fields):
    return run_generate(validate(GenerateRun, tree(world, url, engine, **fields)))


def test_two_pictures_arrive_and_both_texts_with_kind_and_confidence_are_kept(world):
    with LMM.Stub() as stub:
        manifest = generate(world, stub.url)
    assert manifest.counts == {"pairs": 12, "triplets": 24, "rejected": 0} and len(stub.bodies) == 12
    assert all(LMM.pictures_of(body) == [(32, 32), (32, 32)] for body in stub.bodies)
    assert "Picture A: <picture>\nPicture B: <picture>" in stub.texts()[0] and '"reverse"' in stub.texts()[0]
    assert manifest.extra["tokens"] == {"tokens_in": 1200, "tokens_out": 84}
    rows = TripletStore.open(world / "out").table().to_pylist()
    assert {row["modification"] for row in rows} == {"make it blue", "make it red"}
    assert {row["edit"] for row in rows} == {"attribute"} and dict(rows[0]["scores"])["confidence"] == 0.9
    assert rows[0]["prompt_version"].startswith("edit/1#")
    with LMM.Stub() as again:
        assert generate(world, again.url).digest == manifest.digest and not again.bodies


def several(*forward):
    return {"texts": [{"forward": text, "reverse": f"not {text}", "edit": "count"} for text in forward]}


def test_several_texts_of_a_pair_come_in_one_answer_and_each_is_a_row(world):
    def say(body, number):
        return several("make it blue", f"a bluer one, {number}", "paint it blue")

    fields = {"texts": 3}
    with pytest.raises(ConfigError, match="texts=3 need longer answers than max_tokens=256; .* 384 or more"):
        generate(world, "http://127.0.0.1:9/v1", settings=fields)
    with LMM.Stub(say) as stub:
        manifest = generate(world, stub.url, {"max_tokens": 384}, settings=fields)
    assert manifest.counts == {"pairs": 12, "triplets": 72, "rejected": 0} and len(stub.bodies) == 12
    schema = stub.bodies[0]["response_format"]["json_schema"]["schema"]["properties"]["texts"]
    assert (schema["minItems"], schema["maxItems"]) == (3, 3) and "3 of these, each another" in stub.texts()[0]
    rows = TripletStore.open(world / "out").table().to_pylist()
    assert len({row["triplet_id"] for row in rows}) == 72
    own = [row for row in rows if row["pair_id"] == rows[0]["pair_id"]]
    assert len({row["modification"] for row in own}) == 6 and {row["edit"] for row in rows} == {"count"}
    assert sum(row["reverse_modification"] == f"not {row['modification']}" for row in own) == 3


def test_too_few_texts_are_asked_for_again_and_what_is_missing_then_is_a_rejected_row(world):
    said = {
        1: several("make it blue", "Make it blue!"), 2: several("make it blue"), 3: "nothing", 4: "nothing",
        5: several("make it blue", "把它变成蓝色"), 6: several("blue", "bluer", "bluest"),
        7: "forward: blue\nreverse: red\nforward: bluer\nreverse: redder",
    }  # fmt: skip
    with LMM.Stub(lambda body, number: said.get(number, several("a", "b"))) as stub:
        manifest = generate(world, stub.url, {"open_requests": 1}, settings={"texts": 2})
    assert manifest.counts == {"pairs": 12, "triplets": 42, "rejected": 6} and len(stub.bodies) == 15
    rejected = TripletStore.open(world / "out").rejected().to_pylist()
    reasons = sorted(row["reason"] for row in rejected)
    assert reasons[:2] == ["the answer has 1 of 2 texts"] * 2
    assert all("not the JSON that was asked for: 'nothing' (2 tries)" in reason for reason in reasons[2:])
    assert len({row["triplet_id"] for row in rejected}) == 6


def test_a_stopped_run_with_several_texts_loses_and_doubles_nothing(world):
    with LMM.Stub(lambda body, number: several("a", "b") if number <= 6 else (503, "down")) as stub:
        with pytest.raises(GenerationError, match="503"):
            generate(world, stub.url, {"open_requests": 1}, settings={"texts": 2})
    with LMM.Stub(lambda body, number: several("a", "b")) as stub:
        assert generate(world, stub.url, settings={"texts": 2}).counts == {"pairs": 12, "triplets": 48, "rejected": 0}
    assert len(stub.bodies) == 8


def test_forward_alone_asks_for_one_text(world):
    with LMM.Stub(lambda body, number: {"forward": "make it blue"}) as stub:
        manifest = generate(world, stub.url, directions="forward", reverse_texts=False)
    schema = stub.bodies[0]["response_format"]["json_schema"]["schema"]
    assert manifest.counts["triplets"] == 12 and "reverse" not in schema["properties"]
    assert '"reverse"' not in stub.texts()[0]


def test_bad_answers_and_bad_pictures_are_rejected_rows_with_a_reason(world):
    answers = {
        "img-0000": {"forward": "make it blue", "reverse": " "},
        "img-0001": {"forward": "blue " * 2000, "reverse": "make it red"},
        "img-0002": {"forward": "把它变成蓝色", "reverse": "make it red"},
        "img-0003": "I cannot see any pictures.",
        "img-0004": {"forward": ["make it blue"], "reverse": "make it red"},
        "img-0005": {"forward": "make it blue", "reverse": "mach das Kleid rot und ohne Ärmel"},
    }
    (world / "photos" / "img-0009.png").write_bytes(b"no picture")

    def say(body, number):
        return answers.get(names.get(body["messages"][0]["content"][1]["uuid"]), LMM.GOOD)

    shots = Shots(ImageLimits(), 32)
    names = {shots(name, str(world / "photos" / f"{name}.png")).digest: name for name in answers}

    with LMM.Stub(say) as stub:
        manifest = generate(world, stub.url, {"picture_ids": True})
    assert manifest.counts == {"pairs": 12, "triplets": 8, "rejected": 16}
    rejected = TripletStore.open(world / "out").rejected().to_pylist()
    reasons = {row["reference_id"]: row["reason"] for row in rejected if row["reference_id"] < row["target_id"]}
    assert "has no reverse text" in reasons["img-0000"] and "2,000 words, more than 40" in reasons["img-0001"]
    assert "another script than Latin" in reasons["img-0002"] and "not the JSON" in reasons["img-0003"]
    assert "a reverse text in another language than English (German?)" in reasons["img-0005"]
    assert "has no forward text" in reasons["img-0004"] and "img-0009" in reasons["img-0008"]
    assert all("(2 tries)" in reasons[f"img-000{number}"] for number in range(6))


def test_no_english_text_of_public_benchmarks_is_taken_for_another_language():
    texts = [query.modification for query in PUBLIC.cirr_val()[0]]
    texts += [text for row in PUBLIC.load("fashioniq/captions/cap.dress.val.json") for text in row["captions"]]
    assert len(texts) > 6000 and not [text for text in texts if foreign_language(text)]


FOREIGN = {
    "German": (
        "mach das Kleid blau und ohne Ärmel|Entferne den Hund im Vordergrund|Zeige zwei Hunde statt einem|"
        "Der Hintergrund soll ein Strand sein|mehr Farbe, kürzere Ärmel|Füge eine Katze links hinzu|"
        "Ersetze das rote Auto durch ein blaues|Das Hemd hat jetzt einen Kragen"
    ),
    "French": (
        "rends la robe bleue et sans manches|Enlève le chien au premier plan|"
        "Montre deux chiens au lieu d'un seul|Le fond doit être une plage|"
        "plus de couleur, manches plus courtes|Ajoute un chat à gauche|"
        "Remplace la voiture rouge par une bleue|La chemise a maintenant un col"
    ),
    "Spanish": (
        "haz el vestido azul y sin mangas|Quita el perro del primer plano|Muestra dos perros en lugar de uno|"
        "El fondo debe ser una playa|más color, mangas más cortas|Añade un gato a la izquierda|"
        "Reemplaza el coche rojo por uno azul|La camisa ahora tiene cuello"
    ),
    "Italian": (
        "rendi il vestito blu e senza maniche|Togli il cane in primo piano|Mostra due cani invece di uno|"
        "Lo sfondo deve essere una spiaggia|più colore, maniche più corte|Aggiungi un gatto a sinistra|"
        "Sostituisci l'auto rossa con una blu|La camicia ora ha il colletto"
    ),
    "Portuguese": (
        "faça o vestido azul e sem mangas|Remova o cachorro do primeiro plano|"
        "Mostre dois cachorros em vez de um|O fundo deve ser uma praia|mais cor, mangas mais curtas|"
        "Adicione um gato à esquerda|Troque o carro vermelho por um azul|A camisa agora tem gola"
    ),
    "Dutch": (
        "maak de jurk blauw en zonder mouwen|Verwijder de hond op de voorgrond|"
        "Toon twee honden in plaats van één|De achtergrond moet een strand zijn|meer kleur, kortere mouwen|"
        "Voeg links een kat toe|Vervang de rode auto door een blauwe|Het hemd heeft nu een kraag"
    ),
}
"""Requests in six languages, written for this test by the hand that wrote the lists of common words."""


def test_most_requests_in_another_language_are_told_by_their_common_words():
    found = {name: [foreign_language(text) for text in texts.split("|")] for name, texts in FOREIGN.items()}
    assert sum(bool(language) for languages in found.values() for language in languages) == 44
    assert sum(len(languages) for languages in found.values()) == 48
    assert all(languages.count(name) >= 5 for name, languages in found.items())
    mixed = "a dress with an à la carte menu and a café de Paris sign on it"
    assert [foreign_language(text) for text in ("make it blue", mixed, "", "blau")] == [""] * 4


def test_a_killed_driver_goes_on_after_its_finished_parts(world):
    def slow(body, number):
        time.sleep(0.15)
        return LMM.GOOD

    with LMM.Stub(slow) as stub:
        command = [sys.executable, "-c", DRIVER, json.dumps(tree(world, stub.url, {"open_requests": 1}))]
        driver = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])})
        while len(stub.bodies) < 6 and driver.poll() is None:
            time.sleep(0.02)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        asked = len(stub.bodies)
        manifest = generate(world, stub.url)
    assert manifest.counts == {"pairs": 12, "triplets": 24, "rejected": 0}
    assert 6 <= asked <= 7 and len(stub.bodies) == asked + 8  # the first part of four was not asked again
    ids = TripletStore.open(world / "out").table().column("triplet_id").to_pylist()
    assert len(set(ids)) == 24


def test_a_server_that_dies_in_the_middle_loses_and_doubles_nothing(world):
    with LMM.Stub(lambda body, number: LMM.GOOD if number <= 6 else (503, "down")) as stub:
        with pytest.raises(GenerationError, match="503.*What is finished is kept"):
            generate(world, stub.url, {"open_requests": 1})
    assert not (world / "out" / "manifest.json").exists()
    with LMM.Stub() as stub:
        assert generate(world, stub.url).counts["triplets"] == 24
    assert len(stub.bodies) == 8


def test_a_model_without_vision_reads_captions(world):
    rows = [{"image_id": f"img-{n:04d}", "caption": f"scene {n}", "captioner": "c", "key": str(n)} for n in range(12)]
    stage = stage_of(world / "captions", "captions")
    write_captions(stage.work_uri, "part-00000", rows)
    stage.publish({"captions": 12})
    with LMM.Stub() as stub:
        fields = {"data": None, "captions": [str(world / "captions")]}
        manifest = generate(world, stub.url, settings=fields)
    assert manifest.counts == {"pairs": 12, "triplets": 22, "rejected": 2}
    assert "Picture A: scene 0\nPicture B: scene 1\n" in stub.texts()[0]
    assert isinstance(stub.bodies[0]["messages"][0]["content"], str)
    reasons = set(TripletStore.open(world / "out").rejected().column("reason").to_pylist())
    assert reasons == {"image 'img-0012' has no caption"}


def test_a_prompt_of_ones_own_is_used_and_told(world):
    file = world / "dress.txt"
    file.write_text("From {reference} to {target}: what should the dress be like?")
    with LMM.Stub() as stub:
        generate(world, stub.url, settings={"prompt_file": str(file)})
    assert stub.texts()[0].startswith("From <picture> to <picture>: what should the dress be like? Answer with one")
    assert TripletStore.open(world / "out").table().column("prompt_version")[0].as_py().startswith("dress#")
    file.write_text("From {reference} on")
    with LMM.Stub() as stub, pytest.raises(ConfigError, match=r"dress.txt' has no \{target\}"):
        generate(world, stub.url, settings={"prompt_file": str(file)}, out=str(world / "other"))


class Sizes:
    """A generator of another package that looks at pictures: tells their bytes' first letters."""

    digest = prompt_version = "sizes"

    def generate(self, pairs, pictures):
        told = ([pictures.shot(name).data[1:4].decode() for name in (p.reference_id, p.target_id)] for p in pairs)
        return [Generation(pair.pair_id, *texts) for pair, texts in zip(pairs, told, strict=True)]


def test_any_generator_whose_settings_say_so_sees_pictures(world):
    GENERATORS.register("sizes", settings=PicturesConfig)(lambda settings, setup: Sizes())
    try:
        made = tree(world, "http://127.0.0.1:9/v1")
        made["generator"] = {"kind": "sizes", "settings": {"data": made["generator"]["settings"]["data"], "side": 32}}
        assert run_generate(validate(GenerateRun, made)).counts["triplets"] == 24
    finally:
        del GENERATORS._items["sizes"], GENERATORS._settings["sizes"]
    assert TripletStore.open(world / "out").table()["modification"].to_pylist() == ["PNG"] * 24


def test_wrong_settings_are_one_sentence(world):
    url = "http://127.0.0.1:9/v1"
    (world / "photos" / "img-0012.png").unlink()
    with pytest.raises(
        DataError, match=r"no picture of 1 of the 13 images in pairs, e.g. 'img-0012'; it has e.g. 'img-0000'"
    ):
        generate(world, url)
    for fields, words in (
        ({"settings": {"data": None}}, "name either data, whose pictures"),
        ({"features": ["somewhere"]}, "generator kind 'lmm' reads pictures; leave features out"),
        ({"settings": {"prompt": "edits/1"}}, "edit/1"),
        ({"settings": {"engine": {"kind": "htp"}}}, "http"),
    ):
        with pytest.raises(ConfigError, match=words):
            generate(world, url, **fields)
    with pytest.raises(ConfigError, match="model"):
        generate(world, url, {"model": ""})
    with pytest.raises(ConfigError, match="reads features; name at least one"):
        validate(GenerateRun, {"features": []})


@pytest.mark.parametrize(
    ("answer", "forward"),
    [
        ('```json\n{"forward": "a", "reverse": "b"}\n```', "a"),
        ('Sure! {"x": 1} {"forward": "a"}', "a"),
        ("forward: make it red\nreverse: make it blue", "make it red"),
        ("**Forward**: make it red", "make it red"), ("reverse: make it blue\nforward: make it red", "make it red"),
        ("[" * 100_000, None), ("{" * 100_000, None), ('{"forward":', None), ("", None), ('["forward"]', None),
    ],
)  # fmt: skip
def test_answers_are_found_in_what_models_write(answer, forward):
    assert [found["forward"] for found in parse_answers(answer)[:1]] == ([] if forward is None else [forward])
