"""The benchmark: its metrics against known values, its tables, and every system on a few rows."""

import dataclasses
import json
import math
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

from benchmarks.quality import runs as benchmark
from benchmarks.quality import several_heads
from benchmarks.quality.report import compare, report, spread, table
from benchmarks.quality.scores import METRICS, pool_of, retrieval, score
from benchmarks.quality.systems import BETTER, DEFAULT, LINEAR, TRAINER, run, settings_of, systems_of
from benchmarks.quality.tasks import DATA, TASKS, read_split


def test_accuracy_and_macro_f1_of_a_known_table():
    truth, answers = ["a", "a", "b", "c"], ["a", "b", "b", "a"]
    found = score(TASKS["sequence"], truth, answers)
    # a: precision 1/2, recall 1/2; b: 1/2 and 1; c: never found
    assert found == pytest.approx({"accuracy": 2 / 4, "f1": (1 / 2 + 2 / 3 + 0) / 3})


def test_tags_count_by_word_and_a_word_that_was_cut_off_is_wrong():
    found = score(TASKS["token"], [["x", "y"], ["x"]], [["x", None], ["x"]])
    assert found["accuracy"] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="one tag a word"):
        score(TASKS["token"], [["x", "y"]], [["x"]])


def test_correlation_and_squared_error_of_known_numbers():
    found = score(TASKS["regression"], [1.0, 2.0, 3.0], [1.0, 2.0, 4.0])
    assert found == pytest.approx({"pearson": 3 / math.sqrt(2 * 14 / 3), "mse": 1 / 3})


def test_ranks_count_what_is_as_similar_as_the_right_one():
    similarity = np.array([[0.9, 0.1, 0.2], [0.5, 0.5, 0.1], [0.3, 0.2, 0.1]])
    found = retrieval(similarity, np.array([0, 1, 2]))  # ranks 1, 2 and 3
    assert found == pytest.approx({"mrr": (1 + 1 / 2 + 1 / 3) / 3, "recall@1": 1 / 3})


def test_the_pool_has_each_text_once():
    assert pool_of(["x", "y", "x"]) == ["x", "y"]
    similar = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert score(TASKS["pair"], ["x", "y", "x"], similar) == {"mrr": 1.0, "recall@1": 1.0}


@pytest.mark.parametrize("name", TASKS)
def test_rows_are_those_of_the_file(name):
    task = TASKS[name]
    rows = read_split(task, "train")
    assert len(rows.texts) == len(rows.labels) == (task.rows or 615)
    if task.kind == "token":
        first = (DATA / "us_addresses.train.conll").read_text().split("\n\n")[0].split()
        assert [it for pair in zip(rows.texts[0], rows.labels[0], strict=True) for it in pair] == first


def test_spread_and_table():
    assert spread([]) == "-" and spread([0.5]) == "0.500"
    assert spread([0.1, 0.2, 0.3]) == "0.200 ± 0.100"
    assert table(["a", "b"], [[1, "x"]]) == ["| a | b |", "| --- | --- |", "| 1 | x |"]


@pytest.mark.parametrize(
    ("values", "reference", "metric", "expected"),
    [
        ([0.9, 0.91, 0.92], [0.80, 0.81, 0.82], "accuracy", "ahead"),
        ([0.9, 0.91, 0.92], [0.80, 0.81, 0.82], "mse", "behind"),
        ([0.80, 0.81, 0.82], [0.9, 0.91, 0.92], "accuracy", "behind"),
        ([0.80, 0.90, 0.85], [0.84, 0.88, 0.86], "accuracy", "level"),
        ([0.8, 0.8], [0.8, 0.8], "accuracy", "level"),
        ([0.9, 0.9], [0.8, 0.8], "accuracy", "ahead"),
        ([0.9], [0.8, 0.8], "accuracy", "-"),
    ],
)
def test_a_difference_counts_beyond_the_noise_of_seeds(values, reference, metric, expected):
    assert compare(values, reference, metric) == expected


def test_the_report_has_all_results_and_no_others():
    results = {}
    for number, (task, system, seed) in enumerate(benchmark.jobs()):
        value = number / 1000
        if system == several_heads.COSTS:
            scores = {"training": 0.625, "prediction": 0.375}
        elif system in several_heads.TOGETHER:
            its = several_heads.HEADS.items()
            scores = {head: dict.fromkeys(METRICS[task.kind], value) for head, task in its}
        else:
            kind = "sequence" if system == "source" else TASKS[task].kind
            scores = dict.fromkeys(METRICS[kind], value)
        results[task, system, seed] = {"scores": scores, "seconds": 10.0}
    text = report(results)
    own = [results["token", DEFAULT, seed]["scores"]["f1"] for seed in benchmark.SEEDS]
    assert f"| {DEFAULT} | {spread(own)} | {spread(own)} | " in text
    assert "**0.62**" in text and "**0.38**" in text
    assert f"| {BETTER} | - | - | - | - | 0 |" in report({}) and f"| {BETTER} | - " not in text


def test_runs_are_by_seed_and_what_draws_nothing_runs_once():
    jobs = benchmark.jobs()
    assert len(set(jobs)) == len(jobs)
    counts = Counter(job[:2] for job in jobs)
    assert all(count == (1 if name in (LINEAR, several_heads.COSTS) else 3) for (_, name), count in counts.items())
    assert [seed for *_, seed in jobs] == sorted(seed for *_, seed in jobs)


def test_a_result_of_other_settings_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    benchmark.RUNS.mkdir(parents=True)
    job = ("sequence", LINEAR, 1)
    assert benchmark.result_of(job) is None
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=benchmark.prepare) as pool:
        pool.submit(benchmark.run_job, job).result()
    assert benchmark.result_of(job)["scores"]["accuracy"] > 0.8
    [file] = benchmark.RUNS.iterdir()
    result = json.loads(file.read_text())
    file.write_text(json.dumps(result | {"settings": result["settings"] | {"rows": 7}}))
    assert benchmark.result_of(job) is None


def test_what_does_not_change_a_run_is_not_in_its_settings():
    task = dataclasses.replace(TASKS["sequence"], better_model={"weight_decay": 0.5})
    assert settings_of(task, DEFAULT) == settings_of(TASKS["sequence"], DEFAULT)
    assert settings_of(task, BETTER) != settings_of(TASKS["sequence"], BETTER)


@pytest.mark.parametrize("name", TASKS)
def test_every_system_does_every_task(name, tiny_bert, tmp_path):
    task = dataclasses.replace(TASKS[name], rows=16, epochs=1, batch_size=8, model=str(tiny_bert))
    for system in systems_of(task):
        result = run(task, system, 1, tmp_path / "run", split="validation")
        assert list(result["scores"]) == list(METRICS[task.kind])
        assert all(math.isfinite(value) for value in result["scores"].values())
        assert not (tmp_path / "run").exists()
    assert (TRAINER in systems_of(task)) == (task.kind != "pair")


def test_costs_are_shares(tiny_bert, monkeypatch):
    from benchmarks.quality import costs

    monkeypatch.setattr(costs, "ROUNDS", 3)
    monkeypatch.setattr(costs, "TEXTS", 12)
    tasks = {name: dataclasses.replace(task, model=str(tiny_bert)) for name, task in several_heads.HEADS.items()}
    found = costs.measure(tasks, seed=0)
    assert 0.1 < found["prediction"] < 1.0 and 0.1 < found["training"] < 1.2


def test_three_heads_learn_in_one_run_from_two_tables(tiny_bert, tmp_path, monkeypatch):
    tasks = {
        name: dataclasses.replace(task, model=str(tiny_bert), rows=16) for name, task in several_heads.HEADS.items()
    }
    settings = several_heads.together
    monkeypatch.setattr(several_heads, "HEADS", tasks)
    short = lambda *args: settings(*args) | {"trainer": settings(*args)["trainer"] | {"max_steps": 3}}  # noqa: E731
    monkeypatch.setattr(several_heads, "together", short)
    monkeypatch.setitem(several_heads.TASKS, "regression", tasks["intensity"])
    for better in (False, True):
        scores = several_heads.train_together(1, tmp_path / "run", better, "validation")
        assert list(scores["intensity"]) == list(METRICS["regression"])
        assert 0 < scores["source"]["accuracy"] < 1 and 0 < scores["attack"]["accuracy"] < 1
