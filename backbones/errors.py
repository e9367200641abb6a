"""Errors for users: what came, what is valid, and what was probably meant."""

import difflib
import re
from collections.abc import Iterable

__all__ = ["HeadsetError", "did_you_mean", "invalid_choice"]


class HeadsetError(ValueError):
    """A mistake in the settings or in the data, told in one message that says what to do next."""


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
    plural = f"{noun}es" if noun.endswith(("s", "x")) else f"{noun}s"
    return HeadsetError(f"Invalid {what}: {got!r}. Valid {plural}{where}: {listed}.{did_you_mean(str(got), options)}")
