"""The answers of one query as values that show themselves: lines in a terminal, a strip of pictures in a notebook."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

from PIL import Image

from cirray.core import storage
from cirray.core.errors import DataError
from cirray.core.log import printable
from cirray.index.pictures import media_type

_PAGE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem;background:Canvas;color:CanvasText;color-scheme:light dark}"
    "main{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:1rem}"
    "figure{margin:0}img{width:100%;border-radius:8px}figcaption{font-size:12px}"
)
_STRIP = "display:flex;gap:8px;overflow-x:auto;align-items:flex-start"
_CELL = "margin:0;flex:none;max-width:160px;font-size:12px;overflow-wrap:anywhere"
_SHOWN = "height:120px;max-width:160px;object-fit:contain;display:block"


@dataclass(frozen=True)
class Result:
    """One picture that was found."""

    id: str
    score: float
    """Similarity to the query; higher is better."""
    path: str = ""
    """Its file, where the index knows it."""
    picture: bytes = field(default=b"", repr=False)
    """Encoded picture that the index keeps, made small; empty where it keeps none."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Values of the metadata columns that were asked for."""

    @property
    def image(self) -> Image.Image:
        """The kept picture, decoded.

        Raises:
            DataError: when the index keeps no pictures.
        """
        if not self.picture:
            raise DataError(f"The index keeps no picture of {self.id!r}. Build it with thumbnail_size above 0.")
        return Image.open(io.BytesIO(self.picture))

    @property
    def caption(self) -> str:
        """Id, score and metadata as HTML."""
        return html.escape(" · ".join([self.id, f"{self.score:.3f}", *self._told()]))

    @property
    def line(self) -> str:
        """Score, id and metadata as a line of a terminal."""
        return f"{self.score:.4f}  {printable('  '.join([self.id, *self._told()]))}"

    def _told(self) -> list[str]:
        return [f"{name}: {value}" for name, value in self.metadata.items() if value is not None]

    def _repr_html_(self) -> str:
        return _cell(self.picture, self.caption)


@dataclass(frozen=True)
class Results(Sequence[Result]):
    """Pictures found for one query, best first; a notebook shows them as a strip."""

    rows: tuple[Result, ...]
    text: str = ""
    """What was asked; empty for a search by the picture alone."""
    reference: bytes = field(default=b"", repr=False)
    """Encoded picture of the reference; empty for a search by text alone."""

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, at: int) -> Result: ...
    @overload
    def __getitem__(self, at: slice) -> "Results": ...
    def __getitem__(self, at: int | slice) -> "Result | Results":
        """A result by its place from 0 on, or several."""
        return Results(self.rows[at], self.text, self.reference) if isinstance(at, slice) else self.rows[at]

    def __repr__(self) -> str:
        return "\n".join(f"{place:>3}  {row.line}" for place, row in enumerate(self.rows, 1))

    def _repr_html_(self) -> str:
        asked = html.escape(f"“{self.text}”") if self.text else "like this"
        query = _cell(self.reference, asked) if self.reference else f"<p style='{_CELL}'><b>{asked}</b></p>"
        cells = (_cell(row.picture, f"{place}. {row.caption}") for place, row in enumerate(self.rows, 1))
        return (
            f"<div style='{_STRIP}'>{query}<b aria-hidden='true' style='align-self:center'>→</b>{''.join(cells)}</div>"
        )

    def page(self) -> str:
        """A self-contained page: the query on top, the answers below, best first."""
        title = html.escape(f"“{self.text}”" if self.text else "Pictures like this one")
        cards = (
            f"<figure>{_image(row.picture)}<figcaption>{place}. {row.caption}</figcaption></figure>"
            for place, row in enumerate(self.rows, 1)
        )
        query = f'<figure style="width:180px">{_image(self.reference)}</figure>' if self.reference else ""
        return (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_PAGE}</style>'
            f"<body>{query}<h1>{title}</h1><main>{''.join(cards)}</main></body></html>"
        )

    def save(self, place: str | Path) -> str:
        """Write `page()` as a file; returns its place (path or URI)."""
        storage.write_bytes(str(place), self.page().encode())
        return str(place)


def _cell(picture: bytes, caption: str) -> str:
    return f"<figure style='{_CELL}'>{_image(picture, _SHOWN)}<figcaption>{caption}</figcaption></figure>"


def _image(picture: bytes, style: str = "") -> str:
    kind = media_type(picture)
    if kind == "application/octet-stream":
        return "<p>(no picture kept)</p>"
    look = style + (";image-rendering:pixelated" if kind == "image/png" else "")  # small drawings, enlarged
    return f'<img alt="" style="{look.lstrip(";")}" src="data:{kind};base64,{base64.b64encode(picture).decode()}">'
