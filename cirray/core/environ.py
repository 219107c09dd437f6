"""Environment variables this package reads or sets. No other module touches `os.environ`."""

import gc
import glob
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cirray.core.errors import ConfigError

_DEVICES = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dri/renderD*", "/dev/accel*", "/dev/davinci*", "/dev/hl*")


def cache_folder() -> Path:
    """Folder for downloaded artifacts: `CIRRAY_CACHE`, else the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "cirray"
    return Path(os.environ.get("CIRRAY_CACHE", str(default))).expanduser()


def artifact_root() -> str:
    """Where artifacts lie when the command line does not say: `CIRRAY_ROOT`, or nothing."""
    return os.environ.get("CIRRAY_ROOT", "")


def collect_seldom() -> None:
    """Have Python look for garbage seldom; before torch and transformers are loaded, as that took a seventh of the time
    (more on a busy machine).
    """
    gc.set_threshold(max(20_000, gc.get_threshold()[0]))


def store_patience_s() -> float:
    """Seconds for which an object store that does not answer is asked again: `CIRRAY_STORE_PATIENCE_S`, else 50.

    Raises ConfigError: the variable is no number of seconds.
    """
    text = os.environ.get("CIRRAY_STORE_PATIENCE_S", "50")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e6:
        raise ConfigError(f"CIRRAY_STORE_PATIENCE_S is {text!r}; a number of seconds is needed, such as 50.")
    return seconds


def service_key() -> str:
    """The key that a client of a service shows when it is given none: `CIRRAY_KEY`, or nothing."""
    return os.environ.get("CIRRAY_KEY", "")


def start_quickly() -> None:
    """Let pydantic look for no plug-ins of its own, a sixth of the time in which a shell completes a word."""
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


def limit_threads(threads: int = 1) -> None:
    """Set the OpenMP thread count for libraries imported later (two threads are slower than one beside a neighbour)."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, str(threads))
    if not _accelerators():
        # DeepSpeed, which transformers imports when it is installed, would warn that it found no accelerator.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _accelerators() -> list[str]:
    """Device files of accelerators on Linux; elsewhere it is assumed that there is one."""
    if not os.path.isdir("/dev/shm"):
        return ["unknown"]
    return [path for pattern in _DEVICES for path in glob.glob(pattern)]


def worker_environment(threads: int = 1) -> dict[str, str]:
    """Environment of Ray workers: one thread per process, and not the driver's DS_ACCELERATOR."""
    variables = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    for name in ("CIRRAY_CACHE", "CIRRAY_PLUGINS", "CIRRAY_STORE_PATIENCE_S", "TORCH_EXTENSIONS_DIR"):
        if name in os.environ:
            variables[name] = os.environ[name]
    return variables


def plugin_modules() -> tuple[str, ...]:
    """Modules named in `CIRRAY_PLUGINS`, which register components of other packages."""
    return tuple(name.strip() for name in os.environ.get("CIRRAY_PLUGINS", "").split(",") if name.strip())


def working_folder() -> str:
    """Working folder of this process; a driver passes it to its workers, so that relative paths mean the same there."""
    return os.getcwd()


def enter_folder(folder: str) -> None:
    """Work in a driver's folder, where this node has it (Ray moves its training workers to folders of their own)."""
    if os.path.isdir(folder):
        os.chdir(folder)


def this_program() -> list[str]:
    """The `cirray` command with its full path, for a shell that does not have it on PATH."""
    script = installed("cirray")
    return [script] if script else [sys.executable, "-m", "cirray"]


def installed(name: str) -> str:
    """Full path of a command that was installed beside this Python, or an empty string."""
    script = Path(sys.executable).parent / name
    return str(script) if script.is_file() else ""


def set_default(name: str, value: str) -> None:
    """Set a variable unless the user has set it."""
    os.environ.setdefault(name, value)


@contextmanager
def temporarily(name: str, value: str) -> Iterator[None]:
    """Give another program's variable a value inside."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})


def variable(name: str, default: str) -> str:
    """Value of another program's variable, or that program's default."""
    return os.environ.get(name, default)


def ray_address() -> str:
    """Address of the Ray cluster this process belongs to (`RAY_ADDRESS`, set inside jobs), or an empty string."""
    return os.environ.get("RAY_ADDRESS", "")


def private_cluster(quiet: bool = True) -> None:
    """Prepare for a Ray cluster of this process alone, protected by a token of its own.

    Ray's ports listen on every interface, so a local cluster needs a token; one in this process's environment leaves no
    file in the home folder. A mode or token that the user chose is kept.
    """
    set_default("RAY_USAGE_STATS_ENABLED", "0")
    if quiet:
        set_default("RAY_BACKEND_LOG_LEVEL", "fatal")
        # stages give their workers an environment, so those that Ray would start ahead, a core each, stay idle
        set_default("RAY_prestart_worker_first_driver", "0")
    if "RAY_AUTH_MODE" not in os.environ:
        set_default("RAY_AUTH_TOKEN", secrets.token_hex(32))


def hush_ray() -> None:
    """Leave out Ray's warning of many workers; before `ray` is imported.

    A private cluster has more than cores on purpose, for most of them wait.
    """
    set_default("RAY_DEDUP_LOGS_SKIP_REGEX", "worker processes have been started on node")


def train_settings(poll_s: float, start_timeout_s: float, one_node: bool = False) -> None:
    """Ray Train's controller: how often it checks its workers and how long they may take to start. The user's values
    win.

    On one node the process that watches for preempted nodes is not started.
    """
    set_default("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(poll_s))
    set_default("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(start_timeout_s))
    if one_node:
        set_default("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")


def tune_settings() -> None:
    """Ray Tune without its own loggers and tables: each trial writes its history and curves itself."""
    set_default("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    set_default("RAY_AIR_NEW_OUTPUT", "0")


def name_cluster(address: str) -> None:
    """Name the Ray cluster to use, for machines that run several."""
    set_default("RAY_ADDRESS", address)
