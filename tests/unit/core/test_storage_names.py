"""Paths that are not UTF-8: one sentence, where the file systems of Arrow know only a traceback."""

import os

import pytest

from cirray.core.errors import ArtifactError
from cirray.core.storage import list_files, resolve


def test_paths_and_files_that_are_not_utf8_are_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"caf.udce9' holds bytes that are not UTF-8"):
        resolve(tmp_path / "caf\udce9")
    with open(os.path.join(os.fsencode(tmp_path), b"caf\xe9.tar"), "wb"):
        pass
    with pytest.raises(ArtifactError, match=r"caf.*xe9.tar' below .* is no UTF-8 name; rename that file"):
        list_files(tmp_path)
