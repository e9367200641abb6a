"""What stands in for a frozen backbone: the features of the rows of a batch, while they are what it would give."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from transformers.utils.generic import ModelOutput

from backbones.backbone import Backbone
from backbones.calls import BackboneCall, model_inputs
from backbones.errors import HeadsetError
from headset.batches import in_dtype
from headset.feature_key import weights_digest
from headset.feature_plan import CallPlan

__all__ = ["KeptFeatures"]


@dataclass(frozen=True)
class _Bound:
    """Features that are bound to the inputs which they are of: a head may have made others from these."""

    inputs: Mapping[str, Any]
    tensors: list[list[Tensor]]


class KeptFeatures:
    """What a headset uses in place of its frozen backbone, as long as that is the one that they were made with.

    Args:
        backbone: The backbone.
        plans: The calls that are answered, by source.
        digest: That of the weights.
    """

    def __init__(self, backbone: Backbone, plans: Mapping[str, Sequence[CallPlan]], digest: bytes) -> None:
        self.plans = plans
        self._backbone = backbone
        self._digest = digest
        self._dtype = next(each.dtype for each in backbone.parameters() if each.is_floating_point())
        self._weights = [*backbone.parameters(), *backbone.buffers()]
        self._versions = self._stamp()
        self._stale = False

    def bound(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """A batch as a loader gives it, with its features bound to its inputs."""
        meta = batch.get("meta", {})
        if not isinstance(meta.get("features"), list):
            return batch
        batch = in_dtype({"": batch}, self._dtype)[""]
        device = self._weights[0].device
        tensors = [[tensor.to(device) for tensor in its] for its in meta["features"]]
        return {**batch, "meta": {**meta, "features": _Bound(model_inputs(batch), tensors)}}

    def output(self, call: BackboneCall, batch: Mapping[str, Any]) -> ModelOutput | None:
        """The output of the backbone for a call, if it is kept and the batch, which is bound, has it."""
        meta = batch.get("meta", {})
        kept = meta.get("features")
        if not isinstance(kept, _Bound) or not self.hold():
            return None
        for plan, tensors in zip(self.plans[meta.get("source", "")], kept.tensors, strict=True):
            if plan.answers(call, kept.inputs):
                return plan.output(tensors, kept.inputs)
        return None

    def hold(self) -> bool:
        """Whether the features are still those of the backbone: it is frozen, and its weights were not written to."""
        if not self._stale and (self._backbone.model.training or self._stamp() != self._versions):
            self._versions = self._stamp()
            frozen = not any(each.requires_grad for each in self._weights) and not self._backbone.model.training
            if not frozen or weights_digest(self._backbone) != self._digest:
                rank_zero_warn("The backbone is not frozen any more: from here on it runs in every step.")
                self._stale = True
        return not self._stale

    def check(self) -> None:
        """Check all weights.

        Raises:
            HeadsetError: They were changed in a way that leaves no trace, while they were to be frozen.
        """
        if not self._stale and weights_digest(self._backbone) != self._digest:
            raise HeadsetError(
                "Something wrote to the weights of the frozen backbone during the run, so that its heads have learned "
                "from features of the old ones. If that is meant, set model.cache_features: false."
            )

    def _stamp(self) -> list[Any]:
        """Changes with each write to a weight, and with what is frozen."""
        return [(each._version, each.requires_grad) for each in self._weights]
