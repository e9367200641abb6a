import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from backbones.errors import HeadsetError
from heads import Head, SequenceClassification, TokenClassification
from heads.registry import list_heads, load_head_class, make_head, register_head

METHODS = """
    def build(self, context): ...
    def forward(self, features, batch): ...
    def loss(self, output, labels): ...
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads, modules and paths of one test are gone in the next."""
    monkeypatch.setattr("heads.registry._registered", {})
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def own_module(tmp_path: Path) -> Path:
    """A researcher's file ``my_heads.py`` in a folder on the path."""
    sys.path.insert(0, str(tmp_path))
    file = tmp_path / "my_heads.py"
    file.write_text(
        "from heads import Head, register_head\n"
        "@register_head\nclass MyHead(Head):\n"
        '    """Mine.\n\n    More of it."""\n'
        "    def __init__(self, width: int = 3) -> None:\n        super().__init__()\n        self.width = width\n"
        f"{METHODS}\n"
        "class Plain: ...\n"
        "class Unfinished(Head):\n    def build(self, context): ...\n"
    )
    importlib.invalidate_caches()
    return file


def install_plugin(folder: Path, distribution: str, module: str, source: str, target: str) -> None:
    """Put an installed distribution with one head on the path."""
    folder.mkdir()
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[headset.heads]\nit = {target}\n")
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()


def test_built_in_heads_are_listed_without_torch() -> None:
    code = (
        "import sys; from heads.registry import list_heads; print(*list_heads()); print('torch' in sys.modules);"
        "import headset, backbones.errors; from heads import SequenceClassification; print('lightning' in sys.modules)"
    )
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert {"Pooling", "SequenceClassification", "TokenClassification"} <= set(lines[0].split())
    assert lines[1:] == ["False", "False"]


def test_entry_of_a_built_in_head() -> None:
    entry = list_heads()["SequenceClassification"]
    assert entry.class_path == "heads.sequence_classification.SequenceClassification"
    assert entry.summary == (SequenceClassification.__doc__ or "").splitlines()[0]
    assert entry.origin == "built-in"
    assert load_head_class("SequenceClassification") is SequenceClassification
    assert load_head_class("heads.TokenClassification") is TokenClassification


def test_register_here(own_module: Path) -> None:
    own = load_head_class("my_heads.MyHead")
    assert list_heads()["MyHead"].class_path == "my_heads.MyHead"
    assert list_heads()["MyHead"].summary == "Mine."
    assert list_heads()["MyHead"].origin == "registered here"
    assert load_head_class("MyHead") is own
    reloaded = importlib.reload(sys.modules["my_heads"]).MyHead
    assert reloaded is not own and load_head_class("MyHead") is reloaded


def test_collisions_name_both_places(own_module: Path) -> None:
    first = load_head_class("my_heads.MyHead")
    second = type("MyHead", (first,), {"__module__": "elsewhere"})
    with pytest.raises(HeadsetError, match=r"MyHead.*my_heads\.MyHead.*elsewhere\.MyHead"):
        register_head(second)
    shadow = type("SequenceClassification", (first,), {"__module__": "elsewhere"})
    with pytest.raises(HeadsetError, match=r"heads\.sequence_classification.*elsewhere\."):
        register_head(shadow)


def test_plugin(tmp_path: Path) -> None:
    source = f'from heads import Head\nclass Spans(Head):\n    """Spans of text."""{METHODS}'
    install_plugin(tmp_path / "a", "acme-spans", "acme_spans", source, "acme_spans:Spans")
    entry = list_heads()["Spans"]
    assert (entry.class_path, entry.summary, entry.origin) == ("acme_spans.Spans", "Spans of text.", "acme-spans")
    assert "acme_spans" not in sys.modules
    assert load_head_class("Spans").__doc__ == "Spans of text."
    assert type(make_head("acme_spans.Spans", trusted=False)) is load_head_class("Spans")
    install_plugin(tmp_path / "b", "other-spans", "other_spans", source, "other_spans:Spans")
    with pytest.raises(HeadsetError, match=r"Spans.*spans.*\(.*-spans\).*\(.*-spans\)"):
        list_heads()


def test_failing_plugin(tmp_path: Path) -> None:
    install_plugin(tmp_path / "a", "acme-broken", "acme_broken", "import nowhere_to_be_found", "acme_broken:Broken")
    assert list_heads()["Broken"].origin == "acme-broken"
    with pytest.raises(HeadsetError, match=r"acme-broken.*No module named 'nowhere_to_be_found'.*pip uninstall"):
        load_head_class("Broken")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("SequenceClasification", r"Did you mean 'SequenceClassification'\? Registered heads: .*TokenClassification"),
        ("my_headz.MyHead", r"my_headz\.MyHead.*No module named 'my_headz'"),
        ("my_heads.MyHaed", r"no 'MyHaed' in the module my_heads\. Did you mean 'MyHead'\?"),
        ("my_heads.Plain", r"my_heads\.Plain is not a head"),
        ("my_heads.Unfinished", r"lacks forward, loss"),
        ("torch.nn.Linear", "not a head"),
    ],
)
def test_wrong_names(own_module: Path, name: str, message: str) -> None:
    with pytest.raises(HeadsetError, match=message):
        load_head_class(name)


def test_make_head_imports_only_what_is_trusted(own_module: Path) -> None:
    spec = {"class_path": "my_heads.MyHead", "init_args": {"width": 5}}
    with pytest.raises(HeadsetError, match=r"my_heads\.MyHead.*--trust_heads true"):
        make_head(spec, trusted=False)
    assert "my_heads" not in sys.modules
    assert make_head(spec, trusted=True).spec() == spec
    assert make_head(spec, trusted=False).spec() == spec  # imported by now
    with pytest.raises(HeadsetError, match=r"not a head"):
        make_head("os.system", trusted=False)


def test_make_head_arguments(own_module: Path) -> None:
    assert isinstance(make_head("SequenceClassification", trusted=False), SequenceClassification)
    with pytest.raises(
        HeadsetError, match=r"MyHead has no argument 'widht'. Did you mean 'width'\? MyHead accepts: width\."
    ):
        make_head({"class_path": "my_heads.MyHead", "init_args": {"widht": 5}}, trusted=True)


def test_register_refuses_what_is_not_a_head() -> None:
    with pytest.raises(HeadsetError, match="not a subclass of heads"):
        register_head(dict)  # type: ignore[type-var]
    with pytest.raises(HeadsetError, match="lacks"):
        register_head(type("Nothing", (Head,), {}))


def test_code_that_ends_the_program_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(HeadsetError, match="SystemExit"):
        load_head_class("leaving.Head")
