"""Files of many records, opened fast and held small (`RecordFile`), and those of JSON.

A JSON list of 665,000 conversations is a gigabyte of text and several gigabytes of Python objects. So a file is scanned
once for where each record begins and ends and how much there is in it, and a record is parsed when it is asked for.
What stays in memory are four arrays; they, and the file's name, are all that goes to a worker process. Those of a
large file are kept on disk (`kept_tables`), so that it is scanned once and all processes share one copy.
"""

import codecs
import json
from array import array
from collections.abc import Callable, Iterable, Iterator
from json.decoder import WHITESPACE, JSONDecodeError
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from voco_llama.data.kept_tables import Arrays, open_table
from voco_llama.data.media.roots import MediaRoot
from voco_llama.data.media.stored import location_hash
from voco_llama.data.records import Reader, Sizes, check_file, name_record
from voco_llama.errors import DataError, one_line

_BLOCK = 2**24

Places = Iterable[tuple[int, int, int, int, int]]
"""Of each record the bytes where it begins and ends, and its `Sizes`: characters, media, medium."""


class RecordFile(Reader):
    """The records of a file, each of which is a stretch of its bytes.

    Args:
        file: The file.
        kind: Of the table that `scan` makes, where it is kept.
        index_folder: Where it is kept; None = nowhere.
        scan: Reads the file through; the same names in another root are of other media.
        root: Of the names of its media.

    Raises:
        DataError: The file is missing or holds no records; and what `scan` raises. From `[index]`: it is not valid.
    """

    nothing = "no records"

    def __init__(
        self, file: Path, kind: str, index_folder: Path | None, scan: Callable[[], Places], root: MediaRoot | None
    ) -> None:
        self.file = file
        self._root_hash = location_hash(str(root))
        check_file(file)
        self._table = open_table(file, kind, index_folder, lambda: self._tabulate(scan()))

    def _tabulate(self, places: Places) -> Arrays:
        rows = array("q")
        for place in places:
            rows.extend(place)
        if not rows:
            raise DataError(f"{self.file}: holds {self.nothing}; give a file with at least one")
        table = np.array(rows, dtype=np.int64).reshape(-1, 5)
        characters, media = table[:, 2:4].astype(np.int32).T.copy()
        return {"spans": table[:, :2].copy(), "characters": characters, "media": media, "medium": table[:, 4].copy()}

    @property
    def sizes(self) -> Sizes:
        names = self._table["medium"]
        return Sizes(self._table["characters"], self._table["media"], np.where(names, names ^ self._root_hash, 0))

    def __len__(self) -> int:
        return len(self._table["spans"])

    def raw(self, index: int) -> bytes:
        """One record as it stands in the file."""
        self.check_index(index)
        start, end = self._table["spans"][index].tolist()
        with self.file.open("rb") as stream:
            stream.seek(start)
            return stream.read(end - start)

    def not_utf8(self, index: int, error: UnicodeDecodeError) -> DataError:
        """The error for a record of other text."""
        place = int(self._table["spans"][index, 0]) + error.start
        return DataError(f"{name_record(self.file, index)}: not UTF-8 at byte {place}; save the file as UTF-8")

    def changed(self, index: int) -> DataError:
        """The error for a record that is not any more what it was when the file was scanned."""
        return DataError(f"{name_record(self.file, index)}: the file changed since it was opened; start again")


class JsonRecords(RecordFile):
    """The elements of a JSON list, or the lines of a JSON Lines file (`.jsonl`).

    Args:
        file: The file, UTF-8, with or without a byte order mark.
        measure: Gives the `Sizes` of a parsed element. It must bear any JSON value: elements are validated when read.
            Its strings hold one character for each byte of UTF-8.
        kind, index_folder, root: As those of `RecordFile`; `kind` tells the results of one `measure` from another's.

    Raises:
        DataError: The file is missing, is not JSON (says line, column and byte offset), its top level is not a
            list, or it holds no records.
    """

    def __init__(
        self,
        file: Path,
        measure: Callable[[Any], tuple[int, int, int]],
        kind: str = "",
        index_folder: Path | None = None,
        root: MediaRoot | None = None,
    ) -> None:
        super().__init__(file, f"json {kind}", index_folder, lambda: _scan(file, measure), root)

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
        except JSONDecodeError as error:
            raise self.changed(index) from error
        if b"\\ud" in data.lower():  # an escaped surrogate pair, or half of one, which no tokenizer takes
            try:
                json.dumps(value, ensure_ascii=False).encode("utf-8")
            except UnicodeEncodeError as error:
                raise DataError(f"{source}: holds half a surrogate pair (\\ud8..); mend the text") from error
        if not isinstance(value, dict):
            names = {list: "list", str: "string", bool: "boolean", type(None): "null"}
            raise DataError(
                f"{source}: a {names.get(type(value), 'number')}, not an object; each record is one {{...}}"
            )
        return value


def _scan(file: Path, measure: Callable[[Any], tuple[int, int, int]]) -> Places:
    with file.open("rb") as stream:
        try:
            for start, end, value in (_scan_lines if file.suffix == ".jsonl" else _scan_list)(stream, file):
                yield start, end, *measure(value)
        except JSONDecodeError as error:
            stream.seek(0)
            before = stream.read(error.pos)
            line, column = before.count(b"\n") + 1, error.pos - before.rfind(b"\n")
            raise DataError(
                f"{file}: unreadable JSON at line {line}, column {column} (byte offset {error.pos}): {error.msg}; "
                "mend the file or fetch it again"
            ) from error


def skip_byte_order_mark(stream: BinaryIO) -> None:
    """Moves a file that was just opened past its mark, if it has one."""
    if stream.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
        stream.seek(0)


def _broken(message: str, offset: int) -> JSONDecodeError:
    """Not JSON, at a byte of the file."""
    return JSONDecodeError(message, "", offset)


class _Scanner:
    """Parses JSON values off a stream through a sliding window.

    Bytes are read as Latin-1, one character each: JSON's own signs are ASCII and no byte of a UTF-8 sequence looks
    like one, so values begin and end at the same places, and these are byte offsets.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decoder = json.JSONDecoder()
        skip_byte_order_mark(stream)
        self._text, self._base, self._at = "", stream.tell(), 0

    @property
    def offset(self) -> int:
        return self._base + self._at

    def _slide(self) -> bool:
        """Drops what was read and adds at least as much as is left; False at the end of the file."""
        rest = self._text[self._at :]
        block = self._stream.read(max(_BLOCK, len(rest)))
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
            raise _broken(message, self.offset)
        self._at += 1

    def value(self) -> tuple[int, int, Any]:
        """The next value and the offsets where it begins and ends."""
        self.peek()
        while True:
            start, at = self.offset, self._at
            try:
                value, end = self._decoder.raw_decode(self._text, at)
            except JSONDecodeError as error:
                if not self._slide():  # else the window may have ended inside the value: try again with more
                    raise _broken(error.msg, start + error.pos - at) from error
            except (RecursionError, ValueError) as error:  # nested too deep, a number of thousands of digits
                raise _broken(one_line(error), start) from error
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
        raise _broken("Extra data after the list", scanner.offset)


def _scan_lines(stream: BinaryIO, file: Path) -> Iterator[tuple[int, int, Any]]:
    skip_byte_order_mark(stream)
    offset = stream.tell()
    for line in stream:
        if line.strip():
            try:
                value = json.loads(line.decode("latin-1"))
            except JSONDecodeError as error:
                raise _broken(error.msg, offset + error.pos) from error
            except (RecursionError, ValueError) as error:
                raise _broken(one_line(error), offset) from error
            yield offset, offset + len(line), value
        offset += len(line)
