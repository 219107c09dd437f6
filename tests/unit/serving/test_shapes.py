"""Shapes of query, filters, facets and batches over HTTP."""

import asyncio
import base64
import json

import httpx
import pytest

from cirray.core.errors import ServingError
from cirray.queries import Further, Negative, Reference
from cirray.search_engine import SearchEngine
from cirray.serving.api import make_api
from cirray.serving.client import SearchClient
from cirray.serving.config import ServeArgs, ServingSettings
from cirray.serving.service import DirectService

A, B = "plain/00", "plain/02"


@pytest.fixture(scope="module")
def filled(tiny, tmp_path_factory):
    """The tiny gallery with metadata."""
    import tiny_service

    root = tmp_path_factory.mktemp("filled")
    lines = [
        "id,price,kind,since",
        *(f"plain/{n:02d},{n}.5,{'odd' if n % 4 else 'even'},2025-01-{n + 1:02d}" for n in range(0, 24, 2)),
    ]
    (root / "m.csv").write_text("\n".join(lines))
    made = tiny_service.make(root, metadata=str(root / "m.csv"))
    return SearchEngine.open(made.checkpoint, made.index)


@pytest.fixture
def asked(filled, make_caller):
    return make_caller(DirectService(filled, ServingSettings(default_k=5, max_k=24)))


@pytest.fixture
def client(filled):
    """The client of the application in this process."""
    app = make_api(lambda: DirectService(filled, ServingSettings(max_k=24)), ServeArgs())

    class Sync(httpx.BaseTransport):
        def handle_request(self, request):
            async def ask():
                async with httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False)) as inner:
                    reply = await inner.request(
                        request.method, request.url, content=request.read(), headers=request.headers
                    )
                    return httpx.Response(reply.status_code, headers=reply.headers, content=reply.content)

            return asyncio.run(ask())

    with SearchClient("http://test", transport=Sync(), retries=0) as made:
        yield made


def coded(data):
    return base64.b64encode(data).decode()


def test_a_search_in_every_shape_is_the_engine_s(asked, filled, picture):
    body = {
        "text": "blue", "k": 4, "offset": 1, "filter": "price < 15", "exclude": ["plain/06"],
        "references": [{"gallery_id": A, "weight": 2}, {"image": coded(picture(5)), "box": [0, 0, 0.5, 1]}],
        "negative": {"text": "red", "weight": 0.25},
    }  # fmt: skip
    references = (Reference(gallery_id=A, weight=2), Reference(picture(5), box=(0, 0, 0.5, 1)))
    told = Further(
        references=references,
        negative=Negative("red", weight=0.25),
        exclude=("plain/06",),
        offset=1,
        filter="price < 15",
    )
    wanted = filled.search("blue", k=4, further=told)
    found = asked.search(**body)
    assert found.status_code == 200, found.text
    assert [hit["id"] for hit in found.json()["hits"]] == list(wanted.ids)


def test_a_form_says_the_same_as_json(asked, picture):
    fields = {
        "text": "blue",
        "box": [0, 0, 0.5, 1],
        "negative": {"gallery_id": B},
        "exclude": ["plain/04"],
        "fields": ["*"],
    }
    plain = asked.search(**fields, image=coded(picture(5)))
    form = asked.search(
        picture(5), **{name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
    )
    assert form.status_code == plain.status_code == 200
    assert form.json()["hits"] == plain.json()["hits"]
    assert asked.search(picture(5), box="[1,").json()["detail"] == "The field 'box' is not valid JSON."


def test_hits_have_the_metadata_that_fields_ask_for(asked):
    found = asked.search(gallery_id=A, filter="price = 2.5", fields=["since", "price"]).json()["hits"]
    assert [(hit["id"], hit["metadata"]) for hit in found] == [(B, {"since": "2025-01-03", "price": 2.5})]
    assert asked.search(gallery_id=A, k=1).json()["hits"][0]["metadata"] == {}
    every = asked.search(gallery_id=A, k=24, fields=["*"]).json()["hits"]
    assert {"price": None, "kind": None, "since": None} in [hit["metadata"] for hit in every]


def test_facets_are_those_of_the_images_that_pass(asked):
    found = asked("GET", "/v1/facets", params={"filter": "price < 5"}).json()
    assert found["images"] == 3 and [column["column"] for column in found["columns"]] == ["price", "kind", "since"]
    assert found["columns"][1]["values"] == [{"value": "even", "count": 2}, {"value": "odd", "count": 1}]
    assert (found["columns"][2]["least"], found["columns"][2]["most"]) == ("2025-01-01", "2025-01-05")
    assert asked("GET", "/v1/facets").json()["images"] == 24
    assert asked("GET", "/v1/facets", params={"filter": "prise < 5"}).status_code == 422


def test_each_query_of_a_batch_has_its_answer_or_its_problem(asked):
    queries = [
        {"gallery_id": A},
        {"gallery_id": "nobody"},
        {"text": "blue", "colour": 1},
        {"text": "red", "k": 2},
        7,
        {},
    ]
    found = asked("POST", "/v1/search:batch", json={"queries": queries}).json()["answers"]
    assert [item["problem"] and item["problem"]["status"] for item in found] == [None, 404, 422, None, 422, 422]
    assert found[0]["answer"]["hits"] == asked.search(gallery_id=A).json()["hits"] and found[3]["problem"] is None
    assert len(found[3]["answer"]["hits"]) == 2 and "Unknown field 'colour'" in found[2]["problem"]["detail"]


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b'{"queries": []}', 422, "at least 1 item"),
        (b'{"queries": [' + b"{}," * 64 + b"{}]}", 422, "at most 64 items"),
        (b'{"query": [{}]}', 422, "'queries': Field required"),
        (b'{"queries": [{}], "more": 1}', 422, "Unknown field 'more'. Known: queries."),
        (b'{"queries": ' + b"[" * 100_000, 400, "not valid JSON"),
    ],
)
def test_a_batch_that_cannot_be_read_is_told(asked, body, status, sentence):
    found = asked("POST", "/v1/search:batch", content=body, headers={"content-type": "application/json"})
    assert (found.status_code, sentence in found.json()["detail"]) == (status, True), found.text


@pytest.mark.parametrize(
    ("fields", "status", "sentence"),
    [
        ({"box": [0, 0, 1]}, 422, "at least 4 items"),
        ({"references": [{"gallery_id": A}] * 9, "gallery_id": None}, 422, "at most 8 items"),
        ({"references": [{"gallery_id": A, "colour": 1}]}, 422, "Unknown field 'references.0.colour'."),
        ({"references": [{"image": "@@"}], "gallery_id": None}, 422, "'references.0.image' is not base64"),
        ({"negative": {}}, 422, "a text or a picture, one of them"),
        ({"negative": {"gallery_id": "nobody"}}, 404, "no image 'nobody'"),
        ({"exclude": ["x"] * 1001}, 422, "at most 1000 items"),
        ({"filter": "(" * 40 + "kind is null" + ")" * 40}, 422, "nested more than 32"),
        ({"filter": "kind = 5"}, 422, "'kind' holds texts, and 5"),
        ({"fields": ["prise"]}, 422, "Unknown column 'prise'. Did you mean 'price'?"),
        ({"offset": 10**30}, 422, "out of range"),
    ],
)
def test_a_shape_that_cannot_be_used_is_one_sentence(asked, fields, status, sentence):
    found = asked.search(**{"gallery_id": A, "text": "blue", **fields})
    assert (found.status_code, sentence in found.json()["detail"]) == (status, True), found.text


def test_version_tells_shapes_and_columns(asked):
    found = asked("GET", "/version").json()
    assert found["columns"] == ["id", "price", "kind", "since"] and "not a text" in found["shapes"]
    assert "weight" not in found["shapes"] and found["max_queries"] == 64


def test_the_client_asks_in_every_shape(client, filled, picture, tmp_path):
    (tmp_path / "p.png").write_bytes(picture(5))
    told = Further(
        references=(Reference(gallery_id=A, weight=2.0), Reference(str(tmp_path / "p.png"))), exclude=("plain/06",),
        negative=Negative(picture=Reference(gallery_id=B, box=(0, 0, 1, 0.5)), weight=0.25), offset=1,
        filter="price < 15",
    )  # fmt: skip
    found = client.search("blue", k=4, further=told, fields=["price"])
    assert found.ranking.ids == filled.search("blue", k=4, further=told).ids and found.metadata[0].keys() == {"price"}
    boxed = Further(box=(0, 0, 0.5, 1.0), negative=Negative("red"))
    assert (
        client.search("blue", picture(5), k=4, further=boxed).ranking.ids
        == filled.search("blue", picture(5), k=4, further=boxed).ids
    )
    assert client.facets("price < 5")["images"] == 3


def test_the_client_s_batch_keeps_answers_and_errors_apart(client, picture):
    found = client.search_many([{"text": "blue", "image": picture(3), "k": 2}, {"gallery_id": "nobody"}])
    assert found[0].ranking.ids == client.search("blue", picture(3), k=2).ranking.ids
    assert isinstance(found[1], ServingError) and "404: The gallery has no image 'nobody'" in str(found[1])
