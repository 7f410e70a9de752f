"""Files a little wrong: bytes flipped, cut, doubled; JSON whose parts are of another kind, missing or strange."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

SCALARS: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 7, 2.5, 300, float("nan"), float("inf"), "", " ", "x", "\x00", "../x", "/", "a\nb",
    "<image>", "n" * 300, "é€😀", "\ud83d", [], [[]], [None], {}, {"a": 1}, [1, "a", {}], "1", "null",
)  # fmt: skip
"""What a value of a JSON file is changed to."""
TEXTS = (
    b"",
    b"\x00",
    b"\xff\xfe",
    b"\xc3",
    b"\n",
    b'"',
    b"{",
    b"[" * 2000,
    b"1e999",
    b"NaN",
    b"\\ud83d",
    b"\xef\xbb\xbf",
)
"""What is put between the bytes of a file."""


@st.composite
def bytes_of(draw: st.DrawFn, whole: bytes, header: int = 0) -> bytes:
    """A file with one to three changes; `header`: bytes at its beginning where every other one is."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        size = min(header, len(data)) if header and draw(st.booleans()) else len(data)
        at = draw(st.integers(0, max(size - 1, 0)))
        kind = draw(st.sampled_from(("bit", "byte", "cut", "drop", "double", "insert", "zero")))
        length = draw(st.sampled_from((1, 2, 4, 16, 100)))
        if kind == "bit" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte" and data:
            data[at] = draw(st.sampled_from((0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x30, 0x39)))
        elif kind == "cut":
            del data[at:]
        elif kind == "drop":
            del data[at : at + length]
        elif kind == "double":
            data[at:at] = data[at : at + length]
        elif kind == "insert":
            data[at:at] = draw(st.sampled_from(TEXTS))
        else:
            data[at : at + length] = bytes(len(data[at : at + length]))
    return bytes(data)


def places(value: Any, at: tuple = ()) -> list[tuple]:
    """Of every part of a JSON value the keys that lead to it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, inner in items for place in places(inner, (*at, key)))]


@st.composite
def json_of(draw: st.DrawFn, whole: bytes, lines: bool = False) -> bytes:
    """JSON (or lines of JSON) that is JSON still, with one to three parts changed."""
    value = [json.loads(line) for line in whole.splitlines()] if lines else json.loads(whole)
    for _ in range(draw(st.integers(1, 3))):
        value = copy.deepcopy(value)
        at = draw(st.sampled_from(places(value)))
        new = draw(st.sampled_from(SCALARS))
        kind = draw(st.sampled_from(("change", "change", "drop", "rename", "wrap")))
        if not at:
            value = new if kind == "change" else [value]
            continue
        *above, key = at
        parent = value
        for step in above:
            parent = parent[step]
        if kind == "drop":
            del parent[key]
        elif kind == "rename" and isinstance(parent, dict):
            parent[draw(st.sampled_from(("", "x", "\x00", f"{key}s")))] = parent.pop(key)
        elif kind == "wrap":
            parent[key] = [parent[key]]
        else:
            parent[key] = new
    if lines and isinstance(value, list):
        return "\n".join(json.dumps(line) for line in value).encode()
    return json.dumps(value).encode()


def text_of(whole: bytes, lines: bool = False) -> st.SearchStrategy[bytes]:
    """JSON changed as bytes or as JSON."""
    return st.one_of(bytes_of(whole), json_of(whole, lines), json_of(whole, lines))
