"""The code of a custom export: the modules that a head reaches, whole, as files that import each other relatively."""

import ast
import re
import sys
from importlib.machinery import ModuleSpec
from importlib.util import decode_source, find_spec, resolve_name
from pathlib import Path
from types import ModuleType

from transformers.dynamic_module_utils import get_imports, get_relative_import_files

from backbones.errors import HeadsetError
from heads.base import Head
from heads.native import NativeModel

__all__ = ["Code", "needed_packages"]

TEMPLATE = "headset.custom_models"
STAND_IN = "headset.left_out"
# What a trained model does without; its imports come from the stand-in.
LEFT_OUT = (
    "backbones.freezing",
    "backbones.options",
    "bitsandbytes",
    "datasets",
    "headset",
    "heads.registry",
    "heads.testing",
    "lightning",
    "peft",
    "pytorch_lightning",
    "torchmetrics",
)
FOR_NATIVE = (  # left out as well, where a head has no modules of transformers
    "backbones.adapters",
    "backbones.quantization",
    "backbones.stock",
    "heads.native",
    "heads.slots",
    "heads.task_models",
)
BY_NAME = ("backbones", "heads")  # these import nothing until a name is asked for
ALWAYS_THERE = {"safetensors", "torch", "transformers", *sys.stdlib_module_names}


class Code:
    """The files of an export, found by following imports from the template.

    Args:
        head: The head, whose class takes its place in the template.
        main: The name of the template's file.
        names: What else is replaced in the template.

    Raises:
        HeadsetError: An import cannot be made relative.
    """

    def __init__(self, head: Head, main: str, names: dict[str, str]) -> None:
        kind = type(head)
        self.own = {"backbones", *(it.__module__.partition(".")[0] for it in kind.__mro__ if issubclass(it, Head))}
        native = any(isinstance(module, NativeModel) for module in head.modules())
        self.left_out = LEFT_OUT if native else LEFT_OUT + FOR_NATIVE
        self.main = main
        self.stems = {TEMPLATE: main}  # of the files, by module
        self.texts: dict[str, str] = {}  # of the files, by stem
        self.names = names | {
            "from heads.base import Head as TheHead": f"from {kind.__module__} import {kind.__name__} as TheHead"
        }
        while len(self.texts) < len(self.stems):
            module = list(self.stems)[len(self.texts)]
            self.texts[self.stems[module]] = self._text(module)

    def write(self, folder: Path) -> None:
        """Write the files into a folder."""
        for stem, text in self.texts.items():
            (folder / f"{stem}.py").write_text(text, encoding="utf-8")
        file = folder / f"{self.main}.py"
        seen = {Path(path).stem for path in get_relative_import_files(file)}
        packages = [stem for module, stem in self.stems.items() if _is_package(module)]
        first, last = (
            "".join(f"from .{stem} import __name__ as _\n" for stem in sorted(stems))
            for stems in (packages, self.texts.keys() - seen - {self.main, *packages})
        )
        text = self.texts[self.main]
        if first:  # Python runs a package before its modules
            text = re.sub(r"^from \.", f"{first}from .", text, count=1, flags=re.MULTILINE)
        if last:
            text += f"\n# So that transformers copies these files.\n{last}"
        file.write_text(text, encoding="utf-8")

    def _text(self, module: str) -> str:
        """The text of a module, with its imports made relative."""
        path = _file(module)
        text = decode_source(path.read_bytes())
        for old, new in self.names.items() if module == TEMPLATE else ():
            text = text.replace(old, new)
        package = module if _is_package(module) else module.rpartition(".")[0]
        imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
        lines = text.encode().splitlines(keepends=True)  # positions are in bytes
        for node in sorted(imports, key=lambda node: (node.lineno, node.col_offset), reverse=True):
            try:
                statements = self._relative(node, package, ast.get_source_segment(text, node) or "")
            except HeadsetError as error:
                raise HeadsetError(f"{path}, line {node.lineno}: {error}") from error
            if statements:
                first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
                before, after = lines[first][: node.col_offset], lines[last][node.end_col_offset :]
                joint = b"; " if before.strip() else b"\n" + before
                lines[first : last + 1] = [before + joint.join(map(str.encode, statements)) + after]
        return b"".join(lines).decode()

    def _relative(self, node: ast.Import | ast.ImportFrom, package: str, written: str) -> list[str]:
        """The statements that import the same from files of the export; none if nothing is imported from there."""
        found: dict[str, list[str]] = {}
        changed = False
        for alias in node.names:
            module, name, bound = alias.name, "", alias.asname or alias.name
            if isinstance(node, ast.ImportFrom):
                module, name = self._source("." * node.level + (node.module or ""), package, alias.name)
                changed |= node.level > 0
            stem = self._stem(module)
            changed |= stem is not None
            if name:
                start, what = f"from {'.' if stem else ''}{stem or module} import ", name
            elif stem is None:
                start, what = "import ", module
            else:
                if "." in bound and not self._is_left_out(module):
                    parent, _, last = module.rpartition(".")
                    raise HeadsetError(f"write 'from {parent} import {last}' instead of 'import {module}'")
                start, what, bound = "from . import ", stem, bound.partition(".")[0]
            found.setdefault(start, []).append(what if what == bound else f"{what} as {bound}")
        if changed and isinstance(node, ast.ImportFrom) and len(found) == 1 and start != "from . import ":
            return [start + re.split(r"\bimport\b\s*", written, maxsplit=1)[1]]  # with its comments
        return [start + ", ".join(names) for start, names in found.items()] if changed else []

    def _source(self, base: str, package: str, name: str) -> tuple[str, str]:
        """The module that ``from base import name`` leads to, and the name there; no name for a module as a whole."""
        base = resolve_name(base, package) if package else base.lstrip(".")
        if name == "*" or self._is_left_out(base) or not self._is_copied(base):
            return base, name
        if base in BY_NAME:
            value = getattr(sys.modules[base], name)
            return (value.__name__, "") if isinstance(value, ModuleType) else (value.__module__, name)
        value = vars(sys.modules[base]).get(name) if base in sys.modules else None
        is_module = value.__name__ == f"{base}.{name}" if isinstance(value, ModuleType) else value is None
        return (f"{base}.{name}", "") if is_module and _is_package(base) and _find(f"{base}.{name}") else (base, name)

    def _stem(self, module: str) -> str | None:
        """The file that a module becomes; None for a module that does not go along."""
        if self._is_left_out(module):
            module = STAND_IN
        elif not self._is_copied(module):
            return None
        if module in BY_NAME or (module != STAND_IN and _file(module).suffix != ".py"):
            raise HeadsetError(f"{module} cannot be copied as a whole. Import what you need from it by name")
        if module not in self.stems:
            stem = "left_out" if module == STAND_IN else re.sub(r"\W", "_", module)
            while stem in self.stems.values():
                stem += "_"
            self.stems[module] = stem
        return self.stems[module]

    def _is_left_out(self, module: str) -> bool:
        return any(module == name or module.startswith(f"{name}.") for name in self.left_out)

    def _is_copied(self, module: str) -> bool:
        """Whether a module is the head's, ours, or a file that is not installed."""
        top = module.partition(".")[0]
        installed = top in ALWAYS_THERE or {"site-packages", "dist-packages"} & set(_file(top).parts)
        return (top in self.own or not installed) and _find(module) is not None


def needed_packages(folder: Path) -> list[str]:
    """What transformers asks for, beside torch and itself, before it runs the code in a folder."""
    return sorted({name for file in folder.glob("*.py") for name in get_imports(file)} - ALWAYS_THERE)


def _find(module: str) -> ModuleSpec | None:
    try:
        return find_spec(module)
    except (ImportError, ValueError):
        return None


def _is_package(module: str) -> bool:
    spec = _find(module)
    return spec is not None and spec.submodule_search_locations is not None


def _file(module: str) -> Path:
    """The file of a module; the folder of a package that has none, and nothing of a module that is not there."""
    spec = _find(module)
    places = [spec.origin, *(spec.submodule_search_locations or [])] if spec else []
    return Path(next(filter(None, places), ""))
