"""Ways to damage bytes, lines of text, and trees of plain values; all of them by a seeded generator."""

import copy
import random
from collections.abc import Callable
from typing import Any

__all__ = ["mutated_bytes", "mutated_tree"]

Mutator = Callable[[random.Random, bytes], bytes]
SNIPPETS = [
    b"\0",
    b'"',
    b"'",
    b"\n",
    b"\r",
    b"\r\n",
    b"\n\n",
    b"\t",
    b",",
    b";",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\x80",
    b"\xed\xa0\x80",
    b"\xe2\x80\xa8",
    b"\xc2\x85",
    b"\x0b\x0c\x1c\x1a",
    b"NaN",
    b"-Infinity",
    b"null",
    b"true",
    b"1e999",
    b"9" * 400,
    b"-9223372036854775809",
    b"18446744073709551616",
    b"0.1",
    b"{}",
    b"[]",
    b"[" * 2000,
    b'{"a":' * 500,
    b"\\ud800",
    b"\\u0000",
    b"\\",
    b"x" * 200_000,
    b"#",
    b"-DOCSTART-",
    b"  ",
    "ﬁ️‍👩🏽".encode(),
]


def mutated_bytes(rng: random.Random, content: bytes) -> bytes:
    """Content with one to three kinds of damage."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content = rng.choice(BYTES)(rng, content)
    return content


def mutated_tree(rng: random.Random, value: Any) -> Any:
    """A copy of a tree of plain values, in which one to three nodes are others, are gone, or are there twice."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value = _mutate_node(rng, value)
    return value


def _place(rng: random.Random, content: bytes) -> int:
    return rng.randint(0, len(content))


def _flip(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(min(rng.choice((1, 1, 2, 8, 64)), len(changed))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncate(rng: random.Random, content: bytes) -> bytes:
    return content[: _place(rng, content)]


def _behead(rng: random.Random, content: bytes) -> bytes:
    return content[min(_place(rng, content), 200) :]


def _insert(rng: random.Random, content: bytes) -> bytes:
    place = _place(rng, content)
    return content[:place] + rng.choice(SNIPPETS) + content[place:]


def _replace(rng: random.Random, content: bytes) -> bytes:
    place = _place(rng, content)
    return content[:place] + rng.choice(SNIPPETS) + content[place + rng.randint(0, 12) :]


def _cut_out(rng: random.Random, content: bytes) -> bytes:
    place = _place(rng, content)
    return content[:place] + content[place + rng.randint(1, 40) :]


def _repeat(rng: random.Random, content: bytes) -> bytes:
    start = _place(rng, content)
    part = content[start : start + rng.randint(1, 200)]
    place = _place(rng, content)
    return content[:place] + part * rng.randint(1, 3) + content[place:]


def _lines(rng: random.Random, content: bytes) -> bytes:
    lines = content.split(b"\n")
    chosen = rng.randrange(len(lines))
    how = rng.randrange(5)
    if how == 0:
        del lines[chosen]
    elif how == 1:
        lines.insert(rng.randint(0, len(lines)), lines[chosen])
    elif how == 2:
        rng.shuffle(lines)
    elif how == 3:
        lines[chosen] = b""
    else:
        lines[chosen] = lines[chosen][::-1]
    return b"\n".join(lines)


def _line_ends(rng: random.Random, content: bytes) -> bytes:
    return content.replace(b"\n", rng.choice((b"\r\n", b"\r", b"\n\r", b"\n\n", b"\x0b", b"")))


def _cells(rng: random.Random, content: bytes) -> bytes:
    """Separators, quotes and values are exchanged wherever they stand."""
    swaps = [(b",", b";"), (b",", b"\t"), (b'"', b"'"), (b'"', b""), (b"\t", b" "), (b" ", b"\xc2\xa0"), (b":", b"=")]
    return content.replace(*rng.choice(swaps))


def _encoding(rng: random.Random, content: bytes) -> bytes:
    text = content.decode("utf-8", "replace")
    how = rng.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1", "utf-7", "shift-jis"))
    return text.encode(how, "replace")


BYTES: list[Mutator] = [
    _flip,
    _truncate,
    _behead,
    _insert,
    _insert,
    _replace,
    _replace,
    _cut_out,
    _repeat,
    _lines,
    _lines,
    _line_ends,
    _cells,
    _encoding,
]

# What stands where something else should.
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    3,
    2**31,
    2**63,
    2**70,
    10**9,
    -(10**9),
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    " ",
    "x",
    "0",
    "null",
    "a/b",
    "../x",
    "/etc/passwd",
    "bert",
    "gpt2",
    "os.system",
    "headset.model.Headset",
    "a\nb",
    "a\0b",
    "\ud800",
    "é" * 50,
    "x" * 100_000,
    [],
    [1],
    ["a", "a"],
    ["x", None],
    [[]],
    {},
    {"x": 1},
    {"class_path": "os.system", "init_args": {"command": "touch fuzz-ran-this"}},
    {"": {}},
]


def _nodes(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        found.append((value, key))
        _nodes(value[key], found)
    return found


def _mutate_node(rng: random.Random, tree: Any) -> Any:
    nodes = _nodes(tree, [])
    if not nodes or rng.random() < 0.02:
        return copy.deepcopy(rng.choice(VALUES))
    # The upper nodes of a tree are few, and matter most.
    parent, key = rng.choice(nodes[: rng.choice((10, 50, len(nodes)))])
    how = rng.randrange(7)
    if how == 0:
        del parent[key]
    elif how == 1 and isinstance(parent, dict):
        name = str(key)
        parent[rng.choice((name + "x", name[:-1], name.upper(), "", "../" + name, name + "\n", "x"))] = parent.pop(key)
    elif how == 2:
        other, its = rng.choice(nodes)
        if isinstance(other, dict | list) and (its in other if isinstance(other, dict) else its < len(other)):
            parent[key] = copy.deepcopy(other[its])
    elif how == 3 and isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
        parent[key] = rng.choice(
            (-parent[key], parent[key] + 1, parent[key] * 2, str(parent[key]), parent[key] * 10**6)
        )
    elif how == 4 and isinstance(parent, list):
        parent.append(copy.deepcopy(parent[key]))
    else:
        parent[key] = copy.deepcopy(rng.choice(VALUES))
    return tree
