"""The benchmark of speed measures all that it shall, and tells what it has measured and nothing else."""

import json
import math
import sys
import time
from datetime import date
from typing import ClassVar

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, BertConfig, LlamaConfig

from benchmarks.speed import groups, starting
from benchmarks.speed.__main__ import main, run_gpu
from benchmarks.speed.clocks import Clock, Stamps
from benchmarks.speed.gpu import Card, flops_of, gpu_section, kept_section
from benchmarks.speed.groups import GROUPS
from benchmarks.speed.machine import machine, versions
from benchmarks.speed.measuring import Side, measure, median_ratio
from benchmarks.speed.memory import Watch, forget_peak, peak_of_process, peak_of_tensors
from benchmarks.speed.report import lines_of, report
from benchmarks.speed.tables import Row
from benchmarks.speed.texts import made_up, write_jsonl
from benchmarks.speed.training import HeadsetSide, headset_order, length_groups


class Counted:
    """A side that tells which turns it had, of all sides together."""

    turns: ClassVar = []

    def __init__(self, name, fails=False):
        self.name, self.fails = name, fails

    def run(self, turn):
        self.turns.append((self.name, turn))
        if self.fails:
            raise ValueError("no such thing")
        return {"rate": 10.0 * turn}


def sides(**failing):
    return [Side(name, f"{__name__}:Counted", {"name": name, "fails": name in failing}) for name in ("a", "b")]


@pytest.fixture
def importable(monkeypatch):
    """This module by its name, for sides that are looked up by theirs."""
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Counted.__module__])
    monkeypatch.setattr(Counted, "turns", [])


def test_sides_have_their_turns_in_both_orders(tmp_path, importable):
    found, failures = measure(sides(), 3, tmp_path / "log", here=True)
    assert Counted.turns == [("a", 1), ("b", 1), ("b", 2), ("a", 2), ("a", 3), ("b", 3)]
    assert [numbers["rate"] for numbers in found["a"]] == [10.0, 20.0, 30.0] and not failures


def test_a_side_that_fails_does_not_end_the_others(tmp_path, importable):
    found, failures = measure(sides(b=True), 2, tmp_path / "log", here=True)
    assert list(found) == ["a"] and "ValueError: no such thing" in failures["b"]
    [line] = lines_of("x", [Row("work", "a", "b", 2.0)], found, failures)
    assert line["failed"] == "b: ValueError: no such thing"
    text = report([line], "m", "v", date(2026, 1, 2), "")
    assert "| work [1] | a | b | - | - | - | - | ≥ 2 | **no** |" in text
    assert "Could not be measured: b: ValueError: no such thing" in text


def test_a_process_that_dies_is_told(tmp_path):
    found, failures = measure([Side("gone", "os:_exit", {"status": 3})], 1, tmp_path / "log")
    assert found == {} and failures == {"gone": "The process of gone died."}


def test_ratios_are_of_rounds():
    ours, theirs = [{"x": 2.0}, {"x": 9.0}, {"x": 4.0}], [{"x": 1.0}, {"x": 3.0}, {"x": 1.0}]
    assert median_ratio(ours, theirs, "x") == (3.0, 2.0, 4.0)


@pytest.mark.parametrize(("most", "reached"), [(False, True), (True, False)])
def test_targets(most, reached):
    found = {"a": [{"rate": 3.0}], "b": [{"rate": 2.0}]}
    [line] = lines_of("x", [Row("work", "a", "b", 1.2, most=most)], found, {})
    assert line["ratio"] == 1.5 and line["reached"] is reached
    assert f"| **1.50** | 1.50 to 1.50 | {'≤' if most else '≥'} 1.2 | {'yes' if reached else '**no**'} |" in report(
        [line], "m", "v", date(2026, 1, 2), ""
    )


def test_epochs_are_timed_from_the_end_of_the_one_before():
    stamps = Stamps()
    stamps.began, stamps.ended = 10.0, [(0, 11.0), (0, 15.0), (1, 16.0), (1, 18.0)]
    assert stamps.seconds() == 8.0 and stamps.seconds(1) == 3.0


def test_groups_are_those_of_trainer():
    lengths = torch.randint(5, 60, (3200,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = length_groups(lengths, 4)
    assert len(rows) == len(set(rows)) == 4 * 32
    found = torch.tensor([lengths[row] for row in rows]).reshape(4, 32)
    assert (found.max(1).values - found.min(1).values).max() <= 5


def test_peaks_of_memory_are_those_that_were():
    with peak_of_tensors() as peak:
        first = torch.ones(2**20)
        del first
        torch.ones(2**18)
    assert peak["tensors"] == pytest.approx(4.0, rel=0.01)
    forget_peak()
    with Watch() as watch:
        before = watch.most or peak_of_process()
        block = torch.ones(2**25)
        time.sleep(0.2)
    assert watch.most > 120 and peak_of_process() > before and block[0] == 1


def test_every_row_of_the_table_is_a_number(tiny_bert, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(starting.FitStart, "command", lambda self: ["-c", "pass"])  # imports alone take long
    monkeypatch.setattr(starting.BareStart, "command", lambda self: ["-c", "pass"])
    monkeypatch.setattr(groups, "predict_precision", lambda accelerator, hparams: "bf16-mixed")  # on every processor
    lines = main(["--quick", str(tiny_bert), "--write", str(tmp_path / "speed.md")])
    assert {line["group"] for line in lines} == set(GROUPS)
    assert not [line["failed"] for line in lines if "failed" in line]
    assert all(math.isfinite(line["ratio"]) and line["ratio"] > 0 for line in lines)
    text = (tmp_path / "speed.md").read_text(encoding="utf-8")
    assert machine() in text and versions() in text and date.today().isoformat() in text
    for line in lines:
        assert f"| {line['work']} | {line['ours']} | {line['theirs'] or '-'} |" in text
    assert json.loads((tmp_path / "runs" / "speed.json").read_text()) == lines


SMALL = {"vocab_size": 55, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def test_models_are_measured_as_on_a_gpu(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models = {"large encoder": BertConfig(**SMALL), "decoder": LlamaConfig(**SMALL)}
    page = tmp_path / "speed.md"
    page.write_text("# Speed\n\nWhat there is.\n\n" + gpu_section([]))
    card = Card(models, batch=4, steps=2, rounds=1, words=50, longest=32, workers=0)
    lines = run_gpu(card, 1e12, page, here=True)
    assert not [line["failed"] for line in lines if "failed" in line]
    assert [line["key"] for line in lines] == ["tokens", "tokens", "share", "share"] * 2
    assert all(line["ratio"] > 0 for line in lines)
    text = page.read_text()
    assert text.startswith("# Speed\n\nWhat there is.\n\n## On a GPU\n") and "Not measured" not in text
    assert "| training, large encoder, bf16 | headset | Trainer, best settings |" in text
    assert kept_section(page) in text and "Not measured" in kept_section(tmp_path / "none.md")


@pytest.mark.parametrize("config", [BertConfig, LlamaConfig])
def test_operations_are_those_that_torch_counts(config):
    """Of a row of 24 tokens, forwards and backwards; torch counts attention as if all tokens saw all."""
    model = AutoModel.from_config(config(**SMALL, attn_implementation="eager"))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.ones(1, 24, dtype=torch.long)).last_hidden_state.sum().backward()
    causal = 12 * 2 * 32 * 24**2 * 0.5 if config is LlamaConfig else 0
    pooler = 6 * 32 * 32 * 24 if config is BertConfig else 0
    assert counter.get_total_flops() == pytest.approx(flops_of(model.config, [24]) - pooler + causal, rel=0.05)


def test_both_sides_have_the_same_batches(tiny_bert, tmp_path, monkeypatch):
    train = str(write_jsonl(made_up(20, 70), tmp_path / "train.jsonl"))
    order = headset_order(str(tiny_bert), train, 64)
    assert sorted(row for batch in order for row in batch) == list(range(70))
    seen = []
    monkeypatch.setattr(Clock, "on_train_batch_start", lambda *its: seen.append(its[3]["meta"]["rows"]))
    work = {"model": str(tiny_bert), "train": train, "folder": str(tmp_path), "max_length": 64, "batches": order}
    HeadsetSide(**work).run(1)
    assert seen == order
