"""The settings of each source of data: one is given at the top level, several in ``data.sources``."""

import contextlib
import json
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import yaml

from backbones.errors import HeadsetError, invalid_choice
from headset.checks import check_settings
from headset.labels import Labels
from headset.readers import Source

__all__ = ["SourceSettings", "plain", "predict_settings", "source_settings", "whole_sources"]

# How a row is read, which prediction has to do as training did.
READING = ("text", "image", "audio", "choices", "max_length", "max_seconds", "stride", "max_windows", "conll_columns")
# Where sources differ in these, prediction takes the largest: longer inputs are cut no earlier than in training.
LENGTHS = ("max_length", "max_seconds", "stride", "max_windows")
DEFAULTS = {"text": "text", "image": "image", "audio": "audio"}
KINDS: dict[str, tuple[type, ...]] = {
    "text": (str, list),
    "image": (str,),
    "audio": (str,),
    "choices": (str, list),
    "labels": (str, list, dict),
    "train": (str, dict),
    "validation": (str, dict, int, float),
    "test": (str, dict),
    "max_length": (int,),
    "max_seconds": (int, float),
    "missing_labels": (bool,),
    "conll_columns": (list,),
}


@dataclass(frozen=True)
class SourceSettings:
    """What `TextData` takes for a source; its arguments say what each is."""

    train: Source | None = None
    validation: float | Source | None = None
    test: Source | None = None
    predict: Source | None = None
    text: list[str] | str | None = None
    labels: Labels = "label"
    missing_labels: bool = False
    image: str | None = None
    audio: str | None = None
    choices: list[str] | str | None = None
    max_length: int | None = None
    max_seconds: float | None = None
    stride: int | None = None
    max_windows: int | None = None
    batch_size: int = 32
    batch_tokens: int | None = None
    eval_batch_size: int | None = None
    conll_columns: list[str] | None = None


def source_settings(settings: Mapping[str, Any]) -> dict[str, SourceSettings]:
    """The settings of each source by its name; of one source without a name where ``sources`` is None.

    Args:
        settings: The arguments of `TextData`: those beside ``sources`` are what a source has that does not say else.

    Raises:
        HeadsetError: A setting is unknown or wrong, or stands where it belongs to no source.
    """
    names = [field.name for field in fields(SourceSettings)]
    common = {name: settings[name] for name in names}
    common |= {name: default for name, default in DEFAULTS.items() if common[name] is None}
    check_settings(settings)
    if settings["sources"] is None:
        return {"": SourceSettings(**common)}
    if not settings["sources"]:
        raise HeadsetError("data.sources is empty. Name at least one: data.sources: {NAME: {train: FILE}}.")
    for table in ("train", "validation", "test"):
        if isinstance(settings[table], str | dict):
            raise HeadsetError(
                f"data.{table} is given beside data.sources. Give each source its own: data.sources.NAME.{table}."
            )
    names.remove("predict")
    found = {}
    for source, given in settings["sources"].items():
        place = f"data.sources.{source}"
        if not isinstance(given, Mapping):
            raise HeadsetError(f"{place} is {given!r}. Give what it has by name: {{train: FILE, labels: COLUMN}}.")
        for name, value in given.items():
            if name not in names:
                raise invalid_choice(f"setting in {place}", name, names)
            _check_kind(f"{place}.{name}", value, KINDS.get(name, (int,)))
        check_settings({**settings, **given}, place)
        found[source] = SourceSettings(**{**common, **given})
    return found


def predict_settings(
    settings: Mapping[str, Any], sources: Mapping[str, SourceSettings], heads: Collection[str]
) -> SourceSettings:
    """How the rows to predict are read: as the top level says, or else as the sources of the heads do.

    Args:
        settings: The arguments of `TextData`.
        sources: The settings of each source.
        heads: The heads that predict.

    Raises:
        HeadsetError: The sources have different columns, and the top level does not say which.
    """
    given = {name: its.labels for name, its in sources.items()}
    named = {name: set(labels) if isinstance(labels, dict) else {name} for name, labels in given.items()}
    theirs = [sources[name] for name, labelled in named.items() if labelled.intersection(heads)]
    found = {name: settings[name] for name in ("predict", "batch_size", "eval_batch_size", *READING)}
    for name in READING:
        if found[name] is None:
            values = [getattr(source, name) for source in theirs or sources.values()]
            distinct = [value for place, value in enumerate(values) if value not in (None, *values[:place])]
            if name in LENGTHS:
                found[name] = None if None in values else max(values)
            elif len(distinct) > 1:
                told = ", ".join(map(str, distinct))
                raise HeadsetError(
                    f"The sources have different {name}: {told}. Say what the rows to predict have: --data.{name} "
                    f"{distinct[0]}; or predict with some of the heads: --heads NAME."
                )
            else:
                found[name] = next(iter(distinct), None)
    return SourceSettings(**found)


def plain(value: Any) -> Any:
    """Paths as strings, also inside, so that settings go into a checkpoint as plain values."""
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def whole_sources(arguments: Sequence[str], parse: Callable[[list[str]], Any]) -> list[str]:
    """A command line with whole sources in place of single settings of them.

    The parser would take ``--data.sources.NAME.test FILE`` for all that the source has.

    Args:
        arguments: The arguments of a command.
        parse: What gives ``data.sources`` by the other arguments.
    """
    changes: list[tuple[str, list[str], str]] = []
    others = []
    remaining = iter(arguments)
    for argument in remaining:
        found = re.fullmatch(r"--data\.sources\.([^.=]+)\.([^=]+)(?:=(.*))?", argument, re.DOTALL)
        if found:
            changes.append((found[1], found[2].split("."), next(remaining, "") if found[3] is None else found[3]))
        else:
            others.append(argument)
    if not changes:
        return others
    sources = dict(parse([argument for argument in others if not argument.startswith("--print_config")]) or {})
    for name, keys, text in changes:
        value: Any = text
        with contextlib.suppress(yaml.YAMLError):
            value = yaml.safe_load(text)
        sources[name] = _changed(sources.get(name), keys, value)
    changed = dict.fromkeys(name for name, *_ in changes)
    return others + [part for name in changed for part in (f"--data.sources.{name}", json.dumps(sources[name]))]


def _changed(settings: Any, keys: Sequence[str], value: Any) -> Any:
    """Settings with another value below some keys."""
    if not keys:
        return value
    given = settings if isinstance(settings, Mapping) else {}
    return {**given, keys[0]: _changed(given.get(keys[0]), keys[1:], value)}


def _check_kind(setting: str, value: Any, kinds: tuple[type, ...]) -> None:
    wrong_flag = isinstance(value, bool) and bool not in kinds
    if value is not None and (wrong_flag or not isinstance(value, kinds)):
        words = {str: "a string", list: "a list", dict: "a dictionary", int: "a whole number", float: "a number"}
        expected = " or ".join(words.get(kind, "true or false") for kind in kinds)
        raise HeadsetError(f"Invalid {setting}: {value!r}. Give {expected}.")
