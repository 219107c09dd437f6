"""The module `faiss`. Two distributions bring it, faiss-cpu and faiss-gpu, and overwrite one another's files."""

from functools import cache
from importlib.util import find_spec
from typing import Any

from cirray.core.errors import ConfigError
from cirray.core.extras import install_line, installed, require


def is_there() -> bool:
    """Whether FAISS is installed; it is not imported."""
    return find_spec("faiss") is not None


@cache
def faiss_library() -> Any:
    """FAISS. Raises ConfigError when it is not installed, or twice."""
    found = installed("faiss-cpu", "faiss-gpu")
    if len(found) > 1:
        raise ConfigError(
            f"{' and '.join(found)} are both installed and overwrite one another's files: pip uninstall -y "
            f"{' '.join(found)}, then {install_line('cpu')} or {install_line('gpu')}."
        )
    require("faiss", "cpu", "An index of kind faiss")
    import faiss

    return faiss
