"""What is chosen on validation by two processes is what one chooses."""

import json
import os
import subprocess
import sys

import pytest
import torch

TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]


def fit(folder, name, *arguments):
    """A run whose weights stay as they start; what its checkpoint holds of the choices."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "headset", "fit", "-c", "run.yaml", "--trainer.default_root_dir", name, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    [checkpoint] = (folder / name).glob("**/last.ckpt")
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    return {key: value for key, value in weights.items() if ".tuned." in key}


def test_two_processes_choose_what_one_does(tmp_path, tiny_bert):
    words = ["film", "book", "good", "bad", "very"]
    rows = [
        {
            "text": " ".join(words[(i * j) % 5] for j in range(1 + i % 4)),
            "parts": words[i % 3 :: 2],
            "kind": words[i % 3],
        }
        for i in range(23)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    several = {"problem_type": "multi_label_classification", "threshold": "tuned"}
    heads = {"parts": several, "kind": {"temperature": "tuned"}}
    model = {name: {"class_path": "SequenceClassification", "init_args": its} for name, its in heads.items()}
    settings = {
        "seed_everything": 3,
        "model": {"backbone": str(tiny_bert), "heads": model, "learning_rate": 0.0},
        "data": {
            "train": "rows.jsonl",
            "validation": "rows.jsonl",
            "labels": {"parts": "parts", "kind": "kind"},
            "batch_size": 4,
        },
        "trainer": {"max_epochs": 1, "enable_progress_bar": False, "accelerator": "cpu"},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    one, both = fit(tmp_path, "one"), fit(tmp_path, "both", *TWO)
    assert sorted(one) == ["headset.heads.kind.tuned.value", "headset.heads.parts.tuned.value"]
    for key, value in one.items():
        assert value.tolist() != pytest.approx([0.5 if "parts" in key else 1.0] * len(value))
        assert both[key].tolist() == pytest.approx(value.tolist(), rel=1e-4)
