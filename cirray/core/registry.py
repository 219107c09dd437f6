"""Named components: a config says a name, the registry says the class or function.

Names that are not known at first are looked for in other packages (`cirray.core.plugins`).
"""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from cirray.core.errors import ConfigError, unknown_name
from cirray.core.plugins import load_plugins

ItemT = TypeVar("ItemT")


class Registry(Generic[ItemT]):
    """Mapping from a name to a component of one kind; unknown names answer with the known ones."""

    def __init__(self, kind: str) -> None:
        """Create an empty registry; `kind` is the word used in error sentences."""
        self.kind = kind
        self._items: dict[str, ItemT] = {}

    def register(self, name: str) -> Callable[[ItemT], ItemT]:
        """Decorator that files a component under `name`; a second use of a name is an error."""

        def add(item: ItemT) -> ItemT:
            if name in self._items:
                raise ConfigError(f"The {self.kind} {name!r} is registered twice.")
            self._items[name] = item
            return item

        return add

    def get(self, name: str) -> ItemT:
        """The component filed under `name`.

        Raises:
            ConfigError: for an unknown name, with the known names and a did-you-mean.
        """
        if name not in self._items:
            load_plugins()
        if name not in self._items:
            raise ConfigError(unknown_name(self.kind, name, self._items))
        return self._items[name]

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._items)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, sorted."""
        return iter(self.names())
