"""Attacks by files: pickles, names of code, names of files, sizes. Nothing is run, imported or written outside."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from backbones import Backbone, HeadsetError
from headset import Headset, LitHeadset
from headset.checkpoint import read_checkpoint
from headset.folder import new_folder
from headset.info import describe_path
from headset.main import main
from headset.optim import make_optimizer
from headset.readers import read
from tests.fuzz.material import QUIET, TABLE, content, material

EVIL = {"class_path": "evil.Evil", "init_args": {}}
TOKENIZER = json.dumps({"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"}).encode()


class Bomb:
    """A pickle of it touches a file."""

    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A working directory with a trained checkpoint, and a module that leaves a mark where it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    Path("evil.py").write_text("open('ran', 'w').close()\nclass Evil: pass\n")
    Path("table.csv").write_text(TABLE)
    shutil.copytree(material() / "model", "model")
    yield tmp_path
    assert not Path("ran").exists(), "code of the attack was run"


def edited(path, value, file="evil.ckpt"):
    """A checkpoint in which one value, by its path, is another."""
    *parents, last = path
    top = dict(content())
    here = top
    for key in parents:
        here[key] = dict(here[key])
        here = here[key]
    here[last] = value
    torch.save(top, file)
    return file


def commands(checkpoint):
    predict = ["predict", "--ckpt_path", checkpoint, "--data.predict", "table.csv", "--overwrite", "true", *QUIET]
    test = ["test", "--ckpt_path", checkpoint, "--data.sources.one.test", "table.csv", *QUIET]
    fit = ["fit", "--ckpt_path", checkpoint, "--trainer.max_epochs", "2", "--trainer.max_steps", "2", *QUIET]
    return {"info": ["info", checkpoint], "predict": predict, "test": test, "fit": fit}


def run(capsys, *arguments):
    """The exit code and what is said on the way out."""
    capsys.readouterr()
    try:
        code = main(arguments)
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return code, said


@pytest.mark.parametrize("where", ["optimizer_states", "callbacks", "loops", "state_dict", "hyper_parameters", "top"])
@pytest.mark.parametrize("zipped", [True, False])
def test_no_pickle_is_loaded(capsys, where, zipped):
    top = dict(content())
    if where == "top":
        top = Bomb()
    elif isinstance(top[where], dict):
        top[where] = {**top[where], "bomb": Bomb()}
    else:
        top[where] = [Bomb()]
    torch.save(top, "evil.ckpt", _use_new_zipfile_serialization=zipped)
    for command in ("info", "fit", "predict", "test") if where == "loops" and zipped else ("info",):
        code, said = run(capsys, *commands("evil.ckpt")[command])
        assert code == 1 and "evil.ckpt" in said
    for load in (Headset.from_checkpoint, LitHeadset.load_from_checkpoint, read_checkpoint, describe_path):
        with pytest.raises(HeadsetError, match=r"evil\.ckpt"):
            load("evil.ckpt")


def test_no_pickle_is_loaded_of_other_checkpoints_that_a_run_names(capsys):
    torch.save({"state_dict": Bomb()}, "evil.ckpt")
    Path("raw.ckpt").write_bytes(pickle.dumps(Bomb()))
    good = str(material() / "run.ckpt")
    base = ["fit", "--model.backbone", "model", "--data.train", "table.csv", "--data.validation", "0.5", *QUIET]
    for evil in ("evil.ckpt", "raw.ckpt"):
        assert run(capsys, *base, "--model.start_from", evil)[0] in (1, 2)
        teacher = json.dumps({"teacher": evil})
        heads = ["--model.heads", '{"mood": "SequenceClassification"}']
        assert run(capsys, *base, *heads, "--model.distillation", teacher, "--trainer.max_steps", "1")[0] == 1
        assert run(capsys, "merge", "--ckpt_paths", good, evil, "--output", "both.ckpt")[0] == 1
        assert run(capsys, "export", "--ckpt_path", evil, "--output_dir", "out")[0] == 1


def test_no_pickle_is_loaded_of_a_backbone(capsys):
    (Path("model") / "model.safetensors").unlink()
    buffer = io.BytesIO()
    torch.save({"embeddings.word_embeddings.weight": Bomb()}, buffer)
    for content_ in (buffer.getvalue(), pickle.dumps(Bomb())):
        Path("model/pytorch_model.bin").write_bytes(content_)
        with pytest.raises(HeadsetError, match="model"):
            Backbone.from_pretrained("model")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("optimizer", EVIL),
        ("optimizer", {"class_path": "torch.optim.evil.Evil", "init_args": {}}),
        ("optimizer", {"class_path": "torch.optim.AdamW", "init_args": {"lr": EVIL}}),
        ("optimizer", {"class_path": "torch.optim.AdamW", "init_args": {"lr": "{class_path: evil.Evil}"}}),
        ("optimizer", {"class_path": "torch.optim.AdamW", "init_args": {"evil": "evil.Evil"}}),
        ("scheduler", "evil.Evil"),
        ("scheduler", EVIL),
        ("scheduler_args", {"lr_lambda": EVIL}),
        ("distillation", {"teacher": "evil.Evil"}),
        ("distillation", EVIL),
        ("parameter_groups", [EVIL]),
        ("parameter_groups", "evil.yaml"),
        ("loss_weights", "evil.yaml"),
        ("labels", {"mood": "evil.yaml"}),
        ("start_from", "bomb.ckpt"),
        ("processor", {"tokenizer_config.json": TOKENIZER, "evil.py": b"open('ran', 'w')\nclass Evil: pass"}),
        ("backbone.class_name", "evil.Evil"),
        ("backbone.attn_implementation", "evil/kernel"),
        ("backbone.attn_implementation", "paged|evil/kernel:main"),
        ("backbone.lora", EVIL),
        ("backbone.lora", {"target_modules": "all-linear", "auto_mapping": {"parent_library": "evil"}}),
        ("backbone.quantization", EVIL),
        ("backbone.config.auto_map", {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}),
        ("backbone.config._attn_implementation", "evil/kernel"),
        ("heads.mood.class_path", "evil.Evil"),
        ("heads.mood.init_args", {"pooling": EVIL}),
    ],
)
def test_nothing_that_a_checkpoint_names_is_run(capsys, path, value):
    Path("evil.yaml").write_text(json.dumps(EVIL))
    torch.save(Bomb(), "bomb.ckpt")
    file = edited(["hyper_parameters", *path.split(".")], value)
    assert run(capsys, *commands(file)["fit"])[0] in (0, 1, 2)
    for load in (Headset.from_checkpoint, LitHeadset.load_from_checkpoint, describe_path):
        try:
            load(file)
        except HeadsetError as error:
            assert file in str(error)
    assert "evil" not in sys.modules


def test_nothing_is_run_that_lightning_reads_of_a_checkpoint(capsys):
    names = dict.fromkeys(("hparams_type", "hparams_name", "datamodule_hparams_name", "instantiator"), "evil.Evil")
    file = "evil.ckpt"
    torch.save({**content(), **names, "callbacks": {"evil.Evil": {}}}, file)
    assert run(capsys, *commands(file)["fit"])[0] in (0, 1)
    assert "evil" not in sys.modules


@pytest.mark.parametrize(
    "source", [{"path": "evil.py"}, {"path": "pandas", "data_files": "bomb.pkl"}, "bomb.pkl", {"path": "scripts"}]
)
def test_no_code_is_run_of_a_data_set(source):
    Path("bomb.pkl").write_bytes(pickle.dumps(Bomb()))
    Path("scripts").mkdir()
    Path("scripts/scripts.py").write_text("open('ran', 'w')")
    with pytest.raises(HeadsetError):
        read(source, "train")


def test_a_data_set_of_pickles_is_refused_by_name():
    with pytest.raises(HeadsetError, match="pickles"):
        read({"path": "pandas", "data_files": "bomb.pkl"}, "train")


@pytest.mark.parametrize(
    "name", ["../evil.txt", "/tmp/headset-evil.txt", "a/../../evil.txt", "..", ".", "", "a\0b", "a\\b", "x" * 300]
)
def test_names_of_files_in_checkpoints_stay_in_their_folder(capsys, name):
    files = content()["hyper_parameters"]["processor"]
    file = edited(["hyper_parameters", "processor"], {**files, name: b"x"})
    with pytest.raises(HeadsetError, match=r"evil\.ckpt: .*not a plain file name"):
        Headset.from_checkpoint(file)
    if name == "../evil.txt":
        code, said = run(capsys, *commands(file)["predict"])
        assert code == 1 and "not a plain file name" in said
    assert not any(Path(place, "evil.txt").exists() for place in (".", "..", "/tmp"))
    assert not Path("/tmp/headset-evil.txt").exists()


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "..", "a/b", "a\0b", "a\n", ""])
def test_heads_whose_names_are_paths_are_refused(name):
    described = content()["hyper_parameters"]
    heads = {name: described["heads"]["mood"]}
    changed = {**described, "heads": heads, "labels": {name: described["labels"]["mood"]}, "states": {name: "trained"}}
    file = edited(["hyper_parameters"], changed)
    with pytest.raises(HeadsetError, match=r"evil\.ckpt: A head cannot be named"):
        Headset.from_checkpoint(file)


def test_links_in_folders_are_not_followed_where_they_are_replaced():
    Path("kept").mkdir()
    Path("kept/config.json").write_text("{}")
    Path("link").symlink_to("kept")
    with new_folder("link", overwrite=True) as draft:
        (draft / "config.json").write_text("[]")
    assert Path("kept/config.json").read_text() == "{}" and Path("link/config.json").read_text() == "[]"


def test_tokenizers_and_models_with_code_of_their_own_are_refused():
    shutil.copy("evil.py", "model/evil.py")
    for file, auto in (("tokenizer_config.json", "AutoTokenizer"), ("config.json", "AutoModel")):
        path = Path("model", file)
        before = path.read_text()
        told = {**json.loads(before), "auto_map": {auto: "evil.Evil", "AutoConfig": "evil.Evil"}, "model_type": "evil"}
        path.write_text(json.dumps({**told, "tokenizer_class": "Evil"}))
        with pytest.raises(HeadsetError):
            Backbone.from_pretrained("model") if file == "config.json" else Headset.from_transformers("model")
        path.write_text(before)


def test_a_chat_template_is_not_rendered():
    files = dict(content()["hyper_parameters"]["processor"])
    template = "{% set x = cycler.__init__.__globals__.os.system('touch ran') %}"
    files["chat_template.jinja"] = template.encode()
    headset = Headset.from_checkpoint(edited(["hyper_parameters", "processor"], files))
    assert headset.predict(["good"])


def test_yaml_makes_nothing_but_plain_values(capsys):
    for tag in ("!!python/object/apply:os.system ['touch ran']", "!!python/name:evil.Evil", "!!python/module:evil"):
        heads = "{mood: SequenceClassification}"
        Path("run.yaml").write_text(f"model:\n  backbone: model\n  heads: {heads}\n  labels: {tag}\n")
        code, said = run(capsys, "fit", "-c", "run.yaml", *QUIET)
        assert code in (1, 2) and "headset: error: " in said
    source = ["--data.sources.one.train", "!!python/object/apply:os.system ['touch ran']"]
    assert run(capsys, "fit", "-c", "run.yaml", *source, *QUIET)[0] in (1, 2)


@pytest.mark.parametrize("key", ["attn_implementation", "config"])
def test_attention_of_the_hub_is_refused(key):
    value = "paged|evil/kernel@main"
    if key == "config":
        value = {**content()["hyper_parameters"]["backbone"]["config"], "sub": {"_attn_implementation": value}}
    with pytest.raises(HeadsetError, match="is not a checkpoint of a headset"):
        read_checkpoint(edited(["hyper_parameters", "backbone", key], value))


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_hidden_layers", 10**9), ("hidden_size", 10**9), ("vocab_size", 10**12), ("intermediate_size", -1)],
)
def test_absurd_sizes_are_refused_before_anything_is_made(key, value):
    file = edited(["hyper_parameters", "backbone", "config", key], value)
    for load in (Headset.from_checkpoint, LitHeadset.load_from_checkpoint, describe_path):
        with pytest.raises(HeadsetError, match=rf"evil\.ckpt: The backbone's {key} is {value}"):
            load(file)
    shutil.copytree(material() / "saved", "saved")
    description = json.loads(Path("saved/headset.json").read_text())
    description["backbone"]["config"][key] = value
    Path("saved/headset.json").write_text(json.dumps(description))
    with pytest.raises(HeadsetError, match=rf"saved: The backbone's {key} is {value}"):
        Headset.from_pretrained("saved")


def test_tensors_that_are_larger_than_the_file_are_refused():
    weights = dict(content()["state_dict"])
    name = next(iter(weights))
    with pytest.raises(HeadsetError, match=r"evil\.ckpt.* is larger than what the file holds of it"):
        read_checkpoint(edited(["state_dict"], {**weights, name: torch.zeros(1).expand(10**6, 10**6)}))


def test_values_within_values_do_not_hang():
    nested = ["x"]
    for _ in range(64):
        nested = [nested, nested]
    endless = []
    endless.append(endless)
    for value in (nested, endless):
        with pytest.raises(HeadsetError, match=r"evil\.ckpt"):
            read_checkpoint(edited(["hyper_parameters", "run"], {"metrics": value}))


def test_an_optimizer_of_a_file_is_an_optimizer():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "scale": 1}]
    for path in ("transformers.optimization.partial", "transformers.optimization.warnings", "torch.optim.lr_scheduler"):
        with pytest.raises(HeadsetError, match="not imported from a file"):
            make_optimizer(groups, {"class_path": path, "init_args": {}})


def test_info_imports_nothing():
    edited(["hyper_parameters", "heads", "mood", "class_path"], "evil.Evil")
    shutil.copytree(material() / "saved", "saved")
    description = json.loads(Path("saved/headset.json").read_text())
    description["heads"]["mood"]["class_path"] = "evil.Evil"
    Path("saved/headset.json").write_text(json.dumps(description))
    shutil.copytree(material() / "tuned", "tuned")
    config = json.loads(Path("tuned/config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "evil.Evil"}, "architectures": ["evil.Evil"], "model_type": "evil"}
    Path("tuned/config.json").write_text(json.dumps(config))
    shutil.copy("evil.py", "tuned/evil.py")
    code = "import sys\nfrom headset.main import main\nfor path in sys.argv[1:]: assert main(['info', path]) == 0\n"
    code += "assert 'evil' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, "evil.ckpt", "saved", "tuned"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
