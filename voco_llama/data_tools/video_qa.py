"""Data sets of open-ended questions on clips, made from their public annotation files: `voco-llama data prepare`.

    <hub>/voco-llama/MSVD-QA/README.md      the card, by which `datasets` and lmms-eval find the rest
                             data/test-00000-of-00001.parquet      video, video_name, question_id, question, answer
                             videos -> the folder of clips, linked

Annotations come in two layouts: one JSON list of `{"id", "video_id": 7010, "question", "answer"}`, as MSVD-QA and
MSRVTT-QA were published (`test_qa.json`), or Video-ChatGPT's pair of lists, `{"video_name", "question_id", "question"}`
and `{"question_id", "answer"}` (`test_q.json`, `test_a.json`).
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from voco_llama.choices import require_choice
from voco_llama.data.media.roots import resolve_inside
from voco_llama.data.media.video import CLIP_ENDINGS, list_clips
from voco_llama.data.readers.json_records import JsonRecords
from voco_llama.data.records import check_file, name_record
from voco_llama.data_tools.settings import DataPrepareSettings
from voco_llama.errors import DataError, SettingsError, refused_as, require, shown
from voco_llama.files import write_atomically, written_aside

logger = logging.getLogger(__name__)

OWNER = "voco-llama"
CLIP_NAMES = {"msvd_qa": ("MSVD-QA", "vid{}"), "msrvtt_qa": ("MSRVTT-QA", "video{}")}
"""Set to the name of its folder, and to the name of a clip by its number."""
PARQUET = "data/test-00000-of-00001.parquet"
COLUMNS = ("video", "video_name", "question_id", "question", "answer")
NAMED_CLIPS = 5
"""Missing clips that a message names."""

Row = dict[str, str]


def prepare_video_qa(settings: DataPrepareSettings) -> Path:
    """Write the data set's folder; run again, it writes the same.

    Returns:
        The folder. Its card is written last, so that a folder with a card is whole.

    Raises:
        SettingsError: There is no such set, a file is not named, or the folder of the set holds clips of its own.
        DataError: A file is missing or unreadable, a record lacks something, or clips are missing.
    """
    require_choice("set", settings.set, CLIP_NAMES)
    for key in ("annotations", "videos"):
        require(getattr(settings, key) is not None, f"{key} has no value: give one, as in '{key}=...'")
    videos = settings.videos
    if not videos.is_dir():
        raise DataError(f"{videos}: no such folder; it should hold the clips of {settings.annotations}")
    asked = list(_read_questions(settings))
    rows = _find_clips(asked, videos, settings.allow_missing)
    folder = folder_of(settings.set, settings.hub)
    (folder / "README.md").unlink(missing_ok=True)
    _link(folder / "videos", videos)
    with written_aside(folder / PARQUET) as aside:
        pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema([(name, pa.string()) for name in COLUMNS])), aside)
    write_atomically(folder / "README.md", _card(folder.name, rows, len(asked) - len(rows)))
    logger.info("%s: %d questions on %d clips", folder, len(rows), len({row["video"] for row in rows}))
    return folder


def folder_of(set: str, hub: Path) -> Path:
    """Where a set is, or goes."""
    return hub / OWNER / CLIP_NAMES[set][0]


def read_mapping(file: Path) -> dict[str, str]:
    """`vid<number>` -> the clip's own name, from MSVD's mapping file.

    Raises:
        DataError: The file is missing, or a line is not a clip and a number, or names a number again.
    """
    check_file(file)
    names: dict[str, str] = {}
    with refused_as(DataError, file, "give MSVD's mapping of clips to numbers"):
        lines = file.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or words[1] in names:
            raise DataError(f"{file} line {number}: {shown(line)} is not a clip and its own vid<number>; mend the line")
        names[words[1]] = words[0]
    return names


def _read_questions(settings: DataPrepareSettings) -> Iterator[Row]:
    """Rows but for the clip's file name, which stands in `source` as long as it is not found."""
    names = {} if settings.mapping is None else read_mapping(settings.mapping)
    answers = None
    if settings.answers is not None:
        answered = _read_records(settings.answers, "question_id", "an answer to this question")
        answers = {question_id: _text(raw, "answer", source) for question_id, raw, source in answered}
    for question_id, raw, source in _read_records(settings.annotations, "id", "a question of this id"):
        if answers is not None and question_id not in answers:
            raise DataError(f"{source}: {settings.answers} has no answer to it; fetch both files again")
        yield {
            "question_id": question_id,
            "question": _text(raw, "question", source),
            "answer": _text(raw, "answer", source) if answers is None else answers[question_id],
            "video_name": _clip_name(raw, names, CLIP_NAMES[settings.set][1], source),
            "source": source,
        }


def _read_records(file: Path, other_key: str, noun: str) -> Iterator[tuple[str, dict[str, Any], str]]:
    """The id of each record (`question_id` or the other key), which no other may have, it itself, and where it is."""
    records = JsonRecords(file, lambda raw: (0, 0, 0))
    seen: set[str] = set()
    for index in range(len(records)):
        raw = records.parse(index)
        key = "question_id" if "question_id" in raw else other_key
        source = name_record(file, index, key, raw.get(key))
        question_id = _identity(raw, key, source)
        if question_id in seen:
            raise DataError(f"{source}: {noun} came before; take one of them out")
        seen.add(question_id)
        yield question_id, raw, source


def _clip_name(raw: Mapping[str, Any], names: Mapping[str, str], pattern: str, source: str) -> str:
    if "video_name" in raw:
        return _text(raw, "video_name", source)
    name = pattern.format(_identity(raw, "video_id", source))
    if names and name not in names:
        raise DataError(f"{source}: the mapping has no {name}; fetch the mapping file again")
    return names.get(name, name)


def _identity(raw: Mapping[str, Any], key: str, source: str) -> str:
    value = raw.get(key)
    if not isinstance(value, str | int) or isinstance(value, bool) or not str(value).strip():
        raise DataError(f"{source}: no number or text in {key!r}; fill it in, or take the record out")
    return str(value)


def _text(raw: Mapping[str, Any], key: str, source: str) -> str:
    value = raw.get(key)
    if not isinstance(value, str) or not value.strip():
        hint = "; name the file of answers with answers=..." if key == "answer" and key not in raw else ""
        raise DataError(f"{source}: no text in {key!r}{hint or '; fill it in, or take the record out'}")
    return value


def _find_clips(asked: list[Row], videos: Path, allow_missing: bool) -> list[Row]:
    """Rows whose clip is there, with its file name."""
    clips = list_clips(videos)
    missing = sorted({row["video_name"] for row in asked if row["video_name"] not in clips})
    if missing:
        some = ", ".join(map(shown, missing[:NAMED_CLIPS])) + (", ..." if len(missing) > NAMED_CLIPS else "")
        found = f"{videos}: {len(missing)} of {len({row['video_name'] for row in asked})} clips are missing"
        found += f" ({some}; looked for {', '.join(CLIP_ENDINGS)})"
        if not allow_missing or not clips.keys() & {row["video_name"] for row in asked}:
            raise DataError(f"{found}: fetch them, or leave their questions out with allow_missing=true")
        logger.warning("%s: their questions are left out", found)
    rows = []
    for row in asked:
        if row["video_name"] in clips:
            file = clips[row["video_name"]]
            resolve_inside(videos, file, row["source"])
            rows.append({column: row[column] for column in COLUMNS[1:]} | {"video": file})
    return rows


def _link(link: Path, videos: Path) -> None:
    """Make `link` lead to the folder of clips; clips that lie there already stay."""
    target = videos.resolve()
    if link.is_symlink() or not link.exists():
        with written_aside(link) as aside:
            aside.symlink_to(target, target_is_directory=True)
    elif link.resolve() != target:
        raise SettingsError(f"{link}: a folder of its own, not a link to {videos}: move it away, or set videos={link}")


def _card(name: str, rows: list[Row], num_left_out: int) -> str:
    files = [{"split": "test", "path": PARQUET}]
    head = yaml.safe_dump({"configs": [{"config_name": "default", "data_files": files}]}, sort_keys=False)
    left_out = f" {num_left_out} questions were left out: their clips were missing." if num_left_out else ""
    body = f"# {name}\n\n{len(rows)} questions on {len({row['video'] for row in rows})} clips.{left_out}\n"
    return f"---\n{head}---\n\n{body}"
