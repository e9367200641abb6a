"""A run for `test_joint_processes`: given steps with three heads, in one process or as one of several.

Arguments: the folder of a backbone, a JSON file with the steps, the settings of one run after the other as a JSON list,
and the file to write to.
"""

import json
import os
import sys

import torch
from lightning.pytorch import Trainer, seed_everything

from backbones.backbone import BackboneOptions
from heads import SequenceClassification, TokenClassification
from headset import LitHeadset

RANK, WORLD = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def part(rows):
    """The batch of some rows: ids, and of each head a label or None."""
    meta = {"rows": list(range(len(rows))), "heads": [], "labelled": {}}
    batch = {"input_ids": torch.tensor([row["ids"] for row in rows]), "labels": {}, "meta": meta}
    batch["attention_mask"] = (batch["input_ids"] > 0).long()
    for name in ("topic", "tags", "mark"):
        known = [number for number, row in enumerate(rows) if row.get(name) is not None]
        if known:
            meta["heads"].append(name)
            labels = torch.tensor([rows[number][name] for number in known])
            batch["labels"][name] = labels.float() if name == "mark" else labels
            if len(known) < len(rows):
                meta["labelled"][name] = known
    return batch


class Steps(torch.utils.data.Dataset):
    """Of each step the rows of this process."""

    def __init__(self, steps):
        self.steps = steps

    def __len__(self):
        return len(self.steps)

    def __getitem__(self, index):
        return part(self.steps[index][RANK::WORLD])


def run(backbone, steps, settings):
    """The weights and metrics after a run; ``trainer`` and ``backbone`` in its settings are for these."""
    seed_everything(3)
    trainer_settings = settings.pop("trainer", {})
    options = BackboneOptions(backbone, **settings.pop("backbone", {}))
    heads = {
        "topic": SequenceClassification(),
        "tags": TokenClassification(native=False, dropout=0.0),
        "mark": SequenceClassification("regression", pooling="mean", dropout=0.0),
    }
    module = LitHeadset(
        options,
        heads,
        labels={"topic": ["a", "b"], "tags": ["x", "y", "z"]},
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=0.1),
        scheduler="constant",
        warmup=0,
        **settings,
    )
    module._states = dict.fromkeys(settings.get("frozen_heads", ()), "trained")
    loader = torch.utils.data.DataLoader(Steps(steps), batch_size=None, shuffle=False)
    trainer = Trainer(
        accelerator="cpu",
        devices=WORLD,
        strategy=os.environ.get("STRATEGY", "auto"),
        **trainer_settings,
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, loader, loader)
    values = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {"weights": trainer.strategy.lightning_module_state_dict(), "values": values}


def main(backbone, steps, settings, output):
    with open(steps) as file:
        rows = json.load(file)
    done = [run(backbone, rows, one) for one in json.loads(settings)]
    if RANK == 0:
        torch.save(done, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
