"""The registry of heads: what there is, where it comes from, and how a name becomes a class.

Nothing here imports torch until a head is asked for: the listing reads docstrings from source files.
"""

import ast
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from backbones.errors import HeadsetError, did_you_mean

if TYPE_CHECKING:
    from heads.base import Head

__all__ = [
    "HeadEntry",
    "list_heads",
    "load_all_heads",
    "load_head_class",
    "make_head",
    "register_head",
    "unknown_argument",
]

HeadT = TypeVar("HeadT", bound="Head")

ENTRY_POINTS = "headset.heads"
BUILT_IN = "built-in"
REGISTERED = "registered here"

_registered: dict[str, type["Head"]] = {}


@dataclass(frozen=True)
class HeadEntry:
    """One head of the registry.

    Args:
        name: What a configuration calls it: the name of its class.
        class_path: Where the class is: ``package.module.Class``.
        summary: The first line of its docstring.
        origin: ``built-in``, the name of the distribution that brings it, or ``registered here``.
    """

    name: str
    class_path: str
    summary: str
    origin: str


def register_head(head: type[HeadT]) -> type[HeadT]:
    """Class decorator that gives a head its place in the registry, under the name of the class.

    Raises:
        HeadsetError: It is not a head, a method is missing, or another class has the name already.

    Example:
        >>> from heads import Head, register_head  # doctest: +SKIP
        >>> @register_head
        ... class MyHead(Head): ...
    """
    name, path = head.__name__, _path(head)
    _check(head, path)
    other = list_heads().get(name)
    if other is not None and other.class_path != path:
        raise _collision(name, f"{other.class_path} ({other.origin})", f"{path} ({REGISTERED})")
    _registered[name] = head
    return head


def list_heads() -> dict[str, HeadEntry]:
    """Every head by name: the built-in ones, those of installed plugins, those registered in this process.

    Nothing is imported for it.

    Raises:
        HeadsetError: Two plugins bring different heads of one name, or one has the name of a built-in head.
    """
    found = {path.rpartition(".")[2]: _entry(path, BUILT_IN) for path in _built_in_paths()}
    for point in entry_points(group=ENTRY_POINTS):
        entry = _entry(point.value.replace(":", "."), point.dist.name if point.dist else "unknown distribution")
        other = found.setdefault(entry.name, entry)
        if other.class_path != entry.class_path:
            raise _collision(entry.name, f"{other.class_path} ({other.origin})", f"{entry.class_path} ({entry.origin})")
    for name, head in _registered.items():
        found.setdefault(name, HeadEntry(name, _path(head), _first_line(head.__doc__), REGISTERED))
    return found


def load_head_class(name_or_path: str) -> type["Head"]:
    """The class of a head, imported now.

    Args:
        name_or_path: The name of a head in the registry, or an import path: ``my_heads.MyHead``.

    Raises:
        HeadsetError: There is no such head, its module cannot be imported, or it is not a head.
    """
    return _load(name_or_path, list_heads())


def load_all_heads() -> None:
    """Import every head there is, so that a parser finds their classes by name.

    Raises:
        HeadsetError: As `load_head_class`.
    """
    entries = list_heads()
    for name in entries:
        _load(name, entries)


def _load(name_or_path: str, entries: Mapping[str, HeadEntry]) -> type["Head"]:
    entry = entries.get(name_or_path)
    if entry is None and "." not in name_or_path:
        raise _unknown_head(name_or_path)
    path = entry.class_path if entry else name_or_path
    imported = _imported(path)
    return _check(_import(path, entries) if imported is None else imported, path)


def make_head(spec: str | Mapping[str, Any], trusted: bool) -> "Head":
    """A head from its specification, as a checkpoint holds it.

    Args:
        spec: A name or path, or ``{"class_path": ..., "init_args": {...}}``.
        trusted: Whether a module that is neither registered nor imported yet may be imported, which runs its code.

    Raises:
        HeadsetError: The head is not known and not trusted, or its arguments do not fit.
    """
    spec = {"class_path": spec} if isinstance(spec, str) else spec
    path = spec["class_path"]
    if not (trusted or _known(path)):
        raise HeadsetError(
            f"The head {path} is not registered here, and importing it would run the code of "
            f"{path.rpartition('.')[0]}. If you trust it, import that module first, or pass trust_heads=True "
            "(on the command line: --trust_heads true)."
        )
    head = load_head_class(path)
    init_args = dict(spec.get("init_args") or {})
    parameters = _accepted_arguments(head)
    for name in init_args:
        if name not in parameters:
            raise unknown_argument(head, name)
    lacking = [name for name, value in parameters.items() if value.default is value.empty and name not in init_args]
    if lacking:
        raise HeadsetError(f"{head.__name__} needs a value for: {', '.join(lacking)}.")
    return head(**init_args)


def _unknown_head(name: str) -> HeadsetError:
    names = list(list_heads())
    return HeadsetError(
        f"There is no head {name!r}.{did_you_mean(name, names)} Registered heads: {', '.join(names)}. "
        "A head of your own is named by its import path: my_heads.MyHead."
    )


def unknown_argument(kind: type, name: str) -> HeadsetError:
    """The error for an argument that a head, or another class of a configuration, does not take."""
    accepted = list(_accepted_arguments(kind))
    listed = ", ".join(accepted) or "no arguments"
    return HeadsetError(
        f"{kind.__name__} has no argument {name!r}.{did_you_mean(name, accepted)} {kind.__name__} accepts: {listed}."
    )


def _accepted_arguments(kind: type) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(kind).parameters
    return {
        name: value for name, value in parameters.items() if value.kind not in (value.VAR_POSITIONAL, value.VAR_KEYWORD)
    }


def _built_in_paths() -> list[str]:
    """The names of ``heads/__init__.pyi`` that stand in a module of their own: ``XyHead`` in ``xy_head``."""
    stub = ast.parse(Path(__file__).with_name("__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return [
        f"heads.{node.module}.{alias.name}"
        for node in imports
        for alias in node.names
        if node.module == _snake(alias.name)
    ]


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _entry(class_path: str, origin: str) -> HeadEntry:
    module, _, name = class_path.rpartition(".")
    try:
        source = _source(module)
        tree = ast.parse(source.read_bytes()) if source else ast.Module([], [])
    except (SyntaxError, ValueError, OSError) as error:
        return HeadEntry(name, class_path, f"cannot be read: {error}", origin)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    return HeadEntry(name, class_path, _first_line(ast.get_docstring(classes[0]) if classes else None), origin)


def _source(module: str) -> Path | None:
    """The source file of a module, found without importing its package."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    if not rest and spec.origin:
        return Path(spec.origin)
    folders = [Path(folder, *rest) for folder in spec.submodule_search_locations or []]
    places = [place for folder in folders for place in (folder.with_suffix(".py"), folder / "__init__.py")]
    return next((place for place in places if place.is_file()), None)


def _first_line(docstring: str | None) -> str:
    return (docstring or "").strip().partition("\n")[0]


def _path(head: type) -> str:
    return f"{head.__module__}.{head.__qualname__}"


def _collision(name: str, first: str, second: str) -> HeadsetError:
    return HeadsetError(f"Two heads are called {name}: {first} and {second}. Rename one of the classes.")


def _known(path: str) -> bool:
    """Whether using this head imports nothing that the user has not installed or imported as heads."""
    entries = list_heads()
    listed = path in entries or path in {entry.class_path for entry in entries.values()}
    return listed or path.startswith("heads.") or _imported(path) is not None


def _imported(path: str) -> object | None:
    """The class at a path if it is here already; nothing is imported, also not by a module's ``__getattr__``."""
    for head in _registered.values():
        if _path(head) == path:
            return head
    module, _, name = path.rpartition(".")
    return vars(sys.modules[module]).get(name) if module in sys.modules else None


def _import(path: str, entries: Mapping[str, HeadEntry]) -> object:
    module_name, _, name = path.rpartition(".")
    plugin = next((e.origin for e in entries.values() if e.class_path == path and e.origin != BUILT_IN), None)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        whose = f" of the plugin {plugin}" if plugin else ""
        remedy = f" Repair the plugin, or remove it: pip uninstall {plugin}." if plugin else ""
        cause = f"{type(error).__name__}: {error}"
        raise HeadsetError(f"The head {path}{whose} cannot be imported: {cause}.{remedy}") from error
    if not hasattr(module, name):
        public = [key for key in dir(module) if key[0] != "_"]
        whose = f" (plugin {plugin})" if plugin else ""
        raise HeadsetError(f"There is no {name!r} in the module {module_name}{whose}.{did_you_mean(name, public)}")
    return getattr(module, name)


def _check(head: object, path: str) -> type["Head"]:
    from heads.base import Head

    if not (isinstance(head, type) and issubclass(head, Head)):
        raise HeadsetError(f"{path} is not a head: it is not a subclass of heads.Head.")
    missing = sorted(getattr(head, "__abstractmethods__", ()))
    if missing:
        raise HeadsetError(f"The head {path} is not complete: it lacks {', '.join(missing)}.")
    return head
