"""Result files: what an evaluation writes and the report reads, one JSON file a row."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from voco_llama.errors import DataError, SettingsError
from voco_llama.files import write_atomically

FORMAT_VERSION = 1
BENCHMARKS_KIND, CLIPS_KIND = "benchmarks", "clips"
IN_ORDER, SHUFFLED = "in_order", "shuffled"
"""Orders of a clip's frames."""


def write_result(folder: Path, kind: str, row: str, result: Mapping[str, Any], answers: Iterable[Mapping]) -> Path:
    """Write `<row>.<kind>.json` and, before it, `<row>.<kind>.answers.jsonl`; each appears whole or not at all."""
    answers_file = folder / f"{row}.{kind}.answers.jsonl"
    write_atomically(answers_file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in answers))
    file = folder / f"{row}.{kind}.json"
    head = {"format_version": FORMAT_VERSION, "kind": kind, "row": row}
    described = {**head, **result, "answers_file": answers_file.name}
    write_atomically(file, json.dumps(described, indent=2, ensure_ascii=False) + "\n")
    return file


def read_result(file: Path) -> dict[str, Any]:
    """Read what `write_result` wrote.

    Raises:
        DataError: The file is missing, no result, of another format version, or without a seed.
    """
    try:
        result = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as a result ({error}): evaluate the row again") from error
    if not isinstance(result, dict) or result.get("kind") not in (BENCHMARKS_KIND, CLIPS_KIND):
        raise DataError(f"{file}: is no result of an evaluation: name files that `voco-llama evaluate` wrote")
    if result.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{file}: has result format {result.get('format_version')}, this version reads {FORMAT_VERSION}:"
            " evaluate the row again"
        )
    if not isinstance(result.get("seed"), int):
        raise DataError(f"{file}: does not say its seed: evaluate the row again")
    return result


def find_results(folder: Path) -> list[Path]:
    """The result files in a folder and below it, in the order of their paths."""
    return sorted(file for kind in (BENCHMARKS_KIND, CLIPS_KIND) for file in Path(folder).rglob(f"*.{kind}.json"))


def check_row_name(row: str) -> None:
    """Refuse a row's name that could not be a file's (`SettingsError`)."""
    if not re.fullmatch(r"\w[\w.-]*", row):
        raise SettingsError(f"row {row!r} names a file: use letters, digits, '.', '_' and '-' only")
