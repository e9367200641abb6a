"""Parse errors that a person can act on: what is wrong, what was probably meant, what there is.

The wording of jsonargparse is matched here, in one place; tests pin it to the version in pyproject.toml.
"""

import argparse
import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser

from backbones.errors import HeadsetError, did_you_mean
from heads.registry import load_head_class, unknown_argument

__all__ = ["HeadsetParser"]


class HeadsetParser(LightningArgumentParser):
    """LightningCLI's parser, with errors of one line and no usage before them."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with exit code 2 and one line that says what to type."""
        if not self.exit_on_error:  # the parser of one class within another parser, which tells its error
            ArgumentParser.error(self, message, ex)
        self.exit(2, f"headset: error: {explain(message, self)}\n")


def explain(message: str, parser: argparse.ArgumentParser) -> str:
    """An error of jsonargparse in the words of this package."""
    for pattern, reason in REASONS:
        found = re.search(pattern, message, re.DOTALL)
        if found:
            return str(reason(found, parser))
    return _one_line(message)


def _wrong_head(found: re.Match[str], parser: argparse.ArgumentParser) -> HeadsetError | str:
    if Path(found["name"]).suffix in (".yaml", ".yml"):
        return _missing_file(found, parser)
    try:
        load_head_class(found["name"])
    except HeadsetError as error:
        return error
    return _one_line(found.string)


def _head_without_class(found: re.Match[str], parser: argparse.ArgumentParser) -> str:
    return (
        "model.heads names each head and its class: {topic: SequenceClassification}, or {topic: {class_path: "
        "SequenceClassification, init_args: {pooling: mean}}}."
    )


def _unknown_argument(found: re.Match[str], parser: argparse.ArgumentParser) -> HeadsetError:
    module, _, name = found["path"].rpartition(".")
    return unknown_argument(getattr(importlib.import_module(module), name), found["name"])


def _unknown_setting(found: re.Match[str], parser: argparse.ArgumentParser) -> str:
    settings = _settings(parser, found.groupdict().get("command"))
    key, known = found["name"], ""
    for part in key.split("."):
        below = sorted({name.removeprefix(known).split(".")[0] for name in settings if name.startswith(known)})
        if part not in below:
            whose = f"{known.rstrip('.')} accepts" if known else "Settings"
            return f"There is no setting {known}{part}.{did_you_mean(part, below)} {whose}: {', '.join(below)}."
        known += f"{part}."
    return _one_line(found.string)


def _settings(parser: argparse.ArgumentParser, command: str | None) -> set[str]:
    """The names of all settings of a command: the parser's own command, or one below it."""
    if command is not None:
        choices = next(action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        parser = choices[command]
    return {action.dest for action in parser._actions if not action.dest.endswith("help")}


def _wrong_value(found: re.Match[str], parser: argparse.ArgumentParser) -> str:
    path = found.groupdict().get("path")
    whose = f"{path.rpartition('.')[2]}: " if path else ""
    expected = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", _one_line(found["type"])).replace("NoneType", "null")
    return f"{whose}Invalid {found['key']}: {_one_line(found['value'])!r}. Expected: {expected}."


def _backbone_without_path(found: re.Match[str], parser: argparse.ArgumentParser) -> str:
    return (
        "model.backbone has settings, and no path. Where the configuration has its name alone (backbone: NAME), add "
        "--model.backbone.path NAME, or write there: backbone: {path: NAME, padding_free: false}."
    )


def _not_a_class(found: re.Match[str], parser: argparse.ArgumentParser) -> str:
    return f"Invalid {found['key']}: there is no class {found['value']!r}. Give its import path: package.module.Class."


def _missing_file(found: re.Match[str], parser: argparse.ArgumentParser) -> str:
    path = Path(found["name"])
    near = [file.name for file in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    return f"There is no file {path}.{did_you_mean(path.name, near)}"


def _missing_settings(found: re.Match[str], parser: argparse.ArgumentParser) -> str:
    names = [name.partition(".")[2] for name in found["name"].split(", ")]
    return (
        f"Missing: {', '.join(names)}. Give a configuration (-c FILE), or --{names[0]}; or a trained model "
        "(--ckpt_path FILE), whose settings are used."
    )


def _one_line(message: str) -> str:
    return " ".join(message.split())


Reason = Callable[[re.Match[str], argparse.ArgumentParser], HeadsetError | str]
HEADS = r'Parser key "model\.heads":\s+'
CLASS = r"class_path '(?P<path>[\w.]+)':\s+"
KEY = r'Parser key "(?P<key>[\w.]+)":\s+'
TYPE = r"Expected an? (?P<type>[^\n]+)\. Got value: (?P<value>.*)"
UNION = (
    r"Does not validate against any of the Union subtypes\s+Subtypes: \[(?P<type>[^\n]+)\].*Given value: (?P<value>.*)"
)
REASONS: list[tuple[str, Reason]] = [
    (HEADS + r"(.*\n)?.*Expected a dot import path string: (?P<name>\S+)", _wrong_head),
    (HEADS + r"Unexpected import path format: (?P<name>\S+)", _wrong_head),
    (CLASS + r"Option '(?P<name>[\w.]+)' is not accepted", _unknown_argument),
    (r"Option '(?P<name>[\w.]+)' is not accepted.*Namespace\(class_path='(?P<path>[\w.]+)'", _unknown_argument),
    (CLASS + KEY + TYPE, _wrong_value),
    (CLASS + KEY + UNION, _wrong_value),
    (HEADS + r"Problem with given class_path '(?P<name>[\w.]+)'", _wrong_head),
    (HEADS + r"Import path (?P<name>[\w.]+) does not correspond", _wrong_head),
    (HEADS + r".*(is abstract|Expected a <class 'dict'>)", _head_without_class),
    (KEY + r".*Expected a dot import path string: (?P<value>\S+)", _not_a_class),
    (r'Parser key "model\.backbone":.*Given value: Namespace\(.*\bpath=None', _backbone_without_path),
    (KEY + UNION, _wrong_value),
    (KEY + TYPE, _wrong_value),
    (r"Subcommand '(?P<command>\w+)' does not accept option '(?P<name>[\w.]+)'", _unknown_setting),
    (r"unrecognized arguments: --(?P<name>[\w.]+)", _unknown_setting),
    (r"File does not exist: '(?P<name>[^']+)'", _missing_file),
    (r"the following arguments are required: (?P<name>\w+\.[\w., ]+)", _missing_settings),
]
