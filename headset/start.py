"""Where a run starts, if not from a backbone alone: the backbone, the heads and their labels of earlier checkpoints."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from backbones.backbone import BackboneOptions
from heads.base import Head
from heads.registry import make_head
from headset.checkpoint import PREFIX, check_backbone, check_heads, fitting_weights
from headset.merging import merged
from headset.model import Headset

__all__ = ["Start"]


class Start:
    """Checkpoints that a run starts from; where there are several, their backbones are the same.

    All of their heads come along, with labels, weights and states. A head that the run names too has to be the same.

    Args:
        paths: The checkpoints.
        new: Heads that start anew, although a checkpoint has them.

    Raises:
        HeadsetError: A file is no checkpoint, or they cannot be merged.
    """

    def __init__(self, paths: str | Sequence[str], new: Collection[str]) -> None:
        content = merged([paths] if isinstance(paths, str) else paths)
        self.hparams: dict[str, Any] = content["hyper_parameters"]
        self.weights: dict[str, Any] = content["state_dict"]
        self.names = [name for name in self.hparams["heads"] if name not in new]

    def heads(self, given: Mapping[str, Head]) -> dict[str, Head]:
        """The heads of the checkpoints, and those of the run that are new.

        Raises:
            HeadsetError: The class of a head is not known: it is to be named among the heads of the run.
        """
        kept = {
            name: given[name] if name in given else make_head(self.hparams["heads"][name], trusted=False)
            for name in self.names
        }
        return kept | dict(given)

    def options(self, asked: BackboneOptions) -> BackboneOptions:
        """The backbone of the checkpoints, frozen as the run says."""
        return replace(BackboneOptions(**self.hparams["backbone"]), freeze=asked.freeze, **asked.of_the_run())

    def labels(self) -> dict[str, tuple[str, ...] | None]:
        """The label sets of the heads."""
        found = {name: self.hparams["labels"][name] for name in self.names}
        return {name: None if names is None else tuple(names) for name, names in found.items()}

    def check(self, settings: Mapping[str, Any]) -> None:
        """Check that a run asks for nothing that the checkpoints fix.

        Args:
            settings: Those of the run, as plain values.

        Raises:
            HeadsetError: It asks for another backbone, or for another head or other labels under the same name.
        """
        check_backbone(settings, self.hparams)
        check_heads(settings, self.hparams, self.names)

    def load(self, headset: Headset) -> None:
        """Give a headset the weights of the backbone and of the heads."""
        own = (f"{PREFIX}backbone.", *(f"{PREFIX}heads.{name}." for name in self.names))
        weights = {key.removeprefix(PREFIX): value for key, value in self.weights.items() if key.startswith(own)}
        fresh = {key: value for key, value in headset.state_dict().items() if key not in weights}
        mine = tuple(f"heads.{name}." for name in headset.heads if name not in self.names)
        with fitting_weights():
            headset.load_state_dict(weights | {key: value for key, value in fresh.items() if key.startswith(mine)})
        headset.states |= {name: self.hparams["states"].get(name, "new") for name in self.names}
