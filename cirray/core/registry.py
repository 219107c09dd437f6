"""Named components: a config says a name, the registry says the class or function.

A registry names the modules that file its items; they are imported when somebody first asks. Names that are not known
then are looked for in other packages (`cirray.core.plugins`).
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType
from typing import Generic, TypeVar

from cirray.core.errors import ConfigError, unknown_name
from cirray.core.plugins import load_plugins

ItemT = TypeVar("ItemT")


class Registry(Generic[ItemT]):
    """Mapping from a name to a component of one kind; unknown names answer with the known ones."""

    def __init__(self, kind: str, modules: Sequence[str] = ()) -> None:
        """Create an empty registry.

        Args:
            kind: the word used in error sentences.
            modules: what to import before names are listed or found missing; importing them files the items.
        """
        self.kind, self._modules = kind, modules
        self._items: dict[str, ItemT] = {}

    def register(self, name: str) -> Callable[[ItemT], ItemT]:
        """Decorator that files a component under `name`; a second use of a name is an error.

        The same definition read again takes its own place: a notebook's cell, or a module whose first import failed.
        """

        def add(item: ItemT) -> ItemT:
            if name in self._items and _definition(self._items[name]) != _definition(item):
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
            self._load()
        if name not in self._items:
            load_plugins()
        if name not in self._items:
            raise ConfigError(unknown_name(self.kind, name, self._items))
        return self._items[name]

    def names(self) -> list[str]:
        """All names, sorted."""
        self._load()
        return sorted(self._items)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, sorted."""
        return iter(self.names())

    def _load(self) -> None:
        for module in self._modules:
            importlib.import_module(module)


def _definition(item: object) -> object:
    """Where a function or class is written; any other thing is itself."""
    if isinstance(item, FunctionType):
        return item.__code__.co_filename, item.__code__.co_firstlineno
    return (item.__module__, item.__qualname__) if isinstance(item, type) else item
