"""Names of the fusion heads; a new head is one file and one line here."""

from cirray.core.errors import ConfigError, unknown_name
from cirray.models.fusion.base import Fusion
from cirray.models.fusion.single import image_only, text_only
from cirray.models.fusion.two_pass import two_pass

HEADS: dict[str, Fusion] = {"two_pass": two_pass, "image_only": image_only, "text_only": text_only}


def find_fusion(name: str) -> Fusion:
    """The head registered under `name`.

    Raises:
        ConfigError: for an unknown name.
    """
    if name not in HEADS:
        raise ConfigError(unknown_name("fusion", name, HEADS))
    return HEADS[name]
