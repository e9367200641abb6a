"""A run for `test_features`, as one of two processes: its data, a backbone, and the output."""

import json
import sys

from lightning.pytorch import Callback, Trainer, seed_everything

from backbones.backbone import Backbone, BackboneOptions
from heads import SequenceClassification
from headset import LitHeadset, TextData

passes = []
run = Backbone.run


def counted(self, call):
    passes.append(call)
    return run(self, call)


class Steps(Callback):
    """Keeps the loss of each step over all processes."""

    losses = ()

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.losses = (*self.losses, trainer.callback_metrics["train/loss"].item())


def fit(data, backbone, cached):
    passes.clear()
    seed_everything(0)
    head = SequenceClassification(pooling="mean", dropout=0.0)
    options = BackboneOptions(backbone, freeze="all")
    module = LitHeadset(options, {"topic": head}, learning_rate=0.01, cache_features=cached)
    steps = Steps()
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=3,
        callbacks=[steps],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, TextData(**data))
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    return trainer, {"losses": steps.losses, "metrics": metrics, "passes": len(passes)}


def main(data, backbone, output):
    Backbone.run = counted
    results = []
    for cached in (False, True, True):
        trainer, result = fit(json.loads(data), backbone, cached)
        results.append(result)
    if trainer.is_global_zero:
        with open(output, "w") as file:
            json.dump(results, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
