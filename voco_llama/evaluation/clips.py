"""`evaluate_clips`: questions on clips, whose frames are compressed one by one and read in order of time, and shuffled.

A clip's cache is its frames' caches put together in time order (the paper's `F = {Cache_1..Cache_k}`). The control
reads the very same entries in another order: a model that understands time does worse on it.
"""

import logging
import random
import string
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from voco_llama.choices import CONDITIONS, require_choice
from voco_llama.data.media.stored import content_key
from voco_llama.data.readers.video_chatgpt import VideoChatGpt
from voco_llama.data.records import Record
from voco_llama.errors import DataError, ProblemKind, SettingsError, refused_as
from voco_llama.evaluation.answering import Answerer
from voco_llama.evaluation.questions import Question, see_clip
from voco_llama.evaluation.results import (
    CLIPS_KIND,
    IN_ORDER,
    SHUFFLED,
    check_overwrites,
    check_row_name,
    part,
    result_file,
    write_result,
)
from voco_llama.evaluation.run import cost_of, describe_run
from voco_llama.evaluation.settings import check_counts
from voco_llama.inference import Inference, checkpoint_fingerprint
from voco_llama.provenance import fingerprint_data

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluateClipsSettings:
    """What to evaluate.

    Attributes:
        checkpoint: Folder of a saved model and its processor.
        questions: A Video-ChatGPT file.
        videos: The folder of its clips.
        output: Folder of the result file, `<row>.clips.json`.
        row: The row's name in the report.
        num_frames: Frames taken from a clip; None: as in training.
        condition: `voco`: text reads the frames' VoCo tokens; `full`: it sees the frames. None: as the checkpoint was
            trained.
        num_voco: VoCo tokens a frame; None: as many as the checkpoint was trained with.
        limit: Only the first so many questions.
        batch_size: Questions at a time; also clips to compress in one go.
        max_new_tokens: Length limit of an answer.
        device: None: the GPU if there is one.
        dtype: Of the weights and the cache; `auto`: as saved.
        seed: Decides how frames are shuffled.
        overwrite: Write over a result of another checkpoint, or of other questions or ways of asking.
    """

    checkpoint: Path
    questions: Path
    videos: Path
    output: Path
    row: str
    num_frames: int | None = None
    condition: str | None = None
    num_voco: int | None = None
    limit: int | None = None
    batch_size: int = 16
    max_new_tokens: int = 16
    device: str | None = None
    dtype: str = "auto"
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_row_name(self.row)
        if self.num_frames is not None and self.num_frames < 2:
            raise SettingsError(f"num_frames must be at least 2, not {self.num_frames}: one frame has no order")
        if self.condition is not None:
            require_choice("condition", self.condition, CONDITIONS)
        check_counts(self)


def evaluate_clips(settings: EvaluateClipsSettings) -> Path:
    """Answer every question twice, frames in order and shuffled, and write the result.

    Returns:
        The result file. The answers lie beside it, one JSON line a question.

    Raises:
        CheckpointError: The checkpoint cannot be loaded.
        DataError: The questions or a clip cannot be read.
        SettingsError: A result of another evaluation is there.
    """
    started = time.monotonic()
    torch.manual_seed(settings.seed)
    reader = VideoChatGpt(settings.questions, settings.videos)
    records = [reader.read(index, _report) for index in range(min(len(reader), settings.limit or len(reader)))]
    inference = Inference.load(settings.checkpoint, settings.device, settings.dtype)
    num_frames = settings.num_frames or inference.processor.num_frames
    if num_frames < 2:
        raise SettingsError(f"the checkpoint takes {num_frames} frame of a clip: set num_frames to 2 or more")
    advice = "mend it, or take the record out"
    answerer = Answerer(inference, settings.condition, settings.num_voco, settings.batch_size, advice=advice)
    inference.check_frames(num_frames, answerer.condition, answerer.num_voco)
    facts = {
        "condition": answerer.condition,
        "num_voco": answerer.num_voco if answerer.condition == "voco" else None,
        "num_frames": num_frames,
        "limit": settings.limit,
        **cost_of(answerer, "clip", num_frames),
        "checkpoint_fingerprint": checkpoint_fingerprint(settings.checkpoint),
    }
    data = _fingerprint_records(records)
    _check_overwritten(settings, facts, data)
    texts = answer_clips(answerer, records, num_frames, settings.max_new_tokens, settings.seed)
    accuracy, lines = score_clips(records, texts)
    logger.info(
        "row %s: exact match %.4f in order, %.4f shuffled", settings.row, accuracy[IN_ORDER], accuracy[SHUFFLED]
    )
    result = {
        **facts,
        "metric": "exact_match",
        **accuracy,
        "questions": len(records),
        "clips": len({record.video for record in records}),
        "num_compressed": answerer.counts.compressed,
        "data_fingerprint": data,
        **describe_run(settings, started),
    }
    return write_result(settings.output, CLIPS_KIND, settings.row, result, lines)


def _report(error: DataError) -> None:
    """Marks beyond the clip's are no problem here: `with_marks` says what becomes of them."""
    if error.kind != ProblemKind.TOO_MANY_MARKS:
        raise error


_TOLD_APART_BY = ("condition", "num_voco", "num_frames", "limit", "kv_dtype", "checkpoint_fingerprint")
"""Facts of a result by which it is another evaluation's, beside its seed, the length of answers and the data."""


def _check_overwritten(settings: EvaluateClipsSettings, here: Mapping[str, Any], data: str) -> None:
    """Refuse to write over a row's result that is not this evaluation's, unless asked to (`SettingsError`).

    Args:
        settings: Of now.
        here: What the result will say that another evaluation's does not.
        data: Fingerprint of questions and clips.
    """
    if settings.overwrite:
        return
    here = {key: here[key] for key in _TOLD_APART_BY} | {"seed": settings.seed}
    limit = {"max_new_tokens": settings.max_new_tokens}
    places = {"questions": str(settings.questions), "videos": str(settings.videos)}

    def told_apart(result: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        asked = part(result, "settings")
        new = "data_fingerprint" in result  # what an older version wrote has the places alone
        settled = limit if new else limit | places
        there = {key: result.get(key) for key in here} | {key: asked.get(key) for key in settled}
        now = {**here, **settled}
        return (there | {"data": result["data_fingerprint"]}, now | {"data": data}) if new else (there, now)

    check_overwrites(result_file(settings.output, CLIPS_KIND, settings.row), told_apart)


def _fingerprint_records(records: Sequence[Record]) -> str:
    """A hash of questions, answers and the contents of the clips (`DataError`: one cannot be read)."""
    contents = {}
    for clip in dict.fromkeys(record.video for record in records):
        with refused_as(DataError, clip, "mend it, or take its records out"):
            contents[clip] = content_key(clip)
    return fingerprint_data(
        [[record.video.name, contents[record.video], *(turn.text for turn in record.turns)] for record in records]
    )


def answer_clips(
    answerer: Answerer, records: Sequence[Record], num_frames: int, max_new_tokens: int, seed: int
) -> dict[str, list[str]]:
    """Answers by order of frames, `in_order` and `shuffled`; both read the same entries of a clip compressed once."""
    texts: dict[str, list[str]] = {IN_ORDER: [""] * len(records), SHUFFLED: [""] * len(records)}
    by_clip = sorted(range(len(records)), key=lambda i: str(records[i].video))  # a clip is compressed once for all
    asked = [(i, order) for i in by_clip for order in texts]

    def question(record: Record, order: str) -> Question:
        steps = shuffled(num_frames, f"{seed}/{record.video.name}") if order == SHUFFLED else None
        look = lambda: [see_clip(record.video, num_frames, steps)]  # noqa: E731
        return Question(record.source, record.turns[0].text, look, {"max_new_tokens": max_new_tokens})

    answers = answerer.answer([question(records[i], order) for i, order in asked])
    for (i, order), text in zip(asked, answers, strict=True):
        texts[order][i] = text
    return texts


def shuffled(count: int, seed: str) -> tuple[int, ...]:
    """A permutation of `range(count)`, at least 2, that is not the identity, decided by the seed."""
    order, generator = list(range(count)), random.Random(seed)
    while order == list(range(count)):
        generator.shuffle(order)
    return tuple(order)


def normalize_exact(text: str) -> str:
    """Lower case without punctuation, as lmms-eval's `exact_match` compares."""
    return text.strip().lower().translate(str.maketrans("", "", string.punctuation))


def score_clips(records: Sequence[Record], texts: dict[str, list[str]]) -> tuple[dict[str, float], list[dict]]:
    """Exact match (case and punctuation ignored) for each order of frames, and a line for each question."""
    lines = []
    for index, record in enumerate(records):
        reference = record.turns[1].text
        line = {"id": record.id, "clip": record.video.name, "question": record.turns[0].text, "reference": reference}
        for order, answers in texts.items():
            line[order] = answers[index]
            line[f"{order}_points"] = float(normalize_exact(answers[index]) == normalize_exact(reference))
        lines.append(line)
    return {order: sum(line[f"{order}_points"] for line in lines) / len(lines) for order in texts}, lines
