"""What Ray Train's controller does when a worker failed. It is a process of its own, which loads this module alone of
the package's training: it needs neither torch nor models.
"""

from typing import Any

import ray.train

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
