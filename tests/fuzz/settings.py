"""Damaged configurations: a run, or one line that says why not."""

import random
import shutil
from pathlib import Path

import yaml

from tests.fuzz.cases import Kind, Wrong, command
from tests.fuzz.material import CONFIG, QUIET, TABLE, material
from tests.fuzz.mutators import mutated_bytes, mutated_tree

__all__ = ["KINDS"]

TAGS = [
    "!!python/object/apply:os.system ['touch fuzz-ran-this']",
    "!!python/name:os.system",
    "!!python/object:headset.model.Headset {}",
    "!!binary aGVsbG8=",
    "!!set {a, b}",
    "!!timestamp 2001-01-01",
    "!unknown x",
    "&a [*a]",
    "*nothing",
    "{<<: {x: 1}}",
    "2001-13-99",
    "0o17",
    "1_000",
    "1e3",
    "~",
    "on",
    "|\n    text",
    "'",
    "[" * 300,
    "${oc.env:HOME}",
]


def _yaml(rng: random.Random, folder: Path) -> str:
    (folder / "table.csv").write_text(TABLE)
    shutil.copytree(material() / "model", folder / "model")
    how = rng.randrange(4)
    text = yaml.safe_dump(mutated_tree(rng, CONFIG) if how < 2 else CONFIG, allow_unicode=True)
    content = text.encode("utf-8", "replace")
    if how == 2:
        content = mutated_bytes(rng, content)
    if how == 3:
        lines = text.split("\n")
        place = rng.randrange(len(lines) - 1)
        lines[place] = lines[place].split(": ")[0].rstrip(":") + ": " + rng.choice(TAGS)
        content = "\n".join(lines).encode()
    path = folder / "run.yaml"
    path.write_bytes(content)
    limits = ("--trainer.fast_dev_run", "1", "--trainer.accelerator", "cpu", "--trainer.default_root_dir", "runs")
    code, _ = command("fit", "-c", "run.yaml", *limits, *QUIET)
    if Path("fuzz-ran-this").exists():
        raise Wrong("a command that the file names was run")
    return "error" if code else "works"


KINDS = [Kind("yaml", _yaml)]
