"""Which rows of a table look at the same images, by the paths beside their bytes; the bytes are not read."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from voco_llama.data.media.stored import location_hash

if TYPE_CHECKING:
    import pyarrow as pa

_ODD = np.uint64(0x9E3779B97F4A7C15)
"""Multiplied by it, modulo 2^64, different numbers stay different, and far apart."""


def media_in(columns: "Iterable[pa.ChunkedArray]", where: str, table: str) -> np.ndarray:
    """`[rows]` int64: the `Sizes.medium` of the rows of an image column whose parts follow one another.

    An image without a path is one of its own.

    Args:
        columns: In one of the forms that `voco_llama.data.readers.table_records` describes.
        where: What paths are relative to.
        table: Which table it is, of all that have rows of the same numbers.
    """
    base, own = (np.int64(location_hash(name)).astype(np.uint64) for name in (where, table))
    found, images = [], 0
    for chunk in (chunk for column in columns for chunk in column.chunks):
        rows, hashes = _hashes(chunk, images, own)
        images += len(hashes)
        place = np.arange(len(rows)) - np.searchsorted(rows, rows)  # in its row
        joined = np.zeros(len(chunk), np.uint64)
        np.add.at(joined, rows, hashes * (2 * place + 1).astype(np.uint64))
        found.append(np.where(joined, joined ^ base, 0))
    return np.concatenate(found).astype(np.int64)


def _hashes(array: "pa.Array", before: int, own: np.uint64) -> tuple[np.ndarray, np.ndarray]:
    """Of each image its row, and a hash, uint64; of a missing one 0.

    `before` counts the images before these; `own` tells the images without a path from those of other tables.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = np.arange(len(array))
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        rows, array = pc.list_parent_indices(array).to_numpy(), pc.list_flatten(array)
    kind = array.type
    if pa.types.is_struct(kind):
        parts = {name: pc.struct_field(array, name) for name in ("bytes", "path") if kind.get_field_index(name) >= 0}
    else:
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        parts = {"path" if is_text else "bytes": array}
    hashes = np.zeros(len(array), np.uint64)
    if "bytes" in parts:
        numbers = np.arange(before + 1, before + 1 + len(array)).astype(np.uint64)
        hashes = np.where(_is_valid(parts["bytes"]), (numbers * _ODD) ^ own, 0)
    if "path" in parts:
        coded = parts["path"].cast(pa.large_binary()).dictionary_encode()
        names = np.array([location_hash(name) for name in coded.dictionary.to_pylist()], np.int64).astype(np.uint64)
        there = _is_valid(parts["path"])
        hashes[there] = names[coded.indices.drop_null().to_numpy()]
    return rows, hashes


def _is_valid(array: "pa.Array") -> np.ndarray:
    return array.is_valid().to_numpy(zero_copy_only=False)
