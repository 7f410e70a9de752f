r"""LLaVA's conversation files: the pre-training captions, the mix of 665K instructions, and what is written alike.

    [{"id": "000000033471", "image": "coco/train2017/000000033471.jpg",
      "conversations": [{"from": "human", "value": "<image>\nWhat are the colors of the bus?"},
                        {"from": "gpt", "value": "White and red."}, ...]}, ...]

`image` is a file name, a list of them, or absent (text-only). Roles may be `user` and `assistant` instead. Other keys
(`model`) are ignored, save `video`: LLaVA itself has none, and a clip must not pass for text. Files that end in
`.jsonl` hold one such object a line. Records are validated when read, so a large file opens fast.

There is one mark `<image>` for each image. With `marks: llava` (in the source's `options`) those of LLaVA's code are
taken too: without an image a mark is text; several in one turn are one; an image without any mark is not seen.
"""

from pathlib import Path
from typing import Any

from voco_llama.choices import require_choice
from voco_llama.data.media.roots import MediaRoot, open_media_root
from voco_llama.data.media.stored import location_hash
from voco_llama.data.readers.json_records import JsonRecords
from voco_llama.data.records import (
    IMAGE_MARK,
    Record,
    Report,
    Turn,
    check_marks,
    is_complete,
    name_record,
    read_turns,
    stop,
)
from voco_llama.errors import DataError, ProblemKind, shown

MARKS = ("strict", "llava")


class LlavaJson(JsonRecords):
    """The records of a LLaVA file.

    Args:
        file: The file.
        images: A folder or an archive; None for text-only records.
        index_folder: Where the places of the records in the file are kept; None = nowhere.
        marks: One of `MARKS`: see the module.

    Raises:
        DataError: The file or the folder is missing, unreadable or empty. From `[index]`: the record is not valid.
        SettingsError: `marks` is none of `MARKS`.
    """

    def __init__(
        self,
        file: str | Path,
        images: str | Path | MediaRoot | None = None,
        index_folder: Path | None = None,
        marks: str = "strict",
    ) -> None:
        require_choice("options.marks", marks, MARKS)
        self.marks = marks
        self.images = open_media_root(images, Path(file), index_folder)
        super().__init__(Path(file), _measure, "llava_json", index_folder, self.images)

    def read(self, index: int, report: Report = stop) -> Record:
        raw = self.parse(index)
        source = name_record(self.file, index, "id", raw.get("id"))
        if raw.get("video") is not None:
            message = f"{source}: has a 'video', which this format does not read; use caption_csv or video_chatgpt"
            report(DataError(message, ProblemKind.WRONG_TYPE))
        turns = read_turns(raw.get("conversations"), source, report=report)
        value = raw.get("image")
        names = [] if value is None else value if isinstance(value, list) else [value]
        for name in names:
            if not isinstance(name, str):
                message = f"{source}: 'image' holds {shown(name)}; write a file name or a list of file names"
                report(DataError(message, ProblemKind.WRONG_TYPE))
        if is_complete(turns, raw.get("conversations")):
            turns, names = self._fitted(turns, names, source, report)
        if names and self.images is None:
            message = f"{source}: names an image but the data set has no image folder; set media_folder"
            report(DataError(message, ProblemKind.NO_MEDIA_FOLDER))
            names = []
        images = tuple(self.images.find(name, source) for name in names if isinstance(name, str))
        record_id = raw.get("id")
        return Record(str(index if record_id is None else record_id), turns, images, source=source)

    def _fitted(
        self, turns: tuple[Turn, ...], names: list[Any], source: str, report: Report
    ) -> tuple[tuple[Turn, ...], list[Any]]:
        """Turns and images that fit each other, after `report` has heard of those that do not."""
        if self.marks == "llava":
            num_marks, odd = [turn.text.count(IMAGE_MARK) for turn in turns], None
            if not names and any(num_marks):
                odd = f"names no image, so {IMAGE_MARK} in it is read as text"
            elif names and not any(num_marks):
                names, odd = [], f"has no {IMAGE_MARK} mark, so its image is not seen"
            elif len(names) == 1 and max(num_marks) > 1:
                turns = tuple(map(_with_one_mark, turns))
                odd = f"several {IMAGE_MARK} marks of a turn are taken for one"
            if odd is not None:
                report(DataError(f"{source}: {odd}; mend it, if that is not meant", ProblemKind.ODD_MARKS))
            if not names:
                return turns, names
        check_marks(turns, len(names), source, report=report)
        return turns, names


def _with_one_mark(turn: Turn) -> Turn:
    before, mark, after = turn.text.partition(IMAGE_MARK)
    return Turn(turn.role, before + mark + after.replace(IMAGE_MARK, ""))


def _measure(raw: Any) -> tuple[int, int, int]:
    if not isinstance(raw, dict):
        return 0, 0, 0
    turns = raw.get("conversations")
    texts = [turn.get("value") for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    image = raw.get("image")
    names = image if isinstance(image, list) else [] if image is None else [image]
    characters = sum(len(text) for text in texts if isinstance(text, str))
    return characters, len(names), location_hash(*map(str, names)) if names else 0
