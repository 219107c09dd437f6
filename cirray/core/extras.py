"""Libraries that an extra of the package brings: one that is missing is one sentence with the line that installs it."""

from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec

from cirray.core.errors import ConfigError


def require(library: str, extra: str, what: str) -> None:
    """Look for a library of one of the package's extras, or ("") of none, before it is imported; `what` needs it, as a
    user says it: `training.engine=deepspeed`.

    Raises ConfigError naming both, and the line that installs it.
    """
    if find_spec(library) is None:
        line = install_line(extra) if extra else f"pip install {library}"
        raise ConfigError(f"{what} needs the library {library}, which is not installed: {line}.")


def install_line(extra: str) -> str:
    """The line that installs an extra."""
    return f"pip install 'cirray[{extra}]'"


def installed(*names: str) -> list[str]:
    """Those of some distributions that are installed."""
    return [name for name in names if _is_installed(name)]


def _is_installed(name: str) -> bool:
    try:
        return bool(distribution(name).version)
    except PackageNotFoundError:
        return False
