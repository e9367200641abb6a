"""Which code a class needs to work: a tree shaker over the source files of headset and of the researcher.

Beginning with one class, every name that its code uses is followed to where it is defined, through modules, imports and
star imports. Methods stay if something that stays names them. Nothing is run for it; modules are imported to see what
their classes inherit.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field

from heads.base import Head
from headset.bindings import bound_names
from headset.references import Origin, References, Use
from headset.resolver import Carried, External, Resolver, Target, refusal
from headset.sources import Source, Unit

__all__ = ["Bundle", "Member", "Placed"]

# Of the contract of a head, what no loaded model needs; kept where a head's own code uses it.
TRAINING = {"attach", "auto_class", "loss", "metric_inputs", "metrics", "predict", "spec", "target", "unused"}
STRIPPED = {("heads.registry", "register_head")}


@dataclass(eq=False)
class Member:
    """A statement in the body of a class."""

    node: ast.stmt
    names: set[str]
    kept: bool = False


@dataclass(frozen=True)
class Placed:
    """A use in a module's text, what it means, and how many parts of its chain name that."""

    unit: Unit
    use: Use
    target: Target | None
    parts: int


@dataclass
class Bundle:
    """The code that a class needs.

    Args:
        root: The class to begin with.
        own: The top-level name of the module of the researcher's head.
        known: Conditions whose value is known, as ``ast.unparse`` writes them; only the branch taken is followed.
        replaced: Names that stand for others.
        kept: Names of the contract of a head to keep beside what is needed without training.

    Raises:
        HeadsetError: The code reaches something that cannot be carried.
    """

    root: Carried
    own: str
    known: Mapping[str, bool]
    replaced: Mapping[Carried, Carried]
    kept: frozenset[str] = frozenset()
    units: dict[Unit, list[References]] = field(default_factory=dict, init=False)
    members: dict[Unit, list[Member]] = field(default_factory=dict, init=False)
    placed: list[Placed] = field(default_factory=list, init=False)
    stripped: list[tuple[Unit, ast.expr]] = field(default_factory=list, init=False)
    packages: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        """Follow everything."""
        self.names = Resolver(self.own, self.replaced)
        self._attributes: set[str] = {"build", "forward", "request"}
        self._of_self: dict[str, set[type]] = {}
        self._dynamic = False
        self._include(self.root)
        while self._include_members() or self._include_side_effects():
            pass

    def _include(self, target: Carried) -> None:
        source = self.names.source(target.module)
        for unit in [unit for unit in source.units if target.name in unit.binds]:
            self._include_unit(unit)

    def _include_unit(self, unit: Unit) -> None:
        if unit in self.units:
            return
        source = unit.source
        for node, alias in unit.imports:
            if self.names.carried(source.origin(node, alias)[0]):
                raise refusal(source, node, "imports a module of yours in an if or try with other statements")
        self.units[unit] = []
        kind = unit.definition
        if not isinstance(kind, ast.ClassDef):
            self._read(unit, unit.nodes)
            return
        header: list[ast.AST] = [*kind.bases, *kind.keywords]
        for decorator in kind.decorator_list:
            if self._is_stripped(source, decorator):
                self.stripped.append((unit, decorator))
            else:
                header.append(decorator)
        self._read(unit, header)
        self.members[unit] = [Member(part, _names(part)) for part in kind.body]

    def _read(self, unit: Unit, nodes: list[ast.AST] | list[ast.stmt], in_class: set[str] | None = None) -> None:
        """Follow what code uses."""
        source = unit.source

        def own(node: ast.Import | ast.ImportFrom, alias: ast.alias) -> Origin | None:
            origin = source.origin(node, alias)
            return origin if self.names.carried(origin[0]) else None

        found = References(self.known, own).visit_all(nodes, in_class)
        self.units[unit].append(found)
        kind = _class(unit)
        self._attributes |= found.attributes if kind else found.attributes | found.of_self
        if kind is not None:
            for name in found.of_self:
                self._of_self.setdefault(name, set()).add(kind)
        self.packages |= found.packages
        for use in found.uses:
            target, parts = self.names.resolve(source, use)
            self.placed.append(Placed(unit, use, target, parts))
            if isinstance(target, Carried):
                self._include(target)
            if not isinstance(target, External) or target.name is not None:
                self._attributes.update(part.attr for part in use.chain[parts:] if isinstance(part, ast.Attribute))
        looked_up = {name for name in found.lookups if not isinstance(name and self.names.find(source, name), External)}
        self._dynamic |= bool(looked_up) and not source.framework
        if found.whole_module and not source.framework:
            for other in source.units:
                self._include_unit(other)

    def _include_members(self) -> bool:
        """Include members of classes that are used by now; whether there were any."""
        more = False
        for unit, members in list(self.members.items()):
            for index, member in enumerate(members):
                if not member.kept and self._is_used(unit, member):
                    member.kept = more = True
                    self._read(unit, [member.node], {name for other in members[:index] for name in other.names})
        return more

    def _is_used(self, unit: Unit, member: Member) -> bool:
        node = unit.definition
        assert isinstance(node, ast.ClassDef)
        kind = _class(unit)
        if not member.names or kind is None or member.node.lineno == node.lineno:
            return True
        if any(name.startswith("__") and name.endswith("__") for name in member.names):
            return True
        if issubclass(kind, Head) and member.names & (TRAINING - self.kept):
            return self._of_relatives(kind, member.names)
        for base in kind.__mro__[1:]:
            if not self.names.carried(base.__module__) and member.names & vars(base).keys():
                return True
        is_function = isinstance(member.node, (ast.FunctionDef, ast.AsyncFunctionDef))
        if not is_function and not issubclass(kind, Head):
            return True
        named = bool(member.names & self._attributes) or self._of_relatives(kind, member.names)
        return named or (self._dynamic and not unit.source.framework)

    def _of_relatives(self, kind: type, names: set[str]) -> bool:
        """Whether a class, or one that shares a subclass with it, uses names of ``self``."""
        included = [other for other in map(_class, self.members) if other is not None and issubclass(other, kind)]
        users = {user for name in names for user in self._of_self.get(name, ())}
        return any(issubclass(other, user) or issubclass(user, kind) for other in included for user in users)

    def _include_side_effects(self) -> bool:
        """Include statements that change what is included: ``TABLE["x"] = f``, registering decorators, subclasses."""
        before = len(self.units)
        included = {Carried(unit.source.name, name) for unit in self.units for name in unit.binds}
        hooks = {
            Carried(unit.source.name, unit.definition.name)
            for unit, members in self.members.items()
            if unit.definition and any("__init_subclass__" in member.names for member in members)
        }
        for source in [source for source in self.names.sources.values() if not source.framework]:
            for unit in [unit for unit in source.units if unit not in self.units]:
                node = unit.definition
                if node is None:
                    call = getattr(unit.nodes[0], "value", None)
                    if isinstance(call, ast.Call) and self._is_stripped(source, call.func):
                        continue
                    if any(self.names.find(source, name) in included for name in unit.changes):
                        self._include_unit(unit)
                elif any(self._registers(source, decorator, included) for decorator in node.decorator_list):
                    self._include_unit(unit)
                elif isinstance(node, ast.ClassDef) and any(self._named(source, base) in hooks for base in node.bases):
                    self._include_unit(unit)
        return len(self.units) > before

    def _registers(self, source: Source, decorator: ast.expr, included: set[Carried]) -> bool:
        """Whether a decorator is a function of the researcher that uses a variable that is included."""
        target = self._named(source, decorator)
        if not isinstance(target, Carried) or self.names.source(target.module).framework:
            return False
        home = self.names.source(target.module)
        used = {
            self.names.find(home, part.id)
            for unit in home.units
            if target.name in unit.binds
            for node in unit.nodes
            for part in ast.walk(node)
            if isinstance(part, ast.Name)
        }
        variables = {
            Carried(unit.source.name, name) for unit in self.units if unit.definition is None for name in unit.binds
        }
        return bool(used & included & variables) or (target in included and bool(used & variables))

    def _named(self, source: Source, node: ast.expr) -> Target | None:
        """What an expression such as ``a.b(c)`` names, if it is a name."""
        node = node.func if isinstance(node, ast.Call) else node
        found = References(self.known, lambda *_: None).visit_all([node]).uses
        return self.names.resolve(source, found[0])[0] if found else None

    def _is_stripped(self, source: Source, node: ast.expr) -> bool:
        target = self._named(source, node)
        return isinstance(target, Carried) and (target.module, target.name) in STRIPPED


def _class(unit: Unit) -> type | None:
    """The class that a unit defines, if it is still what its module has under that name."""
    node = unit.definition
    kind = getattr(unit.source.module, node.name, None) if isinstance(node, ast.ClassDef) else None
    return kind if isinstance(kind, type) else None


def _names(node: ast.stmt) -> set[str]:
    return bound_names([node])[0]
