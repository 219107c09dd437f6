"""Texts by Ray Data's own language model stages (`ray.data.llm`, vLLM) in place of a pool of generators.

Ray Data cuts and orders rows as its stages like; so every row says which pair of which part it is, and a part is
written when the last of its answers has come. An answer with a defect is asked for again in a further round, as an
engine cannot be asked twice within one. Not tried with vLLM itself: there was no GPU for it.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cirray.core.errors import ConfigError, DataError, GenerationError
from cirray.core.extras import require
from cirray.generators.base import WriterSetup
from cirray.generators.config import GeneratorChoice, LmmConfig
from cirray.generators.engines.base import DRAWN, Reply, Tries
from cirray.generators.engines.config import RayLlmConfig
from cirray.generators.lmm import LmmGenerator
from cirray.generators.pictures import PictureLookup, Shots
from cirray.models.sources.hub import at_home
from cirray.pipelines.cluster.config import RayConfig
from cirray.pipelines.cluster.streaming import Columns, to_columns
from cirray.pipelines.texts.actors import GenerateTexts, as_generation
from cirray.triplets.pairs import PAIR_SCHEMA, to_pairs
from cirray.types import Pair, part_name

ERROR = "__inference_error__"
"""Column in which Ray Data tells what an engine could not answer."""
_NOTHING = "-"
_CAUSE = re.compile(r"^(?!ray\.)[\w.]+(?:Error|Exception): .+", re.MULTILINE)


@dataclass
class Asking:
    """A pair's row as the question that the engine takes; made anew in every process."""

    settings: LmmConfig
    setup: WriterSetup
    least: float = 0.0
    """Least temperature."""
    _made: list[Any] = field(default_factory=list, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_made": []}

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """`messages` and `sampling_params`, beside `part` and `pair_id`; `fault` where the pair cannot be asked about,
        for which the engine then writes one token.
        """
        if not self._made:
            shots = Shots(self.settings.limits, self.settings.side) if self.settings.data else None
            self._made += [LmmGenerator(self.settings, self.setup, None), shots]
        generator, shots = self._made
        pair = Pair(**{name: row[name] for name in PAIR_SCHEMA.names})
        places = {getattr(pair, f"{end}_id"): row.get(f"{end}_place", "") for end in ("reference", "target")}
        own = {"part": row["part"], "pair_id": pair.pair_id}
        try:
            question = generator.question(pair, PictureLookup(places, shots) if shots else None)
        except DataError as error:
            content = [{"type": "text", "text": _NOTHING}] if shots else _NOTHING
            return {**own, "fault": str(error), **self._asks(content, self._sampling(1, None))}
        engine = self.settings.engine.settings
        assert isinstance(engine, RayLlmConfig)
        schema = json.dumps(dict(question.schema or {})) if engine.structured == "auto" else None
        return {**own, "fault": "", **self._asks(question.content(True), self._sampling(engine.max_tokens, schema))}

    @staticmethod
    def _asks(content: Any, sampling: dict[str, Any]) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": content}], "sampling_params": sampling}

    def _sampling(self, tokens: int, schema: str | None) -> dict[str, Any]:
        engine = self.settings.engine.settings
        assert isinstance(engine, RayLlmConfig)
        outputs = {"structured_outputs": {"json": schema} if schema else None} if engine.structured == "auto" else {}
        return {"max_tokens": tokens, "temperature": max(engine.temperature, self.least), **outputs}


def unasked(choice: GeneratorChoice, setup: WriterSetup) -> LmmGenerator:
    """The generator without an engine: it reads the answers that Ray Data's stages give."""
    assert isinstance(choice.settings, LmmConfig)
    return LmmGenerator(choice.settings, setup, None)


def answered(row: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of an engine's row."""
    names = ("part", "pair_id", "fault", "generated_text", "num_input_tokens", "num_generated_tokens")
    return {name: row[name] for name in names}


@dataclass
class _Open:
    """A part that is not written: its pairs, what is settled of it, and the tries of what is not."""

    table: pa.Table
    settled: dict[str, dict[str, Any]]
    awaited: set[str] = field(default_factory=set)
    tries: dict[str, Tries] = field(default_factory=dict)

    def asked(self) -> pa.Table:
        """The pairs that are to be asked about now."""
        self.awaited = set(self.table.column("pair_id").to_pylist()) - self.settled.keys()
        return self.table.filter(pc.is_in(self.table.column("pair_id"), pa.array(self.awaited, pa.string())))

    @property
    def whole(self) -> bool:
        """Whether every pair is settled."""
        return len(self.settled) == len(self.table)


@dataclass(frozen=True)
class ByRayLlm:
    """Sends parts of pairs through Ray Data's stages, and writes each part when it is whole."""

    worker: GenerateTexts
    settings: LmmConfig
    setup: WriterSetup

    def __call__(self, tables: Sequence[pa.Table], ray: RayConfig) -> Iterator[Columns]:
        """Figures of every part, in the order in which they are finished.

        Raises ConfigError: there is no vLLM, or no Ray; or nothing comes within the hang guard's time.
        """
        from cirray.pipelines.cluster.resources import cluster

        require("vllm", "llm", "generator.settings.engine.kind=ray_llm")
        if not ray.enabled:
            raise ConfigError("engine kind 'ray_llm' runs on Ray Data; leave out ray.enabled=false, or take kind http.")
        left = {int(table.column("part")[0].as_py()): _Open(table, {}) for table in tables}
        for number, part in left.items():
            part.settled = self.worker.answers.kept(part_name(number))
        with cluster(ray):
            for attempt in range(self._own.tries):
                yield from self._round(left, ray, attempt)

    def _round(self, left: dict[int, _Open], ray: RayConfig, attempt: int) -> Iterator[Columns]:
        """Ask what is not settled. Parts that are whole then are written, of others what is settled is kept."""
        asked = [part.asked() for part in left.values()]
        yield from (self._written(number, left) for number in [at for at, part in left.items() if part.whole])
        for row in self._rows([table for table in asked if len(table)], ray, DRAWN if attempt else 0.0):
            number, pair_id = int(row["part"]), str(row["pair_id"])
            if number not in left or pair_id not in left[number].awaited:  # of a task that was done again
                continue
            part = left[number]
            part.awaited.discard(pair_id)
            self._settle(part, pair_id, _reply(row), attempt + 1 == self._own.tries)
            if part.whole:
                yield self._written(number, left)
            elif not part.awaited:
                self.worker.answers.keep(part_name(number), part.settled)
        for number in [at for at, part in left.items() if part.awaited]:  # rows that did not come back
            self.worker.answers.keep(part_name(number), left[number].settled)

    def _settle(self, part: _Open, pair_id: str, reply: Reply, last: bool) -> None:
        """Take an answer, but for one with a defect that can be asked for again."""
        generator: Any = self.worker.generator
        own, limit = part.tries.setdefault(pair_id, Tries()), self._own.max_tokens
        told = replace(reply, cut=limit if reply.tokens_out >= limit else 0)
        if settled := own.settled(told, generator.defect, self._own.tries, last):
            part.settled[pair_id] = asdict(generator.generation(pair_id, settled))

    def _rows(self, tables: Sequence[pa.Table], config: RayConfig, least: float) -> Iterator[Mapping[str, Any]]:
        import ray.data
        import ray.exceptions
        from ray.data import llm

        from cirray.pipelines.cluster.patience import patient

        if not tables:
            return
        data = ray.data.from_blocks(list(tables))
        processor = llm.build_processor(
            llm.vLLMEngineProcessorConfig(**self._engine()), preprocess=Asking(self.settings, self.setup, least),
            postprocess=answered,
        )  # fmt: skip
        try:
            yield from patient(processor(data).iter_rows(), config.no_progress_timeout_s)
        except ray.exceptions.RayError as error:
            told = _CAUSE.search(str(error)) or _CAUSE.search(f"RayError: {error}")
            raise GenerationError(
                f"Ray Data's stages stopped ({told[0][:200] if told else type(error).__name__}). Parts that are "
                "finished are kept: run again when the engine works."
            ) from None

    @property
    def _own(self) -> RayLlmConfig:
        own = self.settings.engine.settings
        assert isinstance(own, RayLlmConfig)
        return own

    def _engine(self) -> dict[str, Any]:
        own = self._own
        sees = self.settings.data is not None
        return {
            "model_source": at_home(own.source), "batch_size": own.batch, "concurrency": own.engines,
            "accelerator_type": own.accelerator or None, "should_continue_on_error": True,
            "engine_kwargs": ({"limit_mm_per_prompt": {"image": 2}} if sees else {}) | own.engine_kwargs,
            # as parts of the message, pictures stay where the question has them
            "prepare_multimodal_stage": {"enabled": sees, "chat_template_content_format": "openai"},
            "detokenize_stage": False,  # the engine gives text
        }  # fmt: skip

    def _written(self, number: int, left: dict[int, _Open]) -> Columns:
        part = left.pop(number)
        pairs = to_pairs(to_columns(part.table))
        figures = self.worker.write(number, pairs, [as_generation(part.settled[pair.pair_id]) for pair in pairs])
        return {name: np.array([value]) for name, value in {**figures, "part": number}.items()}


def _reply(row: Mapping[str, Any]) -> Reply:
    if row["fault"]:
        return Reply("", str(row["fault"]))
    if row.get(ERROR):
        return Reply("", f"the engine failed: {' '.join(str(row[ERROR]).split())[:200]}")
    return Reply(str(row["generated_text"]), "", int(row["num_input_tokens"]), int(row["num_generated_tokens"]))
