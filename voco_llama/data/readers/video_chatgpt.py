"""Video-ChatGPT's question files: a JSON list of `{"q": question, "a": answer, "video_id": clip}`.

Clips lie flat in one folder under their ids, with whatever ending they came with.
"""

from pathlib import Path
from typing import Any

from voco_llama.data.media.roots import MediaRoot, open_media_root
from voco_llama.data.media.stored import location_hash
from voco_llama.data.media.video import CLIP_ENDINGS
from voco_llama.data.readers.json_records import JsonRecords
from voco_llama.data.records import IMAGE_MARK, Record, Report, Turn, check_marks, name_record, stop
from voco_llama.errors import DataError, ProblemKind


class VideoChatGpt(JsonRecords):
    """The records of a Video-ChatGPT file; each question is asked after its clip.

    Clips are called `<video_id>` with one of `CLIP_ENDINGS` (of several the first in that order); they lie flat in the
    folder `videos`, or in an archive. It is listed once, here.

    Raises:
        DataError: The file or the folder is missing, unreadable or empty. From `[index]`: the record is not valid,
            or the folder has no such clip.
    """

    def __init__(self, file: str | Path, videos: str | Path | MediaRoot, index_folder: Path | None = None) -> None:
        self.videos = open_media_root(videos, Path(file), index_folder)
        super().__init__(Path(file), _measure, "video_chatgpt", index_folder, self.videos)
        self._clips = self.videos.list_clips()

    def read(self, index: int, report: Report = stop) -> Record:
        raw = self.parse(index)
        video_id = raw.get("video_id")
        source = name_record(self.file, index, "video_id", video_id)
        if not isinstance(video_id, str | int) or isinstance(video_id, bool):
            message = f"{source}: no 'video_id'; each record needs the name of its clip"
            report(DataError(message, ProblemKind.WRONG_TYPE))
            video_id = None
        for key, name in (("q", "question"), ("a", "answer")):
            is_text = isinstance(raw.get(key), str)
            if not is_text or not raw[key].strip():
                kind = ProblemKind.EMPTY_ANSWER if key == "a" and is_text else ProblemKind.WRONG_TYPE
                report(DataError(f"{source}: no text in {key!r}; fill in the {name}, or take the record out", kind))
        file_name = None if video_id is None else self._clips.get(str(video_id))
        if file_name is None and video_id is not None:
            message = f"{source}: no clip of this name in {self.videos} (looked for {', '.join(CLIP_ENDINGS)})"
            report(DataError(f"{message}; fetch it, or take the record out", ProblemKind.MISSING_FILE))
        turns = (Turn("user", f"{IMAGE_MARK}\n{raw.get('q')}"), Turn("assistant", str(raw.get("a"))))
        check_marks(turns, 1, source, "clip", report)
        video = None if file_name is None else self.videos.find(file_name, source)
        record_id = raw.get("id")
        return Record(str(index if record_id is None else record_id), turns, video=video, source=source)


def _measure(raw: Any) -> tuple[int, int, int]:
    raw = raw if isinstance(raw, dict) else {}
    texts = (raw.get("q"), raw.get("a"))
    return sum(len(text) for text in texts if isinstance(text, str)), 1, location_hash(str(raw.get("video_id")))
