"""Loss terms of retrieval training, one idea a file; importing the package files them all."""

from cirray.training.terms import (  # noqa: F401
    bank_infonce,
    composing,
    hard_negative,
    infonce,
    matching,
    prompt_align,
    retention,
    retention_distill,
    rtc,
    rtd_doubling,
    two_hop,
)
