"""Errors for people: what happened, the offending value, what would be accepted, what to do."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class CirrayError(Exception):
    """Base of every error this package raises on purpose; the CLI prints it as one sentence and exits with 2."""


class ConfigError(CirrayError):
    """A configuration value or field that cannot be used."""

    def __init__(self, message: str, path: Iterable[str] = ()) -> None:
        """Say what is wrong.

        Args:
            message: the sentence.
            path: way to the section it is about, where that was only seen when it was used; its files can be named.
        """
        super().__init__(message)
        self.path = tuple(path)


class DataError(CirrayError):
    """A file, image, annotation or row that cannot be used."""


class ArtifactError(CirrayError):
    """An artifact that is missing, incomplete, damaged or of the wrong kind."""


class GenerationError(CirrayError):
    """A modification-text generator that cannot work as asked."""


class IndexMismatchError(CirrayError):
    """An index or features made by another encoder than the one that reads them."""


class ServingError(CirrayError):
    """A request or a deployment that cannot be served."""


class StoreError(CirrayError):
    """A store that cannot be written or read now: a full or read-only disk, an object store that is away."""


class RemadeError(StoreError):
    """A gallery in whose place another one was made since it was opened."""


class AwayError(StoreError):
    """A process that holds a part of a gallery, and does not answer now."""


class StageError(CirrayError):
    """One of several stages, told to stop."""


@contextmanager
def damage_told(place: object, remedy: str) -> Iterator[None]:
    """Turn what a damaged file raises inside into one sentence.

    Raises:
        ArtifactError: naming the file or folder, what is wrong and what to do.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, _damage()):
            raise
        told = reason_of(error)
        raise ArtifactError(f"{str(place)!r} is damaged or not what it should be ({told}). {remedy}") from None


def _damage() -> tuple[type[Exception], ...]:
    """What readers of files raise; imported late, for a quick start."""
    from pickle import UnpicklingError
    from zipfile import BadZipFile

    plain = (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, RuntimeError)
    return (*plain, UnpicklingError, BadZipFile)


def reason_of(error: BaseException, most: int = 160) -> str:
    """What a library's error says, in one line of at most `most` characters; its class where it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Sentence for an unknown name: the name, a did-you-mean when one is close, and every accepted name."""
    import difflib

    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"Unknown {kind} {name!r}.{hint} Known: {', '.join(names) or '(none)'}."


def own_error(*failures: BaseException | None) -> CirrayError | None:
    """The first error of this package among failures and what they wrap, as Ray (`cause`) and Python do."""
    for failure in failures:
        for inner in wrapped(failure, contexts=True):
            # Ray's error is also of its cause's class, but its words are a whole traceback
            if isinstance(inner, CirrayError) and getattr(inner, "cause", None) is None:
                return inner
    return None


def wrapped(failure: BaseException | None, contexts: bool = False) -> Iterator[BaseException]:
    """An error and those that it wraps, the outermost first; also those that it was raised beside, if asked for."""
    seen: set[int] = set()
    while failure is not None and id(failure) not in seen:
        seen.add(id(failure))
        yield failure
        beside = failure.__context__ if contexts else None
        failure = getattr(failure, "cause", None) or failure.__cause__ or beside
