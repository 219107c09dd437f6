"""A large model writes the text: it sees both pictures (or reads their captions) and a versioned prompt.

Both directions and the kind of edit come from one question, so that a pair's two texts belong together.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from cirray.core.errors import DataError
from cirray.generators.base import WriterSetup
from cirray.generators.config import GENERATORS, LmmConfig
from cirray.generators.engines.answers import objects
from cirray.generators.engines.base import Engine, Question, Reply, Shot
from cirray.generators.engines.config import ENGINES
from cirray.generators.languages import foreign_language
from cirray.generators.pictures import PictureLookup
from cirray.triplets.captions import read_captions
from cirray.types import MAX_TEXT, Generation, Pair, stable_id

EDITS = ("add", "remove", "replace", "attribute", "count", "position", "background", "other")
"""Kinds of edit that an answer may name."""
_ANSWER = {
    "forward": '"forward": the request that leads from A to B',
    "reverse": '"reverse": the request that leads from B to A',
    "edit": f'"edit": one of {", ".join(EDITS)}',
    "confidence": '"confidence": how sure you are, from 0 to 1',
}
_ENDS = {"{reference}": "reference_id", "{target}": "target_id"}
_SLOT = re.compile(r"(\{reference\}|\{target\})")
_LINE = re.compile(r"^\W*(forward|reverse|edit|confidence)\W*:\s*(.+)$", re.IGNORECASE | re.MULTILINE)


class LmmGenerator:
    """Asks an engine one question a pair."""

    def __init__(self, settings: LmmConfig, setup: WriterSetup, engine: Engine | None) -> None:
        """Take an engine; captions are read here, pictures when they are asked for. Without one it makes questions and
        reads answers, and others ask.
        """
        self._settings, self._engine = settings, engine
        self._names = [name for name in _ANSWER if setup.directions == "both" or name != "reverse"]
        rows = read_captions(settings.captions)
        self._captions = {image: str(row["caption"]) for image, row in rows.items()}

    @cached_property
    def digest(self) -> str:
        """Over engine, prompt and what the model sees."""
        settings = self._settings
        sees: list[object] = [part for item in sorted(self._captions.items()) for part in item] or [settings.side]
        assert self._engine is not None
        form = (settings.words, settings.language, settings.texts)
        return stable_id("lmm", self._engine.digest, self.prompt_version, *form, *sees)

    @property
    def prompt_version(self) -> str:
        """`edit/1#1a2b3c4d`, with the hash of its words."""
        return self._settings.prompt_version

    def generate(self, pairs: Sequence[Pair], pictures: PictureLookup | None) -> list[Generation]:
        """Texts of pairs: same length, same order; a pair that fails has `error` set.

        Raises:
            GenerationError: as `Engine.ask`.
        """
        made: dict[str, Generation] = {}
        questions: dict[str, Question] = {}
        for pair in pairs:
            try:
                questions[pair.pair_id] = self.question(pair, pictures)
            except DataError as error:
                made[pair.pair_id] = Generation(pair.pair_id, None, error=str(error))
        assert self._engine is not None
        replies = self._engine.ask(list(questions.values()), self.defect) if questions else []
        for pair_id, reply in zip(questions, replies, strict=True):
            made[pair_id] = self.generation(pair_id, reply)
        return [made[pair.pair_id] for pair in pairs]

    def question(self, pair: Pair, pictures: PictureLookup | None) -> Question:
        """What is asked about a pair. Raises DataError: a picture cannot be read, or has no caption."""
        form = f"{{{', '.join(_ANSWER[name] for name in self._names)}}}"
        if self._settings.texts > 1:
            form = f'{{"texts": [{self._settings.texts} of these, each another request: {form}]}}'
        parts: list[str | Shot] = []
        for piece in _SLOT.split(self._settings.template):
            if piece in _ENDS:
                parts.append(self._shown(getattr(pair, _ENDS[piece]), pictures))
            elif piece:
                parts.append(piece.replace("{answer}", f"Answer with one JSON object and nothing else: {form}."))
        return Question(tuple(parts), self._schema)

    def _shown(self, image_id: str, pictures: PictureLookup | None) -> str | Shot:
        if pictures is not None:
            return pictures.shot(image_id)
        if not self._captions.get(image_id, "").strip():
            raise DataError(f"image {image_id!r} has no caption")
        return self._captions[image_id].strip()

    @cached_property
    def _schema(self) -> dict[str, Any]:
        kinds: dict[str, Any] = {name: {"type": "string"} for name in self._names}
        kinds["edit"] = {"type": "string", "enum": list(EDITS)}
        kinds["confidence"] = {"type": "number"}
        one = {"type": "object", "properties": kinds, "required": self._names, "additionalProperties": False}
        if (texts := self._settings.texts) == 1:
            return one
        several = {"texts": {"type": "array", "items": one, "minItems": texts, "maxItems": texts}}
        return {"type": "object", "properties": several, "required": ["texts"], "additionalProperties": False}

    def defect(self, answer: str) -> str:
        """What is wrong with an answer, in words; empty: nothing."""
        return next((fault for _, fault in self._found(answer) if fault), "")

    def _found(self, answer: str) -> list[tuple[dict[str, Any], str]]:
        """As many texts as are asked for, each with what is wrong with it."""
        found, seen = list[tuple[dict[str, Any], str]](), set[tuple[str, str]]()
        said = parse_answers(answer)[: self._settings.texts]
        for fields in said:
            texts = {name: _clean(fields.get(name)) for name in self._names if name in ("forward", "reverse")}
            fault = next((f"has {fault}" for name, text in texts.items() if (fault := self._fault(name, text))), "")
            words = {(name, " ".join(re.findall(r"\w+", text.casefold()))) for name, text in texts.items()}
            if not fault and words & seen:
                fault = "says the same twice"
            seen |= words
            found.append((fields, fault))
        fewer = f"has {len(said)} of {self._settings.texts} texts" if said else "is not the JSON that was asked for"
        return found + [({}, fewer)] * (self._settings.texts - len(said))

    def _fault(self, name: str, text: str) -> str:
        if not text:
            return f"no {name} text"
        if len(text.split()) > self._settings.words or len(text) > MAX_TEXT:
            return f"a {name} text of {len(text.split()):,} words, more than {self._settings.words}"
        wanted, letters = self._settings.language, [letter for letter in text if letter.isalpha()]
        if wanted != "any" and 2 * sum(letter < "\u0250" for letter in letters) <= len(letters):
            return f"a {name} text in another script than Latin"
        if wanted == "english" and (found := foreign_language(text)):
            return f"a {name} text in another language than English ({found}?)"
        return ""

    def generation(self, pair_id: str, reply: Reply) -> Generation:
        """The texts of a reply that have no defect, and the error of the others."""
        found = self._found(reply.text or reply.said)
        none = all(fault for _, fault in found)
        made = [
            Generation(pair_id, None, error=(none and reply.error) or f"the answer {fault}")
            if fault
            else _generation(pair_id, fields)
            for fields, fault in found
        ]
        return replace(made[0], tokens=(reply.tokens_in, reply.tokens_out), more=tuple(made[1:]))


@GENERATORS.register("lmm")
def _make(settings: LmmConfig, setup: WriterSetup) -> LmmGenerator:
    engine = ENGINES.get(settings.engine.kind)(settings.engine.settings, setup.device)
    return LmmGenerator(settings, setup, engine)


def parse_answers(answer: str) -> list[dict[str, Any]]:
    """The fields of an answer's texts: of its JSON objects, or of lines `forward: ...`; none when there are none."""
    if found := list(objects(answer, "forward")):
        return found
    told: list[dict[str, Any]] = [{}]
    for name, text in _LINE.findall(answer):
        if name.lower() in told[-1]:
            told.append({})
        told[-1][name.lower()] = text
    return [fields for fields in told if "forward" in fields]


def _generation(pair_id: str, fields: dict[str, Any]) -> Generation:
    edit = str(fields.get("edit", "")).strip().lower()
    return Generation(
        pair_id, _clean(fields["forward"]), _clean(fields.get("reverse")) or None, edit=edit if edit in EDITS else "",
        confidence=_share(fields.get("confidence")),
    )  # fmt: skip


def _clean(text: Any) -> str:
    """One line without quotation marks around it; empty for what is no text."""
    line = " ".join(text.split()) if isinstance(text, str) else ""
    return line.strip("\"'\u201c\u201d ,").replace("\x00", "")


def _share(value: Any) -> float | None:
    try:
        share = float(value)
    except (TypeError, ValueError):
        return None
    return share if 0 <= share <= 1 else None
