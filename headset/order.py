"""An order of definitions that runs: what a statement needs when it runs stands before it."""

from collections.abc import Iterator

from headset.bundle import Bundle
from headset.resolver import Carried
from headset.sources import Source, Unit

__all__ = ["in_order"]

Needs = dict[Unit, list[Unit]]


def in_order(bundle: Bundle) -> list[Unit]:
    """The units of a bundle, as they stand in their modules, but for those that are needed earlier."""
    done: set[Unit] = set()
    ordered: list[Unit] = []
    needs, calls = _needs(bundle)

    def visit(unit: Unit) -> None:
        if unit not in done:
            done.add(unit)
            runs = unit.definition is None  # and what it calls runs with it
            for other in _reached(unit, needs, calls) if runs else needs[unit]:
                visit(other)
            ordered.append(unit)

    for source in _modules(bundle):
        for unit in [unit for unit in source.units if unit in bundle.units]:
            visit(unit)
    return ordered


def _needs(bundle: Bundle) -> tuple[Needs, Needs]:
    """For each unit, the units that it uses when it runs, and all that it uses."""
    needs: Needs = {unit: [] for unit in bundle.units}
    calls: Needs = {unit: [] for unit in bundle.units}
    homes: dict[Carried, list[Unit]] = {}
    for unit in bundle.units:
        for name in unit.binds:
            homes.setdefault(Carried(unit.source.name, name), []).append(unit)
    for placed in bundle.placed:
        for other in homes.get(placed.target, []) if isinstance(placed.target, Carried) else []:
            calls[placed.unit].append(other)
            if placed.use.hard:
                needs[placed.unit].append(other)
    return needs, calls


def _reached(unit: Unit, needs: Needs, calls: Needs) -> Iterator[Unit]:
    """What a statement needs, and whatever that uses, deepest first."""
    seen = {unit}

    def through(one: Unit) -> Iterator[Unit]:
        for other in needs[one] if one is unit else calls[one]:
            if other not in seen:
                seen.add(other)
                yield from through(other)
                yield other

    return through(unit)


def _modules(bundle: Bundle) -> list[Source]:
    """Modules, those that others use first."""
    ordered: list[Source] = []
    seen: set[Source] = set()
    below: dict[Source, dict[Source, None]] = {}
    for placed in bundle.placed:
        if isinstance(placed.target, Carried):
            below.setdefault(placed.unit.source, {})[bundle.names.source(placed.target.module)] = None

    def visit(source: Source) -> None:
        if source not in seen:
            seen.add(source)
            for other in below.get(source, {}):
                visit(other)
            ordered.append(source)

    visit(bundle.names.source(bundle.root.module))
    for unit in bundle.units:
        visit(unit.source)
    return ordered
