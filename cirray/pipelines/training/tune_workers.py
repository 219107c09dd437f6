"""Trials with Ray Train workers: their reports to Tune, and how their workers are freed."""

from typing import Any

import ray
from ray.tune.integration.ray_train import TuneReportCallback

from cirray.core.environ import name_cluster
from cirray.core.log import get_logger


class ReportOnTheWay(TuneReportCallback):
    """Passes reports with the metric on to Tune, but not the last one.

    At the last one the scheduler would end the trial's driver before it writes the artifact; the driver reports the
    result afterwards. Made inside a trial.
    """

    def __init__(self, metric: str, steps: int) -> None:
        """Take the metric's name and the last step."""
        super().__init__()
        self._metric, self._steps = metric, steps

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Called in Ray Train's controller."""
        if self._metric in metrics[0] and metrics[0]["step"] < self._steps:
            super().after_report(run_context, metrics, checkpoint)


def show_cluster_to_cleaners() -> None:
    """Let Ray Train's placement-group cleaner find this cluster.

    When Tune stops a trial, that cleaner must notice that the trial's controller is gone; it looks for "the" cluster
    of the machine, gives up when there are several, and the workers' resources are then never freed.
    """
    name_cluster(ray.get_runtime_context().gcs_address)
    names = _handed_on()
    if names is not None:
        names.add("RAY_ADDRESS")
        return
    get_logger(__name__).warning(
        "Ray %s does not pass a cluster's name to Ray Train's cleaners. If a machine runs several clusters, stop the "
        "others, or a trial that is ended early keeps its workers' CPUs and GPUs.", ray.__version__,
    )  # fmt: skip


def _handed_on() -> set[str] | None:
    """Variables that Ray hands on to its controllers; None where this version keeps no such list.

    Ray's own list (2.60), as there is no public way: it is the only environment of Tune's trials and Train's controller
    and cleaner; `worker_runtime_env` is only for workers.
    """
    try:
        from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE
    except ImportError:
        return None
    names: set[str] = ENV_VARS_TO_PROPAGATE
    return names
