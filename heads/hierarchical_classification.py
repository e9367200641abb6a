"""One label a text, of labels that are paths in a tree."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MetricCollection
from transformers.utils.generic import ModelOutput

from backbones.backbone import Backbone
from backbones.calls import BackboneCall
from backbones.errors import HeadsetError
from backbones.layers import check_layer_choice
from heads.base import Head, HeadContext, HeadOutput
from heads.class_answers import class_predictions
from heads.hierarchy import PathTarget, Tree, path_metrics
from heads.poolers import pooling_modes
from heads.scorers import Scorer

__all__ = ["HierarchicalClassification"]


class HierarchicalClassification(Head):
    """Texts to paths such as ``sport/football``: at each node of the tree that the labels make, one of its children.

    The probability of a path is the product of those of its steps, each a softmax over the children of a node
    (Redmon and Farhadi 2017, section 4; the hierarchical softmax of Morin and Bengio 2005); the loss is its negative
    logarithm. So no node is less probable than what is below it, and what is known of a parent is learnt from all of
    its children. Paths may end at any level.

    Args:
        separator: What stands between the parts of a path.
        pooling: ``cls``, ``mean``, ``max``, ``last``, ``attention``, or a list of these, concatenated.
        hidden_layers: Which hidden layers are pooled: ``last``, a number, a list of numbers (concatenated), or ``mix``,
            a learned mean of all.
        dropout: Before the linear layer.

    Raises:
        HeadsetError: An argument is not one of these.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from backbones import Backbone
        >>> from heads import HeadContext
        >>> config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
        >>> head, backbone = HierarchicalClassification(), Backbone(BertModel(config))
        >>> head.attach(HeadContext(backbone, labels=("sport/football", "sport/chess", "politics")))
        >>> batch = {"input_ids": torch.tensor([[2, 7, 3]])}
        >>> head(backbone.run(head.request(batch)), batch).logits.exp().sum().round().item()
        1.0
    """

    choices: Tensor
    parent: Tensor
    ways: Tensor

    def __init__(
        self,
        separator: str = "/",
        pooling: str | list[str] = "mean",
        hidden_layers: int | str | list[int] = "last",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not separator:
            raise HeadsetError("The separator is empty. Give what stands between the parts of a path, such as '/'.")
        pooling_modes(pooling)
        check_layer_choice(hidden_layers)
        self.separator = separator
        self.pooling = pooling
        self.hidden_layers = hidden_layers
        self.dropout = dropout

    def build(self, context: HeadContext) -> None:
        """Make a score for each step in the tree."""
        tree = Tree(context.labels or (), self.separator)
        self.scorer = Scorer(context, tree.size, self.hidden_layers, self.pooling, self.dropout)
        for name in ("choices", "parent", "ways"):
            self.register_buffer(name, getattr(tree, name), persistent=False)

    def unused(self, backbone: Backbone) -> set[str]:
        """What the scorer does without."""
        return self.scorer.unused(backbone)

    def target(self) -> PathTarget:
        """A path a row."""
        return PathTarget(self.separator)

    def request(self, batch: Mapping[str, Any]) -> BackboneCall:
        """The scorer's own call."""
        return self.scorer.request(batch)

    def forward(self, features: ModelOutput, batch: Mapping[str, Any]) -> HeadOutput:
        """The logarithms of the probabilities of all paths ``(B, L)``, float32."""
        scores = self.scorer(features, batch)["logits"].float()
        known = F.pad(scores, (0, 1), value=float("-inf"))
        steps = scores - known[:, self.choices].logsumexp(-1)[:, self.parent]
        return HeadOutput(F.pad(steps, (0, 1))[:, self.ways].sum(-1))

    def loss(self, output: HeadOutput, labels: Tensor) -> Tensor:
        """The negative logarithm of the probability of the right paths, a mean over rows.

        Args:
            output: Logarithms of probabilities ``(B, L)``.
            labels: The index of the right path ``(B,)``.
        """
        return F.nll_loss(output.logits, labels)

    def predict(self, output: HeadOutput) -> list[dict[str, Any]]:
        """``{"label", "score", "levels", "scores"}``: the most probable path; ``levels`` has the nodes on it."""
        chances = output.logits.exp()
        tree = Tree(self.labels or (), self.separator)
        nodes = tree.nodes.to(chances.device)
        answers = class_predictions(chances, self.labels, chances.argmax(-1))
        for answer, row, path in zip(answers, chances, nodes[chances.argmax(-1)].tolist(), strict=True):
            answer["levels"] = [
                {"label": tree.names[node], "score": row[(nodes[:, level] == node)].sum().item()}
                for level, node in enumerate(path)
                if node >= 0
            ]
        return answers

    def metrics(self) -> MetricCollection:
        """Accuracy of whole paths and of each level, and the hierarchical F1 (Kiritchenko et al. 2006)."""
        return path_metrics(Tree(self.labels or (), self.separator))

    def metric_inputs(self, output: HeadOutput, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The most probable paths and the right ones, both ``(B,)``."""
        return output.logits.argmax(-1), labels
