"""Files of many records, opened fast and held small (`RecordFile`), and those of JSON.

A JSON list of 665,000 conversations is a gigabyte of text and several gigabytes of Python objects. So a file is scanned
once for where each record begins and ends and how much there is in it, and a record is parsed when it is asked for.
What stays in memory are three arrays; they, and the file's name, are all that goes to a worker process. Those of a
large file are kept on disk (`kept_tables`), so that it is scanned once and all processes share one copy.
"""

import codecs
import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from json.decoder import WHITESPACE
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from voco_llama.data.kept_tables import Arrays, open_table
from voco_llama.data.records import Record, Report, Sizes, check_file, name_record, stop
from voco_llama.errors import DataError, one_line

_BLOCK = 2**24


class RecordFile(Sequence[Record]):
    """The records of a file, each of which is a stretch of its bytes.

    Args:
        file: The file.
        kind: Of the table that `scan` makes, where it is kept.
        index_folder: Where it is kept; None = nowhere.
        scan: Reads the file through, for `spans` `[records, 2]` int64, the bytes where each record begins and ends, and
            the columns of `Sizes`.

    Raises:
        DataError: The file is missing; and what `scan` raises. From `[index]`: the record is not valid.
    """

    def __init__(self, file: Path, kind: str, index_folder: Path | None, scan: Callable[[], Arrays]) -> None:
        self.file = file
        check_file(file)
        self._table = open_table(file, kind, index_folder, scan)

    @property
    def sizes(self) -> Sizes:
        """How much there is in each record."""
        return Sizes(self._table["characters"], self._table["media"])

    def __len__(self) -> int:
        return len(self._table["spans"])

    def raw(self, index: int) -> bytes:
        """One record as it stands in the file.

        Raises:
            IndexError: There is no such record.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.file} has {len(self)} records, no record {index}")
        start, end = self._table["spans"][index].tolist()
        with self.file.open("rb") as stream:
            stream.seek(start)
            return stream.read(end - start)

    def not_utf8(self, index: int, error: UnicodeDecodeError) -> DataError:
        """The error for a record of other text."""
        place = int(self._table["spans"][index, 0]) + error.start
        return DataError(f"{name_record(self.file, index)}: not UTF-8 at byte {place}; save the file as UTF-8")

    def __getitem__(self, index: int) -> Record:
        return self.read(index)

    def read(self, index: int, report: Report = stop) -> Record:
        """`[index]`, with each problem handed to `report`; what it does not raise is left out of the record."""
        raise NotImplementedError


class JsonRecords(RecordFile):
    """The elements of a JSON list, or the lines of a JSON Lines file (`.jsonl`).

    Args:
        file: The file, UTF-8, with or without a byte order mark.
        measure: Gives (characters, media) of a parsed element. It must bear any JSON value: elements are validated
            when read. Its strings hold one character for each byte of UTF-8.
        kind: Of records, which tells the results of one `measure` from another's where they are kept.
        index_folder: Where what the scan found is kept; None = nowhere.

    Raises:
        DataError: The file is missing, is not JSON (says line, column and byte offset), its top level is not a
            list, or it holds no records.
    """

    def __init__(
        self, file: Path, measure: Callable[[Any], tuple[int, int]], kind: str = "", index_folder: Path | None = None
    ) -> None:
        super().__init__(file, f"json {kind}", index_folder, lambda: _scan(file, measure))

    def parse(self, index: int) -> dict[str, Any]:
        """What JSON one record holds.

        Raises:
            IndexError: There is no such record.
            DataError: It is not an object, is not UTF-8, or the file changed since it was opened.
        """
        data, source = self.raw(index), name_record(self.file, index)
        try:
            value = json.loads(data.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise self.not_utf8(index, error) from error
        except json.JSONDecodeError as error:
            raise DataError(f"{source}: the file changed since it was opened; start again") from error
        if b"\\ud" in data.lower():  # an escaped surrogate pair, or half of one, which no tokenizer takes
            try:
                json.dumps(value, ensure_ascii=False).encode("utf-8")
            except UnicodeEncodeError as error:
                raise DataError(f"{source}: holds half a surrogate pair (\\ud8..); mend the text") from error
        if not isinstance(value, dict):
            raise DataError(f"{source}: a {_json_type(value)}, not an object; each record is one {{...}}")
        return value


def _scan(file: Path, measure: Callable[[Any], tuple[int, int]]) -> Arrays:
    rows = array("q")  # begin, end, characters, media
    with file.open("rb") as stream:
        scan = _scan_lines if file.suffix == ".jsonl" else _scan_list
        try:
            for start, end, value in scan(stream, file):
                rows.extend((start, end, *measure(value)))
        except _BrokenJsonError as error:
            raise DataError(_unreadable(file, error)) from error
    if not rows:
        raise DataError(f"{file}: holds no records; give a file with at least one")
    table = np.array(rows, dtype=np.int64).reshape(-1, 4)
    return {
        "spans": table[:, :2].copy(),
        "characters": table[:, 2].astype(np.int32),
        "media": table[:, 3].astype(np.int32),
    }


class _BrokenJsonError(Exception):
    """Not JSON, at a byte offset."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


class _Scanner:
    """Parses JSON values off a stream through a sliding window.

    Bytes are read as Latin-1, one character each: JSON's own signs are ASCII and no byte of a UTF-8 sequence looks
    like one, so values begin and end at the same places, and these are byte offsets.
    """

    def __init__(self, stream: BinaryIO, block: int = _BLOCK) -> None:
        self._stream, self._block = stream, block
        self._decoder = json.JSONDecoder()
        self._text, self._base, self._at = "", 0, 0
        if stream.read(3) == codecs.BOM_UTF8:
            self._base = 3
        else:
            stream.seek(0)

    @property
    def offset(self) -> int:
        return self._base + self._at

    def _slide(self) -> bool:
        """Drops what was read and adds at least as much as is left; False at the end of the file."""
        rest = self._text[self._at :]
        block = self._stream.read(max(self._block, len(rest)))
        self._base, self._at, self._text = self.offset, 0, rest + block.decode("latin-1")
        return bool(block)

    def peek(self) -> str:
        """The next sign after white space; empty at the end of the file."""
        while True:
            self._at = WHITESPACE.match(self._text, self._at).end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._slide():
                return ""

    def take(self, sign: str, message: str) -> None:
        """Passes over an expected sign."""
        if self.peek() != sign:
            raise _BrokenJsonError(message, self.offset)
        self._at += 1

    def value(self) -> tuple[int, int, Any]:
        """The next value and the offsets where it begins and ends."""
        self.peek()
        while True:
            start, at = self.offset, self._at
            try:
                value, end = self._decoder.raw_decode(self._text, at)
            except json.JSONDecodeError as error:
                broken = _BrokenJsonError(error.msg, start + error.pos - at)
                if not self._slide():  # else the window may have ended inside the value: try again with more
                    raise broken from error
            except (RecursionError, ValueError) as error:  # nested too deep, a number of thousands of digits
                raise _BrokenJsonError(one_line(error), start) from error
            else:
                if end < len(self._text) or not self._slide():  # at the window's very end a number may go on
                    self._at += end - at
                    return start, self.offset, value


def _scan_list(stream: BinaryIO, file: Path) -> Iterator[tuple[int, int, Any]]:
    scanner = _Scanner(stream)
    first = scanner.peek()
    if first and first in '{"':
        found = "an object" if first == "{" else "a string"
        raise DataError(f"{file}: the top level is {found}, not a list of records (JSON Lines are to end in .jsonl)")
    scanner.take("[", "Expecting a list of records")
    if scanner.peek() != "]":
        yield scanner.value()
        while scanner.peek() != "]":
            scanner.take(",", "Expecting ',' or ']'")
            yield scanner.value()
    scanner.take("]", "Expecting ']'")
    if scanner.peek():
        raise _BrokenJsonError("Extra data after the list", scanner.offset)


def _scan_lines(stream: BinaryIO, file: Path) -> Iterator[tuple[int, int, Any]]:
    offset = 0
    for line in stream:
        begin = 3 if offset == 0 and line.startswith(codecs.BOM_UTF8) else 0
        if line[begin:].strip():
            try:
                value = json.loads(line[begin:].decode("latin-1"))
            except json.JSONDecodeError as error:
                raise _BrokenJsonError(error.msg, offset + begin + error.pos) from error
            except (RecursionError, ValueError) as error:
                raise _BrokenJsonError(one_line(error), offset) from error
            yield offset + begin, offset + len(line), value
        offset += len(line)


def _unreadable(file: Path, error: _BrokenJsonError) -> str:
    line, begin, position = 1, 0, 0
    with file.open("rb") as stream:
        while block := stream.read(min(_BLOCK, error.offset - position)):
            line += block.count(b"\n")
            if b"\n" in block:
                begin = position + block.rindex(b"\n") + 1
            position += len(block)
    column = error.offset - begin + 1
    return (
        f"{file}: unreadable JSON at line {line}, column {column} (byte offset {error.offset}): {error}; "
        "mend the file or fetch it again"
    )


def _json_type(value: object) -> str:
    names = {list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
