"""Components from other packages: their modules are imported when a registry does not know a name.

A package announces itself by an entry point of the group `cirray.plugins` (its value: a module that registers things);
modules that are not installed are named in `CIRRAY_PLUGINS`, separated by commas.
"""

import functools
import importlib

from cirray.core.environ import plugin_modules
from cirray.core.errors import ConfigError

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
