"""Runs that are killed at chosen moments and go on, against the same runs left alone; `make torture` draws more."""

import json

import pytest

from headset.main import main
from tests.torture.compare import torture
from tests.torture.configurations import draw
from tests.torture.runs import make_backbone

PLAIN = {
    "processes": 1,
    "workers": 0,
    "accumulate": 1,
    "validation": 1.0,
    "saves": "epochs",
    "scheduler": "linear",
    "sources": "one",
    "heads": "plain",
    "loss_weights": None,
    "callbacks": (),
    "length": "epochs",
    "max_norm": 1.0,
}
RUNS = {
    "validation and saving in the middle of an accumulation": {
        **{"accumulate": 3, "validation": 4, "saves": "best of validation", "sources": "size", "heads": "masked"},
        **{"loss_weights": "gradnorm", "callbacks": ("average",)},
    },
    "a validation that follows the step that was saved": {
        **{"validation": 0.5, "saves": "steps", "scheduler": "reduce_lr_on_plateau", "heads": "tuned"},
        **{"callbacks": ("stop",), "workers": 2},
    },
    "two processes": {
        **{"processes": 2, "strategy": "ddp", "accumulate": 2, "saves": "two steps", "sources": "all"},
        **{"length": "steps"},
    },
    "weights in parts, and saving in the middle of an accumulation": {
        **{"processes": 2, "strategy": "fsdp2, folders", "accumulate": 3, "validation": 4},
        **{"saves": "best of validation", "seed": 1},
    },
}


@pytest.mark.parametrize("name", RUNS)
def test_killed_runs_equal_those_left_alone(tmp_path, name):
    make_backbone(tmp_path / "backbone")
    drawn = draw(0) | PLAIN | RUNS[name]
    compared, differences = torture(drawn, str(tmp_path / "backbone"), tmp_path, lives=1, kills=3)
    assert not differences
    assert compared > 1


def test_a_run_is_refused_without_its_callbacks_unless_a_configuration_says_so(
    tmp_path, tiny_bert, small_csv, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    settings = {
        "model": {"backbone": str(tiny_bert), "heads": {"mood": "SequenceClassification"}},
        "data": {"train": str(small_csv), "batch_size": 4},
        "trainer": {
            **{"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False},
            **{"callbacks": [{"class_path": "headset.GradualUnfreezing", "init_args": {"start": 1}}]},
        },
    }
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    assert main(["fit", "-c", "run.yaml"]) == 0
    path = "lightning_logs/version_0/checkpoints/last.ckpt"
    longer = ["--trainer.max_epochs", "2", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    assert main(["fit", "--ckpt_path", path, *longer]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "had GradualUnfreezing" in error
    told = error.split("configuration of that run: ")[1].split()
    assert told == ["-c", str(tmp_path / "lightning_logs/version_0/config.yaml"), "--ckpt_path", path]
    assert main(["fit", *told, *longer]) == 0
    kept = sorted(file.name for file in tmp_path.glob("lightning_logs/version_1/checkpoints/*"))
    assert kept == ["epoch=1-step=4.ckpt", "last.ckpt"]
