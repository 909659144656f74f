"""A failing script made short: statement after statement is left out while the same kind of failure stays."""

from __future__ import annotations

import ast
import copy
import time
from collections.abc import Callable, Iterator


def shrink(text: str, fails: Callable[[str], bool], seconds: float = 30.0) -> str:
    """The shortest script found in this time for which ``fails`` holds; the text given, if it does not fail.

    Args:
        text: a script. fails: whether a script shows the failure. It must say False of one that does not run.
        seconds: of processor time, how long to look.
    """
    deadline = time.process_time() + seconds
    best = ast.unparse(ast.parse(text))
    if not fails(best):
        return text
    shorter = True
    while shorter and time.process_time() < deadline:
        shorter = False
        number = 0
        while time.process_time() < deadline:
            candidate = _nth(best, number)
            if candidate is None:
                break
            if len(candidate) < len(best) and fails(candidate):
                best, shorter = candidate, True  # the same number is another edit now
            else:
                number += 1
    return best


def _nth(text: str, number: int) -> str | None:
    """The script after one edit; None where there are not so many."""
    tree = ast.parse(text)
    for i, edit in enumerate(_edits(tree)):
        if i == number:
            edit()
            return ast.unparse(ast.fix_missing_locations(tree))
    return None


Edit = Callable[[], None]


def _edits(tree: ast.Module) -> Iterator[Edit]:
    """Large ones first: classes, then statements from the last to the first, then expressions by their parts."""
    for node in [tree, *(n for n in ast.walk(tree) if n is not tree)]:
        for name in ("body", "orelse"):
            block = getattr(node, name, None)
            if not isinstance(block, list):
                continue
            for i in reversed(range(len(block))):
                yield from _statement_edits(tree, block, i, name == "orelse")
    for node in ast.walk(tree):
        for name, value in ast.iter_fields(node):
            if isinstance(value, ast.expr) and not isinstance(node, ast.Attribute):
                for part in _parts(value):
                    yield lambda node=node, name=name, part=part: setattr(node, name, part)  # type: ignore[misc]
            elif isinstance(value, list) and name in ("args", "elts", "keywords", "decorator_list"):
                for i, item in enumerate(value):
                    yield lambda value=value, i=i: value.pop(i)  # type: ignore[misc]
                    for part in _parts(item) if isinstance(item, ast.expr) else ():
                        yield lambda value=value, i=i, part=part: value.__setitem__(i, part)  # type: ignore[misc]


def _statement_edits(tree: ast.Module, block: list[ast.stmt], i: int, may_be_empty: bool) -> Iterator[Edit]:
    if len(block) > 1 or may_be_empty:
        yield lambda: block.__delitem__(i)
    inner = block[i]
    if len(block) > 1 and isinstance(inner, ast.Assign) and isinstance(inner.value, ast.Name):
        target = inner.targets[0]
        if isinstance(target, ast.Name):  # a second name of the same
            yield lambda: _renamed(tree, block, i, target.id, inner.value.id)  # type: ignore[attr-defined]
    if isinstance(inner, ast.If | ast.For | ast.With):  # its body in its place
        yield lambda: block.__setitem__(slice(i, i + 1), inner.body)


def _renamed(tree: ast.Module, block: list[ast.stmt], i: int, old: str, new: str) -> None:
    del block[i]
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == old:
            node.id = new


def _parts(value: ast.expr) -> Iterator[ast.expr]:
    """Expressions inside that could stand for the whole one."""
    if isinstance(value, ast.Call):
        yield from (copy.deepcopy(a) for a in value.args if not isinstance(a, ast.Constant | ast.Starred))
        if isinstance(value.func, ast.Attribute) and isinstance(value.func.value, ast.Name | ast.Call | ast.Subscript):
            yield copy.deepcopy(value.func.value)
    elif isinstance(value, ast.BinOp):
        yield copy.deepcopy(value.left)
        yield copy.deepcopy(value.right)
    elif isinstance(value, ast.Tuple | ast.List):
        yield from (copy.deepcopy(e) for e in value.elts)
    elif isinstance(value, ast.Dict):
        yield from (copy.deepcopy(e) for e in value.values)
    elif isinstance(value, ast.IfExp):
        yield copy.deepcopy(value.body)
        yield copy.deepcopy(value.orelse)
    elif isinstance(value, ast.Subscript):
        yield copy.deepcopy(value.value)
