"""Carried code as one file: names that are unique in it, imports at its head, definitions in an order that runs."""

import ast
import builtins
import importlib
import json
import re
import sys
from collections.abc import Iterator, Mapping

from backbones.errors import HeadsetError
from headset.bundle import Bundle
from headset.edits import docstring_edits, fold_edits, rename, without_own
from headset.order import in_order
from headset.references import Annotation, Use
from headset.resolver import Carried, External, Target
from headset.sources import DEFINITIONS, Edit, Source, Unit

Meaning = tuple[Use, Target | None, int]

__all__ = ["ALWAYS_THERE", "requirements", "write_module"]

ALWAYS_THERE = {"torch", "transformers", "numpy", "safetensors", "tokenizers", "huggingface_hub"}


def requirements(bundle: Bundle) -> list[str]:
    """Packages that the code imports and that transformers does not bring."""
    modules = {placed.target.module for placed in bundle.placed if isinstance(placed.target, External)}
    tops = {name.partition(".")[0] for name in modules | bundle.packages}
    return sorted(tops - ALWAYS_THERE - sys.stdlib_module_names - {""})


def write_module(bundle: Bundle, docstring: str, names: Mapping[Carried, str], values: Mapping[Carried, object]) -> str:
    """The text of the file.

    Args:
        bundle: What to write.
        docstring: Stands at its head.
        names: What definitions shall be called there, where it is not what they are called.
        values: Constants that shall have other values.

    Raises:
        HeadsetError: Two definitions have one name, and none can be renamed.
    """
    return _Writer(bundle, names, values).write(docstring)


class _Writer:
    def __init__(self, bundle: Bundle, names: Mapping[Carried, str], values: Mapping[Carried, object]) -> None:
        self.bundle = bundle
        self.values = values
        self.order = in_order(bundle)
        self.annotations = {
            unit: [(a, self._annotation_targets(unit, a)) for found in bundle.units[unit] for a in found.annotations]
            for unit in self.order
        }
        self.names: dict[Target, str] = {}
        self.taken: dict[str, Target] = {}
        self._name_all(names)

    def write(self, docstring: str) -> str:
        """The whole file."""
        parts, last = [], ""
        for unit in self.order:
            if unit.source.name != last:
                last = unit.source.name
                title = f"# ---- {last.replace('.', '/')}.py "
                parts.append(f"\n\n{title}{'-' * (118 - len(title))}\n")
            text = self._text(unit)
            definition = isinstance(unit.nodes[0], DEFINITIONS)
            parts.append(f"\n\n{text}\n" if definition else f"\n{text}\n" if parts[-1].endswith("-\n") else f"{text}\n")
        imports = "\n".join(self._import_lines()).rstrip()
        return f'"""{docstring}"""\n\nfrom __future__ import annotations\n\n{imports}\n' + "".join(parts)

    # names

    def _name_all(self, wishes: Mapping[Carried, str]) -> None:
        """Give each definition and each import a name that nothing else has and that no local name hides."""
        hidden: dict[Target, set[str]] = {}
        reserved = set()
        targets: dict[Target, None] = dict.fromkeys(wishes)
        for placed in self.bundle.placed:
            if placed.target is None:
                reserved.add(placed.use.name)
            else:
                hidden.setdefault(placed.target, set()).update(placed.use.visible)
        first = {target.module for target in wishes}
        for unit in sorted(self.order, key=lambda unit: unit.source.name not in first):
            targets |= {Carried(unit.source.name, name): None for name in sorted(unit.binds)}
        for placed in self.bundle.placed:
            if placed.target is not None:
                targets[placed.target] = None
        for unit in self.order:
            for _, used in self.annotations[unit]:
                targets |= dict.fromkeys(target for _, target, _ in used or () if target is not None)
        for target in targets:
            plain = wishes.get(target, target.name) if isinstance(target, Carried) else target.written
            same = self.taken.get(plain)
            if isinstance(target, External) and isinstance(same, External) and _value(same) is _value(target):
                self.names[target] = plain
                continue
            home = target.module.rpartition(".")[2]
            tried = [plain, f"{plain}_{home}", *(f"{plain}_{home}_{number}" for number in range(2, 99))]
            bad = hidden.get(target, set()) | reserved | self.taken.keys()
            if plain == target.name and not hasattr(builtins, plain):
                bad -= reserved
            name = next(one for one in tried if one not in bad)
            self.names[target] = name
            self.taken[name] = target

    # imports

    def _import_lines(self) -> Iterator[str]:
        plain: dict[bool, set[str]] = {True: set(), False: set()}
        from_modules: dict[str, set[str]] = {}
        used = {name: target for target, name in self.names.items() if self.taken.get(name) is target}
        for name, target in used.items():
            if isinstance(target, External) and target.name is not None:
                alias = target.name if name == target.name else f"{target.name} as {name}"
                from_modules.setdefault(target.module, set()).add(alias)
            elif isinstance(target, External):
                lines = {f"import {target.module}" + ("" if name == target.module else f" as {name}")}
                lines |= {f"import {dotted}" for dotted in self.bundle.names.dotted.get(target, ())}
                plain[target.module.partition(".")[0] in sys.stdlib_module_names] |= lines
        for standard in (True, False):
            found = sorted(plain[standard])
            for module, aliases in sorted(from_modules.items()):
                if (module.partition(".")[0] in sys.stdlib_module_names) is standard:
                    found.append(f"from {module} import {', '.join(sorted(aliases))}")
            if found:
                yield from found
                yield ""

    # text

    def _text(self, unit: Unit) -> str:
        """The text of a unit with all changes."""
        source = unit.source
        first, last = source.lines(unit.nodes)
        edits = sorted({edit for edit in self._edits(unit) if first <= edit[0] and edit[1] <= last})
        text, place = b"", first
        for start, end, new in edits:
            if start < place:
                continue  # inside what is left out already
            text += source.data[place:start] + new
            place = end
        whole = (text + source.data[place:last]).decode().strip("\n")
        return re.sub(r"  # (type: ignore|noqa)[^\n]*", "", whole) if source.framework else whole

    def _edits(self, unit: Unit) -> Iterator[Edit]:
        source = unit.source
        for placed in self.bundle.placed:
            if placed.unit is unit and placed.target is not None:
                name = self.names[placed.target]
                if placed.parts > 1 or name != placed.use.name:
                    yield rename(source, placed.use.chain[placed.parts - 1], placed.use.name, name)
        for node in unit.nodes:
            yield from self._definition_edits(source, node)
        for annotation, targets in self.annotations[unit]:
            yield from self._annotation_edits(source, annotation, targets)
        for found in self.bundle.units[unit]:
            for fold in found.folds:
                yield from fold_edits(source, fold)
            for local in found.imports:
                yield (*source.span(local.node), without_own(local))
        for other, decorator in self.bundle.stripped:
            if other is unit:
                start, end = source.span(decorator)
                line = source.data.rfind(b"@", 0, start)
                yield line, end + 1, b""
        yield from self._member_edits(unit)
        if source.framework:
            for node in unit.nodes:
                for part in ast.walk(node):
                    if isinstance(part, DEFINITIONS):
                        yield from docstring_edits(source, part)

    def _definition_edits(self, source: Source, node: ast.stmt) -> Iterator[Edit]:
        names = [node.name] if isinstance(node, DEFINITIONS) else []
        for old in names:
            new = self.names[Carried(source.name, old)]
            if new != old:
                match = re.compile(rb"\b(?:def|class)\s+(%s)\b" % old.encode()).search(
                    source.data, source.span(node)[0]
                )
                assert match is not None
                yield match.start(1), match.end(1), new.encode()
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            key = Carried(source.name, getattr(target, "id", ""))
            if key in self.values:
                yield (*source.span(node.value), json.dumps(self.values[key]).encode())
        elif not names:
            for part in ast.walk(node):
                bound = (
                    [a.asname or a.name for a in part.names] if isinstance(part, (ast.Import, ast.ImportFrom)) else []
                )
                for old in bound:
                    if self.names.get(Carried(source.name, old), old) != old:
                        raise HeadsetError(
                            f"{source.where(part)}: give {old!r} another name; two modules use that one."
                        )

    def _member_edits(self, unit: Unit) -> Iterator[Edit]:
        """Leave out the members of a class that nothing uses."""
        members = self.bundle.members.get(unit, [])
        source = unit.source
        stop = source.lines(unit.nodes)[1]
        for member in members:
            if not member.kept:
                start, end = source.lines([member.node])
                while end < stop and source.data[end : end + 1] == b"\n":
                    end += 1
                yield start, end, b""
        if members and not any(member.kept for member in members):
            node = members[-1].node
            end = source.lines([node])[1]
            yield end, end, b" " * node.col_offset + b"pass\n"

    # annotations

    def _annotation_targets(self, unit: Unit, annotation: Annotation) -> list[Meaning] | None:
        """What an annotation names; None if some of it is not carried."""
        targets: list[Meaning] = []
        for use in annotation.uses + annotation.quoted:
            try:
                target, parts = self.bundle.names.resolve(unit.source, use)
            except HeadsetError:
                return None
            if isinstance(target, Carried) and not self._is_there(target):
                return None
            if isinstance(target, External):
                top = target.module.partition(".")[0]
                if top not in ALWAYS_THERE and top not in sys.stdlib_module_names:
                    return None
            targets.append((use, target, parts))
        return targets

    def _is_there(self, target: Carried) -> bool:
        units = self.bundle.names.source(target.module).units
        return any(unit in self.bundle.units for unit in units if target.name in unit.binds)

    def _annotation_edits(
        self, source: Source, annotation: Annotation, targets: list[Meaning] | None
    ) -> Iterator[Edit]:
        changed: list[Edit] = []
        for use, target, parts in targets or []:
            if target is not None and (parts > 1 or self.names[target] != use.name):
                if use in annotation.quoted:
                    targets = None
                    break
                changed.append(rename(source, use.chain[parts - 1], use.name, self.names[target]))
        if targets is not None:
            yield from changed
            return
        start, end = source.span(annotation.node)
        owner = annotation.owner
        if isinstance(owner, ast.AnnAssign):
            text = source.text(annotation.node)
            if owner.value is not None and "ClassVar" not in text and not self._is_field(source, owner):
                yield source.span(owner.target)[1], end, b""
            else:
                yield start, end, b"ClassVar" if text.startswith("ClassVar") else b"object"
        elif isinstance(owner, ast.arg):
            yield source.span(owner)[0] + len(owner.arg.encode()), end, b""
        else:
            yield source.data.rfind(b"->", 0, start) - 1, end, b""

    def _is_field(self, source: Source, node: ast.AnnAssign) -> bool:
        return any(node in part.body for part in ast.walk(source.tree) if isinstance(part, ast.ClassDef))


def _value(target: External) -> object:
    module = importlib.import_module(target.module)
    return module if target.name is None else getattr(module, target.name, target)
