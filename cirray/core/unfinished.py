"""Unfinished stages: one without work worth keeping leaves nothing behind, and a finished one appears as a whole.

`stage_function` wraps what runs a stage; inside `restarting`, half-written work is thrown away. `take_place` puts a
finished folder in the place of an earlier one, so that whoever looks there finds one of the two, whole. Files that
somebody has open stay what they are; a killed process leaves a state that `settle` puts in order.
"""

import ctypes
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

from cirray.core.errors import StoreError, own_error
from cirray.core.refusals import refusal
from cirray.core.storage import hurried

Given = ParamSpec("Given")
Made = TypeVar("Made")
_HERE, _EXCHANGE = -100, 2
"""Linux's AT_FDCWD and RENAME_EXCHANGE."""


class Unfinished(Protocol):
    """What is asked of an opened stage."""

    @property
    def work_uri(self) -> str:
        """Where it is written."""

    def has_worth(self) -> bool:
        """Whether the same run, started again, would use something in it."""

    def discard(self) -> None:
        """Drop everything written so far."""


_OPENED: ContextVar[list[Unfinished] | None] = ContextVar("cirray_opened_stages", default=None)
_RESTART: ContextVar[bool] = ContextVar("cirray_restart", default=False)


def stage_function(run: Callable[Given, Made]) -> Callable[Given, Made]:
    """Decorator of a stage's function: however it ends early, work that no later start would use is removed, and what a
    disk refused is a StoreError.
    """

    @wraps(run)
    def tidy(*args: Given.args, **kwargs: Given.kwargs) -> Made:
        opened: list[Unfinished] = []
        token = _OPENED.set(opened)
        try:
            return run(*args, **kwargs)
        except BaseException as error:
            for stage in opened:
                with suppress(StoreError, OSError), hurried():  # a store that is away keeps it
                    if not stage.has_worth():
                        stage.discard()
            place = opened[-1].work_uri if opened else ""
            if own_error(error) is None and (told := refusal(error, place)):
                raise told from error
            raise
        finally:
            _OPENED.reset(token)

    return tidy


def opened(stage: Unfinished) -> None:
    """Remember a stage that was begun, for the `stage_function` that it belongs to."""
    if (stages := _OPENED.get()) is not None:
        stages.append(stage)


@contextmanager
def restarting(wanted: bool = True) -> Iterator[None]:
    """Inside, opening a stage throws away what an earlier run left half-written; finished artifacts stay."""
    token = _RESTART.set(wanted)
    try:
        yield
    finally:
        _RESTART.reset(token)


def restarts() -> bool:
    """Whether half-written work is to be thrown away."""
    return _RESTART.get()


def take_place(new: Path, place: Path) -> None:
    """Move a folder to where another one is, and delete that one."""
    if _exchanged(new, place):
        shutil.rmtree(new)
        return
    os.replace(place, _aside(place))  # no exchange on this system: for an instant nothing is there
    os.replace(new, place)
    shutil.rmtree(_aside(place))


def settle(new: Path, place: Path, mark: str) -> None:
    """Finish what a killed `take_place` began: a folder that holds `mark` is complete and goes to its free place."""
    if (new / mark).exists():
        if place.exists():
            shutil.rmtree(new)
        else:
            os.replace(new, place)
    shutil.rmtree(_aside(place), ignore_errors=True)


def _aside(place: Path) -> Path:
    return place.with_name(f"{place.name}.former")


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where the system or the disk cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    return rename is not None and rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0
