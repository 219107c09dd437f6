"""What Ray Train's controller does when a worker failed. It is a process of its own, which loads this module alone of
the package's training: it needs neither torch nor models.
"""

from typing import Any

import ray.train
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

from cirray.core.errors import StoreError, own_error


class NoSecondTry(ray.train.UserCallback):
    """Ends a training whose worker raised an error of this package, which would come again at every restart.

    Runs in Ray Train's controller. Workers that died, failed otherwise, or whose store was away, are restarted as
    `ray.max_failures` says.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called with the errors by rank; the controller never retries after an error of its own."""
        own = own_error(*worker_exceptions.values())
        if own is not None and not isinstance(own, StoreError):
            raise ray.train.ControllerError(own)


class RoomFreed(ControllerCallback, WorkerGroupCallback):
    """Ends a group of workers of which one died while they started.

    Ray Train forgets such a group, and with it the place that it holds in the cluster: later ones would wait for ever.
    Runs in Ray Train's controller, before its other callbacks.
    """

    def __init__(self) -> None:
        """There is no group yet."""
        self._group: Any = None

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        """Called before every start."""
        self._free()

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Called when the workers are there, and are not set up yet."""
        self._group = worker_group

    async def before_controller_shutdown(self) -> None:
        """Called at the end, once the group that the controller knows has ended."""
        self._free()

    def _free(self) -> None:
        group, self._group = self._group, None
        if group is not None and group.has_started():
            group.abort()
