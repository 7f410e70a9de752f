"""`evaluate_clips`: questions on clips, whose frames are compressed one by one and read in order of time, and shuffled.

A clip's cache is its frames' caches put together in time order (the paper's `F = {Cache_1..Cache_k}`). The control
reads the very same entries in another order: a model that understands time does worse on it.
"""

import logging
import random
import string
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from voco_llama.data.media.video import read_frames
from voco_llama.data.readers.video_chatgpt import VideoChatGpt
from voco_llama.data.records import IMAGE_MARK, Record
from voco_llama.errors import DataError, SettingsError
from voco_llama.evaluation.answering import generate_texts
from voco_llama.evaluation.efficiency import kv_bytes
from voco_llama.evaluation.results import (
    CLIPS_KIND,
    IN_ORDER,
    SHUFFLED,
    check_row_name,
    checkpoint_fingerprint,
    load_checkpoint,
    write_result,
)
from voco_llama.evaluation.run import describe_run
from voco_llama.model.cache import VoCoCache

if TYPE_CHECKING:
    from voco_llama.data.processor import VoCoProcessor
    from voco_llama.model.voco_llama import VoCoLlama

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
        num_voco: VoCo tokens a frame; None: as many as the checkpoint was trained with.
        limit: Only the first so many questions.
        batch_size: Questions at a time; also clips to compress in one go.
        max_new_tokens: Length limit of an answer.
        device: None: the GPU if there is one.
        dtype: Of the weights and the cache; `auto`: as saved.
        seed: Decides how frames are shuffled.
    """

    checkpoint: Path
    questions: Path
    videos: Path
    output: Path
    row: str
    num_frames: int | None = None
    num_voco: int | None = None
    limit: int | None = None
    batch_size: int = 16
    max_new_tokens: int = 16
    device: str | None = None
    dtype: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        check_row_name(self.row)
        if self.num_frames is not None and self.num_frames < 2:
            raise SettingsError(f"num_frames must be at least 2, not {self.num_frames}: one frame has no order")
        for name in ("num_voco", "limit", "batch_size", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{name} must be at least 1, not {value}")


def evaluate_clips(settings: EvaluateClipsSettings) -> Path:
    """Answer every question twice, frames in order and shuffled, and write the result.

    Returns:
        The result file. The answers lie beside it, one JSON line a question.

    Raises:
        CheckpointError: The checkpoint cannot be loaded.
        DataError: The questions or a clip cannot be read.
    """
    started = time.monotonic()
    torch.manual_seed(settings.seed)
    reader = VideoChatGpt(settings.questions, settings.videos)
    records = [reader[index] for index in range(min(len(reader), settings.limit or len(reader)))]
    model, processor = load_checkpoint(settings.checkpoint, settings.device, settings.dtype)
    num_frames = settings.num_frames or processor.num_frames
    if num_frames < 2:
        raise SettingsError(f"the checkpoint takes {num_frames} frame of a clip: set num_frames to 2 or more")
    num_voco = settings.num_voco or model.config.num_voco
    texts, num_compressed = answer_clips(model, processor, records, settings, num_frames, num_voco)
    accuracy, lines = score_clips(records, texts)
    logger.info(
        "row %s: exact match %.4f in order, %.4f shuffled", settings.row, accuracy[IN_ORDER], accuracy[SHUFFLED]
    )
    result = {
        "condition": "voco",
        "num_voco": num_voco,
        "num_frames": num_frames,
        "limit": settings.limit,
        "metric": "exact_match",
        **accuracy,
        "questions": len(records),
        "clips": len({record.video for record in records}),
        "num_compressed": num_compressed,
        "tokens_per_clip": num_frames * num_voco,
        "kv_bytes_per_clip": kv_bytes(model.config.text_config, num_frames * num_voco, model.dtype),
        "kv_dtype": str(model.dtype).removeprefix("torch."),
        "checkpoint_fingerprint": checkpoint_fingerprint(settings.checkpoint),
        **describe_run(settings, started),
    }
    return write_result(settings.output, CLIPS_KIND, settings.row, result, lines)


@torch.inference_mode()
def answer_clips(
    model: "VoCoLlama",
    processor: "VoCoProcessor",
    records: Sequence[Record],
    settings: EvaluateClipsSettings,
    num_frames: int,
    num_voco: int,
) -> tuple[dict[str, list[str]], int]:
    """Answers by order of frames (`in_order`, `shuffled`), and the number of frames compressed.

    Each clip is compressed once; both orders read the same entries.
    """
    texts: dict[str, list[str]] = {IN_ORDER: [""] * len(records), SHUFFLED: [""] * len(records)}
    num_compressed = num_done = 0
    for window in windows([str(record.video) for record in records], settings.batch_size):
        clips = list(dict.fromkeys(records[i].video for i in window))
        caches = []
        for clip in clips:
            frames = processor.pixels(read_frames(clip, num_frames)).to(model.device)
            caches.append(model.compress(frames, num_voco=num_voco))
            num_compressed += len(frames)
        cache = VoCoCache.cat(caches)
        for batch in (window[i : i + settings.batch_size] for i in range(0, len(window), settings.batch_size)):
            questions = [records[i].turns[0].text.replace(IMAGE_MARK, IMAGE_MARK * num_frames) for i in batch]
            laid_out = processor(text=questions, condition="voco", num_voco=num_voco)
            for order, answers in texts.items():
                entries = []
                for i in batch:
                    clip = records[i].video
                    steps = (
                        shuffled(num_frames, f"{settings.seed}/{clip.name}") if order == SHUFFLED else range(num_frames)
                    )
                    entries += [clips.index(clip) * num_frames + step for step in steps]
                found = generate_texts(model, processor, laid_out, cache[entries], settings.max_new_tokens)
                for i, text in zip(batch, found, strict=True):
                    answers[i] = text
        num_done += len(window)
        logger.info("%d of %d questions answered, %d frames compressed", num_done, len(records), num_compressed)
    return texts, num_compressed


def windows(keys: Sequence[str], size: int) -> Iterator[list[int]]:
    """Indices in groups of at least `size` (the last may be smaller), equal keys never in two groups."""
    of_key: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        of_key.setdefault(key, []).append(index)
    window: list[int] = []
    for indices in of_key.values():
        window += indices
        if len(window) >= size:
            yield window
            window = []
    if window:
        yield window


def shuffled(count: int, seed: str) -> list[int]:
    """A permutation of `range(count)` that is not the identity, decided by the seed."""
    if count < 2:
        raise ValueError(f"{count} frame cannot be put in another order")
    order, generator = list(range(count)), random.Random(seed)
    while order == list(range(count)):
        generator.shuffle(order)
    return order


def normalize_exact(text: str) -> str:
    """Lower case without punctuation, as lmms-eval's `exact_match` compares."""
    return text.strip().lower().translate(str.maketrans("", "", string.punctuation))


def score_clips(records: Sequence[Record], texts: dict[str, list[str]]) -> tuple[dict[str, float], list[dict]]:
    """Exact match (case and punctuation ignored) for each order of frames, and a line for each question."""
    if not records:
        raise DataError("there is no question on a clip to score")
    lines = []
    for index, record in enumerate(records):
        reference = record.turns[1].text
        line = {"id": record.id, "clip": record.video.name, "question": record.turns[0].text, "reference": reference}
        for order, answers in texts.items():
            line[order] = answers[index]
            line[f"{order}_points"] = float(normalize_exact(answers[index]) == normalize_exact(reference))
        lines.append(line)
    return {order: sum(line[f"{order}_points"] for line in lines) / len(lines) for order in texts}, lines
