"""The order of all tests."""

FIRST = ("integration", "parity", "browser")
"""Those that start clusters, ranks and browsers wait for most of their time: the others fill the cores meanwhile."""


def pytest_collection_modifyitems(items):
    """Long files first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: next((at for at, name in enumerate(FIRST) if name in item.path.parts), len(FIRST)))
