"""What a piece of code uses: names of its module, attributes, annotations; by reading it, without running it."""

import ast
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from headset.bindings import bound_names

__all__ = ["Annotation", "Fold", "LocalImport", "Origin", "References", "Use"]

Origin = tuple[str, str | None]  # a module, and the name in it, if it is not the module itself
BY_NAME = ("getattr", "hasattr", "setattr", "delattr", "attrgetter", "methodcaller")


@dataclass(frozen=True)
class Use:
    """A name of the module, and the attributes read from it in a row: ``helper.TABLE.size``.

    Args:
        name: The name at the root.
        chain: Its node and those of the attributes; a ``global`` statement where that names it.
        hard: Whether it is needed as soon as the definition runs, and not only when it is called.
        visible: Local names that hide names of the module at this place.
        origin: Where a function imports it from, if it does.
        stored: Whether the last of the chain is assigned to.
    """

    name: str
    chain: tuple[ast.AST, ...]
    hard: bool
    visible: frozenset[str]
    origin: Origin | None = None
    stored: bool = False


@dataclass(frozen=True)
class Annotation:
    """An annotation: of an argument, a result or a variable (``owner``), and what it uses, also in quotes."""

    owner: ast.AST
    node: ast.expr
    uses: tuple[Use, ...]
    quoted: tuple[Use, ...]


@dataclass(frozen=True)
class Fold:
    """An ``if`` whose condition is known, and the statements of it that stay."""

    node: ast.If
    kept: tuple[ast.stmt, ...]


@dataclass(frozen=True)
class LocalImport:
    """An import inside a function, without the names that come from code that is carried along."""

    node: ast.Import | ast.ImportFrom
    rest: tuple[ast.alias, ...]


@dataclass
class _Scope:
    is_class: bool
    names: dict[str, Origin | None] = field(default_factory=dict)
    globals: set[str] = field(default_factory=set)


class References(ast.NodeVisitor):
    """Collects what code uses.

    Args:
        known: Conditions whose value is known, as ``ast.unparse`` writes them.
        own: What an import names, if that is code to carry along: takes a statement and one of its names.
    """

    def __init__(
        self, known: Mapping[str, bool], own: Callable[[ast.Import | ast.ImportFrom, ast.alias], Origin | None]
    ) -> None:
        self.known = known
        self.own = own
        self.uses: list[Use] = []
        self.annotations: list[Annotation] = []
        self.folds: list[Fold] = []
        self.imports: list[LocalImport] = []
        self.packages: set[str] = set()  # that functions import
        self.attributes: set[str] = set()
        self.of_self: set[str] = set()  # those of self, of super() and of the class whose body is read
        self.lookups: set[str] = set()  # names on which attributes are looked up by computed names; "" for others
        self.whole_module = False  # names of the module are looked up so
        self._scopes: list[_Scope] = []
        self._depth = 0
        self._tried = 0

    def visit_all(self, nodes: Iterable[ast.AST], in_class: Iterable[str] | None = None) -> "References":
        """Read several nodes; ``in_class``: in the body of a class, after these names of it."""
        if in_class is not None:
            self._scopes.append(_Scope(True, dict.fromkeys(in_class)))
        for node in nodes:
            self.visit(node)
        if in_class is not None:
            self._scopes.pop()
        return self

    def visit_Name(self, node: ast.Name) -> None:  # noqa: D102
        self._use(node, ())
        if isinstance(node.ctx, ast.Store) and self._scopes and self._scopes[-1].is_class:
            self._scopes[-1].names[node.id] = None

    def visit_Attribute(self, node: ast.Attribute) -> None:  # noqa: D102
        chain: list[ast.Attribute] = [node]
        while isinstance(chain[-1].value, ast.Attribute):
            chain.append(chain[-1].value)
        root = chain[-1].value
        if isinstance(root, ast.Name):
            if root.id in ("self", "cls"):
                self.of_self.add(chain[-1].attr)
                self.attributes.update(part.attr for part in chain[:-1])
                self._use(root, ())
                return
            self._use(root, tuple(reversed(chain)), stored=not isinstance(node.ctx, ast.Load))
            return
        if isinstance(root, ast.Call) and isinstance(root.func, ast.Name) and root.func.id == "super":
            self.of_self.add(chain.pop().attr)
        self.attributes.update(part.attr for part in chain)
        self.visit(root)

    def visit_Call(self, node: ast.Call) -> None:  # noqa: D102
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        if name in BY_NAME:
            looked_up = node.args[1:2] if name in BY_NAME[:4] else node.args
            for word in looked_up:
                if isinstance(word, ast.Constant) and isinstance(word.value, str):
                    parts = word.value.split(".")
                    self.attributes.update(parts)
                    self.of_self.update(parts)
                else:
                    self.lookups.add(_root(node.args[0]) if name in BY_NAME[:4] and node.args else "")
        if name in ("globals", "eval", "exec"):
            self.lookups.add("")
            self.whole_module = True
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:  # noqa: D102
        self._bind_in_class(node.name)
        for part in [*node.decorator_list, *node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)]:
            self.visit(part)
        for argument in _arguments(node.args):
            if argument.annotation is not None:
                self._annotate(argument, argument.annotation)
        if node.returns is not None:
            self._annotate(node, node.returns)
        self._inside(node.body, [argument.arg for argument in _arguments(node.args)])

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:  # noqa: D102
        for part in [*node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)]:
            self.visit(part)
        self._inside([node.body], [argument.arg for argument in _arguments(node.args)])

    def visit_ClassDef(self, node: ast.ClassDef) -> None:  # noqa: D102
        for part in [*node.decorator_list, *node.bases, *node.keywords]:
            self.visit(part)
        self.visit_all(node.body, in_class=())
        self._bind_in_class(node.name)

    def visit_ListComp(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:  # noqa: D102
        self.visit(node.generators[0].iter)
        names = bound_names([generator.target for generator in node.generators])[0]
        self._scopes.append(_Scope(False, dict.fromkeys(names)))
        for index, generator in enumerate(node.generators):
            for part in [generator.target, *([generator.iter] if index else []), *generator.ifs]:
                self.visit(part)
        for part in [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]:
            self.visit(part)
        self._scopes.pop()

    visit_SetComp = visit_GeneratorExp = visit_DictComp = visit_ListComp

    def visit_Assign(self, node: ast.Assign | ast.AugAssign) -> None:  # noqa: D102
        self.visit(node.value)  # before the target: in a class body, `x = x` reads the module's
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            self.visit(target)

    visit_AugAssign = visit_Assign

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:  # noqa: D102
        self._annotate(node, node.annotation)
        if node.value is not None:
            self.visit(node.value)
        self.visit(node.target)

    def visit_If(self, node: ast.If) -> None:  # noqa: D102
        value = self.known.get(ast.unparse(node.test))
        if value is None:
            self.generic_visit(node)
            return
        kept = tuple(node.body if value else node.orelse)
        while len(kept) == 1 and isinstance(kept[0], ast.If) and ast.unparse(kept[0].test) in self.known:
            kept = tuple(kept[0].body if self.known[ast.unparse(kept[0].test)] else kept[0].orelse)
        self.folds.append(Fold(node, kept))
        self.visit_all(kept)

    def visit_Try(self, node: ast.Try) -> None:  # noqa: D102
        self._tried += 1  # what is imported here is not needed
        self.generic_visit(node)
        self._tried -= 1

    def visit_Global(self, node: ast.Global) -> None:  # noqa: D102
        self.uses += [Use(name, (node,), False, frozenset()) for name in node.names]

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:  # noqa: D102
        rest = tuple(alias for alias in node.names if self.own(node, alias) is None)
        if len(rest) < len(node.names):
            self.imports.append(LocalImport(node, rest))
        for alias in () if self._tried else rest:
            name = node.module or "" if isinstance(node, ast.ImportFrom) else alias.name
            self.packages.add(name.partition(".")[0])

    visit_ImportFrom = visit_Import

    def _inside(self, body: list[ast.stmt] | list[ast.expr], arguments: list[str]) -> None:
        """Read the body of a function."""
        names, of_module, imports = bound_names(body)
        scope = _Scope(False, dict.fromkeys({*arguments, *names} - of_module), of_module)
        for node in imports:
            for alias in node.names:
                origin = self.own(node, alias)
                if origin is not None:
                    scope.names[alias.asname or alias.name.partition(".")[0]] = origin
        self._scopes.append(scope)
        self._depth += 1
        for part in body:
            self.visit(part)
        self._depth -= 1
        self._scopes.pop()

    def _bind_in_class(self, name: str) -> None:
        if self._scopes and self._scopes[-1].is_class:
            self._scopes[-1].names[name] = None

    def _use(self, root: ast.Name, attributes: tuple[ast.Attribute, ...], stored: bool = False) -> None:
        origin: Origin | None = None
        scopes = [scope for index, scope in enumerate(reversed(self._scopes)) if not (scope.is_class and index)]
        for scope in scopes:
            if root.id in scope.globals:
                break
            if root.id in scope.names:
                origin = scope.names[root.id]
                if origin is None:
                    self.attributes.update(part.attr for part in attributes)
                    if scope.is_class:
                        self.of_self.add(root.id)
                    return
                break
        visible = {name for scope in scopes for name, value in scope.names.items() if value is None}
        if isinstance(root.ctx, ast.Store) and self._scopes and self._scopes[-1].is_class:
            return
        self.uses.append(
            Use(root.id, (root, *attributes), self._depth == 0, frozenset(visible), origin, stored and bool(attributes))
        )

    def _annotate(self, owner: ast.AST, node: ast.expr) -> None:
        inner, quoted = References(self.known, self.own), References(self.known, self.own)
        inner._scopes = quoted._scopes = self._scopes
        for part in ast.walk(node):
            if isinstance(part, ast.Constant) and isinstance(part.value, str) and not _in_literal(part, node):
                try:
                    quoted.visit(ast.parse(part.value, mode="eval").body)
                except SyntaxError:
                    continue
        inner.visit(node)
        self.annotations.append(Annotation(owner, node, tuple(inner.uses), tuple(quoted.uses)))


def _root(node: ast.expr) -> str:
    """The name that an expression like ``a.b.c`` begins with."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _arguments(arguments: ast.arguments) -> list[ast.arg]:
    stars = [one for one in (arguments.vararg, arguments.kwarg) if one is not None]
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *stars]


def _in_literal(constant: ast.Constant, annotation: ast.expr) -> bool:
    """Whether a string stands in ``Literal[...]``, where it names nothing."""
    return any(
        isinstance(part, ast.Subscript) and ast.unparse(part.value).endswith("Literal") and constant in ast.walk(part)
        for part in ast.walk(annotation)
    )
