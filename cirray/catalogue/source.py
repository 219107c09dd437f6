"""What a gallery that may change, or lies in several processes, is asked of."""

from typing import Protocol

from cirray.index.store import GalleryIndex


class Source(Protocol):
    """Gives the gallery as it is now."""

    @property
    def gallery(self) -> GalleryIndex:
        """The gallery; a request keeps it to its end."""

    @property
    def living(self) -> bool:
        """Whether it is written to."""

    @property
    def failures(self) -> int:
        """Looks at it in a row that failed."""

    @property
    def fault(self) -> str:
        """What it lacks now, in words that go on from "The gallery"; empty: nothing."""

    def poll(self) -> GalleryIndex:
        """Look at it now; returns the gallery.

        Raises:
            StoreError: when it cannot be read; the gallery stays what it was.
        """

    def start(self) -> None:
        """Follow it in a thread."""

    def stop(self) -> None:
        """Stop following."""

    def hurry(self) -> None:
        """Look at it soon: this process has written to it."""
