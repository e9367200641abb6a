"""ImageClassification: the contract, and logits and losses of stock transformers."""

import pytest
import torch
from torch import nn
from transformers import ConvNextConfig, ConvNextModel, ResNetConfig, ResNetModel

from backbones import Backbone, HeadsetError
from heads import Head, HeadContext, HeadOutput, ImageClassification
from heads.testing import check_head, tiny_backbone

LABELS = ("cat", "dog", "owl")
TARGETS = {
    "single_label_classification": torch.tensor([0, 2]),
    "multi_label_classification": torch.tensor([[1.0, 0, 1], [0, 0, 1]]),
    "regression": torch.tensor([[0.5, 1], [2, -1]]),
}


class MeanOfPatches(Head):
    """A head of one's own."""

    reads = "image"

    def build(self, context):
        self.score = nn.Linear(context.spec.hidden_size, len(context.labels))

    def forward(self, features, batch):
        return HeadOutput(self.score(features.last_hidden_state.mean(1)))

    def loss(self, output, labels):
        return nn.functional.cross_entropy(output.logits, labels)


@pytest.mark.parametrize("problem_type", TARGETS)
def test_it_keeps_the_contract(problem_type):
    check_head(ImageClassification(problem_type, num_outputs=2), LABELS)
    check_head(ImageClassification(problem_type, num_outputs=2, pooling="attention", hidden_layers="mix"), LABELS)


def attached(backbone, **settings):
    head = ImageClassification(**settings)
    head.attach(HeadContext(backbone, LABELS))
    return head.eval()


def test_pooling_of_patches_and_a_mix_of_layers():
    backbone, batch = tiny_backbone("image").eval(), {"pixel_values": torch.randn(2, 3, 16, 16)}
    head = attached(backbone, pooling=["cls", "mean"], hidden_layers="mix")
    states = backbone(**batch, output_hidden_states=True).hidden_states
    mixed = torch.stack(states).mean(0)  # as weights start
    wanted = head.scorer.linear(torch.cat([mixed[:, 0], mixed.mean(1)], 1))
    torch.testing.assert_close(head(backbone.run(head.request(batch)), batch).logits, wanted)


def test_pooling_of_feature_maps():
    model = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"))
    backbone, batch = Backbone(model).eval(), {"pixel_values": torch.randn(2, 3, 32, 32)}
    head = attached(backbone, pooling="mean")
    features = backbone.run(head.request(batch))
    assert features.last_hidden_state.dim() == 4
    wanted = head.scorer.linear(features.last_hidden_state.mean((2, 3)))
    torch.testing.assert_close(head(features, batch).logits, wanted)
    check_head(ImageClassification(pooling="attention"), LABELS, backbone)
    check_head(ImageClassification(pooling="max", hidden_layers=-1), LABELS, backbone)
    mixed = attached(backbone, pooling="mean", hidden_layers="mix")
    with pytest.raises(HeadsetError, match=r"8 wide, and the last one 16.*Use hidden_layers: last"):
        mixed(backbone.run(mixed.request(batch)), batch)


def test_a_head_of_ones_own_keeps_the_contract():
    check_head(MeanOfPatches(), LABELS)


@pytest.mark.parametrize("problem_type", TARGETS)
def test_logits_and_loss_are_those_of_transformers(problem_type):
    head, backbone = ImageClassification(problem_type, num_outputs=2), tiny_backbone("image").eval()
    head.attach(HeadContext(backbone, None if problem_type == "regression" else LABELS))
    batch = {"pixel_values": torch.randn(2, 3, 16, 16)}
    output = head.eval()(backbone.run(head.request(batch)), batch)
    stock = head.scorer.whole(backbone).eval()
    theirs = stock(**batch, labels=TARGETS[problem_type])
    assert type(stock).__name__ == "ViTForImageClassification" and stock.config.problem_type == problem_type
    assert torch.equal(output.logits, theirs.logits)
    assert torch.equal(head.loss(output, TARGETS[problem_type]), theirs.loss)


@pytest.mark.parametrize(
    "model",
    [
        lambda: ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")),
        lambda: ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)),
    ],
    ids=["resnet", "convnext"],
)
def test_backbones_without_tokens(model):
    backbone = Backbone(model()).eval()
    check_head(ImageClassification(), LABELS, backbone)
    assert backbone.spec.vocab_size == 0 and backbone.options().config["hidden_sizes"] == [8, 16]
