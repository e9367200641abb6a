"""Parse errors that a person can act on: what is wrong, what was probably meant, what there is.

The wording of jsonargparse is matched here, in one place; tests pin it to the version in pyproject.toml.
"""

import argparse
import importlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser

from backbones.errors import HeadsetError, did_you_mean
from heads.registry import load_head_class, unknown_argument, unknown_head

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


def _unknown_head(found: re.Match[str], parser: argparse.ArgumentParser) -> HeadsetError | str:
    name = found["name"].strip()
    if Path(name).suffix in (".yaml", ".yml"):
        return _missing_file(found, parser)
    return unknown_head(name)


def _unknown_argument(found: re.Match[str], parser: argparse.ArgumentParser) -> HeadsetError | str:
    module, _, name = found["path"].rpartition(".")
    return unknown_argument(getattr(importlib.import_module(module), name), found["name"])


def _unusable_head(found: re.Match[str], parser: argparse.ArgumentParser) -> HeadsetError | str:
    try:
        load_head_class(found["path"])
    except HeadsetError as error:
        return error
    return _one_line(found.string)


def _unknown_setting(found: re.Match[str], parser: argparse.ArgumentParser) -> str:
    settings = _settings(parser)
    key, known = found["name"], ""
    for part in key.split("."):
        below = sorted({name.removeprefix(known).split(".")[0] for name in settings if name.startswith(known)})
        if part not in below:
            whose = f"{known.rstrip('.')} accepts" if known else "Settings"
            return f"There is no setting {known}{part}.{did_you_mean(part, below)} {whose}: {', '.join(below)}."
        known += f"{part}."
    return _one_line(found.string)


def _missing_file(found: re.Match[str], parser: argparse.ArgumentParser) -> str:
    path = Path(found["name"].strip())
    near = [file.name for file in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    return f"There is no file {path}.{did_you_mean(path.name, near)}"


def _missing_settings(found: re.Match[str], parser: argparse.ArgumentParser) -> str:
    names = [name.partition(".")[2] for name in found["name"].split(", ")]
    return (
        f"Missing: {', '.join(names)}. Give a configuration (-c FILE), or --{names[0]}; or a trained model "
        "(--ckpt_path FILE), whose settings are used."
    )


def _settings(parser: argparse.ArgumentParser) -> set[str]:
    """The names of all settings of a command, or of all commands."""
    commands = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    parsers: Iterable[argparse.ArgumentParser] = commands[0].choices.values() if commands else [parser]
    names = {action.dest for command in parsers for action in command._actions}
    return {name for name in names if not name.endswith("help")}


def _one_line(message: str) -> str:
    return " ".join(message.split())


Reason = Callable[[re.Match[str], argparse.ArgumentParser], HeadsetError | str]
REASONS: list[tuple[str, Reason]] = [
    (r"Expected a dot import path string: (?P<name>[^\n]*)", _unknown_head),
    (r"class_path '(?P<path>[\w.]+)':\s+Option '(?P<name>[\w.]+)' is not accepted", _unknown_argument),
    (r'Parser key "model\.heads":\s+Problem with given class_path \'(?P<path>[\w.]+)\'', _unusable_head),
    (r'Parser key "model\.heads":\s+Import path (?P<path>[\w.]+) does not correspond', _unusable_head),
    (r"does not accept option '(?P<name>[\w.]+)'", _unknown_setting),
    (r"unrecognized arguments: --(?P<name>[\w.]+)", _unknown_setting),
    (r"File does not exist: '(?P<name>[^']+)'", _missing_file),
    (r"the following arguments are required: (?P<name>\w+\.[\w., ]+)", _missing_settings),
]
