"""`evaluate`: one checkpoint under one condition on the benchmarks, written to one result file."""

import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from voco_llama.errors import SettingsError
from voco_llama.evaluation.answering import CONDITIONS, answer
from voco_llama.evaluation.benchmarks import BENCHMARKS, Request, read_benchmark
from voco_llama.evaluation.efficiency import kv_bytes
from voco_llama.evaluation.results import (
    BENCHMARKS_KIND,
    check_row_name,
    checkpoint_fingerprint,
    load_checkpoint,
    write_result,
)
from voco_llama.evaluation.scoring import Score, score
from voco_llama.provenance import fingerprint_data, provenance

if TYPE_CHECKING:
    from voco_llama.model.voco_llama import VoCoLlama

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluateSettings:
    """What to evaluate.

    Attributes:
        checkpoint: Folder of a saved model and its processor.
        benchmarks_root: The folder that holds `lmms-lab-encoder`.
        output: Folder of the result file, `<row>.benchmarks.json`.
        row: The row's name in the report.
        condition: `full` (upper bound), `voco`, or `blind` (no image). The lower bound is `voco` on the weights of
            the upper bound.
        num_voco: VoCo tokens an image; None: as many as the checkpoint was trained with.
        benchmarks: Names in `BENCHMARKS`.
        limit: Only so many questions a benchmark, for a try; the report refuses such rows unless asked.
        batch_size: Questions, or images to compress, at a time.
        max_new_tokens: Length limit of an answer.
        device: None: the GPU if there is one.
        dtype: Of the weights and the cache; `auto`: as saved.
        seed: Recorded and set; answers are greedy, so nothing depends on it.
    """

    checkpoint: Path
    benchmarks_root: Path
    output: Path
    row: str
    condition: str = "voco"
    num_voco: int | None = None
    benchmarks: list[str] = field(default_factory=lambda: list(BENCHMARKS))
    limit: int | None = None
    batch_size: int = 32
    max_new_tokens: int = 16
    device: str | None = None
    dtype: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        check_row_name(self.row)
        if self.condition not in CONDITIONS:
            raise SettingsError(f"condition {self.condition!r} is unknown: choose one of {', '.join(CONDITIONS)}")
        unknown = [name for name in self.benchmarks if name not in BENCHMARKS]
        if unknown or not self.benchmarks:
            named = f"there is no benchmark {unknown[0]!r}" if unknown else "no benchmark is named"
            raise SettingsError(f"{named}: choose from {', '.join(BENCHMARKS)}")
        for name in ("num_voco", "limit", "batch_size", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{name} must be at least 1, not {value}")


def evaluate(settings: EvaluateSettings) -> Path:
    """Answer and score the benchmarks, and write the result.

    Returns:
        The result file. The answers lie beside it, one JSON line a question.

    Raises:
        CheckpointError: The checkpoint cannot be loaded.
        DataError: A benchmark or an image cannot be read.
    """
    started = time.monotonic()
    torch.manual_seed(settings.seed)
    questions = {name: read_benchmark(settings.benchmarks_root, name, settings.limit) for name in settings.benchmarks}
    model, processor = load_checkpoint(settings.checkpoint, settings.device, settings.dtype)
    num_voco = settings.num_voco or model.config.num_voco
    logger.info(
        "row %s: %s, condition %s, %d VoCo tokens", settings.row, settings.checkpoint, settings.condition, num_voco
    )
    described, lines, num_compressed = {}, [], 0
    for name, requests in questions.items():
        logger.info("row %s: %s", settings.row, name)
        answered = answer(
            model, processor, requests, settings.condition, num_voco, settings.batch_size, settings.max_new_tokens
        )
        scored = score(name, requests, answered.texts)
        num_compressed += answered.num_compressed
        described[name] = _describe(scored, requests)
        lines += _answer_lines(requests, answered.texts, scored)
        logger.info("row %s: %s %s %.4g of %.4g", settings.row, name, scored.metric, scored.value, scored.full)
    result = {
        "condition": settings.condition,
        "num_voco": num_voco if settings.condition == "voco" else None,
        "model": _describe_model(model),
        "limit": settings.limit,
        "benchmarks": described,
        "mean_accuracy": sum(d["accuracy"] for d in described.values()) / len(described),
        **_cost(model, settings.condition, num_voco),
        "num_answers": len(lines),
        "num_compressed": num_compressed,
        "checkpoint_fingerprint": checkpoint_fingerprint(settings.checkpoint),
        **describe_run(settings, started),
    }
    return write_result(settings.output, BENCHMARKS_KIND, settings.row, result, lines)


def describe_run(settings: Any, started: float) -> dict[str, Any]:
    """Settings, their fingerprint, seed, wall time and provenance, as every result file has them."""
    plain = {
        key: str(value) if isinstance(value, Path) else value for key, value in dataclasses.asdict(settings).items()
    }
    return {
        "settings": plain,
        "config_fingerprint": fingerprint_data(plain),
        "seed": settings.seed,
        "wall_seconds": round(time.monotonic() - started, 3),
        **provenance(),
    }


def _describe(scored: Score, requests: Sequence[Request]) -> dict[str, Any]:
    identity = [[r.id, r.prompt, r.image_key, list(r.answers)] for r in requests]
    return {
        "metric": scored.metric,
        "value": scored.value,
        "full": scored.full,
        "accuracy": scored.accuracy,
        "questions": len(requests),
        "images": len({request.image_key for request in requests}),
        "data_fingerprint": fingerprint_data(identity),
        "details": scored.details,
    }


def _describe_model(model: "VoCoLlama") -> dict[str, Any]:
    """How the model was trained to compress, and its parameters in millions by part."""
    config = model.config
    return {
        "trained_condition": config.condition,
        "trained_num_voco": config.num_voco,
        "compressor": config.compressor,
        "segment_attention": config.segment_attention,
        "voco_embeddings": config.voco_embeddings,
        "million_parameters": {
            name: sum(parameter.numel() for parameter in part.parameters()) / 1e6
            for name, part in model.named_children()
        },
    }


def _answer_lines(requests: Sequence[Request], texts: Sequence[str], scored: Score) -> Iterator[dict[str, Any]]:
    for request, text, points in zip(requests, texts, scored.per_question, strict=True):
        yield {
            "benchmark": request.benchmark,
            "id": request.id,
            "image": request.image_key,
            "prompt": request.prompt,
            "references": list(request.answers),
            "answer": text,
            "points": points,
        }


def _cost(model: "VoCoLlama", condition: str, num_voco: int) -> dict[str, Any]:
    """What the language model keeps of an image while it answers: its VoCo tokens, the whole segment, or nothing."""
    shape = model.config.segment_shape(num_voco)
    tokens = {"voco": num_voco, "full": shape.num_compressed + num_voco, "blind": 0}[condition]
    return {
        "tokens_per_image": tokens,
        "kv_bytes_per_image": kv_bytes(model.config.text_config, tokens, model.dtype),
        "kv_dtype": str(model.dtype).removeprefix("torch."),
    }
