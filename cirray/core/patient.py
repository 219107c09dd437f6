"""S3 that is asked again while it answers 503 or does not answer. Loaded where a URI of S3 is opened."""

import math
from typing import Any
from urllib.parse import urlsplit

from pyarrow import fs as pafs

_OPENED: "dict[tuple[str, str, str, float], PatientS3]" = {}
_UNIT_S = 0.025
"""The AWS library waits 0, 2, 4, 8, ... of these between its tries."""


class PatientS3(pafs.S3FileSystem):  # type: ignore[misc]
    """Arrow's S3 with a patience in seconds, also after it went to another process (Arrow's own forgets its tries)."""

    def __init__(self, patience_s: float, options: dict[str, Any]) -> None:
        """Take how long a request is tried, and the other options of an `S3FileSystem`."""
        self._patience_s = patience_s
        super().__init__(retry_strategy=pafs.AwsDefaultS3RetryStrategy(max_attempts=tries(patience_s)), **options)

    def __reduce__(self) -> tuple[Any, ...]:
        return PatientS3, (self._patience_s, options_of(self))


def options_of(filesystem: pafs.S3FileSystem) -> dict[str, Any]:
    """What an S3FileSystem was made of, as it tells pickle."""
    return dict(pafs.S3FileSystem.__reduce__(filesystem)[1][0])


def tries(patience_s: float) -> int:
    """Tries after the first one, so that the time between them is about as long."""
    return max(0, round(math.log2(patience_s / _UNIT_S + 2)))


def opened(uri: str, filesystem: pafs.S3FileSystem, patience_s: float) -> PatientS3:
    """A URI's S3 with patience. One is kept for all files of a bucket, and with it its connections.

    `filesystem`: what Arrow made of the URI.
    """
    parts = urlsplit(uri)
    place = (parts.scheme, parts.netloc, parts.query, patience_s)
    if place not in _OPENED:
        _OPENED[place] = PatientS3(patience_s, options_of(filesystem))
    return _OPENED[place]
