"""AudioClassification: the contract, and logits and losses of stock transformers."""

import pytest
import torch
from torch import nn
from transformers import ASTConfig, ASTModel, WhisperConfig, WhisperModel

from backbones import Backbone
from heads import AudioClassification, Head, HeadContext, HeadOutput
from heads.base import attention_mask
from heads.testing import check_head, tiny_backbone

LABELS = ("yes", "no", "stop")
SMALL = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


class MeanOfFrames(Head):
    """A head of one's own."""

    reads = "audio"

    def build(self, context):
        self.score = nn.Linear(context.spec.hidden_size, len(context.labels))

    def forward(self, features, batch):
        hidden = features.last_hidden_state
        mask = attention_mask(batch, hidden).unsqueeze(-1)
        return HeadOutput(self.score((hidden * mask).sum(1) / mask.sum(1)))

    def loss(self, output, labels):
        return nn.functional.cross_entropy(output.logits, labels)


@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification", "regression"])
def test_it_keeps_the_contract(problem_type):
    check_head(AudioClassification(problem_type), LABELS)
    check_head(AudioClassification(problem_type, pooling="attention", hidden_layers="mix"), LABELS)


def test_pooling_of_frames_that_are_real():
    head, backbone = AudioClassification(pooling=["mean", "last"], hidden_layers=[1, 2]), tiny_backbone("audio").eval()
    head.attach(HeadContext(backbone, LABELS))
    batch = {"input_values": torch.randn(2, 4000)}
    batch["attention_mask"] = (torch.arange(4000) < torch.tensor([[4000], [2000]])).long()
    head.eval()
    features = backbone.run(head.request(batch))
    length = features.last_hidden_state.shape[1]
    frames = backbone.model._get_feature_vector_attention_mask(length, batch["attention_mask"]).bool()
    layers = torch.cat(features.hidden_states[1:], -1)
    pooled = [torch.cat([row[real].mean(0), row[real][-1]]) for row, real in zip(layers, frames, strict=True)]
    torch.testing.assert_close(head(features, batch).logits, head.scorer.linear(torch.stack(pooled)))


def test_a_head_of_ones_own_keeps_the_contract():
    check_head(MeanOfFrames(), LABELS)


def test_a_mask_of_samples_becomes_one_of_frames():
    backbone = tiny_backbone("audio").eval()
    lengths = torch.tensor([4000, 2000, 1040])
    batch = {"input_values": torch.randn(3, 4000), "attention_mask": (torch.arange(4000) < lengths.unsqueeze(1)).long()}
    hidden = backbone(**batch).last_hidden_state
    theirs = backbone.model._get_feature_vector_attention_mask(hidden.shape[1], batch["attention_mask"])
    assert torch.equal(attention_mask(batch, hidden), theirs)


@pytest.mark.parametrize(
    ("model", "batch"),
    [
        (lambda: tiny_backbone("audio").model, {"input_values": torch.randn(2, 3000)}),
        (
            lambda: ASTModel(ASTConfig(hidden_size=32, max_length=16, num_mel_bins=16, patch_size=8, **SMALL)),
            {"input_values": torch.randn(2, 16, 16)},
        ),
        (
            lambda: WhisperModel(
                WhisperConfig(
                    d_model=32,
                    encoder_layers=1,
                    decoder_layers=1,
                    encoder_attention_heads=2,
                    decoder_attention_heads=2,
                    max_source_positions=20,
                )
            ),
            {"input_features": torch.randn(2, 80, 40)},
        ),
    ],
    ids=["wav2vec2", "spectrogram transformer", "whisper"],
)
def test_logits_and_loss_are_those_of_transformers(model, batch):
    torch.manual_seed(0)
    head, backbone = AudioClassification(), Backbone(model()).eval()
    head.attach(HeadContext(backbone, LABELS))
    labels = torch.tensor([0, 2])
    call = head.eval().request(batch)
    output = head(None if call is None else backbone.run(call), batch)
    loss = head.loss(output, labels)
    stock = head.scorer.whole(backbone).eval()
    theirs = stock(**batch, labels=labels)
    assert torch.equal(output.logits, theirs.logits) and torch.equal(loss, theirs.loss)
