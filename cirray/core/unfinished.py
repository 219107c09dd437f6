"""Unfinished stages: one without work worth keeping leaves nothing behind.

`stage_function` wraps what runs a stage; inside `restarting`, half-written work is thrown away.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, Protocol, TypeVar

Given = ParamSpec("Given")
Made = TypeVar("Made")


class Unfinished(Protocol):
    """What is asked of an opened stage."""

    def has_worth(self) -> bool:
        """Whether the same run, started again, would use something in it."""

    def discard(self) -> None:
        """Drop everything written so far."""


_OPENED: ContextVar[list[Unfinished] | None] = ContextVar("cirray_opened_stages", default=None)
_RESTART: ContextVar[bool] = ContextVar("cirray_restart", default=False)


def stage_function(run: Callable[Given, Made]) -> Callable[Given, Made]:
    """Decorator of a stage's function: however it ends early, work that no later start would use is removed."""

    @wraps(run)
    def tidy(*args: Given.args, **kwargs: Given.kwargs) -> Made:
        opened: list[Unfinished] = []
        token = _OPENED.set(opened)
        try:
            return run(*args, **kwargs)
        except BaseException:
            for stage in opened:
                if not stage.has_worth():
                    stage.discard()
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
