"""Names of trackers, for configurations. No torch, no tracker's library."""

from typing import TYPE_CHECKING

from cirray.core.config import Config
from cirray.core.registry import Registry

if TYPE_CHECKING:
    from cirray.training.trackers import Tracker

TRACKERS: "Registry[type[Tracker]]" = Registry(
    "tracker", ["cirray.training.trackers"], dict.fromkeys(("tensorboard", "wandb", "mlflow"), Config)
)
