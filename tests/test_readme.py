"""Every command and snippet of the README and of docs/ runs, in order, in one folder; training is cut to two steps."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall(README)

# Takes the place of the command: the same, with little to compute.
SHORT = f"""#!/bin/sh
command=$1; shift
case $command in
  fit) set -- "$@" --trainer.max_steps 2 --trainer.limit_val_batches 1 ;;
  test | predict) set -- "$@" --trainer.limit_{{}}_batches 2 ;;
esac
exec {sys.executable} -m headset $command "$@"
""".replace("limit_{}_batches", "limit_${command}_batches")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder like a clone, with the command that computes little."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("configs", "examples"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "bin").mkdir()
    command = folder / "bin" / "headset"
    command.write_text(SHORT)
    command.chmod(0o755)
    return folder


def run(command, folder):
    path = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.timeout(1800)
def test_every_command_and_snippet_runs(place):
    ran = []
    for kind, text in [*BLOCKS, *BLOCK.findall(DOCS)]:
        named = re.match(r"# (\S+\.(?:py|yaml))\n", text)
        if named:
            (place / named[1]).write_text(text)
            ran.append(named[1])
        elif kind == "python":
            run([sys.executable, "-c", text], place)
            ran.append("python")
        elif kind == "bash":
            for line in re.sub(r"\\\n\s*", "", text).splitlines():
                command = line.split("#")[0].strip()
                if command.startswith("make "):
                    run(["make", "-n", "-C", str(ROOT), *command.split()[1:]], place)
                else:
                    run(["bash", "-c", command], place)
                ran.append(command.split()[1])
    expected = ["demo", "test", "fit", "test", "predict", "export", "info", "heads", "python"]
    own = ["my_heads.py", "two_layers.yaml", "fit", "predict", "export", "python"]
    docs = [
        "export",
        "python",
        "lora.yaml",
        "fit",
        "export",
        "export",
        "info",
        "python",
        "python",
        "replace.yaml",
        "fit",
    ]
    assert ran == [*expected, *own, "python", "python", *docs]
    assert (place / "runs/attack/predictions.jsonl").read_text().count("\n") > 10


def test_the_first_yaml_is_what_the_config_says():
    shown = yaml.safe_load(next(text for kind, text in BLOCKS if kind == "yaml"))
    whole = yaml.safe_load((ROOT / "configs/sequence_classification.yaml").read_text())
    assert shown["model"] == whole["model"]
    assert shown["data"].items() <= whole["data"].items()


def test_the_two_commands_come_early():
    top = README.splitlines()[:30]
    assert any(line.startswith("make demo") for line in top) and any(line.startswith("make test") for line in top)


def test_the_head_of_your_own_is_short():
    [code] = [text for kind, text in BLOCKS if text.startswith("# my_heads.py")]
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith(("#", "from", '    """'))]
    assert len(lines) <= 15


@pytest.mark.timeout(600)
def test_the_demo_runs(tmp_path):
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RUNS": str(tmp_path / "runs"),
    }
    settings = ["--trainer.max_steps", "4", "--trainer.limit_val_batches", "1"]
    command = ["bash", str(ROOT / "examples/demo.sh"), *settings]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test/attack/accuracy" in done.stdout
    assert "Ignore all previous instructions" in done.stdout.splitlines()[-1]
