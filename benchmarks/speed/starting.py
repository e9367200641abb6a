"""How long it takes until something happens: the help, and the first step of a training."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.speed.measuring import Numbers
from benchmarks.speed.training import Work, headset_settings

__all__ = ["BareStart", "FitStart", "HelpStart"]

ROOT = Path(__file__).parents[2]
BARE = """
import datasets, lightning.pytorch, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
AutoTokenizer.from_pretrained({path!r})
AutoModelForSequenceClassification.from_pretrained({path!r}).train()
"""


class _Command:
    """A command in a process of its own; ``seconds`` is from its start to its end."""

    def run(self, turn: int) -> Numbers:
        """Run the command once."""
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        start = time.perf_counter()
        subprocess.run([sys.executable, *self.command()], check=True, env=environment, stdout=subprocess.DEVNULL)
        return {"seconds": time.perf_counter() - start}

    def command(self) -> list[str]:
        """The arguments of Python."""
        raise NotImplementedError


class HelpStart(_Command):
    """``headset --help``."""

    def command(self) -> list[str]:
        """The arguments of Python: the console script, or where there is none the module."""
        script = Path(sys.executable).parent / "headset"
        return [str(script) if script.exists() else "-m", *([] if script.exists() else ["headset"]), "--help"]


class FitStart(_Command):
    """``headset fit`` to its first step; the turn that warms up leaves the encoded rows in the cache."""

    def __init__(self, **work: Any) -> None:
        self.work = Work(**work)

    def command(self) -> list[str]:
        """The arguments of Python."""
        settings = headset_settings(self.work, 0, 1, {})
        settings["trainer"]["callbacks"] = [{"class_path": "benchmarks.speed.first_step.StopAtFirstStep"}]
        file = Path(self.work.folder) / "start.yaml"
        file.write_text(yaml.safe_dump(settings), encoding="utf-8")
        return ["-m", "headset", "fit", "-c", str(file)]


class BareStart(_Command):
    """The imports that a training with Lightning needs, and the model and its tokenizer."""

    def __init__(self, model: str) -> None:
        self.model = model

    def command(self) -> list[str]:
        """The arguments of Python."""
        from backbones.loading import resolve_path

        return ["-c", BARE.format(path=resolve_path(self.model))]
