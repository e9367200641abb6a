"""Errors for users: what came, what is valid, and what was probably meant."""

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

__all__ = ["HeadsetError", "did_you_mean", "invalid_choice", "told_of"]

LONGEST = 500  # characters of what another library says


class HeadsetError(ValueError):
    r"""A mistake in the settings or in the data, told in one line that says what to do next.

    Whatever it tells of files, it stays one line without control characters.

    >>> print(HeadsetError("Unknown label 'a\nb\x1b[2J'."))
    Unknown label 'a b\x1b[2J'.
    """

    def __str__(self) -> str:
        """The message."""
        line = " ".join(part.strip() for part in super().__str__().splitlines())
        return "".join(it if it.isprintable() else it.encode("unicode_escape").decode() for it in line)


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """The closest option as a sentence, or an empty string where nothing is close.

    >>> did_you_mean("maen", ["cls", "mean"])
    " Did you mean 'mean'?"
    """
    lowered = {option.lower(): option for option in options}
    close = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    return f" Did you mean '{lowered[close[0]]}'?" if close else ""


def invalid_choice(what: str, got: object, options: Iterable[str]) -> HeadsetError:
    """The error for a value outside a closed set of options.

    >>> str(invalid_choice("pooling mode", "maen", ["cls", "mean"]))
    "Invalid pooling mode: 'maen'. Valid pooling modes: cls, mean. Did you mean 'mean'?"
    >>> str(invalid_choice("head in labels", "tpoic", ["topic"]))
    "Invalid head in labels: 'tpoic'. Valid heads in labels: topic. Did you mean 'topic'?"
    """
    options = list(options)
    listed = ", ".join(options) or "none"
    noun, where = re.fullmatch(r"(.*?)((?: (?:in|of) .*)?)", what).groups()  # type: ignore[union-attr]
    plural = f"{noun}es" if noun.endswith(("s", "x")) else re.sub(r"(?<![aeiou])y$", "ie", noun) + "s"
    return HeadsetError(f"Invalid {what}: {got!r}. Valid {plural}{where}: {listed}.{did_you_mean(str(got), options)}")


@contextmanager
def told_of(path: str, what: str = "cannot be used") -> Iterator[None]:
    """Name a file in all errors of what is made of it; what other libraries raise of it is a mistake in it.

    Errors of the machine pass: no memory, and what the system says of files.

    Raises:
        HeadsetError: What is made of the file fails.
    """
    try:
        yield
    except HeadsetError as error:
        if path in str(error):
            raise
        raise HeadsetError(f"{path}: {error}") from error
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None or "memory" in text:
            raise
        raise HeadsetError(f"{path} {what}: {text[:LONGEST]}") from error
