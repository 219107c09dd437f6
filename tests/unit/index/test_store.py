import io
import json

import numpy as np
import pytest
from made_artifacts import stage_of
from PIL import Image

from cirray.core.errors import ArtifactError, DataError, IndexMismatchError
from cirray.index.config import IndexBackend
from cirray.index.store import KIND, IndexMeta, open_index, whole_digest, write_index


def drawn(row):
    stream = io.BytesIO()
    Image.new("RGB", (9, 6), (row, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def make(tmp_path, backend=None, ids=None, name="index", patches=False):
    backend = backend or IndexBackend()
    ids = ids or [f"a/{row:03d}.png" for row in range(40)]
    rng = np.random.default_rng(3)
    tokens = rng.normal(size=(len(ids), 4, 8)).astype(np.float16)
    stage = stage_of(tmp_path / name, KIND, backend.to_dict())
    np.save(stage.local / "tokens.npy", tokens)
    if patches:
        np.save(stage.local / "patches.npy", rng.normal(size=(len(ids), 9, 6)).astype(np.float16))
    pictures = [b"" if row == 1 else drawn(row) for row in range(len(ids))]
    files = write_index(stage.local, ids, IndexMeta("enc-1", "vis-1"), backend, pictures)
    stage.publish({"images": len(ids)}, extra={"files": files})
    return tmp_path / name, tokens


@pytest.mark.parametrize(
    "backend",
    ["faiss", "exact", *({"settings": item} for item in ({"strategy": "pooled_rerank"}, {"factory": "HNSW8"}))],
)
def test_an_index_comes_back_as_it_was_written(tmp_path, backend):
    uri, tokens = make(tmp_path, IndexBackend.model_validate(backend), patches=True)
    gallery = open_index(uri, "enc-1")
    query = tokens[17, 2].astype(np.float32)[None]
    assert gallery.search_index.search(query, 3)[0][0][0] == "a/017.png"
    assert gallery.picture("a/002.png") == drawn(2) and gallery.picture("a/001.png") == b""
    assert gallery.pictures.size(2) == (9, 6) and gallery.pictures.size(1) is None
    assert gallery.patches_NPW is not None and gallery.patches_NPW.shape == (40, 9, 6)
    assert gallery.meta.vision_digest == "vis-1"


def test_an_index_of_another_encoder_is_refused_in_words(tmp_path):
    uri, _ = make(tmp_path)
    with pytest.raises(IndexMismatchError, match="built by encoder enc-1, the checkpoint is encoder enc-2"):
        open_index(uri, "enc-2")


def test_an_unknown_id_is_named(tmp_path):
    gallery = open_index(make(tmp_path)[0])
    with pytest.raises(DataError, match="no image '../../etc/passwd'. It holds 40"):
        gallery.picture("../../etc/passwd")


def test_a_flipped_byte_or_a_cut_anywhere_is_refused_with_the_file_named(tmp_path):
    uri, _ = make(tmp_path, patches=True)
    rng = np.random.default_rng(0)
    names = [path.name for path in uri.iterdir() if path.name not in ("manifest.json", "stage.json")]
    assert {"tokens.npy", "index.faiss", "ids.json", "meta.json", "pictures.bin", "patches.npy"} <= set(names)
    for name in names:
        whole = (uri / name).read_bytes()
        for position in rng.integers(0, len(whole), 4):
            flipped = bytearray(whole)
            flipped[position] ^= 1 << int(rng.integers(8))
            for content in (bytes(flipped), whole[:position], b""):
                (uri / name).write_bytes(content)
                with pytest.raises(ArtifactError, match=f"file '{name}' of the index"):
                    open_index(uri)
        (uri / name).unlink()
        with pytest.raises(ArtifactError, match=f"lost its file '{name}'"):
            open_index(uri)
        (uri / name).write_bytes(whole)
    open_index(uri)


def test_a_file_that_is_no_index_is_refused_even_when_checks_are_off(tmp_path):
    uri, _ = make(tmp_path)
    (uri / "index.faiss").write_bytes(b"nonsense" * 10)
    with pytest.raises(ArtifactError, match="FAISS cannot read"):
        open_index(uri, verify=False)


def test_a_manifest_that_does_not_list_the_files_is_refused(tmp_path):
    uri, _ = make(tmp_path)
    manifest = json.loads((uri / "manifest.json").read_text())
    manifest["extra"] = {}
    (uri / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="does not list"):
        open_index(uri)


@pytest.mark.parametrize(
    ("ids", "sentence"),
    [(["b", "a"], "stands after 'b'"), (["a", "a"], "appears twice"), (["a", "b\udce9"], r"b.udce9' is no UTF-8 text")],
)
def test_ids_that_are_not_ascending_and_unique_are_refused(tmp_path, ids, sentence):
    with pytest.raises(DataError, match=sentence):
        make(tmp_path, ids=ids)


def test_an_index_that_was_never_built_says_so(tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        open_index(tmp_path / "nowhere")


def object_array():
    stream = io.BytesIO()
    np.save(stream, np.array([None] * 40, dtype=object))
    return stream.getvalue()


def array(values):
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


WRONG_SETTING = b'{"meta": {"encoder_digest": "e"}, "backend": {"kind": "faiss", "settings": {"factory": ""}}}'
TAMPERED = {
    "tokens.npy": [object_array(), array(np.zeros((40, 4, 9), np.float16)), b"\x93NUMPY", b"<html></html>"],
    "patches.npy": [object_array(), b""],
    "pictures.npy": [object_array()],
    "ids.json": [b"{", b"3", b'["a"]', b"\xff\xfe", b"null"],
    "meta.json": [b"{}", b"[1]", b'{"meta": 3, "config": {}, "shape": []}', WRONG_SETTING],
}


@pytest.mark.parametrize("name, content", [(name, item) for name, items in TAMPERED.items() for item in items])
def test_tampered_files_end_in_one_sentence_also_with_their_digests_in_the_manifest(tmp_path, name, content):
    uri, _ = make(tmp_path, patches=True)
    name = name if (uri / name).exists() else next(path.name for path in uri.glob("*offsets*"))
    (uri / name).write_bytes(content)
    manifest = json.loads((uri / "manifest.json").read_text())
    manifest["extra"]["files"][name] = whole_digest(uri / name)
    (uri / "manifest.json").write_text(json.dumps(manifest))
    for verify in (True, False):
        with pytest.raises(ArtifactError, match="is damaged or not what it should be.*Build the index again") as caught:
            open_index(uri, verify=verify)
        assert len(str(caught.value).splitlines()) == 1
