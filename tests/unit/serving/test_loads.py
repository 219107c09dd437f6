"""A Parquet file that the service reads itself: only from places that it was told, in parts, and said when it fails."""

import os
from functools import partial

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from object_store import bucket, stub

from cirray.catalogue.opening import open_gallery
from cirray.catalogue.parquet import VectorFile
from cirray.catalogue.table import Catalogue
from cirray.cli.main import main
from cirray.pipelines.search.living import run_gallery
from cirray.pipelines.search.living_config import GalleryRun
from cirray.search_engine import SearchEngine
from cirray.serving.api import make_api
from cirray.serving.client import SearchClient
from cirray.serving.config import ServeArgs
from cirray.serving.loads import readable
from cirray.serving.problems import ProblemError
from cirray.serving.service import DirectService

ROWS = 5_000


def vectors(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 24)).astype(np.float32)


@pytest.fixture
def place(tiny, tmp_path):
    out = str(tmp_path / "gallery")
    run_gallery(GalleryRun(index=None, checkpoint=tiny.checkpoint, columns={"price": "number"}, out=out))
    return out


@pytest.fixture
def inbox(tmp_path):
    """A folder that the service may read, with a file of several row groups; beside it one that it may not."""
    folder = tmp_path / "inbox"
    folder.mkdir()
    names = [f"v{number:05d}" for number in range(ROWS)]
    table = pa.table({"id": names, "vector": list(vectors(ROWS)), "price": np.arange(ROWS, dtype=float)})
    pq.write_table(table, folder / "v.parquet", row_group_size=1_900)
    pq.write_table(table, tmp_path / "outside.parquet")
    os.symlink(tmp_path / "outside.parquet", folder / "link.parquet")
    return folder


@pytest.fixture
def app(tiny, place, inbox):
    engine = SearchEngine.open(tiny.checkpoint, place)
    service = DirectService(engine, gallery=place)
    return make_api(lambda: service, ServeArgs(writes=True, load_from=(str(inbox), "s3://bucket/own")))


@pytest.fixture
def asked(app, caller_of):
    return caller_of(app)


def test_a_file_is_added_in_parts_and_what_the_gallery_holds_is_what_the_file_says(asked, place, inbox):
    at, answers = 0, []
    while at is not None:
        reply = asked("POST", "/v1/images:load", json={"uri": str(inbox / "v.parquet"), "offset": at, "limit": 2_100})
        assert reply.status_code == 200, reply.text
        answers.append(reply.json())
        at = answers[-1]["next"]
    assert [answer["written"] for answer in answers] == [2_100, 2_100, 800] and answers[0]["total"] == ROWS
    follower = open_gallery(place, None)
    gallery = follower.gallery
    follower.stop()
    assert gallery.version == answers[-1]["version"] and len(gallery) == ROWS
    assert np.array_equal(gallery.view.base.rows.tokens_NQD.reshape(ROWS, 24), vectors(ROWS).astype(np.float16))
    assert gallery.metadata["price"].to_pylist() == list(range(ROWS))
    again = asked("POST", "/v1/images:load", json={"uri": str(inbox / "v.parquet"), "offset": 4_999}).json()
    assert (again["written"], again["next"]) == (1, None)
    beyond = asked("POST", "/v1/images:load", json={"uri": str(inbox / "v.parquet"), "offset": 10**9}).json()
    assert (beyond["written"], beyond["next"]) == (0, None)


def test_only_what_lies_below_a_named_place_is_read_whatever_its_name_says(asked, inbox, tmp_path):
    outside = str(tmp_path / "outside.parquet")
    for uri in (
        outside, f"file://{outside}", f"{inbox}/../outside.parquet", f"{inbox}/link.parquet", "inbox/v.parquet",
        "/etc/passwd", f"{inbox}", f"{inbox}x/v.parquet", f"{inbox}/v.parquet\0", "/" + "a" * 5_000, "~/v.parquet", "",
        "s3://bucket/owner/v.parquet", "s3://bucket/own/../v.parquet", "s3://bucket/own/%2e%2e/v.parquet",
        "s3://bucket/own", "s3://other/own/v.parquet", "s3://key:secret@bucket/own/v.parquet", "gs://bucket/own/v",
        "s3://bucket/own/v.parquet?endpoint_override=evil.example.org", "s3://bucket/own//v.parquet", "http://[/own/v",
    ):  # fmt: skip
        reply = asked("POST", "/v1/images:load", json={"uri": uri})
        assert reply.status_code == 403 and "is not below a place" in reply.json()["detail"], uri
    rule = "s3://key:secret@bucket/own?region=x&endpoint_override=store.example.org"
    found = readable("s3://bucket/own/a/v.parquet", ("/data", rule))
    assert found == "s3://key:secret@bucket/own/a/v.parquet?region=x&endpoint_override=store.example.org"
    with pytest.raises(ProblemError, match="Files by URI are off"):
        readable(str(inbox / "v.parquet"), ())


@pytest.mark.parametrize(
    "columns, said",
    [
        (None, "There is no file"),
        (b"PAR1 no table", "cannot be read as a Parquet file"),
        ({"name": ["a"], "vector": [[1.0] * 24]}, "id and vector are needed"),
        ({"id": ["a"], "vector": [[1.0] * 23]}, "holds lists of 23 numbers; lists of 24 numbers are needed"),
        ({"id": ["a"], "vector": [[1.0] * 24], "price": ["x"]}, "column 'price' holds double"),
        (
            {"id": ["a"], "vector": [[1.0] * 24], "colour": [1]},
            "column 'colour', and this gallery's metadata",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_said_in_one_sentence_and_nothing_of_it_is_written(asked, inbox, columns, said):
    path = inbox / "bad.parquet"
    if isinstance(columns, bytes):
        path.write_bytes(columns)
    elif columns is not None:
        pq.write_table(pa.table(columns), path)
    before = asked("GET", "/v1/gallery").json()["total"]
    reply = asked("POST", "/v1/images:load", json={"uri": str(path)})
    assert reply.status_code == 422 and said in reply.json()["detail"], reply.text
    assert asked("GET", "/v1/gallery").json()["total"] == before


def test_a_row_that_cannot_be_kept_says_how_many_before_it_were_and_a_damaged_file_is_no_failure_of_the_server(
    asked, inbox
):
    odd = vectors(ROWS)
    odd[4_500] = np.nan
    pq.write_table(pa.table({"id": [f"{n:05d}" for n in range(ROWS)], "vector": list(odd)}), inbox / "odd.parquet")
    reply = asked("POST", "/v1/images:load", json={"uri": str(inbox / "odd.parquet")})
    assert reply.status_code == 422 and reply.json()["detail"] == (
        "The vector of '04500' holds values that are not finite (NaN or infinity). 4,000 rows before it were written."
    )
    data = bytearray((inbox / "v.parquet").read_bytes())
    data[2_000:40_000] = bytes(38_000)
    (inbox / "torn.parquet").write_bytes(data)
    reply = asked("POST", "/v1/images:load", json={"uri": str(inbox / "torn.parquet")})
    assert reply.status_code == 422 and "cannot be read as a Parquet file" in reply.json()["detail"]


def test_a_file_is_read_in_groups_and_not_at_once(tmp_path):
    count = 60_000
    names = pa.array([f"{number:06d}" for number in range(count)])
    flat = pa.array(np.zeros(count * 64, np.float32))
    table = pa.table({"id": names, "vector": pa.FixedSizeListArray.from_arrays(flat, 64)})
    pq.write_table(table, tmp_path / "v.parquet", use_dictionary=False, compression="none")
    del table, flat, names
    before, most = pa.total_allocated_bytes(), 0
    for changes in VectorFile(str(tmp_path / "v.parquet"), (1, 64), {}).groups():
        most = max(most, pa.total_allocated_bytes() - before)
        assert len(changes) <= 2_000
    assert most < os.path.getsize(tmp_path / "v.parquet") / 2, f"{most:,} bytes"


def test_a_file_in_an_object_store_is_added_in_parts_and_a_store_that_is_away_is_503(
    tiny, place, inbox, caller_of, monkeypatch
):
    server, address = stub(monkeypatch)
    store = bucket(address, "own")
    for key in ("vectors/day/v.parquet", "other/v.parquet"):
        store.upload_file(str(inbox / "v.parquet"), "own", key)
    store.put_object(Bucket="own", Key="vectors/torn.parquet", Body=(inbox / "v.parquet").read_bytes()[:-9])
    rule = f"s3://own/vectors?endpoint_override={address}&scheme=http&region=us-east-1"
    service = DirectService(SearchEngine.open(tiny.checkpoint, place), gallery=place)
    asked = caller_of(make_api(lambda: service, ServeArgs(writes=True, load_from=(rule,))))

    def load(uri, **fields):
        return asked("POST", "/v1/images:load", json={"uri": uri, **fields})

    at, written = 0, []
    while at is not None:
        reply = load("s3://own/vectors/day/v.parquet", offset=at, limit=2_500)
        assert reply.status_code == 200, reply.text
        written, at = [*written, reply.json()["written"]], reply.json()["next"]
    assert written == [2_500, 2_500]
    gallery = service.retriever.follower.poll()
    assert len(gallery) == ROWS and gallery.metadata["price"].to_pylist() == list(range(ROWS))
    assert load("s3://own/other/v.parquet").status_code == 403
    for name, said in (("none", "There is no file"), ("torn", "cannot be read as a Parquet file")):
        reply = load(f"s3://own/vectors/{name}.parquet")
        assert reply.status_code == 422 and said in reply.json()["detail"], reply.text
        assert "endpoint" not in reply.text and address not in reply.text
    server.stop()
    reply = load("s3://own/vectors/day/v.parquet")
    assert reply.status_code == 503 and reply.headers["retry-after"] == "2", reply.text
    assert asked("POST", "/v1/search", json={"text": "blue", "k": 3}).status_code == 200
    service.retriever.follower.stop()


class Through(httpx.BaseTransport):
    """Sends to an application in this process."""

    def __init__(self, ask):
        self.ask = ask

    def handle_request(self, request):
        target, headers = request.url.raw_path.decode(), {"content-type": request.headers.get("content-type", "")}
        reply = self.ask(request.method, target, content=request.read(), headers=headers)
        return httpx.Response(reply.status_code, headers=reply.headers, content=reply.content)


def test_the_command_line_has_a_service_add_a_whole_file(asked, place, inbox, monkeypatch, capsys):
    client = partial(SearchClient, transport=Through(asked), retries=0)
    monkeypatch.setattr("cirray.serving.client.SearchClient", client)
    monkeypatch.setattr("cirray.serving.calls.load.__defaults__", (0, 1_999))
    words = ["index", "add", "--url", "http://test", "--source", str(inbox / "v.parquet")]
    assert main(words) == 0 and "5,000 added or replaced" in capsys.readouterr().out
    assert Catalogue.open(place).since(0).num_rows == ROWS
    for more, said in (
        (["--source", "/etc/passwd"], "answered 403: '/etc/passwd' is not below a place"),
        (["--source", str(inbox / "v.parquet"), "--prefix", "x/"], "leave out prefix="),
        ([], "name it with source="),
    ):
        assert main([*words[:4], *more]) == 2 and said in capsys.readouterr().err
    assert main(["index", "add", "--into", "shop", "--source", "x"]) == 2
    assert "give its url= too" in capsys.readouterr().err
