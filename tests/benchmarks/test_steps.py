"""The same batches from the same weights: every step of headset is that of transformers' Trainer."""

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch import Trainer as LightningTrainer
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from benchmarks.quality.recipes import _encode
from benchmarks.quality.tasks import Split, Task, write_rows
from heads import SequenceClassification, TokenClassification
from headset import LitHeadset, TextData
from headset.orders import RowOrder
from headset.sampler import SourceBatches

WORDS = ["the", "good", "bad", "film", "book", "was", "is", "not", "very"]
EPOCHS, BATCH, RATE = 2, 4, 1e-3


class Losses(Callback):
    """The loss and the learning rate of every step."""

    def __init__(self):
        self.losses, self.rates = [], []

    def on_train_batch_start(self, trainer, *_):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, module, outputs, *_):
        self.losses.append(float(outputs["loss"]))


class InOrder(Trainer):
    """A Trainer whose batches are those of headset."""

    def _get_train_sampler(self, *_):
        size = len(self.train_dataset)
        batches = SourceBatches({"": RowOrder(size, BATCH)}, shuffle=True, seed=3)
        epochs = iter(range(EPOCHS))

        class Order(torch.utils.data.Sampler):
            def __iter__(self):
                batches.set_epoch(next(epochs))
                return (row for _, batch in batches for row in batch)

            def __len__(self):
                return size

        return Order()


def rows_of(kind):
    generator = torch.Generator().manual_seed(0)
    texts = [
        [WORDS[index] for index in torch.randint(len(WORDS), (length,), generator=generator).tolist()]
        for length in torch.randint(2, 9, (18,), generator=generator).tolist()
    ]
    if kind == "token":
        return Split(texts, [["A" if word in ("good", "bad") else "B" for word in words] for words in texts])
    labels = [["no", "yes"]["good" in words] for words in texts]
    if kind == "regression":
        labels = [float(len(words)) for words in texts]
    return Split([" ".join(words) for words in texts], labels)


@pytest.mark.parametrize("kind", ["sequence", "regression", "token"])
def test_every_step_is_that_of_trainer(kind, tiny_bert, tmp_path):
    names = {"sequence": ["no", "yes"], "regression": [], "token": ["A", "B"]}[kind]
    auto = AutoModelForTokenClassification if kind == "token" else AutoModelForSequenceClassification
    torch.manual_seed(0)
    settings = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": len(names) or 1}
    model = auto.from_pretrained(tiny_bert, **settings)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    model.config.label2id = {name: index for index, name in enumerate(names or ["LABEL_0"])}
    model.config.id2label = {index: name for name, index in model.config.label2id.items()}
    model.save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    task = Task(kind, kind, "", ("text",), "label", None, 32, BATCH, EPOCHS, RATE, None, None)
    rows = rows_of(kind)

    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trainer"),
        per_device_train_batch_size=BATCH,
        num_train_epochs=EPOCHS,
        learning_rate=RATE,
        weight_decay=0.01,
        warmup_steps=1,
        logging_steps=1,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    collator = DataCollatorForTokenClassification if kind == "token" else DataCollatorWithPadding
    theirs = InOrder(
        model=model,
        args=arguments,
        train_dataset=_encode(task, rows, tokenizer, names),
        data_collator=collator(tokenizer),
    )
    theirs.train()
    history = [entry for entry in theirs.state.log_history if "loss" in entry]

    seed_everything(1)
    write_rows(task, rows, tmp_path / "train.jsonl")
    head = (
        TokenClassification()
        if kind == "token"
        else SequenceClassification(
            problem_type="regression" if kind == "regression" else "single_label_classification"
        )
    )
    module = LitHeadset(str(tmp_path / "start"), {"answer": head}, learning_rate=RATE, warmup=1 / 10)
    data = TextData(train=str(tmp_path / "train.jsonl"), labels="label", max_length=32, batch_size=BATCH, seed=3)
    ours = Losses()
    LightningTrainer(
        max_epochs=EPOCHS,
        gradient_clip_val=1.0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ours],
    ).fit(module, data)

    assert ours.rates == pytest.approx([entry["learning_rate"] for entry in history])
    assert ours.losses == pytest.approx([entry["loss"] for entry in history], abs=2e-4)
    assert max(ours.losses) - min(ours.losses) > 2e-3
    weights = dict(model.named_parameters())
    for name, weight in module.headset.backbone.model.named_parameters():
        if weight.requires_grad:
            torch.testing.assert_close(weight, weights[f"bert.{name}"], atol=1e-5, rtol=1e-4)
