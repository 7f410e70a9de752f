"""Result files: what an evaluation writes and the report reads, one JSON file a row."""

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from voco_llama.composition import difference
from voco_llama.errors import DataError, SettingsError, refused_as
from voco_llama.files import read_json, write_atomically

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
BENCHMARKS_KIND, CLIPS_KIND = "benchmarks", "clips"
IN_ORDER, SHUFFLED = "in_order", "shuffled"
"""Orders of a clip's frames."""


FACTS = {
    BENCHMARKS_KIND: ("condition", "num_voco", "tokens_per_image", "kv_bytes_per_image", "kv_dtype"),
    CLIPS_KIND: ("num_voco", "num_frames", "tokens_per_clip", "kv_bytes_per_clip", "kv_dtype"),
}
"""Of each kind, what is the same for all seeds of a row."""
_NUMBERS = {BENCHMARKS_KIND: (), CLIPS_KIND: (IN_ORDER, SHUFFLED, "questions")}
_OF_A_BENCHMARK = ("value", "full", "accuracy", "questions")


def result_file(folder: Path, kind: str, row: str) -> Path:
    """Where a row's result is written."""
    return folder / f"{row}.{kind}.json"


def check_overwrites(file: Path, here: Mapping[str, Any], there: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """Refuse to write over a result of another evaluation; a damaged file is none.

    Args:
        file: Of the result.
        here: What the evaluation of now is told apart by.
        there: The same of a result that was written.

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
    if differing := difference(there(result), here):
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
    if kind not in (BENCHMARKS_KIND, CLIPS_KIND):
        raise DataError(f"{file}: is no result of an evaluation: name files that `voco-llama evaluate` wrote")
    if version != FORMAT_VERSION:
        raise DataError(
            f"{file}: has result format {version}, this version reads {FORMAT_VERSION}: evaluate the row again"
        )
    if not isinstance(result.get("seed"), int):
        raise DataError(f"{file}: does not say its seed: evaluate the row again")
    with refused_as(DataError, file, "evaluate the row again"):
        _check_parts(result, kind)
    return result


def _check_parts(result: Mapping[str, Any], kind: str) -> None:
    """Raise whatever the first part raises that is missing or of another type."""
    for name in (*FACTS[kind], "limit"):
        result[name]
    if not isinstance(result["row"], str):
        raise TypeError("row is no text")
    numbers = [result[name] for name in _NUMBERS[kind]]
    for described in result["benchmarks"].values() if kind == BENCHMARKS_KIND else ():
        numbers += [described[name] for name in _OF_A_BENCHMARK]
        described["metric"], described["data_fingerprint"], described["details"].get("unreadable")
    if kind == BENCHMARKS_KIND:
        result["checkpoint_fingerprint"]
    wrong = [number for number in numbers if not isinstance(number, int | float)]
    if wrong:
        raise TypeError(f"{wrong[0]!r} stands where a number should")


def find_results(folder: Path) -> list[Path]:
    """The result files in a folder and below it, in the order of their paths."""
    return sorted(file for kind in (BENCHMARKS_KIND, CLIPS_KIND) for file in Path(folder).rglob(f"*.{kind}.json"))


def check_row_name(row: str) -> None:
    """Refuse a row's name that could not be a file's (`SettingsError`)."""
    if not re.fullmatch(r"\w[\w.-]*", row):
        raise SettingsError(f"row {row!r} names a file: use letters, digits, '.', '_' and '-' only")
