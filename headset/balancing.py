"""How much the loss of each head counts: as given, or learned along the way."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn

from backbones.backbone import Backbone
from backbones.errors import HeadsetError, invalid_choice
from backbones.freezing import transformer_layers
from heads.base import Head
from heads.targets import NumberTarget, PairTarget

__all__ = ["LEARNED", "GradNorm", "LossWeights", "Uncertainty", "check_loss_weights", "make_loss_weights"]

LEARNED = ("uncertainty", "gradnorm")


class LossWeights(nn.Module):
    """Weights that stay as they are.

    Args:
        given: The weight of each head; 1 where there is none.
    """

    learned = False

    def __init__(self, given: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.given = dict(given or {})

    def weight(self, name: str) -> Tensor | float:
        """What the loss of a head is multiplied by."""
        return self.given.get(name, 1.0)

    def given_weight(self, name: str) -> float:
        """The weight of a head's loss in evaluation: as given, and 1 where weights are learned.

        So the sum of the losses is the same measure throughout a run.
        """
        return self.given.get(name, 1.0)

    def penalty(self, present: Mapping[str, Tensor]) -> Tensor | float:
        """What comes to the sum of the weighted losses.

        Args:
            present: For each head 1 if a process has it in this step, else 0.
        """
        return 0.0

    def learn(self, losses: Mapping[str, Tensor], means: Mapping[str, Tensor], backbone: Backbone) -> None:
        """Adapt to a training step, before its gradients are computed.

        Args:
            losses: Of the heads in this process, each such that the mean over processes is that of all rows.
            means: Of all heads that any process has in this step: the mean over all rows.
            backbone: What the heads share.
        """


class Uncertainty(LossWeights):
    """Weights by homoscedastic uncertainty (Kendall, Gal and Cipolla 2018, https://arxiv.org/abs/1705.07115).

    Each head has a learned ``s = log(variance)``. The loss of classes counts ``exp(-s) * loss + s / 2``; that of
    numbers, which is a squared error, ``exp(-s) / 2 * loss + s / 2``. The s of a head that is not in a step does not
    move.

    Args:
        heads: The heads by name.
    """

    learned = True

    def __init__(self, heads: Mapping[str, Head]) -> None:
        super().__init__()
        self.log_variances = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in heads})
        self.scales = {name: 0.5 if _learns_numbers(head) else 1.0 for name, head in heads.items()}

    def weight(self, name: str) -> Tensor:
        """``exp(-s)``, or half of it for numbers."""
        return self.scales[name] * torch.exp(-self.log_variances[name])

    def penalty(self, present: Mapping[str, Tensor]) -> Tensor:
        """The sum of ``s / 2`` over the heads in this step."""
        return torch.stack([is_there * self.log_variances[name] / 2 for name, is_there in present.items()]).sum()


class GradNorm(LossWeights):
    """Weights by which all heads learn at a like pace (GradNorm, Chen et al. 2018, https://arxiv.org/abs/1711.02257).

    The norm of the gradient of each weighted loss, at the last weights that heads share, is led to the mean norm times
    ``r ** alpha``, where r is how much of its first loss a head has left, relative to the mean of all. The logarithms
    of the weights take a step down the gradient of the sum of the relative distances ``|norm / mean - r ** alpha|``, so
    that a small weight takes small steps; then the weights are scaled so that their sum is the number of heads.

    Of a head that is not in a step, the last norm and loss that were seen count. A head whose gradient does not reach
    the shared weights, such as a detached one, keeps the weight 1.

    Args:
        names: The heads.
        alpha: How strongly paces are drawn together.
        learning_rate: The step of the weights' logarithms.
    """

    learned = True
    weights: Tensor
    first: Tensor
    last: Tensor
    norms: Tensor

    def __init__(self, names: Mapping[str, Any], alpha: float = 1.5, learning_rate: float = 0.025) -> None:
        super().__init__()
        self.names = list(names)
        self.alpha = alpha
        self.learning_rate = learning_rate
        self.register_buffer("weights", torch.ones(len(self.names)))
        for what in ("first", "last", "norms"):  # losses, and norms of gradients; nan where none was seen yet
            self.register_buffer(what, torch.full((len(self.names),), torch.nan))

    def weight(self, name: str) -> Tensor:
        """The weight as it is now."""
        return self.weights[self.names.index(name)].clone()

    def learn(self, losses: Mapping[str, Tensor], means: Mapping[str, Tensor], backbone: Backbone) -> None:
        """Take a step of the weights."""
        shared = last_shared_weight(backbone)
        if shared is None:
            return
        slopes = [_slope(losses[name], shared) if name in losses else torch.zeros_like(shared) for name in self.names]
        gradients = torch.stack([slope.flatten().float() for slope in slopes])
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(gradients)
            gradients = gradients / distributed.get_world_size()
        norms = gradients.norm(dim=-1)
        seen = torch.tensor([name in means for name in self.names], device=norms.device) & (norms > 0)
        now = torch.stack([means[name] if name in means else norms.new_zeros(()) for name in self.names])
        self.norms = torch.where(seen, norms, self.norms)
        self.last = torch.where(seen, now, self.last)
        self.first = torch.where(seen & self.first.isnan(), now, self.first)
        self._step(seen)

    def _step(self, seen: Tensor) -> None:
        known = ~self.norms.isnan()
        if not seen.any() or known.sum() < 2:
            return
        norms = self.weights * self.norms
        mean = norms[known].mean()
        left = self.last / self.first.clamp(min=torch.finfo(self.first.dtype).tiny)
        wanted = (left / left[known].mean()) ** self.alpha
        slope = torch.sign(norms / mean - wanted) * norms / mean
        moved = torch.where(seen, self.weights * torch.exp(-self.learning_rate * slope), self.weights)
        self.weights = torch.where(known, moved * known.sum() / moved[known].sum(), self.weights)


def make_loss_weights(setting: Mapping[str, float] | str | None, heads: Mapping[str, Head]) -> LossWeights:
    """The weights that a setting asks for."""
    if setting == "uncertainty":
        return Uncertainty(heads)
    if setting == "gradnorm":
        return GradNorm(heads)
    assert not isinstance(setting, str)
    return LossWeights(setting)


def check_loss_weights(setting: Mapping[str, float] | str | None, heads: Mapping[str, Any], freeze: Any) -> None:
    """Check the setting before anything is loaded.

    Raises:
        HeadsetError: It names no way of learning, or a head that does not exist, or weights that nothing can learn.
    """
    if isinstance(setting, str):
        if setting not in LEARNED:
            raise invalid_choice("value of loss_weights", setting, [*LEARNED, "{HEAD: NUMBER}"])
        if setting == "gradnorm" and freeze == "all":
            raise HeadsetError(
                "loss_weights: gradnorm weighs what heads teach the backbone they share, and backbone.freeze: all "
                "leaves it nothing to learn. Use uncertainty, or numbers."
            )
        return
    for name, weight in (setting or {}).items():
        if name not in heads:
            raise invalid_choice("head in loss_weights", name, heads)
        if not 0 <= weight < float("inf"):
            raise HeadsetError(f"Invalid weight of {name!r} in loss_weights: {weight}. Give a number of at least 0.")


def last_shared_weight(backbone: Backbone) -> nn.Parameter | None:
    """The last trainable matrix of the topmost layer that has one; None if nothing of the layers is trainable."""
    for layer in reversed(transformer_layers(backbone.model)):
        matrices = [weight for weight in layer.parameters() if weight.requires_grad and weight.dim() > 1]
        if matrices:
            return matrices[-1]
    return None


def _slope(loss: Tensor, weight: Tensor) -> Tensor:
    """The gradient of a loss; zeros if the weight is not in it."""
    if not loss.requires_grad:
        return torch.zeros_like(weight)
    [slope] = torch.autograd.grad(loss, weight, retain_graph=True, allow_unused=True)
    return torch.zeros_like(weight) if slope is None else slope


def _learns_numbers(head: Head) -> bool:
    target = head.target()
    return isinstance(target, NumberTarget) or (isinstance(target, PairTarget) and target.scored)
