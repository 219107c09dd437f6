"""The key of every stage follows from its fields: what decides the result changes it, a place or an effort does not."""

import importlib
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest

import cirray
from cirray.cli.tree import field_doc
from cirray.cli.verb import VERBS, verb
from cirray.core.config import Config, validate
from cirray.core.fields import Role, Since, StageDigested, names_place, role_of
from cirray.core.identity import OWN, readings
from cirray.data.config import FORMATS, DataConfig
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.texts.config import GenerateRun, GeneratorRun
from cirray.pipelines.training.config import FinetuneRun, TrainRun

PACKAGE = Path(cirray.__file__).parent
RUNS = {name: verb(name).config_class() for name in VERBS}
LIES_SOMEWHERE = re.compile(
    r"\bartifacts?\b|\(path or URI\)|\bFolder\b|\bfolder or hub id\b|\bRoot of\b|\bA text file\b"
)
"""Words of a field's documentation that say that it holds a place."""
NO_PLACES = {
    "RowSpec.features",
    "RowSpec.rewrites",
    "StudyRun.features",
    "StudyRun.samples",
    "StudyRun.judge",
}
"""Fields that name a component, or stages of the same study (`@NAME`)."""
NAMES = {"galleries", "checkpoints", "row_features", "row_shapes", "row_texts"}
"""Places by name: another name is another row of the table, wherever it lies."""
IS_EFFORT = re.compile(
    r"device|threads|workers|.*_timeout_s|num_cpus|num_gpus|.*cpus|.*gpus|pool|ray|memory_mib|as_json"
)
"""Names of fields that say how the work is done, wherever they stand."""


def config_classes() -> list[type[Config]]:
    for path in sorted(PACKAGE.rglob("*config.py")):
        importlib.import_module(".".join(("cirray", *path.relative_to(PACKAGE).with_suffix("").parts)))

    def below(cls):
        return [found for child in cls.__subclasses__() for found in (child, *below(child))]

    return sorted({cls for cls in below(Config) if cls.__module__.startswith("cirray.")}, key=lambda cls: cls.__name__)


CLASSES = config_classes()
FIELDS = {f"{cls.__name__}.{name}": (cls, name, field) for cls in CLASSES for name, field in cls.model_fields.items()}


def sample(annotation: Any) -> Any:
    """Some value of a type."""
    if get_origin(annotation) is Annotated:
        return sample(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return sample(next(part for part in get_args(annotation) if part is not type(None)))
    if get_origin(annotation) is Literal:
        return get_args(annotation)[0]
    if get_origin(annotation) is tuple:
        parts = get_args(annotation)
        return tuple(sample(part) for part in (parts[:1] if parts[-1] is Ellipsis else parts))
    if get_origin(annotation) in (dict, Mapping):
        return {sample(get_args(annotation)[0]): sample(get_args(annotation)[1])}
    if isinstance(annotation, type) and issubclass(annotation, Config):
        required = {
            name: sample(field.annotation) for name, field in annotation.model_fields.items() if field.is_required()
        }
        return annotation.model_construct(**required)
    return {int: 1, float: 0.5, bool: True, str: "some", datetime: datetime(2027, 1, 31), Any: "any"}[annotation]


def another(annotation: Any, value: Any) -> Any:
    """A value of a type that is not `value`."""
    if get_origin(annotation) is Annotated:
        return another(get_args(annotation)[0], value)
    if get_origin(annotation) in (Union, UnionType):
        return next(found for part in get_args(annotation) if (found := another(part, value)) != value)
    if get_origin(annotation) is Literal:
        return next((choice for choice in get_args(annotation) if choice != value), "no other")
    if annotation is type(None):
        return None
    if isinstance(value, bool) or annotation is bool:
        return not value
    if isinstance(value, int | float) and annotation in (int, float):
        return value + 1
    if isinstance(value, str) and annotation in (str, Any):
        return f"{value}/other"
    if isinstance(value, tuple):
        return (*value, *value) if value else sample(annotation)
    if isinstance(value, Mapping):
        return {**value, "one more": sample(get_args(annotation)[1])} if value else sample(annotation)
    return sample(annotation)


def sections(annotation: Any, value: Any) -> list[tuple[Any, Any]]:
    """Sections that a field holds, or may hold, each with what puts it (changed) into the field's place."""
    if value in (None, (), {}) and any(isinstance(part, type) for part in _parts(annotation)):
        value = sample(annotation)
    if isinstance(value, Config):
        return [(value, lambda section: section)]
    if isinstance(value, tuple) and value and isinstance(value[0], Config):
        return [(value[0], lambda section: (section, *value[1:]))]
    if isinstance(value, Mapping):
        named = [(name, item) for name, item in value.items() if isinstance(item, Config)]
        return [(item, lambda section, name=name: {**value, name: section}) for name, item in named]
    return []


def _parts(annotation: Any) -> list[type[Config]]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [found for part in get_args(annotation) for found in _parts(part)]


def changes(config: Config, roles: tuple[Role, ...] = ()) -> list[tuple[str, set[Role], Config, Config]]:
    """Every field at every depth: its path, the roles on the way to it, and a pair that differs in it alone.

    A section of a data format that is not read has the role None.
    """
    found = []
    unread = config.unread() if isinstance(config, StageDigested) else ()
    for name, field in type(config).model_fields.items():
        on_the_way, value = (*roles, None if name in unread else role_of(field)), getattr(config, name)
        for section, put in sections(field.annotation, value):
            for path, inner, before, after in changes(section, on_the_way):
                pair = (config.model_copy(update={name: put(item)}) for item in (before, after))
                found.append((f"{name}.{path}", inner, *pair))
        if role_of(field) is Role.PLACE and not value:  # whether there is one at all is for the inputs to say
            config = config.model_copy(update={name: sample(field.annotation)})
        value = getattr(config, name)
        if not isinstance(value, Config):
            found.append(
                (name, set(on_the_way), config, config.model_copy(update={name: another(field.annotation, value)}))
            )
    return found


@pytest.mark.parametrize("name", RUNS)
def test_a_field_changes_the_key_where_it_decides_and_only_there(name):
    told = changes(sample(RUNS[name]))
    assert len(told) >= len(RUNS[name].model_fields) - 20
    for path, roles, before, after in told:
        assert before.to_dict() != after.to_dict() or path.endswith("settings"), f"{path} was not changed by this test"
        decides = roles == {Role.IDENTITY}
        assert (before.identity() != after.identity()) == (decides or path in NAMES), path
        if Role.EFFORT in roles:
            assert list(readings(before)) == list(readings(after)), path


def test_every_place_that_a_run_names_is_read_by_its_content():
    run = validate(
        GeneratorRun, {"language": "here", "features": ["a", "b"], "out": "there", "alignment_training": {"data": {}}}
    )
    found = {reading.name: reading.place for reading in readings(run)}
    assert found == {
        "data": None, "towers": run.towers, "features 0": "a", "features 1": "b", "language": "here",
        "alignment_training.data": None, "scenes": "auto",
    }  # fmt: skip


def test_a_field_keeps_its_role_in_every_subclass():
    for name, (cls, field_name, field) in FIELDS.items():
        for parent in cls.__mro__[1:]:
            inherited = getattr(parent, "model_fields", {}).get(field_name)
            assert inherited is None or role_of(inherited) is role_of(field), (
                f"{name} is otherwise in {parent.__name__}"
            )


def test_what_lies_somewhere_is_a_place_and_what_only_costs_is_effort():
    for name, (cls, field_name, field) in FIELDS.items():
        is_text = not {"Literal", "Any"} & set(re.findall(r"\w+", str(field.annotation))) and "str" in str(
            field.annotation
        )
        if is_text and LIES_SOMEWHERE.search(field_doc(cls, field_name)) and name not in NO_PLACES:
            assert names_place(field), f"{name} holds a place, as its documentation says; declare it so"
        assert field_name not in OWN or role_of(field) is Role.PLACE, name
        assert not IS_EFFORT.fullmatch(field_name) or role_of(field) is not Role.IDENTITY, name


def decodes(settings):
    return {"generator": {"settings": {"decoding": settings}}}


def test_equal_configurations_have_one_identity_however_they_were_written():
    first = validate(GenerateRun, {**decodes({"beams": 5, "sample": False}), "features": ["a"], "seed": 0})
    second = validate(GenerateRun, {"features": "a", **decodes({"beams": 5})})
    assert first.identity() == second.identity()
    assert validate(IndexRun, {"data": {}}).identity() == IndexRun().identity()


@pytest.mark.parametrize("form", FORMATS)
def test_of_the_data_formats_only_the_one_that_is_read_counts_in_a_key(form):
    """A field that only another format reads may be given, or get another default, without another artifact."""
    told = [(path.partition(".")[0], *rest) for path, *rest in changes(validate(DataConfig, {"format": form}))]
    for owner, roles, before, after in told:
        counts = owner in (form, "format", "preset") and roles == {Role.IDENTITY}
        assert (before.identity() != after.identity()) == counts, owner
    assert {owner for owner, *_ in told} >= set(FORMATS)


@pytest.mark.parametrize("start", [{"init": "a-checkpoint"}, {"qformer_source": "a-checkpoint"}])
def test_beside_start_weights_a_field_at_its_default_is_not_the_same_as_one_left_out(start):
    left_out, given = (
        validate(TrainRun, {**start, "encoder": {"settings": own}}) for own in ({}, {"temperature": 0.07})
    )
    assert left_out.identity() != given.identity()
    again = validate(TrainRun, given.to_dict())
    assert again.identity() == given.identity()
    assert validate(TrainRun, {"encoder": {"settings": {"temperature": 0.07}}}).identity() == TrainRun().identity()


class LaterRun(Config):
    """A run of a later version."""

    steps: int = 1
    momentum: Annotated[float, Since("0.2")] = 0.9
    inner: FinetuneRun = FinetuneRun()


def test_a_field_of_a_later_version_counts_once_it_is_not_at_its_default():
    assert "momentum" not in LaterRun().identity() and LaterRun(momentum=0.5).identity()["momentum"] == 0.5
    assert LaterRun(momentum=0.9).identity() == LaterRun().identity()
