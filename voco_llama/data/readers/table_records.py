r"""Rows of an Arrow table as records: three forms, and images that stay undecoded in their cells.

    conversations   [{"from": "human", "value": "<image>\n..."}, ...]    LLaVA's own, LLaVA-OneVision
    texts           [{"user": "...", "assistant": "..."}, ...]            The Cauldron: images before the first text
    caption         a text                                                captions, after an instruction of ours

An image is what the `Image` feature of `datasets` stores, a struct of `bytes` and `path`; or bytes, or a path alone; or
nothing (text-only); or a list of these. A path is relative to the media folder and stays inside it.
"""

import io
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from voco_llama.data.media.roots import MediaRoot, open_media_root
from voco_llama.data.media.stored import MediaFile, StoredFile, content_key
from voco_llama.data.readers.table_media import media_in
from voco_llama.data.records import (
    IMAGE_MARK,
    Reader,
    Record,
    Report,
    Sizes,
    Turn,
    caption_turns,
    check_instructions,
    check_marks,
    is_complete,
    name_record,
    read_turns,
    stop,
)
from voco_llama.errors import DataError, ProblemKind, refused_as, shown

if TYPE_CHECKING:
    import pyarrow as pa

INSTRUCTIONS = (
    "Describe the image concisely.",
    "Provide a brief description of the given image.",
    "Give a short and clear explanation of the image.",
    "What is in the picture? Answer briefly.",
    "Summarize the visual content of the image.",
)

IMAGE_COLUMNS = ("image", "images")
"""The first of these that there is, where the settings name none."""

Counted = Literal["bytes", "marks", "images"]

_TURN_FIELDS = ("value", "user", "assistant")  # in either form of conversations
FIELDS: dict[Counted, tuple[str, ...]] = {"bytes": _TURN_FIELDS, "marks": _TURN_FIELDS, "images": ("bytes", "path")}
"""Of a struct, where something is counted: the texts of a turn; of an image the one that it is given by."""


class TableReader(Reader):
    """The records of a table; what `file` is, and how it is read, is the subclass's business.

    Args:
        images: What paths in the image column are relative to: a folder, an archive, or both; None where all images
            lie in the table.
        split, name: Of the data set; its configuration, where it has several.
        id_column: Ignored if it is not there.
        image_column: None: `image` or `images`, whichever there is.
        conversations_column, texts_column, caption_column: The first that there is says which form the table has.
        instruction, seed: Of captions: the instruction, or several of which seed and row choose.
        index_folder: Where the tables of archives are kept; None = nowhere.

    Raises:
        DataError: The table is missing, unreadable or empty, or a column is missing. From `[index]`: the row is not
            valid.
        SettingsError: No instruction, or one with an `<image>` mark in it.
    """

    def __init__(
        self,
        file: str | Path,
        images: str | Path | MediaRoot | None = None,
        split: str = "train",
        name: str | None = None,
        id_column: str = "id",
        image_column: str | None = None,
        conversations_column: str = "conversations",
        texts_column: str = "texts",
        caption_column: str = "caption",
        instruction: str | Sequence[str] = INSTRUCTIONS,
        seed: int = 0,
        index_folder: Path | None = None,
    ) -> None:
        self.file, self._table = Path(file), f"{file} {split} {name}"
        self.images = open_media_root(images, self.file, index_folder)
        self.instructions = check_instructions(instruction, "hf_dataset")
        self.seed = seed
        names = self._open(split, name)
        if not len(self):
            raise DataError(f"{self.file}: holds no records; give a table with at least one")
        forms = {"conversations": conversations_column, "texts": texts_column, "caption": caption_column}
        self.form = next((form for form, column in forms.items() if column in names), None)
        if self.form is None:
            raise DataError(
                f"{self.file}: no column {', '.join(map(repr, forms.values()))} (columns: {', '.join(names)}); "
                "name the one to read in the source's options"
            )
        self.text_column = forms[self.form]
        if image_column is not None and image_column not in names:
            raise DataError(f"{self.file}: no column {image_column!r} (columns: {', '.join(names)}); name another")
        self.image_column = image_column or next((column for column in IMAGE_COLUMNS if column in names), None)
        self.id_column = id_column if id_column in names else None
        self.video_column = "video" if "video" in names else None
        columns = (self.id_column, self.text_column, self.image_column, self.video_column)
        self.columns = [column for column in columns if column is not None]

    @abstractmethod
    def _open(self, split: str, name: str | None) -> list[str]:
        """Opens the table, for its length, and gives the names of its columns."""

    @abstractmethod
    def row(self, index: int, columns: list[str]) -> "pa.Table":
        """One row of these columns."""

    @abstractmethod
    def _column(self, name: str) -> "Iterator[pa.ChunkedArray]":
        """A column, some rows at a time."""

    @cached_property
    def sizes(self) -> Sizes:
        """How much there is in each record, known without reading a byte of its images."""
        characters = count_in(self._column(self.text_column), "bytes")
        if self.image_column is None:
            return Sizes(characters, np.zeros(len(self), np.int32), np.zeros(len(self), np.int64))
        media = count_in(self._column(self.image_column), "images")
        medium = media_in(self._column(self.image_column), str(self.images or self.file), self._table)
        return Sizes(characters, media, medium)

    def read(self, index: int, report: Report = stop) -> Record:
        """The record; problems of its turns and marks go to `report`, others are raised."""
        self.check_index(index)
        row = self.row(index, self.columns)
        try:
            record_id = None if self.id_column is None else row[self.id_column][0].as_py()
            text = row[self.text_column][0].as_py()
        except UnicodeDecodeError as error:
            raise DataError(f"{name_record(self.file, index)}: not UTF-8; save its text as UTF-8") from error
        source = name_record(self.file, index, "id", record_id)
        if self.video_column is not None and row[self.video_column][0].is_valid:
            raise DataError(f"{source}: has a 'video', which this format does not read; use video_chatgpt")
        images = () if self.image_column is None else tuple(self._images(row[self.image_column][0], index, source))
        turns = self._turns(text, len(images), index, source, report)
        if turns or is_complete(turns, text):
            check_marks(turns, len(images), source, report=report)
        return Record(str(index if record_id is None else record_id), turns, images, source=source)

    def _turns(self, text: Any, num_images: int, index: int, source: str, report: Report) -> tuple[Turn, ...]:
        if self.form == "conversations":
            return read_turns(text, source, self.text_column, report)
        if self.form == "caption":
            if not isinstance(text, str) or not text.strip():
                message = f"{source}: the caption is {'empty' if text else shown(text)}; fill it in"
                report(DataError(message, ProblemKind.EMPTY_ANSWER))
                return ()
            return caption_turns(self.instructions, self.seed, index, text.strip())
        if isinstance(text, list):
            pairs = [entry or {} for entry in text]
            text = [{"from": role, "value": pair.get(role)} for pair in pairs for role in ("user", "assistant")]
        turns = read_turns(text, source, self.text_column, report)
        if not turns or any(IMAGE_MARK in turn.text for turn in turns):
            return turns
        first, *rest = turns
        return Turn(first.role, f"{IMAGE_MARK}\n" * num_images + first.text), *rest

    def _images(self, value: "pa.Scalar", index: int, source: str) -> Iterator[MediaFile]:
        is_list = hasattr(value.type, "value_type") and value.is_valid
        for number, item in enumerate(value.values if is_list else [value]):
            stored, path = _parts(item)
            if stored is None and path is None:
                if is_list:
                    raise DataError(f"{source}: {self.image_column!r} {number} is empty; fill it in, or take it out")
                continue
            if stored is not None:
                yield Cell(self.file, index, self.image_column, number if is_list else None, path, self)
            elif self.images is None:
                raise DataError(f"{source}: {self.image_column!r} is the path {shown(path)}; set media_folder")
            else:
                yield self.images.find(path, source)


@dataclass(frozen=True)
class Cell(StoredFile):
    """An image whose bytes are in a table. They are read when it is opened, so a record stays small.

    Attributes:
        number: In the cell's list; None where the cell is one image.
        path: What the cell says of the file that the bytes came from.
        reader: Of the table `file`.
    """

    file: Path
    row: int
    column: str
    number: int | None
    path: str | None = field(compare=False)
    reader: TableReader = field(compare=False, repr=False)

    def __str__(self) -> str:
        number = "" if self.number is None else f" image {self.number}"
        return f"{self.file} row {self.row} column {self.column}{number}"

    @property
    def name(self) -> str:
        """That of the file that it came from, else its column's."""
        return Path(self.path).name if self.path else self.column

    @property
    def identity(self) -> str:
        """By its bytes: splits and configurations have rows of the same number, and files of the same name differ."""
        return content_key(self)

    def open(self) -> BinaryIO:
        with refused_as(DataError, self, "fetch the table again"):
            value = self.reader.row(self.row, [self.column])[self.column][0]
            return io.BytesIO(_parts(value if self.number is None else value.values[self.number])[0].as_py())


def _parts(value: "pa.Scalar") -> "tuple[pa.Scalar | None, str | None]":
    """The bytes of an image, not yet copied, and its path; each None where there is none."""
    import pyarrow as pa

    if not value.is_valid:
        return None, None
    if pa.types.is_struct(value.type):
        parts = {name: part for name, part in value.items() if part.is_valid}
        return parts.get("bytes"), parts["path"].as_py() if "path" in parts else None
    is_text = pa.types.is_string(value.type) or pa.types.is_large_string(value.type)
    return (None, value.as_py()) if is_text else (value, None)


def count_in(columns: "Iterable[pa.ChunkedArray]", what: Counted) -> np.ndarray:
    """`[rows]` int32: how much of it there is in each row of columns that follow one another.

    Bytes of text and `<image>` marks are counted in texts and in turns. Of images only Arrow's bits of validity are
    looked at, never the bytes.
    """
    counted = [_count(chunk, what) for column in columns for chunk in column.chunks]
    return np.concatenate(counted).astype(np.int32)


def _count(array: "pa.Array", what: Counted) -> np.ndarray:
    """`[rows]` int64, summed over each row's lists and fields of text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        rows = pc.list_parent_indices(array).to_numpy()
        inner = _count(pc.list_flatten(array), what)
        return np.bincount(rows, weights=inner, minlength=len(array)).astype(np.int64)
    none = np.zeros(len(array), np.int64)
    if pa.types.is_struct(kind):
        names = [name for name in FIELDS[what] if kind.get_field_index(name) >= 0]
        counts = [_count(pc.struct_field(array, name), what) for name in names]
        return np.max([none, *counts], axis=0) if what == "images" else sum(counts, none)
    if what == "images":
        return array.is_valid().to_numpy(zero_copy_only=False).astype(np.int64)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        counted = pc.binary_length(array) if what == "bytes" else pc.count_substring(array, pattern=IMAGE_MARK)
        return pc.fill_null(counted, 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return none
