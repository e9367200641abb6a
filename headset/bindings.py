"""Names that statements bind."""

import ast
from collections.abc import Iterable

__all__ = ["FUNCTIONS", "bound_names"]

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class _Bound(ast.NodeVisitor):
    """The names that statements bind in their own scope."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.of_module: set[str] = set()
        self.imports: list[ast.Import | ast.ImportFrom] = []

    def visit(self, node: ast.AST) -> None:
        """Take the names that a node binds, and go on inside it where the scope is the same."""
        if isinstance(node, ast.Name):
            if not isinstance(node.ctx, ast.Load):
                self.names.add(node.id)
        elif isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            self.names.add(node.name)
        elif isinstance(node, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            found = (part.target.id for part in ast.walk(node) if isinstance(part, ast.NamedExpr))
            self.names.update(found)
        elif isinstance(node, ast.Global):
            self.of_module.update(node.names)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            self.imports.append(node)
            self.names.update(alias.asname or alias.name.partition(".")[0] for alias in node.names)
        elif not isinstance(node, ast.Lambda):
            if isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
                self.names.add(node.name)
            if isinstance(node, ast.MatchMapping) and node.rest:
                self.names.add(node.rest)
            self.generic_visit(node)


def bound_names(nodes: Iterable[ast.AST]) -> tuple[set[str], set[str], list[ast.Import | ast.ImportFrom]]:
    """Names that statements bind in their own scope; those declared ``global``; and the imports among them."""
    found = _Bound()
    for node in nodes:
        found.visit(node)
    return found.names, found.of_module, found.imports
