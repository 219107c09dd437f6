"""Text processors, applied to every text before the tokenizer: functions from text to text. No torch.

Like the tokenizer it is part of the encoder, in its checkpoint and digest; `Retriever.tokenize` applies it.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Annotated

from pydantic import AfterValidator

from cirray.core.components import named
from cirray.core.fields import Known
from cirray.core.registry import Registry

TEXT_PROCESSORS: Registry[Callable[[str], str]] = Registry("text processor")
"""Name -> function from text to text."""
_DROPPED = re.compile(r'[.!"()*#:;~]')
_BLANKS = re.compile(r"\s{2,}")
_WORDS = 50


@TEXT_PROCESSORS.register("none")
def unchanged(text: str) -> str:
    """The text as it is."""
    return text


@TEXT_PROCESSORS.register("blip_caption")
def blip_caption(text: str) -> str:
    """LAVIS's caption processor, used by SPRC, PTHA and SPN throughout; the result may be empty.

    Lower case; `. ! " ( ) * # : ; ~` become blanks; two or more blanks become one; newlines at the end, then blanks at
    both ends are cut; the first 50 words between single blanks stay (`blip_processors.py`, lines 49 to 66).
    """
    text = _BLANKS.sub(" ", _DROPPED.sub(" ", text.lower())).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:_WORDS])


def process(name: str, texts: Iterable[str]) -> Iterator[str]:
    """Texts after the processor of a name, one by one. Raises ConfigError: for an unknown name."""
    return map(TEXT_PROCESSORS.get(name), texts)


ProcessorName = Annotated[str, AfterValidator(partial(named, TEXT_PROCESSORS.get)), Known("none", "blip_caption")]
"""Type of a configuration's field: a name of the registry."""
