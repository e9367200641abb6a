"""Two hosts by torchrun, each a network namespace with an address of its own; then the cable between them is cut."""

import json
import os
import shutil
import subprocess
import sys
import time
import uuid

import pytest
import torch

WORDS = ["film", "book", "good", "bad", "very"]


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


@pytest.fixture
def hosts():
    """Two namespaces with a cable between them: their names, and what cuts it."""
    if shutil.which("ip") is None:
        pytest.skip("there is no command ip")
    tag = uuid.uuid4().hex[:6]
    names = [f"hs{tag}{letter}" for letter in "ab"]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", f"v{tag}a", "type", "veth", "peer", "name", f"v{tag}b")
        for number, (name, letter) in enumerate(zip(names, "ab", strict=True)):
            ip("link", "set", f"v{tag}{letter}", "netns", name)
            ip("-n", name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", f"v{tag}{letter}")
            ip("-n", name, "link", "set", f"v{tag}{letter}", "up")
            ip("-n", name, "link", "set", "lo", "up")
        subprocess.run(["ip", "netns", "exec", names[0], "true"], check=True, capture_output=True, timeout=20)
    except subprocess.CalledProcessError as error:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        pytest.skip(f"this machine has no network namespaces for us: {error.stderr.decode().strip()}")
    yield names, lambda: ip("-n", names[1], "link", "set", f"v{tag}b", "down")
    for name in names:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


def start(hosts, folder, *arguments):
    """The run on both hosts, each of which has a cache and a log of its own."""
    started = []
    for number, name in enumerate(hosts):
        launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(number)]
        launch += ["--nproc-per-node", "1", "--master-addr", "10.77.0.1", "--master-port", "29511", "-m", "headset"]
        own = {"HF_DATASETS_CACHE": str(folder / f"cache{number}"), "HEADSET_PATIENCE": "8"}
        environment = os.environ | own | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
        log = (folder / f"host{number}.log").open("w")
        several = ["--trainer.num_nodes", "2", "--trainer.devices", "1", "--trainer.strategy", "ddp"]
        command = ["ip", "netns", "exec", name, *launch, *arguments, *several]
        started.append(subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT))
    return started


def told(folder):
    return "\n".join((folder / f"host{number}.log").read_text() for number in (0, 1))


def weights(folder, name):
    [path] = (folder / name).glob("**/*step=24.ckpt")
    return torch.load(path, weights_only=True)["state_dict"]


def alone(folder, *arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "headset", "fit", "-c", "run.yaml", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(900)
def test_a_host_that_is_cut_off_ends_the_run_which_goes_on_later(tmp_path, still_bert, hosts):
    names, cut = hosts
    rows = [{"text": " ".join(WORDS[(i * j) % 5] for j in range(1 + i % 4)), "label": WORDS[i % 3]} for i in range(23)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "slow.py").write_text(
        "import os, pathlib, time\n"
        "from lightning.pytorch import Callback\n\n\n"
        "class Slow(Callback):\n"
        '    """Lets a run be cut: it waits before a step until a file is there."""\n\n'
        "    def on_train_batch_start(self, trainer, *others):\n"
        "        if trainer.global_step == 14:\n"
        '            pathlib.Path(f"at14.{trainer.global_rank}").touch()\n'
        '            while not os.path.exists("go"):\n'
        "                time.sleep(0.2)\n"
    )
    settings = {
        "model": {"backbone": str(still_bert), "heads": {"kind": "SequenceClassification"}, "learning_rate": 1e-3},
        "data": {"train": "rows.jsonl", "validation": "rows.jsonl", "batch_size": 4},
        "trainer": {
            "max_epochs": 8,
            "enable_progress_bar": False,
            "accelerator": "cpu",
            "callbacks": [{"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 4, "save_top_k": -1}}],
        },
    }
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    settings["trainer"]["callbacks"].append({"class_path": "slow.Slow"})
    (tmp_path / "cut.yaml").write_text(json.dumps(settings))
    alone(tmp_path, "--trainer.default_root_dir", "alone", "--data.batch_size", "8")

    started = start(names, tmp_path, "fit", "-c", "cut.yaml", "--trainer.default_root_dir", "cut")
    try:
        until = time.monotonic() + 200
        while not all((tmp_path / f"at14.{rank}").exists() for rank in (0, 1)):
            assert time.monotonic() < until and all(each.poll() is None for each in started), told(tmp_path)
            time.sleep(0.2)
        cut()
        (tmp_path / "go").touch()
        codes = [each.wait(timeout=120) for each in started]
    finally:
        for each in started:
            each.kill()
    assert 0 not in codes, told(tmp_path)
    assert "has not been heard of for 8 s" in told(tmp_path)
    assert all(list((tmp_path / f"cache{number}").glob("**/*.arrow")) for number in (0, 1))

    ip("-n", names[1], "link", "set", f"v{names[1][2:]}", "up")
    [last] = (tmp_path / "cut").glob("**/*step=12.ckpt")
    goes_on = ["fit", "-c", "run.yaml", "--ckpt_path", str(last), "--trainer.default_root_dir", "on"]
    assert [each.wait(timeout=240) for each in start(names, tmp_path, *goes_on)] == [0, 0], told(tmp_path)
    for name, value in weights(tmp_path, "alone").items():
        torch.testing.assert_close(weights(tmp_path, "on")[name], value, rtol=1e-4, atol=1e-6, msg=name)
