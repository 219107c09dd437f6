"""Loss terms of retrieval training, one idea a file; importing the package files them all."""

from cirray.training.terms import hard_negative, infonce, matching, prompt_align, rtc, two_hop  # noqa: F401
