"""Runs without padding: the same losses, weights, answers and checkpoints."""

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from transformers import BertConfig, BertModel, BertTokenizer

from backbones import Backbone, BackboneOptions
from backbones.loading import load_tokenizer
from heads import MaskedLM, Pooling, QuestionAnswering, SequenceClassification, TokenClassification
from headset import Headset, LitHeadset, TextData

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
TEXTS = ["a good film", "bad", "the book is not very good, the film is", "very very bad"]


@pytest.fixture
def bert(tmp_path, tiny_tokenizer):
    """A folder of a tiny model without dropout."""
    torch.manual_seed(0)
    tokenizer = BertTokenizer.from_pretrained(tiny_tokenizer)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes, **still)).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


class Journal(Callback):
    """The losses of a run, and the shapes of what its model was given."""

    def __init__(self):
        self.losses, self.shapes = [], []

    def on_fit_start(self, trainer, pl_module):
        model = pl_module.headset.backbone.model
        model.register_forward_pre_hook(
            lambda _, __, given: self.shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
        )

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())


def fit(folder, rows, epochs=2, ckpt_path=None, **options):
    seed_everything(3)
    heads = {"mood": SequenceClassification(), "mean": SequenceClassification(pooling="mean", hidden_layers="mix")}
    module = LitHeadset(BackboneOptions(**options), heads, learning_rate=1e-3)
    journal = Journal()
    trainer = Trainer(default_root_dir=folder, max_epochs=epochs, callbacks=[journal], **QUIET)
    data = TextData(train=str(rows), batch_size=4, labels={"mood": "label", "mean": "label"})
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module, journal, trainer.checkpoint_callback.best_model_path


def test_a_run_without_padding_learns_the_same(tmp_path, bert, small_csv):
    padded, before, _ = fit(tmp_path / "a", small_csv, path=str(bert), padding_free=False)
    packed, after, path = fit(tmp_path / "b", small_csv, path=str(bert))
    assert all(rows == 4 for rows, _ in before.shapes) and sum(rows == 1 for rows, _ in after.shapes) >= 4
    assert after.losses == pytest.approx(before.losses, abs=1e-5)
    for name, value in packed.headset.state_dict().items():
        torch.testing.assert_close(value, padded.headset.state_dict()[name], rtol=0, atol=1e-4)
    assert not Headset.from_checkpoint(path).backbone.padding_free  # a stock pass, until a run or predict


def test_the_setting_is_kept_and_old_checkpoints_lack_it(tmp_path, bert, small_csv):
    _, _, path = fit(tmp_path, small_csv, epochs=1, path=str(bert), padding_free=False)
    again = LitHeadset.load_from_checkpoint(path)
    assert not again.backbone_options.padding_free
    content = torch.load(path, weights_only=True)
    for name in ("padding_free", "compile"):
        del content["hyper_parameters"]["backbone"][name]
    torch.save(content, tmp_path / "old.ckpt")
    old = LitHeadset.load_from_checkpoint(str(tmp_path / "old.ckpt"))
    assert old.backbone_options.padding_free and not old.backbone_options.compile


def test_predict_gives_the_same_without_padding(tiny_bert):
    torch.manual_seed(0)
    heads = {"mood": SequenceClassification(), "tags": TokenClassification(), "vector": Pooling()}
    labels = {"mood": ["x", "y"], "tags": ["O", "B-A", "I-A"]}
    backbone = Backbone.from_pretrained(str(tiny_bert))
    headset = Headset(backbone, heads, labels, tokenizer=load_tokenizer(str(tiny_bert)))
    shapes = []
    backbone.model.register_forward_pre_hook(
        lambda _, __, given: shapes.append(given["input_ids"].shape[0]), with_kwargs=True
    )
    for names, inputs in ((["mood", "vector"], TEXTS), (["tags"], [text.split() for text in TEXTS])):
        packed = headset.predict(inputs, names, allow_untrained=True)
        assert 1 in shapes
        shapes.clear()
        padded = headset.predict(inputs, names, allow_untrained=True, padding_free=False)
        assert 1 not in shapes and not backbone.padding_free
        for name in names:
            for ours, theirs in zip(packed[name], padded[name], strict=True):
                assert plain(ours) == pytest.approx(plain(theirs), abs=1e-5)


def plain(answer):
    """The numbers of an answer."""
    if isinstance(answer, dict):
        return [number for value in answer.values() for number in plain(value)]
    if isinstance(answer, list | tuple):
        return [number for value in answer for number in plain(value)]
    return [float(answer)] if isinstance(answer, int | float) else []


@pytest.mark.parametrize(
    "head", [QuestionAnswering(), MaskedLM(), TokenClassification()], ids=lambda it: type(it).__name__
)
def test_losses_of_tokens_are_the_same_without_padding(head, tiny_bert):
    torch.manual_seed(0)
    labels = {"it": ["x", "y", "z"]} if isinstance(head, TokenClassification) else None
    headset = Headset(Backbone.from_pretrained(str(tiny_bert)), {"it": head}, labels).eval()
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]])
    batch = {"input_ids": torch.randint(5, 60, mask.shape) * mask, "attention_mask": mask}
    truth = (
        torch.tensor([[1, 2], [0, 2], [1, 1]]) if isinstance(head, QuestionAnswering) else mask * 2 - (1 - mask) * 100
    )
    losses = []
    for padding_free in (False, True):
        headset.zero_grad()
        headset.backbone.padding_free = padding_free
        output = headset.answer({"it": {**batch, "labels": truth}})
        loss = headset.losses(output, {"it": truth})["it"]
        loss.backward()
        losses.append((loss, {name: it.grad.clone() for name, it in headset.named_parameters() if it.grad is not None}))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
