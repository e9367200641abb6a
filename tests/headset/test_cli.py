import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from headset.main import main

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
OWN_HEAD = '''
import torch
from heads import Head, HeadOutput, register_head

@register_head
class FirstToken(Head):
    """The first token's vector, scored."""
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.bias = bias
    def build(self, context):
        self.score = torch.nn.Linear(context.spec.hidden_size, len(context.labels), self.bias)
    def forward(self, features, batch):
        return HeadOutput(self.score(features.last_hidden_state[:, 0]))
    def loss(self, output, labels):
        return torch.nn.functional.cross_entropy(output.logits, labels)
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bert: Path, small_csv: Path) -> Path:
    """A working directory with a configuration, its data and its model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging, "raiseExceptions", False)  # Lightning logs to the standard error of its import
    shutil.copytree(tiny_bert, "model")
    config = {
        "model": {"backbone": "model", "heads": {"mood": "SequenceClassification"}, "learning_rate": 1e-3},
        "data": {"train": "small.csv", "validation": "small.csv", "test": "small.csv", "batch_size": 4},
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
    }
    Path("run.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


@pytest.fixture
def trained(folder: Path) -> Path:
    """That directory after a run, with the checkpoint ``a.ckpt``; the model and the configuration are gone."""
    assert main(["fit", "-c", "run.yaml", *QUIET]) == 0
    shutil.copy(checkpoint(), "a.ckpt")
    shutil.rmtree("model")
    Path("run.yaml").unlink()
    return folder


def checkpoint(version: int = 0) -> Path:
    return Path("lightning_logs", f"version_{version}", "checkpoints", "last.ckpt")


def test_optimizers_of_other_libraries_do_not_get_in_the_way(folder: Path):
    done = in_new_process("fit", "-c", "run.yaml", "--model.optimizer", "AdamW", "--print_config")
    assert "class_path: torch.optim.AdamW" in done.stdout, done.stderr


def in_new_process(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "headset", *arguments, *QUIET]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a wrong command line ends with."""
    capsys.readouterr()
    try:
        assert main(arguments) == 1
    except SystemExit as end:
        assert end.code == 2
    output = capsys.readouterr().err
    lines = [line for line in output.splitlines() if line.startswith("headset: error: ")]
    assert len(lines) == 1 and output.rstrip().endswith(lines[0])
    assert "Traceback" not in output and "usage" not in output
    return lines[0]


def settings(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*arguments, "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


def test_help_and_listing_are_free_of_torch() -> None:
    code = (
        "import sys\nfrom headset.main import main\ntry: main(sys.argv[1:])\nfinally: assert 'torch' not in sys.modules"
    )
    for arguments, expected in {
        "--help": ["fit", "validate", "test", "predict", "export", "heads", "info"],
        "heads": ["SequenceClassification", "TokenClassification", "Pooling", "built-in"],
        "--version": ["headset 0."],
        "export --help": ["--ckpt_path", "--output_dir", "--format", "--head", "--allow_untrained", "--trust_heads"],
        "info --help": ["PATH"],
    }.items():
        done = subprocess.run([sys.executable, "-c", code, *arguments.split()], capture_output=True, text=True)
        assert done.returncode == 0 and all(word in done.stdout for word in expected), done


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("fitt", "There is no command 'fitt'. Did you mean 'fit'? Commands: fit, validate"),
        ("export --output_dir x", "required: --ckpt_path"),
        ("fit", "Missing: model.backbone, model.heads. Give a configuration (-c FILE)"),
        ("fit -c rum.yaml", "rum.yaml. Did you mean 'run.yaml'?"),
        ("fit -c run.yaml --config", "expected one argument"),
        (
            "fit -c run.yaml --modl.x 3",
            "There is no setting modl. Did you mean 'model'? Settings: ckpt_path, config, data",
        ),
        ("fit -c run.yaml --model.larning_rate 3", "model.larning_rate. Did you mean 'learning_rate'? model accepts: "),
        ("fit -c run.yaml --model.learning_rate x", "Invalid model.learning_rate: 'x'. Expected: float, null."),
        ("fit -c run.yaml --data.batch_size x", "Invalid data.batch_size: 'x'. Expected: int."),
        ("fit -c run.yaml --model.optimizer SDG", "Invalid model.optimizer: there is no class 'SDG'."),
        (
            "fit -c run.yaml --model.optimizer torch.optim.SGD --model.optimizer.lrr 1",
            "Did you mean 'lr'? SGD accepts: ",
        ),
        ("fit -c run.yaml --model.heads.mood.poling cls", "Did you mean 'pooling'? SequenceClassification accepts: "),
        ("fit -c run.yaml --model.heads.mood.pooling maen", "Invalid pooling mode: 'maen'"),
        (
            "fit -c run.yaml --model.heads.mood.num_outputs x",
            "SequenceClassification: Invalid num_outputs: 'x'. Expected: int.",
        ),
        ("fit -c run.yaml --model.heads.new my_hats.Mine", "my_hats.Mine cannot be imported: ModuleNotFoundError"),
        ("fit -c run.yaml --model.heads.new torch.nn.Linear", "torch.nn.Linear is not a head"),
        ("fit -c run.yaml --model.heads.new new.yaml", "There is no file new.yaml. Did you mean 'run.yaml'?"),
        ("fit -c run.yaml --trainer.accelerator gpu", "Lightning says: "),
        ("predict --ckpt_path a.ckpt", "There is no checkpoint a.ckpt"),
        ("predict -c run.yaml --output x.txt", "Invalid suffix of --output: '.txt'"),
        ("predict -c run.yaml --output small.csv", "small.csv is there already"),
    ],
)
def test_one_line_for_what_is_wrong(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    assert message in fails(capsys, *arguments.split())


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        (
            "{topic: SequenceClasification}",
            "Did you mean 'SequenceClassification'? Registered heads: ",
        ),
        ("{topic: {class_path: Pooling, init_args: {norm: true}}}", "Pooling has no argument 'norm'. "),
        ("{topic: {pooling: cls}}", "model.heads names each head and its class"),
        ("[Pooling]", "model.heads names each head and its class"),
        ("Pooling", "model.heads names each head and its class"),
        ("[", "Problems parsing config"),
    ],
)
def test_one_line_for_wrong_yaml(folder: Path, capsys: pytest.CaptureFixture[str], heads: str, message: str) -> None:
    Path("wrong.yaml").write_text(f"model:\n  backbone: model\n  heads: {heads}\n")
    assert message in fails(capsys, "fit", "-c", "wrong.yaml")


def test_unknown_key_of_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run.yaml").write_text(Path("run.yaml").read_text().replace("data:", "dta:"))
    assert "There is no setting dta. Did you mean 'data'?" in fails(capsys, "fit", "-c", "run.yaml")


def test_from_a_checkpoint_alone(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = in_new_process("predict", "--ckpt_path", "a.ckpt", "--data.predict", "small.csv")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in Path("predictions.jsonl").read_text().splitlines()]
    assert [record["row"] for record in records] == list(range(1, 9))
    assert records[0]["text"] == "the film was very good" and records[0]["label"] == "positive"
    assert set(records[0]["mood"]["scores"]) == {"negative", "neutral", "positive"}
    for command in ("test", "validate"):
        assert main([command, "--ckpt_path", "a.ckpt", *QUIET]) == 0
        assert "mood/accuracy" in capsys.readouterr().out
    assert not list(Path().glob("*.yaml")) and len(list(Path("lightning_logs").iterdir())) == 1


@pytest.mark.parametrize(
    ("part", "setting"),
    [
        ("datamodule_hyper_parameters", {"train": {"any": {"class_path": "evil.Evil"}}}),
        ("datamodule_hyper_parameters", {"train": {"any": '{"class\\u005fpath": "evil.Evil"}'}}),
        ("datamodule_hyper_parameters", {"train": {"any": ["<<: {class_path: evil.Evil}\nx: 2001-99-99"]}}),
        ("backbone", {"config": {"model_type": "bert", "any": {"class_path": "evil.Evil"}}}),
        ("heads", {"mood": {"class_path": "evil.Evil", "init_args": {}}}),
    ],
)
def test_nothing_that_a_checkpoint_names_is_imported(
    trained: Path, capsys: pytest.CaptureFixture[str], part: str, setting: dict[str, Any]
) -> None:
    Path("evil.py").write_text("open('imported', 'w').close()\n")
    content = torch.load("a.ckpt", weights_only=True)
    where = content if part.startswith("data") else content["hyper_parameters"]
    where[part] = {**where[part], **setting}
    torch.save(content, "a.ckpt")
    assert main(["predict", "--ckpt_path", "a.ckpt", "--data.predict", "small.csv", *QUIET]) == 1
    error = capsys.readouterr().err
    assert "not imported from a file" in error or "--trust_heads" in error
    assert not Path("imported").exists()


def test_checkpoint_then_file_then_command_line(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("more.yaml").write_text("data: {batch_size: 5, max_length: 6}\n")
    given = ["predict", "--ckpt_path", "a.ckpt", "-c", "more.yaml", "--data.batch_size", "7"]
    found = settings(capsys, *given)
    assert found["model"]["learning_rate"] == 1e-3
    assert found["model"]["heads"]["mood"]["class_path"].endswith("SequenceClassification")
    data = {name: found["data"][name] for name in ("train", "max_length", "batch_size")}
    assert data == {"train": "small.csv", "max_length": 6, "batch_size": 7}


def test_resume_from_a_checkpoint_alone(trained: Path) -> None:
    assert main(["fit", "--ckpt_path", "a.ckpt", "--trainer.max_epochs", "2", *QUIET]) == 0
    content = torch.load(checkpoint(1), weights_only=True)
    assert content["epoch"] == 1 and content["hyper_parameters"]["learning_rate"] == 1e-3


def test_runs_repeat(folder: Path) -> None:
    for _ in range(2):
        assert main(["fit", "-c", "run.yaml", *QUIET]) == 0
    first, second = (torch.load(checkpoint(version), weights_only=True)["state_dict"] for version in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_saved_configuration_runs(trained: Path, tiny_bert: Path) -> None:
    shutil.copytree(tiny_bert, "model")
    assert main(["fit", "-c", "lightning_logs/version_0/config.yaml", *QUIET]) == 0


def test_own_head_of_the_working_directory(folder: Path) -> None:
    Path("my_heads.py").write_text(OWN_HEAD)
    done = in_new_process("fit", "-c", "run.yaml", "--model.heads", '{"mood": "my_heads.FirstToken"}')
    assert done.returncode == 0, done.stderr
    predict = ["predict", "--ckpt_path", str(checkpoint()), "--data.predict", "small.csv"]
    refused = in_new_process(*predict)
    assert refused.returncode == 1
    assert "my_heads.FirstToken" in refused.stderr and "--trust_heads true" in refused.stderr
    assert "Traceback" not in refused.stderr and not Path("predictions.jsonl").exists()
    done = in_new_process(*predict, "--trust_heads", "true")
    assert done.returncode == 0, done.stderr


def test_predictions_of_two_processes(trained: Path) -> None:
    given = ["--ckpt_path", "a.ckpt", "--data.predict", "small.csv", "--data.batch_size", "3"]
    done = in_new_process("predict", *given, "--trainer.accelerator", "cpu", "--trainer.devices", "2")
    assert done.returncode == 0, done.stderr
    parts = sorted(path.name for path in Path().glob("predictions*"))
    assert parts == ["predictions-00000-of-00002.jsonl", "predictions-00001-of-00002.jsonl"]
    records = [json.loads(line) for part in parts for line in Path(part).read_text().splitlines()]
    assert sorted(record["row"] for record in records) == list(range(1, 9))


def test_untrained_heads_predict_only_when_asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [
        "predict",
        "-c",
        "run.yaml",
        "--model.labels",
        '{"mood": ["a", "b"]}',
        "--data.predict",
        "small.csv",
        *QUIET,
    ]
    assert "mood" in fails(capsys, *given)
    assert not Path("predictions.jsonl").exists()
    assert main([*given, "--allow_untrained", "true"]) == 0


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_configs(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["fit", "-c", str(config.relative_to(ROOT)), "--trainer.fast_dev_run", "1", *QUIET]) == 0


def test_a_typo_in_a_head_given_on_the_command_line_is_explained(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "-c", "run.yaml", "--model.heads", "{mood: SequenceClasification}"])
    assert stop.value.code == 2
    assert "Did you mean 'SequenceClassification'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("--trainer.accelerator", "gpux", "accelerator='gpux'"),
        ("--trainer.strategy", "ddpp", "Valid strategies of trainer: auto, ddp, fsdp2. Did you mean 'ddp'?"),
        ("--model.learning_rate", "-1", "Invalid learning_rate"),
    ],
)
def test_a_setting_that_cannot_be_used_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], setting: str, value: str, message: str
) -> None:
    assert main(["fit", "-c", "run.yaml", setting, value]) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_freed_memory_is_given_back_in_a_prediction(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr("headset.allocator._of_libc", lambda name: lambda *arguments: calls.append(name))
    monkeypatch.setattr("headset.allocator.held", iter([100, 90, 110, 130, 120]).__next__)
    rows = json.dumps({"text": "a good film"}) + "\n"
    Path("rows.jsonl").write_text(rows * 5)
    settings = ["--data.eval_batch_size", "1", "--trainer.accelerator", "cpu"]
    assert main(["predict", "--ckpt_path", "a.ckpt", "--data.predict", "rows.jsonl", *settings]) == 0
    assert calls == ["mallopt", "mallopt", "malloc_trim", "malloc_trim"]


def test_freezing_layers_from_the_command_line(folder: Path) -> None:
    freeze = ["--model.backbone.path", "model", "--model.backbone.freeze", "1"]
    assert main(["fit", "-c", "run.yaml", *freeze, *QUIET]) == 0


def test_settings_of_a_backbone_that_has_its_name_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "-c", "run.yaml", "--model.backbone.freeze", "1"])
    assert stopped.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "add --model.backbone.path NAME" in line and "backbone: {path: NAME" in line


@pytest.mark.parametrize(("output", "message"), [("small.csv/o.jsonl", "cannot be written"), ("model", "suffix")])
def test_an_output_that_cannot_be_written_is_told_first(
    trained: Path, capsys: pytest.CaptureFixture[str], output: str, message: str
) -> None:
    arguments = ["predict", "--ckpt_path", "a.ckpt", "--data.predict", "small.csv", "--output", output]
    assert main(arguments) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_rows_to_predict_are_not_replaced(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("small.csv").read_bytes()
    arguments = ["predict", "--ckpt_path", "a.ckpt", "--data.predict", "small.csv", "--output", "small.csv"]
    assert main([*arguments, "--overwrite", "true", *QUIET]) == 1
    assert "holds the rows to predict" in capsys.readouterr().err
    assert Path("small.csv").read_bytes() == before
