"""Source files that are carried along: their statements, what these bind, and changes to their text."""

import ast
import importlib
import importlib.util
import re
import site
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType

from backbones.errors import HeadsetError
from headset.bindings import FUNCTIONS, bound_names
from headset.references import Origin

__all__ = ["FRAMEWORK", "Edit", "Source", "Unit", "is_carried", "load_source"]

FRAMEWORK = ("backbones", "heads", "headset")
Edit = tuple[int, int, bytes]  # where the old text begins and ends, and the new text
DEFINITIONS = (*FUNCTIONS, ast.ClassDef)


@dataclass(eq=False)
class Unit:
    """Statements of a module that are carried together: one, or several on a line.

    Args:
        source: The module.
        nodes: The statements.
        binds: Names that they define.
        changes: Names whose value they change in place, at import: ``TABLE["x"] = 1``, ``TABLE.update(...)``.
        imports: Imports of other carried modules inside them.
    """

    source: "Source"
    nodes: list[ast.stmt]
    binds: set[str] = field(default_factory=set)
    changes: set[str] = field(default_factory=set)
    imports: list[tuple[ast.Import | ast.ImportFrom, ast.alias]] = field(default_factory=list)

    @property
    def definition(self) -> ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | None:
        """The one function or class that this is, if it is."""
        node = self.nodes[0]
        return node if len(self.nodes) == 1 and isinstance(node, DEFINITIONS) else None


class Source:
    """A module as text.

    Args:
        module: The module, imported.
        path: Its file.
    """

    def __init__(self, module: ModuleType, path: Path) -> None:
        self.module = module
        self.name = module.__name__
        self.path = path
        self.data = path.read_text(encoding="utf-8-sig").replace("\r\n", "\n").encode()
        self.tree = ast.parse(self.data)
        self.starts = [0, *(match.end() for match in re.finditer(b"\n", self.data)), len(self.data)]
        self.units: list[Unit] = []
        self.imports: dict[str, Origin] = {}
        self.whole_imports: dict[str, set[str]] = {}  # `import a.b` binds a, and needs a.b
        self.stars: list[str] = []
        for node in self.tree.body:
            self._add(node)

    @property
    def framework(self) -> bool:
        """Whether this is code of headset, and not a researcher's."""
        return self.name.partition(".")[0] in FRAMEWORK

    def span(self, node: ast.AST) -> tuple[int, int]:
        """Where a node begins and ends, in bytes."""
        first, last = getattr(node, "lineno", 1), getattr(node, "end_lineno", 1)
        return (
            self.starts[first - 1] + getattr(node, "col_offset", 0),
            self.starts[last - 1] + getattr(node, "end_col_offset", 0),
        )

    def text(self, node: ast.AST) -> str:
        """The text of a node."""
        first, last = self.span(node)
        return self.data[first:last].decode()

    def lines(self, nodes: list[ast.stmt]) -> tuple[int, int]:
        """The lines of statements as a span, with decorators and the comments right above."""
        first = min(min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))]) for node in nodes)
        while first > 1 and self._line(first - 1).lstrip().startswith(b"#") and self._indent(first - 1, first):
            first -= 1
        last = max(node.end_lineno or node.lineno for node in nodes)
        return self.starts[first - 1], self.starts[last]

    def where(self, node: ast.AST) -> str:
        """A place, for messages."""
        return f"{self.path}, line {getattr(node, 'lineno', 1)}"

    def absolute(self, node: ast.ImportFrom) -> str:
        """The module that a ``from`` import names."""
        relative = "." * node.level + (node.module or "")
        return importlib.util.resolve_name(relative, self.module.__package__ or None) if node.level else relative

    def origin(self, node: ast.Import | ast.ImportFrom, alias: ast.alias) -> Origin:
        """What an import binds: a module, or a name in one."""
        if isinstance(node, ast.ImportFrom):
            return self.absolute(node), alias.name
        return (alias.name if alias.asname else alias.name.partition(".")[0]), None

    @cached_property
    def public(self) -> set[str] | None:
        """The names in ``__all__``; None where there is no such list."""
        names = getattr(self.module, "__all__", None)
        return None if names is None else set(names)

    def _line(self, number: int) -> bytes:
        return self.data[self.starts[number - 1] : self.starts[number]]

    def _indent(self, one: int, other: int) -> bool:
        first, second = self._line(one), self._line(other)
        return len(first) - len(first.lstrip()) == len(second) - len(second.lstrip())

    def _add(self, node: ast.stmt) -> None:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            self._add_import(node)
            return
        if isinstance(node, ast.If) and ast.unparse(node.test) in (
            "TYPE_CHECKING",
            "typing.TYPE_CHECKING",
            "__name__ == '__main__'",
        ):
            return
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return
        unit = Unit(self, [node], bound_names([node])[0] - {"__all__"}, set(_changes(node)))
        if not unit.binds and not unit.changes:
            return
        if not isinstance(node, DEFINITIONS):
            for part in bound_names([node])[2]:
                unit.imports += [(part, alias) for alias in part.names]
        before = self.units[-1] if self.units else None
        if before is not None and before.nodes[-1].end_lineno == node.lineno:
            before.nodes.append(node)
            before.binds |= unit.binds
            before.changes |= unit.changes
        else:
            self.units.append(unit)

    def _add_import(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            if alias.name == "*" and isinstance(node, ast.ImportFrom):
                self.stars.insert(0, self.absolute(node))
                continue
            name = alias.asname or alias.name.partition(".")[0]
            self.imports[name] = self.origin(node, alias)
            if isinstance(node, ast.Import) and not alias.asname:
                self.whole_imports.setdefault(name, set()).add(alias.name)


def load_source(name: str) -> Source:
    """The source of a module, which is imported if it is not yet.

    Raises:
        HeadsetError: It has none.
    """
    if name in ("__main__", "__mp_main__"):
        raise HeadsetError(
            "a class of a script or a notebook (__main__) has no module that it could be taken from. Put it into a "
            "file of its own and import it from there."
        )
    module = sys.modules.get(name) or importlib.import_module(name)
    file = getattr(module, "__file__", None)
    if file is None or not file.endswith(".py") or not Path(file).is_file():
        raise HeadsetError(f"the module {name} has no source file. Put the code into a .py file and import it.")
    return Source(module, Path(file))


def is_carried(name: str, own: str) -> bool:
    """Whether code of a module is carried along, and not imported from an installed package.

    Args:
        name: The module.
        own: The top-level name of the module of the head, which is carried also where it is installed.
    """
    top = name.partition(".")[0]
    if top in (*FRAMEWORK, own, "__main__"):
        return True
    if top in sys.stdlib_module_names or top in ("torch", "transformers"):
        return False
    found = sys.modules.get(top)
    spec = getattr(found, "__spec__", None) or (importlib.util.find_spec(top) if found is None else None)
    places = [getattr(found, "__file__", None), *(getattr(spec, "submodule_search_locations", None) or [])]
    place = next((Path(one) for one in places if one), None)
    return place is not None and not any(place.is_relative_to(folder) for folder in _installed())


def _installed() -> Iterator[Path]:
    for folder in {*sysconfig.get_paths().values(), *site.getsitepackages(), site.getusersitepackages()}:
        if folder.rstrip("/").endswith(("-packages", f"python{sys.version_info[0]}.{sys.version_info[1]}")):
            yield Path(folder)


def _changes(node: ast.AST) -> Iterator[str]:
    """Names whose value a statement changes in place when it runs."""
    if isinstance(node, DEFINITIONS):
        return
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Delete)):
        for target in targets:
            if isinstance(target, (ast.Subscript, ast.Attribute)):
                yield from _root(target)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and ast.unparse(node.value.func) != "print":
        yield from _root(node.value.func)
        for argument in node.value.args:
            yield from _root(argument)
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.stmt, ast.ExceptHandler, ast.match_case)):
            yield from _changes(child)


def _root(node: ast.AST | None) -> Iterator[str]:
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    if isinstance(node, ast.Name):
        yield node.id
