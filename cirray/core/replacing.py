"""Put a finished folder in the place of an earlier one, so that whoever looks there finds one of the two, whole.

Files that somebody has open stay what they are. A killed process leaves a state that `settle` puts in order.
"""

import ctypes
import os
import shutil
from pathlib import Path

_HERE, _EXCHANGE = -100, 2
"""Linux's AT_FDCWD and RENAME_EXCHANGE."""


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
