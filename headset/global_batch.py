"""A run that goes on in the middle of an epoch, in another number of processes: the same rows in all have a step."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from backbones.errors import HeadsetError
from headset.source_settings import source_settings

__all__ = ["check_global_batch"]


def check_global_batch(checkpoint: Mapping[str, Any], settings: Mapping[str, Any], processes: int, done: int) -> None:
    """Check that a step has as many rows, over all processes, as in the run that goes on.

    Else the rows that are left of the epoch would not be those that were not seen, and the schedule of the learning
    rate would be over too early or too late.

    Args:
        checkpoint: Its content.
        settings: Those of the data, here.
        processes: Their number, here.
        done: How many batches of the epoch are done.

    Raises:
        HeadsetError: It has not, and some are done. At the beginning of an epoch a warning says so.
    """
    run = checkpoint["hyper_parameters"].get("run", {}).get("training", {})
    before, stored = run.get("world_size"), checkpoint.get("datamodule_hyper_parameters")
    if before is None or stored is None:
        return
    theirs, ours = _sizes(stored), _sizes(settings)
    for name in theirs.keys() & ours.keys():
        (what, then), (same, now) = theirs[name], ours[name]
        if what != same or then * before != now * processes:
            where = f"data.sources.{name}.{what}" if name else f"data.{what}"
            fitting, left = divmod(then * before, processes)
            if what == "batch_size" and not left:
                advice = f"Set {where}: {fitting}"
            else:
                advice = f"Use {before} processes, and {where}: {then}"
            told = (
                f"The run in the checkpoint had {then * before} {UNITS[what]} in a step ({before} x {where}: {then}); "
                f"here they would be {now * processes} {UNITS[same]} ({processes} x {now})."
            )
            if done:
                raise HeadsetError(
                    f"{told} In the middle of an epoch rows would come twice, or not at all. {advice}, or go on from "
                    "a checkpoint of the end of an epoch."
                )
            rank_zero_warn(f"{told} For the same run: {advice}.")


UNITS = {"batch_size": "rows", "batch_tokens": "tokens"}


def _sizes(settings: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """Of each source what its batches are counted by, and how many of these one has in a process."""
    found = {}
    for name, source in source_settings(settings).items():
        tokens = getattr(source, "batch_tokens", None)
        found[name] = ("batch_size", source.batch_size) if tokens is None else ("batch_tokens", tokens)
    return found
