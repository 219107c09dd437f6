"""Files as people have them in place of a checkpoint: named for what they are, read where that is plain."""

import io
import json
import pickle
import runpy
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cirray.core.errors import ArtifactError
from cirray.generators.captioners.base import CaptionerSetup
from cirray.generators.captioners.config import HfConfig
from cirray.generators.captioners.hf import HfCaptioner
from cirray.models.conversion_files import convert, read_original
from cirray.models.sources.blip2 import open_blip2
from cirray.models.sources.state_dicts import stripped
from cirray.models.text import load_tokenizer
from cirray.models.towers import open_clip as open_clip_towers
from cirray.models.towers.hf_blip2 import load_vision_tower
from cirray.models.towers.hf_clip import HfClipText, load_hf_clip_tower
from cirray.models.towers.language import load_language_model
from cirray.models.towers.open_clip import load_open_clip_tower

FIXTURES = Path(__file__).parents[2] / "fixtures"
lavis = SimpleNamespace(**runpy.run_path(str(FIXTURES / "lavis_layout.py")))
small = SimpleNamespace(**runpy.run_path(str(FIXTURES / "small_blip2.py")))
clip = SimpleNamespace(**runpy.run_path(str(FIXTURES / "small_clip.py")))
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1\nsize 9\n"


def archive(*names):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name in names:
            file.writestr(name, b"x" * 200)
    return stream.getvalue()


def tar():
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        file.addfile(tarfile.TarInfo("weights.pt"))
    return stream.getvalue()


OTHERS = {
    "empty": (b"", r"is empty \(0 bytes\)"),
    "web page": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "a web page"),
    "error page": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML text"),
    "lfs": (POINTER, r"a Git LFS pointer.*git lfs pull"),
    "annex": (b"/annex/objects/SHA256E-s9--4d7a.pt\n", "a git-annex pointer"),
    "json": (b'{"error": "not found"}', "JSON text"),
    "text": (b"weights at https://example.org/a.pt\n", "plain text"),
    "random": (bytes(range(200, 256)) * 20, "of an unknown format .*c8 c9"),
    "zeros": (bytes(5000), "all zeros"),
    "zip": (archive("readme.txt", "photos/a.jpg"), r"a zip archive of something else \(it holds readme.txt, photos"),
    "cut zip": (archive("archive/data.pkl", "archive/data/0")[:300], "a truncated torch file or zip archive"),
    "torchscript": (archive("m/constants.pkl", "m/code/a.py", "m/data.pkl"), "a TorchScript archive"),
    "npz": (archive("a.npy", "b.npy"), "a NumPy archive"),
    "npy": (b"\x93NUMPY\x01\x00v\x00", "a NumPy array"),
    "keras": (b"\x89HDF\r\n\x1a\n" + bytes(90), "an HDF5 file"),
    "savedmodel": (b"\x08\x01\x12\x10" + bytes(90), "a TensorFlow SavedModel"),
    "gguf": (b"GGUF\x03\x00\x00\x00" + bytes(90), "a GGUF file"),
    "onnx": (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0" + bytes(90), "an ONNX model"),
    "tflite": (b"\x1c\x00\x00\x00TFL3" + bytes(range(90)), "a TensorFlow Lite model"),
    "tar": (tar(), "a tar archive; unpack it"),
    "gzip": (b"\x1f\x8b\x08" + bytes(90), "compressed by gzip; unpack it"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(90), "a PNG picture"),
}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors"])
@pytest.mark.parametrize("kind", OTHERS)
def test_a_file_that_is_something_else_is_called_what_it_is(kind, suffix, tmp_path):
    content, words = OTHERS[kind]
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(
        ArtifactError, match=rf"weights{suffix}' is {words.removeprefix('is ')}.*Accepted are"
    ) as caught:
        read_original(path)
    assert len(str(caught.value).splitlines()) == 1 and "pickle" not in str(caught.value)


def test_a_folder_where_a_file_is_expected_says_what_it_holds(tmp_path):
    (tmp_path / "weights.pt").mkdir()
    (tmp_path / "weights.pt" / "data.pkl").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"is a folder \(it holds data.pkl\) where a file is expected"):
        read_original(tmp_path / "weights.pt")


def test_plain_pickles_and_state_dicts_of_numpy_arrays_are_refused_in_one_sentence(tmp_path):
    for name, tree in {"a.pt": {"query_tokens": [1.0]}, "b.pt": {"a": np.array([None, "x"], dtype=object)}}.items():
        (tmp_path / name).write_bytes(pickle.dumps(tree))
        with pytest.raises(ArtifactError, match=f"{name}.*(no torch file|holds more than weights)"):
            read_original(tmp_path / name)
    torch.save({"query_tokens": np.array([None], dtype=object)}, tmp_path / "c.pt")
    with pytest.raises(ArtifactError, match="c.pt.*holds more than weights"):
        read_original(tmp_path / "c.pt")


def test_safetensors_cut_at_their_end_say_how_much_is_there(tmp_path):
    save_file({"a": torch.zeros(1000)}, tmp_path / "a.pt")
    data = (tmp_path / "a.pt").read_bytes()
    for kept in (len(data) - 10, 40):
        (tmp_path / "a.pt").write_bytes(data[:kept])
        with pytest.raises(ArtifactError, match=rf"safetensors file.*\({kept:,} .*are there"):
            read_original(tmp_path / "a.pt")


def write_stage1(folder):
    return small.save_retrieval(small.retrieval(), folder)


def write_instruct(folder):
    return small.save_instruct(small.instruct(), folder)


def write_clip(folder):
    return clip.save_hf(clip.hf_model(), folder)


FOLDERS = {
    "blip2": (write_stage1, lambda place: open_blip2(place).weights.read(["query_tokens"]), "query_tokens"),
    "vision part": (write_stage1, load_vision_tower, "vision_model.post_layernorm.weight"),
    "clip tower": (write_clip, lambda place: load_hf_clip_tower(place, None), "visual_projection.weight"),
    "clip text": (write_clip, HfClipText.load, "text_projection.weight"),
    "language part": (write_instruct, load_language_model, "language_model.model.norm.weight"),
}


@pytest.fixture(params=FOLDERS)
def folder(request, tmp_path):
    write, load, name = FOLDERS[request.param]
    return SimpleNamespace(place=str(write(tmp_path / "model")), load=load, path=tmp_path / "model", tensor=name)


def edit(folder, change, old=False):
    """Rewrite a folder's weights, as safetensors or as `pytorch_model.bin`."""
    path = folder.path / "model.safetensors"
    tensors = change(load_file(path))
    path.unlink()
    if old:
        torch.save(tensors, folder.path / "pytorch_model.bin")
    else:
        save_file({name: value.contiguous() for name, value in tensors.items()}, path, {"format": "pt"})


def weights(loaded):
    if isinstance(loaded, dict):
        return loaded
    return dict((loaded if isinstance(loaded, torch.nn.Module) else loaded.model).state_dict())


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "model.module.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_taken_off_in_every_source(folder, prefix, old):
    before = weights(folder.load(folder.place))
    edit(folder, lambda state: {prefix + name: value for name, value in state.items()}, old)
    after = weights(folder.load(folder.place))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_prefix_that_is_not_known_is_named(folder):
    edit(folder, lambda state: {f"teacher.{name}": value for name, value in state.items()})
    with pytest.raises(ArtifactError, match="begin with 'teacher."):
        folder.load(folder.place)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused_and_their_tensor_is_named(folder, value):
    def spoil(state):
        state[folder.tensor].view(-1)[0] = value
        return state

    edit(folder, spoil)
    name = folder.tensor.split(".")[-2:]
    with pytest.raises(ArtifactError, match=rf"1 of [\d,]+ values of the tensor '.*{'.'.join(name)}'.*NaN or infinite"):
        folder.load(folder.place)


def test_double_precision_is_read(folder):
    before = weights(folder.load(folder.place))
    edit(folder, lambda state: {name: value.double() for name, value in state.items()})
    after = weights(folder.load(folder.place))
    assert all(torch.equal(before[name].double(), after[name].double()) for name in before)


@pytest.mark.parametrize("kind", ["empty", "web page", "lfs", "random", "keras", "zip"])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_other_files_in_place_of_a_folder_s_weights_are_called_what_they_are(folder, kind, name):
    content, words = OTHERS[kind]
    (folder.path / "model.safetensors").unlink()
    (folder.path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{name}' is {words.removeprefix('is ')}.*Accepted are"):
        folder.load(folder.place)


@pytest.mark.parametrize("content", [POINTER, b"<html></html>", b"[1, 2]", b"", b'{"model_type": 3}', b"\xff\xfe{}"])
def test_a_config_that_is_none_is_one_sentence(folder, content):
    (folder.path / "config.json").write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        folder.load(folder.place)
    assert "config.json" in str(caught.value) or "model_type" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name, words", [("tf_model.h5", "Keras"), ("model.onnx", "ONNX"), ("m.gguf", "GGUF")])
def test_a_folder_with_another_program_s_weights_says_which(folder, name, words):
    (folder.path / "model.safetensors").rename(folder.path / name)
    with pytest.raises(ArtifactError, match=f"holds no weights.*{name}, an? .*{words}"):
        folder.load(folder.place)


def test_a_file_where_a_folder_is_needed_says_so(folder):
    with pytest.raises(ArtifactError, match="is a file.*folder|holds no CLIP .*a folder"):
        folder.load(str(folder.path / "model.safetensors"))


class Trap:
    """A pickle that runs code when it is read."""

    def __reduce__(self):
        return (eval, ("__import__('pathlib').Path('sprung').write_text('x')",))


def test_code_in_a_folder_s_pickle_is_refused_and_never_run(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder.path / "model.safetensors").unlink()
    torch.save({folder.tensor: torch.zeros(2), "trap": Trap()}, folder.path / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match="holds more than weights.*import"):
        folder.load(folder.place)
    assert not (tmp_path / "sprung").exists()


OWN_CODE = "from pathlib import Path\nPath('sprung').write_text('x')\n"


@pytest.mark.parametrize("kind", ["config", "tokenizer", "captioner"])
def test_code_of_a_source_s_own_is_neither_run_nor_asked_about(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    place = tmp_path / "custom"
    if kind == "tokenizer":
        small.reader().save_pretrained(str(place))
        settings = json.loads((place / "tokenizer_config.json").read_text())
        settings |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
        (place / "tokenizer_config.json").write_text(json.dumps(settings))
    else:
        write_instruct(place)
        settings = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}}
        (place / "config.json").write_text(json.dumps(settings))
    (place / "own.py").write_text(OWN_CODE)
    load = {
        "config": load_language_model, "tokenizer": load_tokenizer,
        "captioner": lambda place: HfCaptioner(HfConfig(source=str(place)), CaptionerSetup()),
    }[kind]  # fmt: skip
    with pytest.raises(ArtifactError, match="code of its own .*never run"):
        load(place)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3, "optimizer_states": [s]}])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "model.module.", "model._orig_mod."])
def test_an_author_s_file_is_converted_without_the_prefixes_of_wrappers(prefix, wrap, tmp_path):
    state = lavis.write(tmp_path / "in.pt", "sprc")
    plain, _ = convert(read_original(tmp_path / "in.pt"))
    torch.save(wrap({prefix + name: value for name, value in state.items()}), tmp_path / "wrapped.pt")
    found, _ = convert(read_original(tmp_path / "wrapped.pt"))
    assert plain.keys() == found.keys() and all(torch.equal(plain[name], found[name]) for name in plain)


def test_two_sets_of_weights_and_lightning_s_further_tensors_are_named(tmp_path):
    state = lavis.write(tmp_path / "in.pt", "sprc")
    both = {f"{name}.{key}": value for name in ("model", "ema") for key, value in state.items()}
    torch.save({"state_dict": both}, tmp_path / "both.pt")
    with pytest.raises(ArtifactError, match="holds 2 sets of weights, under 'ema.', 'model.'"):
        read_original(tmp_path / "both.pt")
    torch.save({**{f"model.{key}": value for key, value in state.items()}, "loss.w": torch.ones(1)}, tmp_path / "m.pt")
    with pytest.raises(ArtifactError, match=r"loss\.w"):
        convert(read_original(tmp_path / "m.pt"))


def test_an_author_s_file_in_double_precision_is_converted_and_one_with_nan_is_not(tmp_path):
    state = lavis.write(tmp_path / "in.pt", "sprc")
    torch.save(
        {"model": {name: v.double() if v.is_floating_point() else v for name, v in state.items()}}, tmp_path / "d.pt"
    )
    assert convert(read_original(tmp_path / "d.pt"))[0]["query_tokens"].dtype == torch.float64
    state["text_proj.bias"][1] = float("nan")
    torch.save({"model": state}, tmp_path / "n.pt")
    with pytest.raises(ArtifactError, match="1 of .* values of the tensor 'text_proj.bias' of .*NaN"):
        read_original(tmp_path / "n.pt")


def test_parts_that_wrappers_put_into_names_are_taken_out_and_collisions_are_refused():
    assert stripped({"model.visual._orig_mod.proj": 1}, ["visual.proj"], "x") == {"visual.proj": 1}
    assert stripped({"other": 1}, ["visual.proj"], "x") == {"other": 1}
    with pytest.raises(ArtifactError, match="one without the prefixes of wrappers"):
        stripped({"_orig_mod.a": 1, "a": 2}, ["a"], "x")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.module.", "model."])
def test_an_open_clip_file_is_read_with_prefixes_and_under_a_key(prefix, tmp_path):
    place = clip.save_open(clip.open_model(), tmp_path / "open")
    before = load_open_clip_tower(place, None)
    file = next(tmp_path.glob("open/*.safetensors"))
    state = {prefix + name: value for name, value in load_file(file).items()}
    file.unlink()
    torch.save({"state_dict": state, "epoch": 2}, tmp_path / "open" / "open_clip_pytorch_model.bin")
    after = load_open_clip_tower(str(place), None)
    assert all(torch.equal(value, after.model.state_dict()[name]) for name, value in before.model.state_dict().items())
    (tmp_path / "open" / "open_clip_pytorch_model.bin").write_bytes(POINTER)
    with pytest.raises(ArtifactError, match="open_clip_pytorch_model.bin' is a Git LFS pointer"):
        open_clip_towers.load_text(str(place))
