"""Code taken out of its modules into one file: it does the same there, and the rest is left behind."""

import itertools
import sys
import textwrap
import types

import pytest

from backbones.errors import HeadsetError
from headset.bundle import Bundle
from headset.resolver import Carried
from headset.rewrite import requirements, write_module

numbers = itertools.count()


@pytest.fixture
def shake(tmp_path, monkeypatch):
    """Writes modules, takes `main.Thing` out of them, forgets them, and runs the one file."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def shake(main, known=None, **modules):
        name = f"main{next(numbers)}"
        for module, code in {name: main, **modules}.items():
            path = tmp_path / (module.replace("_of_", "/").replace("init", "__init__") + ".py")
            path.parent.mkdir(exist_ok=True)
            path.write_text(textwrap.dedent(code))
        bundle = Bundle(Carried(name, "Thing"), name, known or {}, {})
        text = write_module(bundle, "A thing.", {}, {})
        for module in set(sys.modules) - before:
            del sys.modules[module]
        (tmp_path / f"{name}.py").unlink()
        for module in modules:
            (tmp_path / (module.replace("_of_", "/").replace("init", "__init__") + ".py")).unlink()
        made = types.ModuleType("made")
        monkeypatch.setitem(sys.modules, "made", made)
        exec(compile(text, "made.py", "exec"), vars(made))
        made.text, made.requirements = text, requirements(bundle)
        return made

    yield shake
    for module in set(sys.modules) - before - {"made"}:
        sys.modules.pop(module)


def test_only_what_is_reached_stays_with_its_comments(shake):
    made = shake(
        '''
        """The module."""
        import json
        import torchmetrics
        from torch import nn

        # How much.
        SIZE = 3  # three
        UNUSED = torchmetrics.MetricCollection({})

        # Twice.
        def double(value: int) -> int:
            """Twice the value."""
            return value * 2  # here

        def unused():
            return json.dumps(UNUSED)

        class Thing(nn.Module):
            """A thing."""

            def __init__(self):
                super().__init__()

            # The answer.
            def forward(self):
                return double(SIZE)

            def never(self):
                return torchmetrics.MetricCollection({})
        '''
    )
    assert made.Thing()() == 6
    assert made.requirements == []
    for kept in (
        "# How much.\nSIZE = 3  # three",
        "# Twice.\ndef double",
        "# here",
        "    # The answer.\n    def forward",
    ):
        assert kept in made.text
    assert not any(word in made.text for word in ("torchmetrics", "never"))


def test_equal_names_of_two_modules(shake):
    made = shake(
        """
        import one, two
        from one import step as first
        from two import step, Block as Other
        import numpy as np
        from math import sqrt as F

        class Block:
            size = 1

        class Thing(Block):
            def run(self, step2=step):
                scale = two.scale(2)
                one_ = one.scale(1)
                text = f"{scale} {one_} {two.SIZE:d}"
                return first(1), step(1), step2(1), scale, one_, Other().size, Block.size, text, F(4), np.sum([1, 2])

            def forward(self):
                return self.run()
        """,
        one="""
        import numpy as F
        SIZE = 10
        def scale(size): return size * SIZE
        def step(x): return int(F.add(x, SIZE))
        """,
        two="""
        from torch.nn import functional as F
        import torch
        SIZE = 20
        class Block:
            size = SIZE
            def __call__(self): return F.relu(torch.ones(1))
        def scale(size): return [SIZE * size for SIZE in (SIZE,)][0]
        def step(x): return x + SIZE + int(Block()())
        """,
    )
    assert made.Thing().forward() == (11, 22, 22, 40, 10, 20, 1, "40 10 20", 2.0, 3)


def test_a_name_like_a_builtin_takes_nothing_from_others(shake):
    made = shake(
        """
        from one import total
        class Thing:
            def forward(self): return total([1, 2]), sum([1, 2]), max(1, 2)
        """,
        one="""
        def sum(values): return "own"
        def total(values): return sum(values)
        """,
    )
    assert made.Thing().forward() == ("own", 3, 2)


def test_stars_packages_aliases_and_imports_in_functions(shake):
    made = shake(
        """
        from math import *
        from lab.table import *
        from lab import Base, table as t, names
        import lab.deep.inner
        import lab.deep.inner as inner
        import torch.nn.functional

        class Thing(Base):
            def forward(self):
                from lab.late import late as soon, LATE
                import json, lab.late as whole
                late = soon() + LATE
                relu = torch.nn.functional.relu(torch.tensor(-1.0))
                names_ = names.get()
                numbers = (pi > 3, ONE, t.TWO, lab.deep.inner.three(), inner.FOUR, late)
                return (*numbers, json.dumps(whole.LATE), self.base(), relu.item(), names_)
        """,
        lab_of_init="""
        from .base import Base
        """,
        lab_of_base="""
        from . import table
        from .table import ONE as one
        class Base:
            def base(self): return table._hidden(one)
        """,
        lab_of_table="""
        __all__ = ["ONE", "TWO"]
        ONE, TWO = 1, 2
        def _hidden(x): return x + TWO
        """,
        lab_of_names="""
        def get(): return "names"
        """,
        lab_of_late="""
        LATE = 5
        def late(): return 1
        """,
        lab_of_deep_of_init="",
        lab_of_deep_of_inner="""
        FOUR = 4
        def three(): return 3
        """,
    )
    assert made.Thing().forward() == (True, 1, 2, 3, 4, 6, "5", 3, 0.0, "names")


def test_classes_of_every_kind(shake):
    made = shake(
        """
        import enum, functools
        from abc import ABC, abstractmethod
        from dataclasses import dataclass, field, replace
        from typing import ClassVar, Generic, NamedTuple, TypeVar, TYPE_CHECKING
        if TYPE_CHECKING:
            from nowhere import Nothing
        T = TypeVar("T")

        class Kind(enum.Enum):
            A = "a"
            B = "b"

        class Pair(NamedTuple):
            left: int
            right: "Nothing" = 2

        @dataclass(frozen=True)
        class Options(Generic[T]):
            kinds: ClassVar["Nothing"] = (1, 2)
            kind: Kind = Kind.A
            sizes: list[int] = field(default_factory=lambda: [SIZE])
            other: "Nothing | None" = None
            def bigger(self): return replace(self, sizes=[*self.sizes, 2])

        SIZE = 7

        class Shape(ABC):
            NAME = "shape"
            registry = {}
            def __init_subclass__(cls, **kwargs):
                super().__init_subclass__(**kwargs)
                Shape.registry[cls.__name__] = cls
            @abstractmethod
            def area(self): ...

        class Square(Shape):
            SIDE = 3
            AREA = SIDE * SIDE
            def area(self): return self.AREA

        class Thing:
            __slots__ = ("_size",)
            def __init__(self): self._size = 1
            @property
            def size(self): return self._size
            @size.setter
            def size(self, value): self._size = self.check(value)
            @staticmethod
            def check(value: "Nothing"): return abs(value)
            @classmethod
            def make(cls) -> "Thing": return cls()
            def step_a(self): return "a"
            def step_b(self): return "b"
            def forward(self):
                self.size = -4
                options = Options().bigger()
                step: Nothing = getattr(self, "step_" + options.kind.value)
                area = Shape.registry["Square"]().area()
                name = type(self.make()).__name__
                return self.size, name, options.sizes, options.kinds, Pair(1), area, step(), Shape.NAME
        """
    )
    assert made.Thing().forward() == (4, "Thing", [7, 2], (1, 2), (1, 2), 9, "a", "shape")
    assert "Nothing" not in made.text


def test_statements_that_change_what_is_reached(shake):
    made = shake(
        """
        import table
        from table import TABLE, register
        TABLE["own"] = len
        counter = 0
        try:
            import not_installed_anywhere as extra
        except ImportError:
            extra = None
        for letter in "xy":
            TABLE[letter] = letter.upper()

        @register("double")
        def double(value): return value * 2

        @register("never")
        class Other: pass

        if __name__ == "__main__":
            print(table)

        def count():
            global counter
            counter += 1
            return counter

        class Thing:
            make = staticmethod(lambda n: (lambda m: m + n))
            def forward(self):
                def inner(table): return [table[k] for k in ("x", "y")]
                found = TABLE["double"](2), TABLE["own"]("ab"), inner(TABLE), count(), count(), extra
                return *found, sorted(TABLE), self.make(1)(2)
        """,
        table="""
        TABLE = {}
        def register(name):
            def wrap(value):
                TABLE[name] = value
                return value
            return wrap
        def made(): return 1
        TABLE.update(first=made())
        """,
    )
    assert made.Thing().forward() == (
        4,
        2,
        ["X", "Y"],
        1,
        2,
        None,
        sorted(["double", "first", "never", "own", "x", "y"]),
        3,
    )
    assert made.requirements == []


def test_what_runs_at_import_stands_before_its_use(shake):
    made = shake(
        """
        def late(): return SCALE * factor()
        SCALE = 2
        def factor(): return 5
        VALUE = late()
        class Thing:
            value = VALUE
            def forward(self, extra=late()): return self.value + extra
        """
    )
    assert made.Thing().forward() == 20


def test_known_conditions_leave_one_branch(shake):
    made = shake(
        """
        import torchmetrics
        class Thing:
            def forward(self):
                if self.native:
                    return torchmetrics.MetricCollection({})
                else:
                    # ours
                    value = '''a
                    b'''
                    if MODE == 'x':
                        return torchmetrics
                    elif MODE == 'y':
                        return value.split()
                    else:
                        return None
        """,
        {"self.native": False, "MODE == 'x'": False, "MODE == 'y'": True},
    )
    assert made.Thing().forward() == ["a", "b"]
    assert made.requirements == []


def test_packages_of_others_are_named(shake):
    made = shake(
        """
        import yaml
        from pandas import DataFrame
        class Thing:
            def forward(self, x: DataFrame):
                import seqeval.metrics
                return yaml.safe_load("1")
        """
    )
    assert made.requirements == ["seqeval", "yaml"]
    assert "DataFrame" not in made.text


@pytest.mark.parametrize(
    ("main", "message"),
    [
        (
            "import helper\nclass Thing:\n    def forward(self): return vars(helper)",
            "uses the module helper as a value",
        ),
        ("import helper\nclass Thing:\n    def forward(self): helper.SIZE = 3", "assigns to helper.SIZE"),
        ("class Thing:\n    def forward(self): return nowhere", "line 2: the code uses 'nowhere'"),
        ("class Thing:\n    def forward(self): return __file__", "reads files beside its own"),
        ("from helper import SIZE\nSIZE = SIZE + 1\nclass Thing:\n    size = SIZE", "two names"),
    ],
)
def test_refusals(shake, main, message):
    with pytest.raises(HeadsetError, match=message):
        shake(main, helper="SIZE = 1")


def test_odd_ways_to_write_it(shake):
    made = shake(
        """
        # -*- coding: utf-8 -*-
        '''Überschrift.'''
        import one, sys
        import one as alias, math as m; from functools import partial, lru_cache as cache
        LABEL = "größer"; SIZE = 3

        if sys.version_info >= (3, 8):
            def chosen(): return one.SIZE
        else:
            def chosen(): return None

        def deco(size=one.SIZE):
            def wrap(function):
                function.size = size
                return function
            return wrap

        class Base:
            def __init__(self, *args, key=lambda x, y=SIZE: x + y + one.SIZE, **kwargs): self.key = key
            def hook(self): return "base"

        class Mixin:
            def mixed(self): return self.hook() + self.tail
            tail = "!"

        class Thing(Mixin, Base):
            ü = "ü"
            class Inner:
                SIZE = SIZE
                def size(self): return SIZE, one.SIZE, self.SIZE
            def __init__(self): super(Thing, self).__init__()
            @deco(size=SIZE)
            def run(self, x):
                match x:
                    case {"a": one_a, **rest}: found = one_a, rest
                    case [first, *others]: found = first, others
                    case _: found = None
                if (SIZE_ := 5) > 4: text = f'''{LABEL}
                    {one.SIZE!r:>3} {alias.scale(SIZE_)}'''
                count = 0
                def up():
                    nonlocal count
                    count += one.SIZE
                    return count
                try: raise ValueError("ß" + LABEL)
                except ValueError as one_error: message = str(one_error)
                with open(one.NULL) as null: pass
                up(); up()
                return found, text.split(), count, message, self.run.size, m.floor(2.5)
            def forward(self):
                run = self.run({"a": 1, "b": 2})
                return run, chosen(), self.Inner().size(), self.key(1), self.mixed(), partial(max, 1)(2), self.ü
        """,
        one="""
        import os
        SIZE = 4
        NULL = os.devnull
        def scale(x): return x * SIZE
        """,
    )
    run = ((1, {"b": 2}), ["größer", "4", "20"], 8, "ßgrößer", 3, 2)
    assert made.Thing().forward() == (run, 4, (3, 4, 3), 8, "base!", 2, "ü")
