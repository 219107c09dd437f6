"""A large multimodal model behind an engine as a captioner."""

from collections.abc import Sequence

from cirray.generators.base import Unwritten
from cirray.generators.captioners.base import CaptionerSetup, Picture
from cirray.generators.captioners.config import CAPTIONERS, LmmCaptionConfig
from cirray.generators.engines.answers import line_defect
from cirray.generators.engines.base import Question
from cirray.generators.engines.config import ENGINES
from cirray.generators.pictures import Shots
from cirray.types import stable_id


@CAPTIONERS.register("lmm")
class LmmCaptioner:
    """Asks one question a picture; the first line of the answer is the caption."""

    def __init__(self, settings: LmmCaptionConfig, setup: CaptionerSetup) -> None:
        """Make the engine. Raises ArtifactError: no model can be loaded; GenerationError: no server answers."""
        self._settings, self._shots = settings, Shots(setup.limits, settings.side)
        self._engine = ENGINES.get(settings.engine.kind)(settings.engine.settings, setup.device)
        self.digest = stable_id("lmm-captioner", self._engine.digest, settings.instruction, settings.side)

    def content(self, picture: Picture) -> bytes:
        """The picture as it is sent. Raises DataError for a file that cannot be read."""
        return self._shots(picture.image_id, picture.place).data

    def caption(self, pictures: Sequence[Picture]) -> list[str | Unwritten]:
        """The first line that the model writes of each picture."""
        questions = [
            Question((self._shots(picture.image_id, picture.place), self._settings.instruction))
            for picture in pictures
        ]  # fmt: skip
        replies = self._engine.ask(questions, lambda text: line_defect(first_line(text)))
        return [Unwritten(reply.error) if reply.error else first_line(reply.text) for reply in replies]


def first_line(text: str) -> str:
    """The first line that is not blank, with single spaces."""
    return next((line for line in (" ".join(line.split()) for line in text.splitlines()) if line), "")
