"""Switch off two habits of transformers: progress bars and reports, and saving under weights' old names."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel
from transformers.utils import logging


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, transformers shows no progress bars and warnings."""
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def forget_old_names(model: PreTrainedModel) -> None:
    """Let `save_pretrained` write the model's own names.

    transformers 5 remembers how the weights were renamed when they were loaded and undoes it when saving: a part of a
    whole checkpoint would be saved under the whole's names, and found missing when it is loaded again.
    """
    model._weight_conversions = None  # type: ignore[assignment]
