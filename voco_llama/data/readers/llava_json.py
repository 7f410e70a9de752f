r"""LLaVA's conversation files: the pre-training captions, the mix of 665K instructions, and what is written alike.

    [{"id": "000000033471", "image": "coco/train2017/000000033471.jpg",
      "conversations": [{"from": "human", "value": "<image>\nWhat are the colors of the bus?"},
                        {"from": "gpt", "value": "White and red."}, ...]}, ...]

`image` is a file name, a list of them, or absent (text-only). Roles may be `user` and `assistant` instead. Other keys
(`model`) are ignored, save `video`: LLaVA itself has none, and a clip must not pass for text. Files that end in
`.jsonl` hold one such object a line. Records are validated when read, so a large file opens fast.
"""

from pathlib import Path
from typing import Any

from voco_llama.data.media.roots import MediaRoot, open_media_root
from voco_llama.data.readers.json_records import JsonRecords
from voco_llama.data.records import Record, Report, check_marks, name_record, read_turns, stop
from voco_llama.errors import DataError, ProblemKind, shown


class LlavaJson(JsonRecords):
    """The records of a LLaVA file; `images`, a folder or an archive, may be None for one of text-only records.

    Raises:
        DataError: The file or the folder is missing, unreadable or empty. From `[index]`: the record is not valid.
    """

    def __init__(
        self, file: str | Path, images: str | Path | MediaRoot | None = None, index_folder: Path | None = None
    ) -> None:
        self.images = open_media_root(images, Path(file), index_folder)
        super().__init__(Path(file), _measure, "llava_json", index_folder)

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
        if turns and len(turns) == len(raw["conversations"]):
            check_marks(turns, len(names), source, report=report)
        if names and self.images is None:
            message = f"{source}: names an image but the data set has no image folder; set media_folder"
            report(DataError(message, ProblemKind.NO_MEDIA_FOLDER))
            names = []
        images = tuple(self.images.find(name, source) for name in names if isinstance(name, str))
        return Record(id=str(raw.get("id", index)), turns=turns, images=images, source=source)


def _measure(raw: Any) -> tuple[int, int]:
    if not isinstance(raw, dict):
        return 0, 0
    turns = raw.get("conversations")
    texts = [turn.get("value") for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    image = raw.get("image")
    media = len(image) if isinstance(image, list) else int(image is not None)
    return sum(len(text) for text in texts if isinstance(text, str)), media
