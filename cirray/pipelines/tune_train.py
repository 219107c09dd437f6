"""Trials that start Ray Train workers: what Tune hears of them, and how their workers are freed."""

from typing import Any

import ray
from ray.train.v2._internal import constants
from ray.tune.integration.ray_train import TuneReportCallback

from cirray.core.environ import name_cluster


class ReportOnTheWay(TuneReportCallback):
    """Passes reports with the metric on to Tune, but not the last one.

    At the last one the scheduler would end the trial's driver before it has written the artifact; the driver reports
    the result itself when that is done. To be made inside a trial.
    """

    def __init__(self, metric: str, steps: int) -> None:
        """Remember the metric's name and where the run ends."""
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
    constants.ENV_VARS_TO_PROPAGATE.add("RAY_ADDRESS")
