"""Loss terms of retrieval training, one idea a file; importing the package files them all."""

from cirray.training.terms import infonce, prompt_align, rtc, two_hop  # noqa: F401
from cirray.training.terms import composing, retention, retention_distill, rtd_doubling  # noqa: F401, I001
