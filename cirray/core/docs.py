"""Docstrings of fields: the text below a field in its class's source, read when somebody asks and not before.

pydantic reads them too, while a class is made: that costs a third of the time in which all configurations are loaded.
"""

import ast
import inspect
import sys
from functools import cache


def field_doc(cls: type, name: str) -> str:
    """The docstring of a field, of the first class in the order of inheritance that has one; empty without any."""
    return next((docs[name] for base in cls.__mro__ if name in (docs := _docs(base))), "")


@cache
def _docs(cls: type) -> dict[str, str]:
    """Field -> docstring, of the fields that a class itself declares."""
    found = _classes(cls.__module__).get(cls.__qualname__)
    if found is None:
        return {}
    pairs = zip(found.body, found.body[1:], strict=False)
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in pairs
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }  # fmt: skip


@cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    """The classes of a module's source by their qualified names; none where there is no source."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (KeyError, OSError, TypeError, SyntaxError):
        return {}
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
