"""The five benchmarks as questions, read from the parquet files that lmms-eval reads.

A benchmark is a folder `<root>/lmms-lab-encoder/<name>` with a data set card (README.md, whose YAML head names the
configurations) and parquet files in the column schema of the original. Prompts are, to the letter, those of
lmms-eval 0.7.3 for LLaVA (its `default` prompt settings). Images are decoded when asked for, not before.
"""

import hashlib
import io
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from voco_llama.data.images import decode_image, one_line
from voco_llama.errors import DataError, SettingsError

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

ORGANIZATION = "lmms-lab-encoder"
SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
LETTER_ANSWER = "\nAnswer with the option's letter from the given choices directly."
OPTION_LETTERS = ("A", "B", "C", "D", "E")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Request:
    """One question of a benchmark.

    Attributes:
        benchmark: Name as in `BENCHMARKS`.
        id: The question's own id.
        image_key: The same for two questions exactly if they show the same image (a hash of the file).
        load_image: Decodes the image (RGB) anew at each call.
        prompt: What the user says, without an image mark.
        answers: The reference answers: one, or VQAv2's ten.
        meta: Further columns that the score needs.
    """

    benchmark: str
    id: str
    image_key: str
    load_image: Callable[[], Image.Image]
    prompt: str
    answers: tuple[str, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark's questions are and how a row becomes a question.

    Attributes:
        config: Configuration in the data set card; None: the only one.
        split: Split of the configuration.
        id_column: The question's id.
        prompt: Row to prompt.
        meta_columns: Columns that `Request.meta` keeps, those the scorer needs.
        image_config: Configuration with the images, where they are kept apart (keyed by `id`, looked up by the
            question's `imageId`).
    """

    config: str | None
    split: str
    id_column: str
    prompt: Callable[[Row], str]
    meta_columns: tuple[str, ...] = ()
    optional_columns: tuple[str, ...] = ()
    image_config: str | None = None


def _is_given(value: Any) -> bool:
    """The value of an optional text column is there; missing ones are null, NaN or the text 'nan'."""
    return value is not None and value != "nan" and not (isinstance(value, float) and math.isnan(value))


def options_of(row: Row) -> dict[str, str]:
    """The options of a multiple-choice row by letter."""
    return {letter: row[letter] for letter in OPTION_LETTERS if _is_given(row.get(letter)) and row[letter]}


def _mmbench_prompt(row: Row) -> str:
    options = "\n".join(f"{letter}. {text}" for letter, text in options_of(row).items())
    hint = f"{row['hint']} " if _is_given(row["hint"]) else ""
    return f"{hint}{row['question']} There are several options:\n{options}\n{LETTER_ANSWER}"


def _mme_prompt(row: Row) -> str:
    return row["question"].strip().replace(" Please answer yes or no.", "") + SHORT_ANSWER


BENCHMARKS: dict[str, Benchmark] = {
    "GQA": Benchmark(
        "testdev_balanced_instructions",
        "testdev",
        "id",
        lambda row: row["question"] + SHORT_ANSWER,
        image_config="testdev_balanced_images",
    ),
    "MMBench": Benchmark(
        "en", "dev", "index", _mmbench_prompt, ("index", "category", "A", "B", "hint"), optional_columns=("C", "D", "E")
    ),
    "MME": Benchmark(None, "test", "question_id", _mme_prompt, ("question_id", "category")),
    "POPE": Benchmark(None, "test", "id", lambda row: row["question"].strip() + SHORT_ANSWER, ("category",)),
    "VQAv2": Benchmark(None, "validation", "question_id", lambda row: row["question"] + SHORT_ANSWER),
}


def read_benchmark(root: Path, name: str, limit: int | None = None) -> list[Request]:
    """Read a benchmark's questions, in file order.

    Args:
        root: The folder that holds `lmms-lab-encoder`.
        name: A key of `BENCHMARKS`.
        limit: Only so many questions, from the first.

    Raises:
        SettingsError: The benchmark is unknown or the limit is below 1.
        DataError: The files are missing, unreadable, empty, or lack a column.
    """
    if name not in BENCHMARKS:
        raise SettingsError(f"there is no benchmark {name!r}: choose from {', '.join(BENCHMARKS)}")
    if limit is not None and limit < 1:
        raise SettingsError(f"limit must be at least 1 question a benchmark, not {limit}")
    benchmark, folder = BENCHMARKS[name], Path(root) / ORGANIZATION / name
    rows = _load(folder, benchmark.config, benchmark.split)
    references = "answers" if name == "VQAv2" else "answer"
    needed = {"question", benchmark.id_column, references, *benchmark.meta_columns}
    needed |= {"imageId"} if benchmark.image_config else {"image"}
    _check_columns(folder, rows, needed)
    if limit is not None:
        rows = rows.select(range(min(limit, len(rows))))
    images = _Images(folder, rows, benchmark)
    texts = rows.remove_columns([column for column in ("image",) if column in rows.column_names])
    requests = []
    for index, row in enumerate(texts):
        kept = {column: row.get(column) for column in (*benchmark.meta_columns, *benchmark.optional_columns)}
        answers = tuple(a["answer"] for a in row["answers"]) if name == "VQAv2" else (str(row["answer"]),)
        key, load = images.of(index, row)
        requests.append(Request(name, str(row[benchmark.id_column]), key, load, benchmark.prompt(row), answers, kept))
    logger.info("%s: %d questions on %d images", name, len(requests), len({r.image_key for r in requests}))
    return requests


class _Images:
    """Finds the image of a question: in its own row, or by id in a configuration of its own."""

    def __init__(self, folder: Path, rows: "datasets.Dataset", benchmark: Benchmark) -> None:
        self.folder = folder
        self.rows = rows
        self.row_of_id: dict[str, int] | None = None
        if benchmark.image_config:
            self.rows = _load(folder, benchmark.image_config, benchmark.split)
            _check_columns(folder, self.rows, {"id", "image"})
            self.row_of_id = {str(image_id): index for index, image_id in enumerate(self.rows["id"])}
        self.rows = self.rows.select_columns("image").cast_column("image", _undecoded())
        self.keys: dict[int, str] = {}

    def of(self, index: int, row: Row) -> tuple[str, Callable[[], Image.Image]]:
        """The key of a question's image, and what decodes it."""
        if self.row_of_id is not None:
            if str(row["imageId"]) not in self.row_of_id:
                raise DataError(
                    f"{self.folder} question {index}: there is no image {row['imageId']!r}: fetch the files again"
                )
            index = self.row_of_id[str(row["imageId"])]
        if index not in self.keys:
            self.keys[index] = hashlib.sha256(self._bytes(index)).hexdigest()
        return self.keys[index], partial(self._decode, index)

    def _bytes(self, index: int) -> bytes:
        image = self.rows[index]["image"]
        if image is None or not image["bytes"]:
            raise DataError(f"{self.folder} image {index}: the row holds no image bytes: fetch the parquet files again")
        return image["bytes"]

    def _decode(self, index: int) -> Image.Image:
        return decode_image(io.BytesIO(self._bytes(index)), f"{self.folder} image {index}")


def _load(folder: Path, config: str | None, split: str) -> "datasets.Dataset":
    import datasets  # slow to import, and only an evaluation needs it

    if not (folder / "README.md").is_file():
        raise DataError(
            f"{folder}: has no data set card README.md: put the benchmark's files there, or make the toy world"
        )
    try:
        files = datasets.load_dataset_builder(str(folder), config).config.data_files
        # Through the card, datasets would take rows from its cache although the files have changed.
        rows = datasets.load_dataset("parquet", data_files={split: list(files[split])}, split=split)
    except (ValueError, OSError, KeyError, datasets.exceptions.DatasetsError) as error:
        named = f"configuration {config!r}, " if config else ""
        raise DataError(
            f"{folder} ({named}split {split!r}): cannot be read ({one_line(error)}): fetch it again"
        ) from error
    if len(rows) == 0:
        raise DataError(f"{folder} (split {split!r}): has no rows: fetch the parquet files again")
    return rows


def _undecoded() -> "datasets.Image":
    import datasets

    return datasets.Image(decode=False)


def _check_columns(folder: Path, rows: "datasets.Dataset", needed: set[str]) -> None:
    missing = sorted(needed - set(rows.column_names))
    if missing:
        raise DataError(
            f"{folder}: the parquet files lack the column {missing[0]!r} (they have {', '.join(rows.column_names)}):"
            " use the files that lmms-eval reads"
        )
