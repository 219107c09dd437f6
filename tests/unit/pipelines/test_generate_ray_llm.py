"""`cirray generate` by Ray Data's language model stages: rows come back in any order and blocks, with failed ones.

The processor is a stand-in between Ray's own wrappers of pre- and postprocessing; vLLM itself was never run here.
"""

import contextlib
import copy
import importlib.util
import inspect
import json
import random
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from ray.data import llm
from ray.exceptions import UserCodeException
from ray.llm._internal.batch.processor.base import Processor
from ray.llm._internal.batch.stages.base import wrap_postprocess, wrap_preprocess
from ray.llm._internal.batch.stages.configs import PrepareMultimodalStageConfig, resolve_stage_config

from cirray.core import extras
from cirray.core.config import validate
from cirray.core.errors import ConfigError, DataError, GenerationError
from cirray.generators.base import WriterSetup
from cirray.generators.engines.config import ENGINES
from cirray.pipelines.cluster import resources
from cirray.pipelines.texts.config import GenerateRun
from cirray.pipelines.texts.generate import run_generate
from cirray.pipelines.texts.ray_llm import ERROR, Asking
from cirray.triplets.store import TripletStore

FIXTURES = Path(__file__).parents[2] / "fixtures"
BUILD = inspect.signature(llm.build_processor)
TINY = SimpleNamespace(**runpy.run_path(str(FIXTURES / "tiny_pipeline.py")))
GOOD = json.dumps({"forward": "make it blue", "reverse": "make it red", "edit": "attribute", "confidence": 0.5})


class Stages:
    """Answers like vLLM's stage in Ray Data: shuffled rows, errors in a column, some rows twice."""

    def __init__(self, answer, lost=(), twice=3):
        self.answer, self.lost, self.twice, self.rounds, self.config = answer, lost, twice, [], None

    @property
    def asked(self):
        return [data for asked in self.rounds for data in asked]

    def build(self, *given, **named):
        bound = BUILD.bind(*given, **named).arguments
        config, preprocess, postprocess = (bound[name] for name in ("config", "preprocess", "postprocess"))
        self.config = config
        before = wrap_preprocess(copy.deepcopy(preprocess), Processor.DATA_COLUMN)
        after = wrap_postprocess(postprocess, Processor.DATA_COLUMN, config.should_continue_on_error)
        return lambda tables: SimpleNamespace(iter_rows=lambda: self.rows(tables, before, after))

    def rows(self, tables, before, after):
        rows = [row for table in tables for row in table.to_pylist()]
        random.Random(0).shuffle(rows)
        self.rounds.append([])
        for row in [*rows, *rows[: self.twice]]:
            data = before(row)[Processor.DATA_COLUMN]
            self.rounds[-1].append(data)
            if data["pair_id"] in self.lost:
                continue
            text = self.answer(data)
            told = {
                "generated_text": text,
                "num_input_tokens": 90,
                "num_generated_tokens": 9,
                "__inference_error__": "",
            }
            if text is None:
                told |= {"generated_text": "", "num_input_tokens": 0, ERROR: "ValueError: too long"}
            yield after({Processor.DATA_COLUMN: {**data, **told}})


@pytest.fixture
def world(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    for number in range(13):
        Image.new("RGB", (40, 40), (20 * number, 0, 0)).save(tmp_path / "photos" / f"img-{number:04d}.png")
    TINY.write_pairs_artifact(tmp_path / "pairs", TINY.chain(12))
    monkeypatch.setattr(resources, "cluster", lambda config: contextlib.nullcontext())
    monkeypatch.setattr("ray.data.from_blocks", lambda tables: tables)
    monkeypatch.setattr(extras, "find_spec", lambda name: name)
    return tmp_path


def run_of(world, engine=None, **fields):
    engine = {"kind": "ray_llm", "settings": {"source": "some/model", **(engine or {})}}
    settings = {"engine": engine, "data": {"folder": {"root": str(world / "photos")}}, "side": 32}
    return validate(
        GenerateRun,
        {
            "pairs": str(world / "pairs"), "generator": {"kind": "lmm", "settings": settings},
            "out": str(world / "out"), "part_rows": 4, **fields,
        },
    )  # fmt: skip


def test_rows_of_all_parts_that_come_in_any_order_are_each_accounted_for(world, monkeypatch):
    stages = Stages(lambda data: GOOD)
    monkeypatch.setattr(llm, "build_processor", stages.build)
    made = run_generate(run_of(world, {"engine_kwargs": {"max_model_len": 4096}, "engines": 2}))
    assert made.counts == {"pairs": 12, "triplets": 24, "rejected": 0}
    assert made.extra["tokens"] == {"tokens_in": 12 * 90, "tokens_out": 12 * 9}
    rows = TripletStore.open(world / "out").table().to_pylist()
    assert len({row["pair_id"] for row in rows}) == 12 and {row["edit"] for row in rows} == {"attribute"}
    config = stages.config
    assert (config.model_source, config.concurrency, config.should_continue_on_error) == ("some/model", 2, True)
    assert config.engine_kwargs["max_model_len"] == 4096
    stage = resolve_stage_config(config.prepare_multimodal_stage, PrepareMultimodalStageConfig)
    assert stage.enabled and stage.chat_template_content_format == "openai"
    content = stages.asked[0]["messages"][0]["content"]
    assert [part["type"] for part in content].count("image_url") == 2
    assert len({part["uuid"] for part in content if "uuid" in part}) == 2
    schema = json.loads(stages.asked[0]["sampling_params"]["structured_outputs"]["json"])
    assert schema["required"] == ["forward", "reverse", "edit", "confidence"]


def test_rows_that_the_engine_fails_at_and_bad_answers_are_rejected_rows(world, monkeypatch):
    pairs = [pair.pair_id for pair in TINY.chain(12)]
    said = {pairs[0]: None, pairs[1]: "I cannot see.", pairs[2]: json.dumps({"forward": "x " * 2000, "reverse": "y"})}
    stages = Stages(lambda data: said.get(data["pair_id"], GOOD))
    monkeypatch.setattr(llm, "build_processor", stages.build)
    (world / "photos" / "img-0011.png").write_bytes(b"no picture")
    made = run_generate(run_of(world))
    assert made.counts["rejected"] == 2 * 5  # both pairs of the broken picture, and three bad answers
    rejected = TripletStore.open(world / "out").rejected().to_pylist()
    reasons = {row["pair_id"]: row["reason"] for row in rejected}
    assert reasons[pairs[0]] == "the engine failed: ValueError: too long"
    assert "not the JSON" in reasons[pairs[1]] and "2,000 words, more than" in reasons[pairs[2]]
    assert all(reasons[pair].endswith("(3 tries)") for pair in pairs[1:3])
    broken = [item for item in stages.asked if item["fault"]]
    assert (
        sum(item["pair_id"] == pairs[0] for item in stages.asked) <= 2
    )  # what the engine failed at is not asked again
    assert len({item["pair_id"] for item in broken}) == 2
    assert all(item["sampling_params"]["max_tokens"] == 1 for item in broken)


def test_an_answer_with_a_defect_is_asked_for_again_less_greedily_and_every_token_is_counted(world, monkeypatch):
    bad, answers = [pair.pair_id for pair in TINY.chain(12)[4:6]], iter(["I cannot see."] * 2)
    stages = Stages(lambda data: next(answers, GOOD) if data["pair_id"] in bad else GOOD, twice=0)
    monkeypatch.setattr(llm, "build_processor", stages.build)
    made = run_generate(run_of(world))
    assert made.counts == {"pairs": 12, "triplets": 24, "rejected": 0}
    assert [len(rows) for rows in stages.rounds] == [12, 2] and {row["pair_id"] for row in stages.rounds[1]} == set(bad)
    heat = [{row["sampling_params"]["temperature"] for row in rows} for rows in stages.rounds]
    assert heat == [{0.0}, {0.5}] and made.extra["tokens"] == {"tokens_in": 14 * 90, "tokens_out": 14 * 9}


def test_several_texts_of_a_pair_are_rows_of_their_own(world, monkeypatch):
    said = json.dumps({"texts": [{"forward": text, "reverse": f"not {text}"} for text in ("a", "b")]})
    bad, halves = TINY.chain(12)[3].pair_id, json.dumps({"texts": [{"forward": "a", "reverse": "c"}]})
    stages = Stages(lambda data: halves if data["pair_id"] == bad else said, twice=0)
    monkeypatch.setattr(llm, "build_processor", stages.build)
    tree = run_of(world).model_dump(include={"pairs", "out", "part_rows"})
    tree["generator"] = run_of(world).generator.model_dump(exclude_unset=True)
    tree["generator"]["settings"]["texts"] = 2
    made = run_generate(validate(GenerateRun, tree))
    assert made.counts == {"pairs": 12, "triplets": 46, "rejected": 2} and len(stages.rounds) == 3


def test_what_is_answered_in_a_round_is_kept_when_the_next_one_is_killed(world, monkeypatch):
    bad = TINY.chain(12)[5].pair_id

    def killed(data):
        if data["sampling_params"]["temperature"]:
            raise KeyboardInterrupt
        return "I cannot see." if data["pair_id"] == bad else GOOD

    monkeypatch.setattr(llm, "build_processor", Stages(killed, twice=0).build)
    with pytest.raises(KeyboardInterrupt):
        run_generate(run_of(world))
    again = Stages(lambda data: GOOD, twice=0)
    monkeypatch.setattr(llm, "build_processor", again.build)
    assert run_generate(run_of(world)).counts == {"pairs": 12, "triplets": 24, "rejected": 0}
    assert [row["pair_id"] for row in again.asked] == [bad] and not (world / "out" / "answers").exists()


def test_a_run_that_loses_rows_goes_on_with_what_is_missing(world, monkeypatch):
    lost = TINY.chain(12)[5].pair_id
    stages = Stages(lambda data: GOOD, lost=(lost,))
    monkeypatch.setattr(llm, "build_processor", stages.build)
    with pytest.raises(DataError, match="1 of 3 parts did not come back"):
        run_generate(run_of(world))
    assert [{row["pair_id"] for row in rows} for rows in stages.rounds[1:]] == [{lost}, {lost}]
    again = Stages(lambda data: GOOD)
    monkeypatch.setattr(llm, "build_processor", again.build)
    assert run_generate(run_of(world)).counts == {"pairs": 12, "triplets": 24, "rejected": 0}
    assert {item["pair_id"] for item in again.asked} == {lost}


def test_an_engine_that_breaks_is_one_sentence(world, monkeypatch):
    def broken(data):
        raise UserCodeException("traces\nValueError: no GPU has 80 GiB\n\nmore\nray.exceptions.UserCodeException: UDF")

    monkeypatch.setattr(llm, "build_processor", Stages(broken).build)
    with pytest.raises(GenerationError, match=r"stages stopped \(ValueError: no GPU has 80 GiB\)\. Parts"):
        run_generate(run_of(world))


def test_what_is_missing_or_does_not_fit_is_one_sentence(world, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", importlib.util.find_spec)
    with pytest.raises(ConfigError, match=r"ray_llm needs the library vllm.*pip install 'cirray\[llm\]'"):
        run_generate(run_of(world))
    monkeypatch.setattr(extras, "find_spec", lambda name: name)
    with pytest.raises(ConfigError, match="leave out ray.enabled=false"):
        run_generate(run_of(world, ray={"enabled": False}))
    with pytest.raises(ConfigError, match="take engine kind 'http'"):
        ENGINES.get("ray_llm")(run_of(world).generator.settings.engine.settings, "cpu")


def test_a_question_travels_to_other_processes_without_what_it_has_opened(world):
    settings = run_of(world).generator.settings
    asking = Asking(settings, WriterSetup())
    row = {**vars(TINY.chain(1)[0]), "part": 0}
    row |= {f"{end}_place": str(world / "photos" / f"{row[f'{end}_id']}.png") for end in ("reference", "target")}
    assert asking(row)["fault"] == "" and copy.deepcopy(asking)._made == []
