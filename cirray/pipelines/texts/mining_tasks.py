"""Windows of neighbours by Ray tasks: every task takes a block of references against all images."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import ray

from cirray.core.environ import ray_address
from cirray.core.ids import Texts
from cirray.features.store import FeatureStore
from cirray.mining.config import WindowConfig
from cirray.mining.neighbours import CentredVectors, Places, Window, windows
from cirray.mining.pairs import Finder
from cirray.pipelines.cluster.config import RayConfig
from cirray.pipelines.cluster.resources import cluster
from cirray.types import stable_id_of

LEAST_IMAGES = 20_000
"""Below this one process is done before tasks have read the features."""
_BLOCK = 4096
_AHEAD = 2


def ray_finder(config: RayConfig, features: Sequence[str], images: int) -> Finder | None:
    """Search on the cluster that the config or `RAY_ADDRESS` names.

    None without one, and for few images: FAISS keeps all cores of one machine busy by itself.
    """
    named = config.address or ray_address()
    if not config.enabled or images < LEAST_IMAGES or not (ray.is_initialized() or named not in ("", "local")):
        return None

    def find(
        ids: Sequence[str], window: WindowConfig, memory_bytes: int, references: Places | None
    ) -> Iterator[Window]:
        wanted = np.arange(len(ids)) if references is None else np.asarray(references)
        with cluster(config) as info:
            task = ray.remote(num_cpus=1, max_retries=2)(_search)
            shared = ray.put((tuple(features), _Images(stable_id_of(ids), Texts(ids)), window, memory_bytes))
            waiting, running = deque(range(0, len(wanted), _BLOCK)), deque[ray.ObjectRef]()
            while waiting or running:
                while waiting and len(running) < _AHEAD * max(1, int(info.cpus)):
                    start = waiting.popleft()
                    running.append(task.remote(shared, wanted[start : start + _BLOCK]))
                yield from ray.get(running.popleft())

    return find


@dataclass(frozen=True)
class _Images:
    """Ids, compared by their digest."""

    digest: str
    ids: Texts = field(compare=False)


def _search(shared: tuple[tuple[str, ...], _Images, WindowConfig, int], block: np.ndarray) -> list[Window]:
    features, images, window, memory_bytes = shared
    return list(windows(_vectors(features, images, window.representation, memory_bytes), window, memory_bytes, block))


@lru_cache(maxsize=1)
def _vectors(features: tuple[str, ...], images: _Images, representation: str, memory_bytes: int) -> CentredVectors:
    """Read once in every worker process."""
    return CentredVectors(FeatureStore.open_many(features), images.ids, representation, memory_bytes)
