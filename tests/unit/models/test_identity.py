"""What identifies a model stays as it is when a library is upgraded, and moves with what decides a vector."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import torch
import transformers

from cirray.core.contents import directory_digest
from cirray.generators.config import GeneratorConfig, ReaderConfig
from cirray.generators.mtg import ModificationTextModel
from cirray.generators.prompts import all_prompts
from cirray.generators.store import load_generator, save_generator
from cirray.models.config import DualEncoderConfig
from cirray.models.dual import build_dual
from cirray.models.sources.files import open_weights
from cirray.models.text import build_tokenizer
from cirray.models.towers.config import LanguageModelConfig
from cirray.models.towers.hf_blip2 import load_vision_tower
from cirray.models.towers.language import build_language_model, build_word_tokenizer
from cirray.models.words.config import WordMapConfig
from cirray.models.words.word_map import build_word_map

FIXTURES = Path(__file__).parents[2] / "fixtures"
small = SimpleNamespace(**runpy.run_path(str(FIXTURES / "small_clip.py")))
pipeline = SimpleNamespace(**runpy.run_path(str(FIXTURES / "tiny_pipeline.py")))


@pytest.fixture
def upgrade(monkeypatch):
    """Transformers of a later release: another number, and fields at their defaults that this one has not."""
    plain = transformers.PreTrainedConfig.to_dict

    def later():
        monkeypatch.setattr("transformers.configuration_utils.__version__", "99.1.0")
        monkeypatch.setattr(
            transformers.PreTrainedConfig,
            "to_dict",
            lambda self: plain(self) | {"new_switch": False, "new_mode": "auto"},
        )

    return later


def dual(source, **fields):
    return build_dual(DualEncoderConfig(source=source, **fields), [], small.EMBED)


IDENTITIES = {
    "hf vision tower": lambda place: load_vision_tower(place("hf")).digest,
    "open_clip vision tower": lambda place: load_vision_tower(place("open")).digest,
    "BLIP-2 vision tower": lambda place: load_vision_tower(place("blip2")).digest,
    "dual encoder over hf": lambda place: dual(place("hf")).digest,
    "dual encoder over open_clip": lambda place: dual(place("open")).digest,
    "pseudo-words": lambda place: build_word_map(WordMapConfig(source=place("hf")), small.EMBED).digest,
    "pretrained Q-Former's files": lambda place: open_weights(place("hf")).digest(open_weights(place("hf")).names),
}


@pytest.fixture
def place(tmp_path):
    """A source of a kind, written once with equal weights."""

    def at(kind):
        folder = tmp_path / kind
        if not folder.exists():
            if kind == "blip2":
                return pipeline.write_tower(tmp_path)
            getattr(small, f"save_{kind}")(getattr(small, f"{kind}_model")(), folder)
        return str(folder)

    return at


@pytest.mark.parametrize("name", IDENTITIES)
def test_a_digest_outlives_an_upgrade_of_transformers(name, place, upgrade):
    before = IDENTITIES[name](place)
    upgrade()
    assert IDENTITIES[name](place) == before


@pytest.mark.parametrize(
    "name", ["hf vision tower", "dual encoder over hf", "pseudo-words", "pretrained Q-Former's files"]
)
def test_a_digest_does_not_ask_who_saved_the_source_and_asks_for_its_settings(name, place):
    before, path = IDENTITIES[name](place), Path(place("hf")) / "config.json"
    settings = json.loads(path.read_text())
    written = settings | {"transformers_version": "99.1.0", "torch_dtype": "float32", "_name_or_path": "elsewhere"}
    path.write_text(json.dumps(dict(reversed(written.items()))))
    assert IDENTITIES[name](place) == before
    for part in ("vision_config", "text_config"):
        settings[part] |= {"layer_norm_eps": 0.5, "hidden_act": "relu"}
    path.write_text(json.dumps(settings))
    assert IDENTITIES[name](place) != before


def test_an_open_clip_tower_does_not_ask_for_options_that_say_nothing(place):
    before, path = IDENTITIES["open_clip vision tower"](place), Path(place("open")) / "open_clip_config.json"
    texts = IDENTITIES["dual encoder over open_clip"](place)
    tree = json.loads(path.read_text())
    for part in ("vision_cfg", "text_cfg"):
        quiet = [
            name for name, value in vars(getattr(open_clip, f"CLIP{part[:-4].title()}Cfg")()).items() if value is False
        ]
        tree["model_cfg"][part] |= {name: False for name in quiet if name not in tree["model_cfg"][part]}
    path.write_text(json.dumps(tree))
    assert IDENTITIES["open_clip vision tower"](place) == before
    assert IDENTITIES["dual encoder over open_clip"](place) == texts


def generator(folder, **fields):
    torch.manual_seed(0)
    tokenizer = build_word_tokenizer([*all_prompts(), "make it red"])
    sizes = LanguageModelConfig(width=16, layers=1, heads=2, intermediate=16, positions=64)
    reader = ReaderConfig(width=16, layers=1, heads=2, queries=2, intermediate=16)
    config = GeneratorConfig(qformer=reader, embed_language_model=True, **fields)
    save_generator(ModificationTextModel(config, build_language_model(sizes, tokenizer), 12), folder)
    return folder


def rewrite(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("tuning", ["frozen", "lora"])
def test_a_generator_saved_by_two_releases_is_one_generator(tuning, tmp_path, upgrade):
    first = load_generator(generator(tmp_path / "a", tuning=tuning)).digest
    upgrade()
    later = generator(tmp_path / "b", tuning=tuning)
    assert "99.1.0" in (later / "lm" / "config.json").read_text()
    rewrite(later / "lm" / "tokenizer_config.json", later_option=16, tokenizer_class="TokenizerOfLater")
    if tuning == "lora":
        rewrite(later / "adapter" / "adapter_config.json", later_option=16, peft_version="99")
    assert load_generator(later).digest == first
    name, field = (
        ("adapter/adapter_config.json", "lora_alpha") if tuning == "lora" else ("lm/config.json", "rms_norm_eps")
    )
    rewrite(later / name, **{field: 0.125})
    assert directory_digest(later) != directory_digest(tmp_path / "a")


def test_a_tokenizer_that_was_used_before_saving_is_the_same_tokenizer(tmp_path):
    tokenizer = build_tokenizer(["make it red", "larger"])
    tokenizer.save_pretrained(str(tmp_path / "a"))
    tokenizer(["make it red", "larger"], padding=True, truncation=True, max_length=5)
    tokenizer.save_pretrained(str(tmp_path / "b"))
    build_tokenizer(["make it blue", "larger"]).save_pretrained(str(tmp_path / "c"))
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() != (tmp_path / "b" / "tokenizer.json").read_bytes()
    digests = [directory_digest(tmp_path / name) for name in "abc"]
    assert digests[0] == digests[1] != digests[2]
