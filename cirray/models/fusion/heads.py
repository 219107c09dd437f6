"""Names of the fusion heads; a new head is one file and one line here."""

from cirray.models.fusion.base import Fusion
from cirray.models.fusion.single import image_only, text_only
from cirray.models.fusion.two_pass import two_pass

HEADS: dict[str, Fusion] = {"two_pass": two_pass, "image_only": image_only, "text_only": text_only}
