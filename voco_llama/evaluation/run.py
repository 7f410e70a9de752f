"""`evaluate`: one checkpoint under one condition on the tasks of a suite, by lmms-eval, written to one result file."""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voco_llama.config_files import EVAL_DIR
from voco_llama.errors import DataError, refused_as
from voco_llama.evaluation.answering import Answerer, Counts
from voco_llama.evaluation.guard import document
from voco_llama.evaluation.harness import (
    Harness,
    TaskFiles,
    fingerprint_data_set,
    forget_empty_answers,
    state_of_files,
    working_folder,
)
from voco_llama.evaluation.results import BENCHMARKS_KIND, result_file, write_result
from voco_llama.evaluation.settings import EvaluateSettings, Suite, check_overwritten, fingerprint_asked, rows_of
from voco_llama.evaluation.tasks import TASKS, Sample, describe, judge_of
from voco_llama.inference import head_fingerprint
from voco_llama.provenance import fingerprint_data, fingerprint_files, provenance

if TYPE_CHECKING:
    from voco_llama.evaluation.lmms_adapter import VoCoLlamaAdapter
    from voco_llama.model.voco_llama import VoCoLlama

logger = logging.getLogger(__name__)

TASKS_DIR = EVAL_DIR / "tasks"
"""Tasks that lmms-eval lacks."""
KEY_LENGTH = 16
"""Characters that tell an image from the others in a file of answers."""


def evaluate_rows(settings: EvaluateSettings) -> list[Path]:
    """Evaluate a row, or every row of a suite one after another; all are checked before the first."""
    rows = rows_of(settings)
    for row in rows:
        check_overwritten(row, lambda row=row: _data_sets(row))
    return [_evaluate(row) for row in rows]


def check_data_sets(settings: EvaluateSettings) -> None:
    """Refuse an evaluation whose tasks lmms-eval does not know or whose data sets are not there; nothing is loaded.

    Raises:
        SettingsError: lmms-eval is not installed, or lacks a task.
        DataError: The local hub lacks a data set.
    """
    from voco_llama.evaluation import lmms_evaluator

    suite = settings.columns()
    lmms_evaluator.find_tasks(list(suite.columns.values()), _harness(settings, suite))


def evaluate(settings: EvaluateSettings) -> Path:
    """Have lmms-eval ask and score the suite for one row, and write the result.

    Under torchrun, processes share the questions. A run that was cut off is gone on with by the same settings, where
    answers are kept as they come.

    Returns:
        The result file (written by the first process). The answers lie beside it, one JSON line a question.

    Raises:
        CheckpointError: The checkpoint cannot be loaded.
        DataError: A data set is missing or damaged, a question cannot be answered or scored, or a task gave no result.
        SettingsError: A judge is needed and there is none; a result of another evaluation is there, or one at work.
    """
    (file,) = evaluate_rows(settings)
    return file


def _evaluate(settings: EvaluateSettings) -> Path:
    started = time.monotonic()
    suite = settings.columns()
    judge = judge_of(list(suite.columns.values()), os.environ)
    from voco_llama.evaluation import lmms_evaluator

    harness = _harness(settings, suite)
    found = lmms_evaluator.find_tasks(list(suite.columns.values()), harness)
    with contextlib.ExitStack() as stack:
        if os.environ.get("RANK", "0") == "0":  # before the adapter joins the others, which find it made
            stack.enter_context(working_folder(harness))
            if harness.responses is not None:
                forget_empty_answers(harness.responses)
        return _ask_and_score(settings, suite, harness, found, judge, started)


def _ask_and_score(
    settings: EvaluateSettings,
    suite: Suite,
    harness: Harness,
    found: Mapping[str, TaskFiles],
    judge: str | None,
    started: float,
) -> Path:
    from voco_llama.evaluation import lmms_adapter, lmms_evaluator

    adapter = lmms_adapter.VoCoLlamaAdapter(
        str(settings.checkpoint), settings.condition, settings.num_voco, settings.batch_size, settings.device,
        settings.dtype, settings.reuse, settings.go_on, suite.max_new_tokens, settings.quality,
    )  # fmt: skip
    settings = dataclasses.replace(settings, condition=adapter.answerer.condition)
    logger.info("row %s: %s with %s", settings.row, adapter, ", ".join(found))
    data = {task: _data_fingerprint(harness, files.dataset) for task, files in found.items()}
    run_id = fingerprint_data([str(adapter), suite.columns, data, settings.limit, adapter.world_size])[:16]
    if harness.responses is not None:
        adapter.answerer.record = harness.responses / f"{run_id}.{adapter.rank}.looked"
        adapter.answerer.read_record()
    loaded = time.monotonic()
    results = lmms_evaluator.run_tasks(adapter, found, harness, run_id, settings.limit, settings.seed)
    seconds = time.monotonic() - loaded
    counts = lmms_adapter.gathered_counts(adapter)
    if results is None:
        return result_file(settings.output, BENCHMARKS_KIND, settings.row)
    described = _describe_columns(suite, results, data, counts.failures)
    scored = {column: d for column, d in described.items() if "value" in d}  # the others are files for a server
    accuracies = [d["accuracy"] for d in scored.values()]
    result = {
        "condition": settings.condition,
        "num_voco": adapter.answerer.num_voco if settings.condition == "voco" else None,
        "quality": settings.quality,
        "quality_head": None if settings.quality is None else head_fingerprint(settings.checkpoint),
        "model": _describe_model(adapter.answerer.inference.model),
        "limit": settings.limit,
        "failures": [{"id": id, "error": error} for id, error in counts.failures.items()],
        "benchmarks": scored,
        "submissions": {column: d for column, d in described.items() if column not in scored},
        "mean_accuracy": sum(accuracies) / len(accuracies) if accuracies else None,
        **cost_of(adapter.answerer, kept=counts.kept()),
        **_throughput(counts, seconds, adapter),
        "suite": {name: value for name, value in dataclasses.asdict(suite).items() if name != "rows"},
        "judge": judge,
        "task_files": {task: fingerprint_files(files.files) for task, files in found.items()},
        "checkpoint_fingerprint": adapter.checkpoint_fingerprint,
        **describe_run(settings, started),
    }
    lines = [
        line for column, task in suite.columns.items() for line in _answer_lines(column, task, results, counts.looked)
    ]
    file = write_result(settings.output, BENCHMARKS_KIND, settings.row, result, lines)
    if harness.responses is not None:
        shutil.rmtree(harness.responses, ignore_errors=True)
    return file


def _harness(settings: EvaluateSettings, suite: Suite) -> Harness:
    """Folders by absolute paths: lmms-eval runs with another working directory."""
    hub = None if settings.hub is None else settings.hub.absolute()
    # `datasets` would take rows from its cache although the files have changed: each state of a hub has its own.
    cache = settings.datasets_cache.absolute() / ("hub" if hub is None else state_of_files(hub)[:16])
    beside = settings.output.absolute() / settings.row
    responses = beside.with_name(f"{settings.row}.responses") if suite.keep_answers else None
    local = hub is not None and not any(TASKS[task].needs_judge for task in suite.columns.values())
    return Harness(hub, TASKS_DIR, cache, responses, beside.with_name(f"{settings.row}.files"), local)


def _data_sets(settings: EvaluateSettings) -> dict[str, str | None]:
    """The fingerprint of each task's data set."""
    from voco_llama.evaluation import lmms_evaluator

    suite = settings.columns()
    harness = _harness(settings, suite)
    found = lmms_evaluator.find_tasks(list(suite.columns.values()), harness)
    return {task: _data_fingerprint(harness, files.dataset) for task, files in found.items()}


def _data_fingerprint(harness: Harness, dataset: str) -> str | None:
    """By content; None for what lies in the cache of the Hugging Face hub."""
    if harness.hub is None:
        return None
    with refused_as(DataError, harness.hub / dataset, "mend it, or leave its task out (tasks=[...])"):
        return fingerprint_data_set(harness.hub / dataset)


def _describe_columns(
    suite: Suite, results: Mapping[str, Any], data: Mapping[str, str | None], failures: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    described = {}
    for column, task in suite.columns.items():
        samples = results["samples"].get(task, [])
        failed = [id for id in failures if id.startswith(document(task, ""))]
        if failed and len(failed) >= len(samples):
            raise DataError(
                f"task {task}: not one question was answered and scored (first: {failed[0]}, {failures[failed[0]]}):"
                " mend that"
            )
        metrics = {name.split(",")[0]: value for name, value in results["results"].get(task, {}).items()}
        described[column] = describe(task, metrics, samples)
        identity = data[task] or [[s["doc_hash"], s["prompt_hash"], s["target_hash"]] for s in samples]
        described[column]["data_fingerprint"] = fingerprint_asked(identity, len(samples))
        value, full = described[column].get("value"), described[column].get("full")
        logger.info("%s: %s", column, "written for a server" if value is None else f"{value:.4g} of {full:.4g}")
    return described


def describe_run(settings: Any, started: float) -> dict[str, Any]:
    """Settings, their fingerprint, seed, wall time and provenance, as every result file has them."""
    plain = json.loads(json.dumps(dataclasses.asdict(settings), default=str))  # paths as text
    return {
        "settings": plain,
        "config_fingerprint": fingerprint_data(plain),
        "seed": settings.seed,
        "wall_seconds": round(time.monotonic() - started, 3),
        **provenance(),
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


def _answer_lines(
    column: str, task: str, results: Mapping[str, Any], looked: Mapping[str, Mapping[str, Sequence[int]]]
) -> Iterator[dict[str, Any]]:
    """One line a question: what was asked, what came, and its points where the score is a sum of them.

    Under `voco`, also the beginning of the key of each image, and its VoCo tokens.
    """
    points = TASKS[task].points
    samples: Sequence[Sample] = results["samples"][task]
    for sample in samples:
        yield {
            "benchmark": column,
            "document": sample["doc_id"],
            "prompt": sample["arguments"][0][0] if isinstance(sample["arguments"][0], list) else sample["arguments"][0],
            "reference": sample["target"],
            "answer": sample["filtered_resps"][0],
            "points": None if points is None else points(sample),
            "images": {key[:KEY_LENGTH]: n for key, n in looked.get(document(task, sample["doc_id"]), {}).items()},
        }


def cost_of(
    answerer: Answerer, what: str = "image", num_images: int = 1, kept: Mapping[int, int] | None = None
) -> dict[str, Any]:
    """What the language model keeps of an image, or a clip of so many, while it answers: a mean where they differ.

    These are its VoCo tokens, the whole segment, or nothing.

    Args:
        answerer: Says what they are.
        what: One of them.
        num_images: Of a clip.
        kept: How many images were kept as so many VoCo tokens.

    Raises:
        DataError: Images chose their numbers, and not one is known.
    """
    model, num_voco = answerer.inference.model, answerer.num_voco
    shape = model.config.segment_shape(num_voco)
    tokens = num_images * {"voco": num_voco, "full": shape.num_compressed + num_voco, "blind": 0}[answerer.condition]
    found = {}
    if answerer.quality is not None and not kept:
        raise DataError(
            "not one image was compressed, so that the mean number of tokens is not known: leave quality out for tasks"
            " without images, or remove the row's .responses folder and evaluate again"
        )
    if kept:
        mean = sum(number * images for number, images in kept.items()) / sum(kept.values())
        tokens = int(mean) if mean.is_integer() else mean
        if answerer.quality is not None:
            logger.info("%.2f VoCo tokens an image, the mean of %d", mean, sum(kept.values()))
        found["images_by_tokens"] = {str(number): kept[number] for number in sorted(kept)}
    return {
        f"tokens_per_{what}": tokens,
        f"kv_bytes_per_{what}": tokens * model.config.kv_bytes(1, model.dtype),
        "kv_dtype": str(model.dtype).removeprefix("torch."),
        **found,
    }


def _throughput(counts: Counts, seconds: float, adapter: "VoCoLlamaAdapter") -> dict[str, Any]:
    """Speed of the answers given by this run; those that an earlier one had given are not among them."""
    return {
        "num_answers": counts.answers,
        "num_visuals": counts.visuals,
        "num_compressed": counts.compressed,
        "processes": adapter.world_size,
        "seconds": {
            "harness": round(seconds, 3),  # all of it: lmms-eval's data, answers kept on disk and scores too
            "answering": round(counts.seconds, 3),
            "model": round(counts.model_seconds, 3),
        },
        "answers_per_second": round(counts.answers / counts.seconds, 3) if counts.answers else None,
        "first_token_seconds": adapter.first_token_seconds,
    }
