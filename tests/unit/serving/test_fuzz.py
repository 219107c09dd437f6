"""Any request is answered or refused in words: drawn from the OpenAPI document, and spoiled."""

import asyncio
import gc
import json
import runpy
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cirray.serving.api import make_api
from cirray.serving.config import ServeArgs
from cirray.serving.schemas import BatchRequest, SearchRequest

IDS = ["plain/00", "plain/02", "a b/pïc 05", "nobody", "", "\x00", "../../etc/passwd", "ü" * 300]
FILTERS = [
    "id starts with 'plain'", "id = 'x' or id is null", "prise < 5", "id in ['a', \"b\"", "(" * 200, "'" * 99, "\x00",
    "id contains ''", "1 = 1; drop table images", "not " * 40 + "id is null", "id > 2025-13-01", "a" * 10_000, "",
]  # fmt: skip
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.lists(st.integers(), max_size=5),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=3),
)  # fmt: skip
NUMBERS = st.one_of(st.floats(0, 1), st.floats(allow_nan=False), st.integers(-3, 2**70))
VALUES = {
    "text": st.one_of(st.sampled_from(["blue", "make it red", "", "\x07", "x" * 600]), st.text(max_size=20)),
    "image": st.sampled_from(["", "@@", "aGVsbG8=", "iVBORw0KGgo="]),
    "gallery_id": st.sampled_from(IDS),
    "box": st.lists(NUMBERS, min_size=3, max_size=5),
    "weight": NUMBERS,
    "filter": st.one_of(st.sampled_from(FILTERS), st.text(max_size=30)),
    "exclude": st.lists(st.sampled_from(IDS), max_size=4),
    "k": st.integers(-1, 2**70),
    "offset": st.integers(-1, 20_000),
    "fields": st.lists(st.sampled_from(["*", "id", "price", ""]), max_size=2),
    "exclude_reference": st.booleans(),
}  # fmt: skip


def objects(schema, parts):
    """Bodies of a schema: any of its fields, each with a likely value or an odd one."""
    fields = {}
    for name, field in schema["properties"].items():
        inner = [item["$ref"] for item in [field, field.get("items", {}), *field.get("anyOf", [])] if "$ref" in item]
        if inner:
            part = objects(parts[inner[0].rpartition("/")[2]], parts)
            usual = st.lists(part, max_size=9) if field.get("type") == "array" else part
        else:
            usual = VALUES[name]
        fields[name] = st.integers(0, 9).flatmap(lambda n, usual=usual: ODD if n == 0 else usual)
    names = st.sets(st.sampled_from(sorted(fields)), max_size=6)
    return names.flatmap(lambda some: st.fixed_dictionaries({name: fields[name] for name in some}))


def bodies(model):
    schema = model.model_json_schema()
    return objects(schema, schema["$defs"])


def check(reply):
    """An answer, or a problem that says something and shows no path and no trace; never a failure."""
    assert reply.status_code in (200, 400, 404, 413, 415, 422), reply.text
    if reply.status_code != 200:
        found = reply.json()
        assert reply.headers["content-type"] == "application/problem+json" and found["detail"]
        assert "Traceback" not in found["detail"] and "/tmp/" not in found["detail"]


FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@FUZZ
@given(body=bodies(SearchRequest))
def test_any_search_is_answered_or_refused_in_words(call, body):
    check(call("POST", "/v1/search", content=json.dumps(body), headers={"content-type": "application/json"}))


@FUZZ
@given(body=st.one_of(bodies(BatchRequest), ODD, st.fixed_dictionaries({"queries": st.lists(ODD, max_size=4)})))
def test_any_batch_is_answered_or_refused_in_words(call, body):
    reply = call("POST", "/v1/search:batch", content=json.dumps(body), headers={"content-type": "application/json"})
    check(reply)
    for item in reply.json().get("answers", []):
        assert (item["answer"] is None) != (item["problem"] is None)
        assert item["problem"] is None or item["problem"]["status"] in (404, 422)


@FUZZ
@given(text=st.one_of(st.sampled_from(FILTERS), st.text(max_size=80)))
def test_any_filter_of_the_facets_is_answered_or_refused_in_words(call, text):
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    check(call("GET", "/v1/facets", params={"filter": text}))


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[" * 100_000, b'{"filter": "' + b"(" * 2**20 + b'"}', b"null", b"7"]
)
@pytest.mark.parametrize("path", ["/v1/search", "/v1/search:batch"])
def test_any_bytes_are_refused_in_words(call, path, content):
    check(call("POST", path, content=content, headers={"content-type": "application/json"}))


def test_refused_requests_leave_nothing_in_memory(call):
    body = json.dumps({"gallery_id": "plain/00", "filter": "(" * 30 + "id is null" + ")" * 30, "fields": ["prise"]})

    def held_after(times):
        for number in range(times):
            text = body.replace("is null", f"= '{number}'")
            assert (
                call("POST", "/v1/search", content=text, headers={"content-type": "application/json"}).status_code
                == 422
            )

        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    held_after(80)
    tracemalloc.start()
    try:
        before = held_after(20)
        grown = held_after(100) - before
    finally:
        tracemalloc.stop()
    assert grown < 100_000


SCRIPT = Path(__file__).parents[3] / "jobs" / "benchmarks" / "fuzz_service.py"


def test_what_nobody_should_send_is_answered_or_refused_in_words(written_service, retriever):
    script = runpy.run_path(str(SCRIPT))
    app = make_api(lambda: written_service, ServeArgs(writes=True, max_body_mb=2))
    seen = asyncio.run(
        script["fuzz"](app, script["Drawer"](7, retriever.gallery.ids, "/nowhere"), 400, lambda *_: None)
    )
    assert not seen.faults and {200, 400, 403, 404, 405, 415, 422} <= set(seen.statuses)
