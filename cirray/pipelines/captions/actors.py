"""Ray Data's worker of the caption stage: images of a part in, a part of a captions artifact out."""

import hashlib
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from cirray.core.errors import ArtifactError, DataError
from cirray.generators.base import told
from cirray.generators.captioners.base import CaptionerSetup, Picture
from cirray.generators.captioners.config import CAPTIONERS, CaptionerChoice
from cirray.pipelines.cluster.answers import Answers
from cirray.pipelines.cluster.streaming import Columns
from cirray.triplets.captions import known_captions, write_captions
from cirray.types import part_name, stable_id


class CaptionImages:
    """Actor: captions of one part's images. A caption with a known key costs no call of the model."""

    def __init__(
        self, captioner: CaptionerChoice, setup: CaptionerSetup, work_uri: str, reuse: Sequence[str] = ()
    ) -> None:
        """Load the captioner (once per actor) and known captions: rows of the folders `reuse`, by their keys."""
        self._captioner = CAPTIONERS.get(captioner.kind)(captioner.settings, setup)
        self._work_uri, self._answers = work_uri, Answers(work_uri, setup.batch)
        self._known = known_captions(reuse)

    def __call__(self, columns: Columns) -> dict[str, int]:
        """Caption and write one part.

        Args:
            columns: `part`, `part_rows`, `image_id`, `place`, `known`.

        Returns: `rejected` and `reused` images, and how many the captioner was `asked` about.
        """
        names = (columns[name].tolist() for name in ("image_id", "place", "known"))
        part = part_name(columns["part"][0])
        rows, rejected, figures = self.rows(part, [Picture(*values) for values in zip(*names, strict=True)])
        write_captions(self._work_uri, part, rows, rejected)
        return {"rejected": len(rejected), **figures}

    def rows(
        self, part: str, pictures: Sequence[Picture]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, int]]:
        """Rows of captions, rows of rejections (together one an image), and how many were `reused` and `asked` for now.

        Raises ArtifactError when the captioner does not return one text per image.
        """
        keys: dict[str, str] = {}
        reasons: dict[str, str] = {}
        for picture in pictures:
            try:
                keys[picture.image_id] = self._key(picture)
            except DataError as error:
                reasons[picture.image_id] = str(error)
        texts = {image: self._known[key] for image, key in keys.items() if key in self._known}
        reused = len(texts)
        fresh = {keys[p.image_id]: p for p in pictures if p.image_id in keys and p.image_id not in texts}
        answers, made = self._answers.ask(part, fresh, self._caption, itemgetter(0))
        written = {image: answers[key] for image, key in keys.items() if key in answers}
        texts |= {image: text for image, (text, _) in written.items()}
        reasons |= {image: reason for image, (_, reason) in written.items() if reason}
        rows = [
            self._row(p.image_id, texts[p.image_id], keys[p.image_id]) for p in pictures if p.image_id not in reasons
        ]
        refused = [{"image_id": image, "reason": reason} for image, reason in reasons.items()]
        return rows, refused, {"reused": reused, "asked": len(made)}

    def _caption(self, pictures: Sequence[Picture]) -> list[tuple[str, str]]:
        """Text, or the reason why there is none, of each."""
        made = self._captioner.caption(pictures)
        if len(made) != len(pictures):
            raise ArtifactError(f"The captioner returned {len(made)} texts for {len(pictures)} images.")
        return [told(written, "the captioner wrote nothing, or no end") for written in made]

    def _key(self, picture: Picture) -> str:
        """Digest of the image as the captioner reads it, and of the captioner."""
        content = hashlib.blake2b(self._captioner.content(picture), digest_size=16).hexdigest()
        return stable_id("caption", content, self._captioner.digest)

    def _row(self, image_id: str, caption: str, key: str) -> dict[str, Any]:
        return {"image_id": image_id, "caption": caption.strip(), "captioner": self._captioner.digest, "key": key}
