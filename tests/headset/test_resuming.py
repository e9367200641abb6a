"""Runs that are killed at chosen moments and go on, against the same runs left alone; `make torture` draws more."""

import pytest

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
    "two processes": {"processes": 2, "accumulate": 2, "saves": "two steps", "sources": "all", "length": "steps"},
}


@pytest.mark.parametrize("name", RUNS)
def test_killed_runs_equal_those_left_alone(tmp_path, name):
    make_backbone(tmp_path / "backbone")
    drawn = draw(0) | PLAIN | RUNS[name]
    compared, differences = torture(drawn, str(tmp_path / "backbone"), tmp_path, lives=1, kills=3)
    assert not differences
    assert compared > 1
