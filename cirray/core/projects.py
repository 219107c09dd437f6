"""A project file: what all steps share, and below `steps` the settings of each; `cirray init` writes one.

Every verb takes it among its files: the shared values that it has fields for, and its own section over them.
"""

from collections.abc import Collection, Mapping

from cirray.core.config import layer_of
from cirray.core.errors import ConfigError, unknown_name
from cirray.core.trees import Layer, merged

STEPS = "steps"
"""The key by which a file is a project file."""
SHARED = ("root", "data", "limits", "device", "ray")
"""Fields that may stand beside `steps`; verbs that do not have them leave them out."""


def is_project(file: str) -> bool:
    """Whether a YAML file is a project file; False for one that cannot be read."""
    try:
        return STEPS in layer_of(file).tree
    except ConfigError:
        return False


def layer_for(file: str, name: str, fields: Collection[str], verbs: Collection[str]) -> Layer:
    """A YAML file's values for one verb; those of a file that is no project file are all for the verb.

    Raises ConfigError: an unreadable file; in a project file an unknown key, an unknown verb or a section that is none.
    """
    layer = layer_of(file)
    if STEPS not in layer.tree:
        return layer
    steps = layer.tree[STEPS] or {}
    if not isinstance(steps, Mapping):
        raise ConfigError(f"{file}: {STEPS!r} holds {steps!r}; it maps verbs to their settings.")
    for key in layer.tree.keys() - {STEPS, *SHARED}:
        raise ConfigError(f"{file}: {unknown_name(f'key beside {STEPS!r}', key, SHARED)}")
    for key, section in steps.items():
        if key not in verbs:
            raise ConfigError(f"{file}: {unknown_name(f'verb below {STEPS!r}', key, verbs)}")
        if section and not isinstance(section, Mapping):
            raise ConfigError(f"{file}: {STEPS}.{key} holds {section!r}; it maps fields of `cirray {key}` to values.")
    shared = {key: value for key, value in layer.tree.items() if key in SHARED and key in fields}
    return Layer(merged(shared, steps.get(name) or {}), layer.origin)
