"""Named components: a registry maps a name in a config to a class or function and to the class of its settings.

The modules that register its items are imported when an item is first asked for: the one of the item's own name, else
all. The settings' classes are known before, so that a configuration is checked without importing a component's code.
Unknown names are looked for in other packages. One announces itself by an entry point of the group `cirray.plugins`
(its value: a module that registers things); modules that are not installed are named in `CIRRAY_PLUGINS`.
"""

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FunctionType
from typing import Generic, TypeVar

from cirray.core.config import Config
from cirray.core.environ import plugin_modules
from cirray.core.errors import ConfigError, unknown_name

GROUP = "cirray.plugins"


@functools.cache
def load_plugins() -> tuple[str, ...]:
    """Import every announced module, once a process; returns their names.

    Raises ConfigError naming the module that cannot be imported, and why.
    """
    from importlib.metadata import entry_points  # slow to import, and often not needed

    names = dict.fromkeys([*(item.value for item in entry_points(group=GROUP)), *plugin_modules()])
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"The plug-in module {name!r} cannot be imported: {error}. Install its package, put its folder on "
                "PYTHONPATH, or take it out of CIRRAY_PLUGINS."
            ) from error
    return tuple(names)


ItemT = TypeVar("ItemT")


class Registry(Generic[ItemT]):
    """Mapping from a name to a component of one kind; unknown names answer with the known ones."""

    def __init__(
        self, kind: str, modules: Sequence[str] = (), settings: Mapping[str, type[Config]] | None = None,
        base: type[Config] = Config,
    ) -> None:  # fmt: skip
        """Create an empty registry.

        Args:
            kind: the word used in error sentences.
            modules: modules that register the items; imported before items are listed or found missing.
            settings: name -> class of the settings of each component that `modules` register.
            base: what all classes of settings derive from; the settings of a component that has none of its own.
        """
        self.kind, self._modules, self._base = kind, modules, base
        self._items: dict[str, ItemT] = {}
        self._settings = dict(settings or {})

    def register(self, name: str, settings: type[Config] | None = None) -> Callable[[ItemT], ItemT]:
        """Decorator that registers a component under `name`; a second use of a name is an error.

        The same definition, read again, replaces itself: a notebook's cell, or a module whose first import failed.

        Args:
            name: what a config says.
            settings: class of the component's own settings; not needed where the registry was made with it.

        Raises ConfigError for settings that do not derive from the registry's base.
        """
        if settings is not None and not issubclass(settings, self._base):
            raise ConfigError(f"The settings of {self.kind} {name!r} must derive from {self._base.__name__}.")

        def add(item: ItemT) -> ItemT:
            if name in self._items and _definition(self._items[name]) != _definition(item):
                raise ConfigError(f"The {self.kind} {name!r} is registered twice.")
            self._items[name] = item
            self._settings.setdefault(name, self._base)
            if settings is not None:
                self._settings[name] = settings
            return item

        return add

    def get(self, name: str) -> ItemT:
        """The component registered under `name`.

        Raises ConfigError for an unknown name, with the known names and a did-you-mean.
        """
        for find in (lambda: self._load(name), self._load, load_plugins):
            if name not in self._items:
                find()
        if name not in self._items:
            raise ConfigError(unknown_name(self.kind, name, self._items))
        return self._items[name]

    def settings(self, name: str) -> type[Config]:
        """The class of a component's own settings. No code of this package's components is imported.

        Raises ConfigError for an unknown name, with the known names and a did-you-mean.
        """
        if name not in self._settings:
            load_plugins()
        if name not in self._settings:
            raise ConfigError(unknown_name(self.kind, name, self._settings))
        return self._settings[name]

    def every_settings(self) -> dict[str, type[Config]]:
        """Name -> class of its settings, sorted by name, those of plug-ins among them."""
        load_plugins()
        return dict(sorted(self._settings.items()))

    def names(self) -> list[str]:
        """All names, sorted."""
        self._load()
        return sorted(self._items)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, sorted."""
        return iter(self.names())

    def _load(self, name: str = "") -> None:
        """Import the modules that register items; with a name only the one of that name, if there is one."""
        for module in self._modules:
            if not name or module.rpartition(".")[2] == name:
                importlib.import_module(module)


def _definition(item: object) -> object:
    """Where a function or class is defined; any other object is itself."""
    if isinstance(item, FunctionType):
        return item.__code__.co_filename, item.__code__.co_firstlineno
    return (item.__module__, item.__qualname__) if isinstance(item, type) else item
