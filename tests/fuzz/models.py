"""Damaged checkpoints, saved headsets and stock models: what loads is what was saved, or there is a clear error."""

import json
import random
import shutil
import traceback
import zipfile
from pathlib import Path
from typing import Any

import torch

from backbones import Backbone, HeadsetError
from headset import Headset, LitHeadset
from headset.checkpoint import read_checkpoint
from headset.info import describe_path
from tests.fuzz.cases import Kind, Wrong, command, told_clearly
from tests.fuzz.material import QUIET, TABLE, content, material
from tests.fuzz.mutators import mutated_bytes, mutated_tree

__all__ = ["KINDS"]


def _bytes(rng: random.Random, folder: Path) -> str:
    path = folder / "run.ckpt"
    path.write_bytes(mutated_bytes(rng, (material() / "run.ckpt").read_bytes()))
    return _same(rng, path)


def _zip(rng: random.Random, folder: Path) -> str:
    """Entries are renamed, exchanged, left out, there twice, cut off, or more than there should be."""
    path = folder / "run.ckpt"
    with zipfile.ZipFile(material() / "run.ckpt") as source:
        entries = [(name, source.read(name)) for name in source.namelist()]
    names = [name for name, _ in entries]
    one, two = rng.randrange(len(entries)), rng.randrange(len(entries))
    how = rng.randrange(6)
    if how == 0:
        other = rng.choice(("../x", "/tmp/x", "x", names[two], names[one] + "\n", ""))
        entries[one] = (other, entries[one][1])
    elif how == 1:
        entries[one], entries[two] = (names[one], entries[two][1]), (names[two], entries[one][1])
    elif how == 2:
        del entries[one]
    elif how == 3:
        entries.append((names[one], entries[two][1]))
    elif how == 4:
        entries[one] = (names[one], mutated_bytes(rng, entries[one][1]))
    else:
        entries.append((f"{names[0].split('/')[0]}/../../x", b"x"))
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(path, "w", method) as target:
        for name, data in entries:
            target.writestr(name, data)
    return _loaded(rng, path)


def _values(rng: random.Random, folder: Path) -> str:
    path = folder / "run.ckpt"
    _save_damaged(rng, path)
    return _loaded(rng, path)


def _save_damaged(rng: random.Random, path: Path) -> None:
    """A checkpoint that is whole, and says something else than it should."""
    parts = {name: value for name, value in content().items() if name != "state_dict"}
    how = rng.randrange(8)
    if how < 5:
        parts["hyper_parameters"] = mutated_tree(rng, parts["hyper_parameters"])
    elif how == 5:
        parts["datamodule_hyper_parameters"] = mutated_tree(rng, parts["datamodule_hyper_parameters"])
    elif how == 6:
        parts = mutated_tree(rng, parts)
    weights: Any = dict(content()["state_dict"])
    if how == 7:
        name = rng.choice(sorted(weights))
        tensor = weights.pop(name)
        changed = rng.choice(
            (None, tensor[:0], tensor.flatten(), tensor.double(), tensor.to(torch.int64), "x", [1.0], tensor[None])
        )
        if changed is not None:
            weights[rng.choice((name, name, name + "x", "headset." + name))] = changed
        weights = rng.choice((weights, weights, weights, None, [], {}))
    if isinstance(parts, dict):
        parts["state_dict"] = weights
    torch.save(parts, path)


def _same(rng: random.Random, path: Path) -> str:
    """A checkpoint of which bytes were changed is as before, or not read."""
    try:
        how = rng.randrange(3)
        if how == 0:
            describe_path(str(path))
            found = read_checkpoint(str(path))["state_dict"]
        elif how == 1:
            found = {
                f"headset.{name}": value for name, value in Headset.from_checkpoint(str(path)).state_dict().items()
            }
        else:
            found = LitHeadset.load_from_checkpoint(str(path)).state_dict()
        for name, value in content()["state_dict"].items():
            if name.startswith("headset.") and not torch.equal(found[name], value):
                raise Wrong(f"{name} is another than was saved, and nobody says so")
    except HeadsetError as error:
        return told_clearly(error, path.name)
    return "read"


def _loaded(rng: random.Random, path: Path) -> str:
    """What loads does its work."""
    try:
        if rng.random() < 0.3:
            describe_path(str(path))
        if rng.random() < 0.6:
            return _works(Headset.from_checkpoint(str(path)))
        return _works(LitHeadset.load_from_checkpoint(str(path)).eval().built)
    except HeadsetError as error:
        return told_clearly(error, path.name)
    finally:
        _nothing_ran()


def _works(headset: Headset) -> str:
    try:
        found = headset.predict(["good", "very bad"], allow_untrained=True)
    except HeadsetError as error:
        return told_clearly(error, "")
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        if not _in_forward(error):
            raise
        return "unfit"  # settings of an architecture that its own code fails on
    for name, answers in found.items():
        labels = headset.labels[name]
        if len(answers) != 2 or (labels and len(set(labels)) != len(labels)):
            raise Wrong(f"{name} with the labels {labels} answers {answers}")
    return "works"


def _in_forward(error: BaseException) -> bool:
    """Whether the model of transformers itself failed."""
    frames = traceback.extract_tb(error.__traceback__)
    return any("/transformers/models/" in frame.filename and frame.name == "forward" for frame in frames)


def _cli(rng: random.Random, folder: Path) -> str:
    (folder / "table.csv").write_text(TABLE)
    path = folder / "run.ckpt"
    _save_damaged(rng, path)
    how = rng.choice(("predict", "predict", "test", "fit", "info"))
    given = {
        "predict": ("--ckpt_path", "run.ckpt", "--data.predict", "table.csv", *QUIET),
        "test": ("--ckpt_path", "run.ckpt", "--data.sources.one.test", "table.csv", *QUIET),
        "fit": ("--ckpt_path", "run.ckpt", "--trainer.max_steps", "2", "--trainer.max_epochs", "2", *QUIET),
        "info": ("run.ckpt",),
    }[how]
    code, _ = command(how, *given)
    if code == 0 and how == "predict" and len((folder / "predictions.jsonl").read_text().splitlines()) != 4:
        raise Wrong("predictions are missing")
    _nothing_ran()
    return "error" if code else "works"


def _saved(rng: random.Random, folder: Path) -> str:
    place = folder / "saved"
    shutil.copytree(material() / "saved", place)
    _damage(rng, place, ["headset.json"] * 3)
    try:
        if rng.random() < 0.3:
            describe_path(str(place))
        return _works(Headset.from_pretrained(str(place)))
    except HeadsetError as error:
        return told_clearly(error, "saved")
    finally:
        _nothing_ran()


def _tuned(rng: random.Random, folder: Path) -> str:
    place = folder / "tuned"
    shutil.copytree(material() / "tuned", place)
    _damage(rng, place, ["config.json"] * 3)
    how = rng.randrange(3)
    try:
        if how == 0:
            describe_path(str(place))
            return "works"
        if how == 1:
            Backbone.from_pretrained(str(place))
            return "works"
        return _works(Headset.from_transformers(str(place), head="mood"))
    except HeadsetError as error:
        return told_clearly(error, "tuned")
    finally:
        _nothing_ran()


def _damage(rng: random.Random, place: Path, important: list[str]) -> None:
    """Damage one file of a folder."""
    files = [place / name for name in important] + [path for path in sorted(place.rglob("*")) if path.is_file()]
    file = rng.choice(files)
    how = rng.randrange(10)
    if how == 0:
        file.unlink()
    elif how < 8 and file.suffix == ".json":
        file.write_text(json.dumps(mutated_tree(rng, json.loads(file.read_text()))))
    else:
        file.write_bytes(mutated_bytes(rng, file.read_bytes()))


def _nothing_ran() -> None:
    if Path("fuzz-ran-this").exists():
        raise Wrong("a command that the file names was run")


KINDS = [
    Kind("checkpoint-bytes", _bytes),
    Kind("checkpoint-zip", _zip),
    Kind("checkpoint-values", _values),
    Kind("checkpoint-cli", _cli),
    Kind("saved", _saved),
    Kind("tuned", _tuned),
]
