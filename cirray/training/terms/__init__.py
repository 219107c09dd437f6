"""Loss terms of retrieval training, one idea a file; importing the package files them all."""

from cirray.training.terms import (  # noqa: F401  # noqa: F401, I001
    composing,
    infonce,
    prompt_align,
    retention,
    retention_distill,
    rtc,
    rtd_doubling,
    two_hop,
)
