"""The console script ``headset``: finds the command and imports only what that command needs."""

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import NoReturn

from backbones.errors import HeadsetError, did_you_mean

__all__ = ["main"]

COMMANDS = {
    "fit": "train the heads of a configuration",
    "validate": "compute the metrics of the validation split",
    "test": "compute the metrics of the test split",
    "predict": "write predictions beside their inputs",
    "export": "write a checkpoint's heads as stock transformers folders",
    "merge": "put heads of several checkpoints on the backbone they share",
    "heads": "list the heads there are",
    "info": "tell what a checkpoint or an export holds",
}


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"headset: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: The arguments; those of the process by default.

    Returns:
        The exit code: 0, or 1 after an error in the settings or the data. Usage errors exit with 2, and programs that
        are ended by SIGTERM or SIGINT with 143 or 130.
    """
    command, *arguments = _split(sys.argv[1:] if argv is None else list(argv))
    # A researcher's own head is a file in the working directory. Last, so that no file there hides a library.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    own: dict[str, Callable[[list[str]], None]] = {"export": _export, "merge": _merge, "heads": _heads, "info": _info}
    try:
        with _ended_by_signals():
            if command in own:
                own[command](arguments)
            else:
                from headset.cli import run

                run([command, *arguments])
    except HeadsetError as error:
        if "DataLoader worker process" not in str(error):
            return _fail(error)
        from headset.environment import machine_error

        return _fail(machine_error(error, f"running headset {command}", command) or error)
    except Exception as error:
        from headset.environment import machine_error

        told = machine_error(error, f"running headset {command}", command)
        if told is None:
            raise
        return _fail(told)
    return 0


def _fail(error: HeadsetError) -> int:
    print(f"headset: error: {error}", file=sys.stderr)
    return 1


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Have SIGTERM and SIGINT end the program by exit codes 143 and 130, such that files are closed and cleaned up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _split(argv: list[str]) -> list[str]:
    """The command and its arguments, once ``--help``, ``--version`` and unknown commands are dealt with."""
    parser = _Parser(
        prog="headset",
        usage="headset [--help] [--version] COMMAND ...",
        description="Any head on any transformers backbone: trained from a YAML, exported to stock transformers.",
        epilog="headset COMMAND --help tells the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"headset {version('headset')}")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    if not argv:
        parser.print_help()
        parser.exit(2)
    if not argv[0].startswith("-") and argv[0] not in COMMANDS:
        listed = ", ".join(COMMANDS)
        parser.error(f"There is no command {argv[0]!r}.{did_you_mean(argv[0], COMMANDS)} Commands: {listed}.")
    parser.parse_args(argv[:1])
    return argv


def _export(arguments: list[str]) -> None:
    parser = _Parser(
        prog="headset export",
        description="Write a checkpoint's heads as folders that stock transformers loads, each one verified.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--ckpt_path", required=True, metavar="C", help="the checkpoint of a run")
    parser.add_argument("--output_dir", required=True, metavar="D", help="each head gets a folder in it, D/NAME")
    parser.add_argument(
        "--format", help="transformers, sentence-transformers, peft, onnx or custom; by default what fits the head"
    )
    parser.add_argument("--head", metavar="NAME", help="this head only")
    parser.add_argument("--allow_untrained", type=_true_or_false, help="true: also heads that were never trained")
    parser.add_argument("--trust_heads", type=_true_or_false, help="true: import the modules of the checkpoint's heads")
    parser.add_argument("--overwrite", type=_true_or_false, help="true: replace earlier exports")
    options = vars(parser.parse_args(arguments))

    from headset.export import export_checkpoint

    logging.basicConfig(format="%(message)s")
    logging.getLogger("headset").setLevel(logging.INFO)
    for name, folder in export_checkpoint(**options).items():
        print(f"head {name}: {folder}")


def _merge(arguments: list[str]) -> None:
    parser = _Parser(
        prog="headset merge",
        description="Put heads that were trained apart on the backbone that they share: the same, weight by weight.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--ckpt_paths", required=True, nargs="+", metavar="C", help="the checkpoints of the runs")
    parser.add_argument("--output", required=True, metavar="O", help="a checkpoint to write, O.ckpt, or a folder")
    parser.add_argument("--trust_heads", type=_true_or_false, help="true: import the modules of the checkpoints' heads")
    parser.add_argument("--overwrite", type=_true_or_false, help="true: replace an earlier output")
    options = vars(parser.parse_args(arguments))

    from headset.merging import merge

    merge(**options)
    print(f"Merged: {options['output']}")


def _info(arguments: list[str]) -> None:
    parser = _Parser(prog="headset info", description="Tell what a checkpoint or an export holds.", allow_abbrev=False)
    parser.add_argument("path", metavar="PATH", help="a checkpoint, or a folder written by export")
    path = parser.parse_args(arguments).path

    from headset.info import info

    info(path)


def _heads(arguments: list[str]) -> None:
    _Parser(prog="headset heads", description="List the heads there are.", allow_abbrev=False).parse_args(arguments)

    from rich.console import Console
    from rich.table import Table

    from heads.registry import list_heads

    table = Table("Head", "What it does", "From")
    for entry in list_heads().values():
        table.add_row(entry.name, entry.summary, entry.origin)
    Console().print(table)


def _true_or_false(value: str) -> bool:
    if value not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"give true or false, not {value!r}")
    return value == "true"
