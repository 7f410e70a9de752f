"""Result files: what an evaluation writes and the report reads, one JSON file a row."""

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from voco_llama.composition import difference
from voco_llama.errors import DataError, SettingsError, refused_as, shown
from voco_llama.files import read_json, write_atomically

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_ROW_NAME = re.compile(r"\w[\w.-]*")
BENCHMARKS_KIND, CLIPS_KIND, TEXT_KIND = "benchmarks", "clips", "text"
KINDS = (BENCHMARKS_KIND, CLIPS_KIND, TEXT_KIND)
IN_ORDER, SHUFFLED = "in_order", "shuffled"
"""Orders of a clip's frames."""
TEXT_RATES = NATS_PER_TOKEN, BITS_PER_BYTE = "nats_per_token", "bits_per_byte"


FACTS: dict[str, dict[str, Any]] = {
    BENCHMARKS_KIND: {
        "condition": str,
        "num_voco": int | None,
        "quality": int | float | None,
        "tokens_per_image": int | float,
        "kv_bytes_per_image": int | float,
        "kv_dtype": str,
    },
    CLIPS_KIND: {
        "num_voco": int | None,
        "num_frames": int,
        "tokens_per_clip": int,
        "kv_bytes_per_clip": int,
        "kv_dtype": str,
    },
    TEXT_KIND: {"window": int, "stride": int, "vocabulary": int, "data_fingerprint": str, "dtype": str},
}
"""Of each kind, what is the same for all seeds of a row, and its types."""
MEASURED = ("tokens_per_image", "kv_bytes_per_image")
"""Not the same for all seeds where the number of tokens is chosen by the image (`quality`): means over its images."""
_NUMBER = int | float
_OTHERS: dict[str, dict[str, Any]] = {
    BENCHMARKS_KIND: {"limit": int | None, "benchmarks": dict, "checkpoint_fingerprint": str},
    CLIPS_KIND: {"limit": int | None, IN_ORDER: _NUMBER, SHUFFLED: _NUMBER, "questions": int},
    TEXT_KIND: dict.fromkeys(TEXT_RATES, _NUMBER) | {"limit": type(None), "texts": dict, "checkpoint_fingerprint": str},
}
_OF_A_BENCHMARK: dict[str, Any] = {
    "value": _NUMBER,
    "full": _NUMBER,
    "accuracy": _NUMBER,
    "questions": int,
    "metric": str,
    "data_fingerprint": str,
    "details": dict,
}


def result_file(folder: Path, kind: str, row: str) -> Path:
    """Where a row's result is written."""
    return folder / f"{row}.{kind}.json"


def check_overwrites(file: Path, told_apart: Callable[[dict[str, Any]], tuple[Mapping, Mapping]]) -> None:
    """Refuse to write over a result of another evaluation; a damaged file is none.

    Args:
        file: Of the result.
        told_apart: What a result that was written is told apart by, and the same of the evaluation of now.

    Raises:
        SettingsError: They differ.
    """
    if not file.is_file():
        return
    try:
        result = read_json(file, DataError)
    except DataError as error:
        logger.warning("%s: it is written anew", error)
        return
    if differing := difference(*told_apart(result)):
        raise SettingsError(
            f"{file} is the result of another evaluation: {differing}: set overwrite=true to replace it, or give"
            " another row=... or output=..."
        )


def part(result: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a result that is an object; an empty one where it is something else or missing."""
    found = result.get(name)
    return found if isinstance(found, dict) else {}


def write_result(folder: Path, kind: str, row: str, result: Mapping[str, Any], answers: Iterable[Mapping]) -> Path:
    """Write `<row>.<kind>.json` and, before it, `<row>.<kind>.answers.jsonl`; each appears whole or not at all.

    A result that was there is taken away first, so that a kill leaves none beside the answers of another.

    Raises:
        SettingsError: They cannot be written.
    """
    file, answers_file = result_file(folder, kind, row), folder / f"{row}.{kind}.answers.jsonl"
    head = {"format_version": FORMAT_VERSION, "kind": kind, "row": row}
    described = {**head, **result, "answers_file": answers_file.name}
    try:
        file.unlink(missing_ok=True)
        write_atomically(answers_file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in answers))
        write_atomically(file, json.dumps(described, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise SettingsError(
            f"{file}: cannot be written ({error.strerror}): make room, or give another output"
        ) from error
    return file


def read_result(file: Path) -> dict[str, Any]:
    """Read what `write_result` wrote.

    Raises:
        DataError: The file is missing, no result, of another format version, without a seed, or without a part that
            every result has.
    """
    result = read_json(file, DataError, "evaluate the row again")
    kind, version = result.get("kind"), result.get("format_version")
    if kind not in KINDS:
        raise DataError(f"{file}: is no result of an evaluation: name files that `voco-llama evaluate` wrote")
    if version != FORMAT_VERSION:
        raise DataError(
            f"{file}: has result format {version}, this version reads {FORMAT_VERSION}: evaluate the row again"
        )
    if not isinstance(result.get("seed"), int):
        raise DataError(f"{file}: does not say its seed: evaluate the row again")
    if kind == BENCHMARKS_KIND:
        result.setdefault("quality", None)  # older than the choice
    with refused_as(DataError, file, "evaluate the row again"):
        _check_parts(result, kind)
    return result


def _check_parts(result: Mapping[str, Any], kind: str) -> None:
    """Raise whatever the first part raises that is missing or of another type."""
    _check_types(result, {"row": str, **FACTS[kind], **_OTHERS[kind]})
    if not _ROW_NAME.fullmatch(result["row"]):
        raise ValueError(f"row is {shown(result['row'])}, no name of a row")
    for failure in result.get("failures") or ():
        failure["id"]
    for described in result["texts"].values() if kind == TEXT_KIND else ():
        _check_types(described, dict.fromkeys(TEXT_RATES, _NUMBER))
    for described in result["benchmarks"].values() if kind == BENCHMARKS_KIND else ():
        _check_types(described, _OF_A_BENCHMARK)
        _check_types({"unreadable": 0, **described["details"]}, {"unreadable": _NUMBER})


def _check_types(part: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    for name, wanted in types.items():
        if not isinstance(part[name], wanted) or isinstance(part[name], bool):
            raise TypeError(f"{name} is {shown(part[name])}, no {getattr(wanted, '__name__', wanted)}")


def find_results(folder: Path) -> list[Path]:
    """The result files in a folder and below it, in the order of their paths."""
    return sorted(file for kind in KINDS for file in Path(folder).rglob(f"*.{kind}.json"))


def check_row_name(row: str) -> None:
    """Refuse a row's name that could not be a file's (`SettingsError`)."""
    if not _ROW_NAME.fullmatch(row):
        raise SettingsError(f"row {row!r} names a file: use letters, digits, '.', '_' and '-' only")
