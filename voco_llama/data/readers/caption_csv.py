"""Caption files of clips in the manner of WebVid: a CSV with a column of clip ids and one of captions.

    videoid,contentUrl,duration,page_dir,name
    21179416,https://...,PT00H00M11S,006001_006050,Aerial shot winter forest

The clip of a row is `<videos>/<page_dir>/<videoid>.mp4`, as WebVid's own download lays them out, or
`<videos>/<videoid>.mp4`, with any of the endings in `CLIP_ENDINGS`. Rows are validated when read.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from voco_llama.data.media.roots import MediaRoot, open_media_root
from voco_llama.data.media.stored import MediaFile, location_hash
from voco_llama.data.media.video import CLIP_ENDINGS
from voco_llama.data.readers.json_records import Places, RecordFile, skip_byte_order_mark
from voco_llama.data.records import (
    Record,
    Report,
    caption_turns,
    check_file,
    check_instructions,
    check_marks,
    name_record,
    stop,
)
from voco_llama.errors import DataError, ProblemKind, one_line, shown

INSTRUCTIONS = (
    "Describe the video concisely.",
    "Provide a brief description of the given video clip.",
    "Give a short and clear explanation of the video.",
    "What happens in the video? Answer briefly.",
    "Summarize the visual content of the clip.",
)


class CaptionCsv(RecordFile):
    """The records of a caption CSV: an instruction after the clip, the caption as its answer.

    Args:
        file: The CSV, UTF-8, with a header.
        videos: Where the clips are: a folder or an archive.
        instruction, seed: The instruction, or several of which seed and index choose.
        id_column: Of the clip's id, its file name without ending.
        caption_column: Of the caption.
        folder_column: Of the folder, within `videos`, that a clip may be in; ignored if it is not there.
        index_folder: Where the places of the rows in the file are kept; None = nowhere.

    Raises:
        DataError: The file or the folder is missing, unreadable or empty, or a column is missing. From `[index]`:
            the row is not valid, or its clip is missing.
        SettingsError: No instruction, or one with an `<image>` mark in it.
    """

    nothing = "no records, only a header"

    def __init__(
        self,
        file: str | Path,
        videos: str | Path | MediaRoot,
        instruction: str | Sequence[str] = INSTRUCTIONS,
        seed: int = 0,
        id_column: str = "videoid",
        caption_column: str = "name",
        folder_column: str = "page_dir",
        index_folder: Path | None = None,
    ) -> None:
        self.file, self.seed = Path(file), seed
        self.instructions = check_instructions(instruction, "caption_csv")
        check_file(self.file)
        self.videos = open_media_root(videos, self.file, index_folder)
        with self.file.open("rb") as stream:
            self._columns = self._read_header(_rows(stream), id_column, caption_column, optional=folder_column)
        super().__init__(self.file, f"csv {self._columns}", index_folder, self._scan, self.videos)

    def _read_header(self, reader: Iterator[list[str]], *needed: str, optional: str) -> tuple[int, int, int | None]:
        """The columns of id, caption and folder."""
        try:
            header = [name.encode("latin-1").decode("utf-8").strip() for name in next(reader, [])]
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(self._unreadable(1, 0, error)) from error
        missing = [name for name in needed if name not in header]
        if missing:
            raise DataError(
                f"{self.file}: no column {missing[0]!r} (columns: {shown(', '.join(header))}); "
                "add it, or name the column in the data set's settings"
            )
        return *(header.index(name) for name in needed), header.index(optional) if optional in header else None

    def _scan(self) -> Places:
        with self.file.open("rb") as stream:
            reader = _rows(stream)
            begin, line = 0, 1
            try:
                for row in reader:
                    end = stream.tell()
                    if row and begin:
                        clip, caption, folder = (
                            "" if column is None or column >= len(row) else row[column] for column in self._columns
                        )
                        yield begin, end, len(caption), 1, location_hash(folder, clip)
                    begin, line = end, reader.line_num + 1
            except csv.Error as error:
                raise DataError(self._unreadable(line, begin, error)) from error

    def _unreadable(self, line: int, offset: int, error: Exception) -> str:
        return (
            f"{self.file}: unreadable CSV in the row that begins at line {line} (byte offset {offset}): "
            f"{one_line(error)}; mend its quotes or fetch it again"
        )

    @property
    def header(self) -> bytes:
        """What stands before the first row."""
        with self.file.open("rb") as stream:
            return stream.read(int(self._table["spans"][0, 0]))

    def read(self, index: int, report: Report = stop) -> Record:
        id_column, caption_column, folder_column = self._columns
        try:
            row = next(csv.reader(io.StringIO(self.raw(index).decode("utf-8"), newline=""), strict=True))
        except UnicodeDecodeError as error:
            raise self.not_utf8(index, error) from error
        except (csv.Error, StopIteration) as error:
            raise self.changed(index) from error
        source = name_record(self.file, index, "videoid", row[id_column] if id_column < len(row) else None)
        if max(id_column, caption_column) >= len(row):
            raise DataError(f"{source}: the row has only {len(row)} columns; complete it, or take it out")
        caption = row[caption_column].strip()
        if not caption:
            message = f"{source}: the caption is empty; fill it in, or take the row out"
            report(DataError(message, ProblemKind.EMPTY_ANSWER))
        folder = row[folder_column] if folder_column is not None and folder_column < len(row) else ""
        turns = caption_turns(self.instructions, self.seed, index, caption)
        check_marks(turns, 1, source, "clip", report)
        video = self._clip(row[id_column], folder, source, report)
        return Record(id=row[id_column], turns=turns, video=video, source=source)

    def _clip(self, video_id: str, folder: str, source: str, report: Report) -> MediaFile | None:
        if not video_id:
            message = f"{source}: the clip's id is empty; fill it in, or take the row out"
            report(DataError(message, ProblemKind.BAD_FILE_NAME))
            return None
        parts = (f"{folder}/", "") if folder else ("",)
        names = (f"{part}{video_id}{ending}" for part in parts for ending in CLIP_ENDINGS)
        found = self.videos.find_first(names, source)
        if found is None:
            also = f", also in {shown(folder)}" if folder else ""
            message = f"{source}: no clip of this name in {self.videos} (looked for {', '.join(CLIP_ENDINGS)}{also})"
            report(DataError(f"{message}; fetch it, or take the row out", ProblemKind.MISSING_FILE))
        return found


def _rows(stream: BinaryIO) -> Iterator[list[str]]:
    """The rows of a file, one character a byte; up to the end of the last one the stream has been read."""
    skip_byte_order_mark(stream)
    return csv.reader((line.decode("latin-1") for line in iter(stream.readline, b"")), strict=True)
