"""Where an image is: a file or some bytes of one (tar shard, Arrow file), and the box that is cut from it."""

import json
from dataclasses import dataclass

from cirray.core import storage
from cirray.data.kinds import split_suffix

Box = tuple[float, float, float, float]
"""x, y, width, height in pixels of the stored image; the corner may be slightly negative."""
Span = tuple[int, int]
"""First byte and number of bytes."""

_PREFIX = "cirray-place:"


@dataclass(frozen=True)
class Place:
    """A path or URI; `span` when the image is a part of that file, `box` when it is a crop."""

    uri: str
    span: Span | None = None
    box: Box | None = None

    def text(self) -> str:
        """One string for a table's column; just the URI when there is no span or box.

        A path that is not UTF-8 is written as JSON, which keeps its bytes.
        """
        if self.span is None and self.box is None and _is_utf8(self.uri):
            return self.uri
        return _PREFIX + json.dumps({"uri": self.uri, "span": self.span, "box": self.box})

    def name(self, image_id: str) -> str:
        """The image's name in messages: its id with its file's suffix, the same wherever the file is."""
        suffix = "" if self.span or self.box else split_suffix(storage.without_query(self.uri))[1]
        return image_id if image_id.endswith(suffix) else image_id + suffix

    @classmethod
    def parse(cls, text: str) -> "Place":
        """The place that `text()` wrote."""
        if not text.startswith(_PREFIX):
            return cls(text)
        values = json.loads(text.removeprefix(_PREFIX))
        return cls(values["uri"], *(tuple(values[name]) if values[name] else None for name in ("span", "box")))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
