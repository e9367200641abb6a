"""Changes to the text of code that is carried along."""

import ast
import re
from collections.abc import Iterator

from backbones.errors import HeadsetError
from headset.references import Fold, LocalImport
from headset.sources import Edit, Source

__all__ = ["docstring_edits", "fold_edits", "rename", "without_own"]


def rename(source: Source, node: ast.AST, old: str, new: str) -> Edit:
    """Give a name another one, or a chain such as ``a.b`` a name."""
    start, end = source.span(node)
    if isinstance(node, ast.Global):
        text = source.data[start:end]
        return start, end, re.sub(rb"\b%s\b" % old.encode(), new.encode(), text)
    written = source.data[start:end].decode()
    expected = ast.unparse(node)
    if "".join(written.split()) != expected:  # before Python 3.12, nodes in f-strings may be misplaced
        raise HeadsetError(f"{source.where(node)}: give {expected!r} another name; two modules use that one.")
    return start, end, new.encode()


def fold_edits(source: Source, fold: Fold) -> Iterator[Edit]:
    """Put the branch that is taken in the place of an ``if``."""
    start, end = source.span(fold.node)
    if not fold.kept:
        yield start, end, b"pass"
        return
    first, last = source.span(fold.kept[0])[0], source.span(fold.kept[-1])[1]
    if source.data[first : first + 4] == b"elif":
        yield start, first + 2, b""
        return
    yield start, first, b""
    surplus = fold.kept[0].col_offset - fold.node.col_offset
    for line in source.starts:
        if first < line < last and source.data[line : line + surplus].isspace():
            yield line, line + surplus, b""
    yield last, end, b""


def without_own(local: LocalImport) -> bytes:
    """An import inside a function without what is carried along."""
    if not local.rest:
        return b"pass"
    node = local.node
    rest: ast.stmt = ast.Import(names=list(local.rest))
    if isinstance(node, ast.ImportFrom):
        rest = ast.ImportFrom(module=node.module, names=list(local.rest), level=node.level)
    return ast.unparse(rest).encode()


def docstring_edits(source: Source, node: ast.AST) -> Iterator[Edit]:
    """Leave examples out of a docstring: they are about headset."""
    body = getattr(node, "body", [])
    if not (body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)):
        return
    first, last = body[0].lineno, body[0].end_lineno or body[0].lineno
    for number in range(first, last):
        start, end = source.starts[number - 1], source.starts[number]
        if source.data[start:end].strip() == b"Example:" or source.data[start:end].lstrip().startswith(b">>>"):
            stop = source.starts[last - 1]
            while start > source.starts[first] and source.data[start - 2 : start] == b"\n\n":
                start -= 1
            before = source.data[source.starts[first - 1] : start].rstrip()
            if before.endswith(b":"):
                before = before[: before.rfind(b"\n\n")].rstrip()
            start = source.starts[first - 1] + len(before)
            if b"\n" in before:
                yield start + 1, stop, b""
            else:
                yield start, source.data.find(b'"""', stop), b""
            return
