"""What names in source files mean: definitions to carry along, or imports of packages that have to be there."""

import ast
import builtins
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType

from backbones.errors import HeadsetError
from headset.references import Origin, Use
from headset.sources import Source, is_carried, load_source

__all__ = ["Carried", "External", "Resolver", "Target", "refusal"]

OF_MODULES = {"__name__", "__doc__", "__debug__", "__builtins__"}
IN_FILES = {"__file__", "__path__", "__spec__", "__loader__", "__package__"}


@dataclass(frozen=True)
class Carried:
    """A name defined in a module that is carried along; ``name`` is empty for the module itself."""

    module: str
    name: str


@dataclass(frozen=True)
class External:
    """A name imported from a package that has to be there, and how the code calls it."""

    module: str
    name: str | None
    written: str


Target = Carried | External


@dataclass
class Resolver:
    """Follows names through modules, imports and star imports.

    Args:
        own: The top-level name of the module of the researcher's head.
        replaced: Names that stand for others.
    """

    own: str
    replaced: Mapping[Carried, Carried]
    sources: dict[str, Source] = field(default_factory=dict, init=False)
    dotted: dict[External, set[str]] = field(default_factory=dict, init=False)  # `import a.b` binds a, and needs a.b

    def source(self, name: str) -> Source:
        """The source of a carried module."""
        if name not in self.sources:
            self.sources[name] = load_source(name)
        return self.sources[name]

    def carried(self, module: str) -> bool:
        """Whether the code of a module is carried along."""
        return is_carried(module, self.own)

    def resolve(self, source: Source, use: Use) -> tuple[Target | None, int]:
        """What a use means, and how many parts of its chain name that; None for builtins.

        Raises:
            HeadsetError: It means something that cannot be carried.
        """
        if use.origin is not None:
            target: Target | None = self.imported(use.origin, use.name)
        else:
            target = self.find(source, use.name)
            if target is None:
                if use.name in IN_FILES:
                    raise refusal(source, use.chain[0], f"reads files beside its own ({use.name})")
                if not hasattr(builtins, use.name) and use.name not in OF_MODULES:
                    raise refusal(source, use.chain[0], f"uses {use.name!r}, which its module does not define")
        parts = 1
        while isinstance(target, Carried) and not target.name:
            if parts == len(use.chain):
                raise refusal(
                    source, use.chain[0], f"uses the module {target.module} as a value; import the names needed from it"
                )
            attribute = use.chain[parts]
            assert isinstance(attribute, ast.Attribute)
            target = self.member(target.module, attribute.attr)
            parts += 1
        if use.stored and parts > 1 and parts == len(use.chain):
            raise refusal(source, use.chain[0], f"assigns to {ast.unparse(use.chain[-1])}, a variable of a module")
        return target, parts

    def find(self, source: Source, name: str) -> Target | None:
        """What a name means at the top level of a module; None where the module does not define it."""
        here = Carried(source.name, name)
        if here in self.replaced:
            return self.replaced[here]
        units = [unit for unit in source.units if name in unit.binds]
        for unit in units:
            for node, alias in unit.imports:
                module = source.origin(node, alias)[0]
                if (alias.asname or alias.name.partition(".")[0]) == name and self.carried(module):
                    if module in sys.modules:
                        return self.imported(source.origin(node, alias), name)
        if units and name in source.imports:
            raise refusal(source, units[0].nodes[0], f"defines {name!r} again, which it imports too; use two names")
        if units:
            return here
        if name in source.imports:
            target = self.imported(source.imports[name], name)
            if isinstance(target, External):
                dotted = {one for one in source.whole_imports.get(name, ()) if "." in one}
                self.dotted.setdefault(target, set()).update(dotted)
            return target
        for module in source.stars:
            if self.carried(module):
                public = self.source(module).public
                if (not name.startswith("_") if public is None else name in public) and (
                    found := self.find(self.source(module), name)
                ):
                    return found
            elif name in getattr(sys.modules[module], "__all__", dir(sys.modules[module])):
                return External(module, name, name)
        return None

    def imported(self, origin: Origin, written: str) -> Target:
        """What an import gives."""
        module, name = origin
        if self.carried(module):
            return Carried(module, "") if name is None else self.member(module, name)
        if name is None and module != written and "." in module:
            module, _, name = module.rpartition(".")  # import a.b as c: from a import b as c
        return External(module, name, written)

    def member(self, module: str, name: str) -> Target:
        """What a name of a carried module means."""
        loaded = sys.modules.get(module) or importlib.import_module(module)
        if getattr(loaded, "__file__", None) is not None:
            found = self.find(self.source(module), name)
            if found is not None:
                return found
        if importlib.util.find_spec(f"{module}.{name}") if hasattr(loaded, "__path__") else None:
            return Carried(f"{module}.{name}", "")
        value = getattr(loaded, name, None)  # a lazy package gives what another module defines
        if isinstance(value, ModuleType):
            return Carried(value.__name__, "") if self.carried(value.__name__) else External(value.__name__, None, name)
        home, own_name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
        if home is None or home == module or "." in own_name or not self.carried(home):
            raise HeadsetError(f"{module} has no {name!r} whose definition could be found.")
        return self.member(home, own_name)


def refusal(source: Source, node: ast.AST, what: str) -> HeadsetError:
    """The error for code that cannot be carried."""
    return HeadsetError(f"{source.where(node)}: the code {what}.")
