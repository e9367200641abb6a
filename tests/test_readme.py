"""Every command and snippet of the README and of docs/ runs, in order; training is cut to two steps."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = sorted((ROOT / "docs").glob("*.md"))
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


@pytest.fixture
def place(tmp_path):
    """A folder like a clone, with the command that computes little."""
    for name in ("configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "headset"
    command.write_text(SHORT)
    command.chmod(0o755)
    return tmp_path


def run(command, folder):
    path = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": f"{folder}:{ROOT}", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_blocks(text, place):
    """Run what a document shows, in order, and tell what ran."""
    ran = []
    for kind, block in BLOCK.findall(text):
        named = re.match(r"# (\S+\.(?:py|yaml))\n", block)
        if named:
            (place / named[1]).write_text(block)
            ran.append(named[1])
        elif kind == "python":
            run([sys.executable, "-c", block], place)
            ran.append("python")
        elif kind == "bash":
            for line in re.sub(r"\\\n\s*", "", block).splitlines():
                command = line.split("#")[0].strip()
                if command.startswith("make "):
                    run(["make", "-n", "-C", str(ROOT), *command.split()[1:]], place)
                else:
                    run(["bash", "-c", command], place)
                ran.append(command.split()[1])
    return ran


@pytest.mark.timeout(1800)
def test_every_command_and_snippet_of_the_readme_runs(place):
    ran = run_blocks(README, place)
    expected = ["demo", "test", "fit", "test", "predict", "export", "info", "heads", "python"]
    five = ["five.yaml", "fit", "predict"]
    own = ["my_heads.py", "two_layers.yaml", "fit", "predict", "export", "python"]
    assert ran == [*expected, *five, *own, "python", "python"]
    assert (place / "runs/attack/predictions.jsonl").read_text().count("\n") > 10


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.stem)
def test_every_command_and_snippet_of_a_document_runs(document, place):
    text = document.read_text(encoding="utf-8")
    if "runs/attack/" in text:  # what the README has trained and exported
        commands = next(block for kind, block in BLOCKS if kind == "bash" and "headset fit" in block)
        run_blocks(f"```bash\n{commands}```\n", place)
    ran = run_blocks(text, place)
    assert len(ran) >= sum(kind != "text" for kind, _ in BLOCK.findall(text))  # text is what only a cluster runs


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
