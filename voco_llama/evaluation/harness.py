"""The folders and the surroundings that lmms-eval runs in: working directory, environment, settings of `datasets`."""

import contextlib
import functools
import hashlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voco_llama.files import write_atomically
from voco_llama.provenance import fingerprint_data, fingerprint_files

TABLES = (".parquet", ".json", ".jsonl", ".csv", ".md")


@dataclass(frozen=True)
class Harness:
    """How lmms-eval is run.

    Attributes:
        hub: Folder with the data sets, `<hub>/<owner>/<name>`; None: the Hugging Face hub and its cache.
        task_folder: Tasks of our own.
        datasets_cache: Where `datasets` keeps what it made of the data sets' files.
        responses: Answers given so far, from which a run that was cut off goes on; None: they are not kept.
        submissions: Files that tasks write for a server.
    """

    hub: Path | None
    task_folder: Path
    datasets_cache: Path
    responses: Path | None
    submissions: Path


@dataclass(frozen=True)
class TaskFiles:
    """What a task is made of: the files of its definition, and its data set's name on the hub."""

    files: tuple[Path, ...]
    dataset: str


def quiet() -> None:
    """Of what lmms-eval says, warnings and errors alone."""
    from loguru import logger

    logger.remove()
    logger.add(sys.stderr, level="WARNING", format="{time:HH:mm:ss} {level.name[0]} lmms-eval: {message}")


@contextlib.contextmanager
def surroundings(harness: Harness, run_id: str) -> Iterator[None]:
    """What a local hub needs while lmms-eval runs; put back afterwards.

    `run_id` names the store of answers: it is the same for a run and the one that goes on with it.
    """
    import datasets

    with contextlib.ExitStack() as stack:

        def replace(owner: Any, name: str, value: Any) -> None:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)

        cache = str(harness.datasets_cache)
        replace(datasets.config, "HF_DATASETS_CACHE", cache)
        replace(datasets.Dataset, "map", _by_as_many_processes_as_cores(datasets.Dataset.map))
        changed = {"LMMS_EVAL_DATASETS_CACHE": cache, "HF_DATASETS_CACHE": cache, "LMMS_CACHE_RUN_ID": run_id}
        stack.callback(os.environ.update, {name: os.environ[name] for name in changed if name in os.environ})
        for name, value in changed.items():
            stack.callback(os.environ.pop, name, None)  # before the update above
            os.environ[name] = value
        if not datasets.are_progress_bars_disabled():
            stack.callback(datasets.enable_progress_bars)
            datasets.disable_progress_bars()
        if harness.hub is not None:
            replace(datasets.config, "HF_HUB_OFFLINE", True)
            stack.enter_context(contextlib.chdir(harness.hub))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))  # MMBench prints its categories
        yield


def _by_as_many_processes_as_cores(function: Callable[..., Any]) -> Callable[..., Any]:
    """GQA's task forks eight processes of ours, whatever the machine: each counts as large as this one is by then."""

    @functools.wraps(function)
    def mapped(*args: Any, num_proc: int | None = None, **kwargs: Any) -> Any:
        return function(*args, num_proc=num_proc and min(num_proc, os.cpu_count() or 1), **kwargs)

    return mapped


def forget_empty_answers(responses: Path) -> None:
    """Take empty answers out of the logs that a run which was cut off left: questions that failed are among them.

    lmms-eval keeps no empty answer, but it takes those of its logs for answers when it goes on.
    """
    for file in sorted(responses.rglob("*.jsonl")):
        lines = [f"{line}\n" for line in file.read_text(encoding="utf-8").split("\n") if line]
        answered = [line for line in lines if _holds_an_answer(line)]
        if answered != lines:
            write_atomically(file, "".join(answered))


def _holds_an_answer(line: str) -> bool:
    try:
        return bool(json.loads(json.loads(line)["response"]).strip())
    except json.JSONDecodeError:  # cut off while it was written
        return False


def state_of_files(folder: Path) -> str:
    """A hash of the names, sizes and times of all files below a folder, after which a cache of them is named."""
    digest = hashlib.sha256()
    for file in files_below(folder):
        status = file.stat()
        digest.update(f"{file.relative_to(folder)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def fingerprint_data_set(folder: Path) -> str:
    """A hash of a data set's files: the contents of tables and cards, the names and sizes of clips and images.

    They are read once a process, as long as names, sizes and times stay the same.
    """
    return _fingerprint_data_set(folder, state_of_files(folder))


@functools.cache
def _fingerprint_data_set(folder: Path, state: str) -> str:
    files = files_below(folder)
    tables = [file for file in files if file.suffix in TABLES]
    others = [[str(file.relative_to(folder)), file.stat().st_size] for file in files if file.suffix not in TABLES]
    return fingerprint_data([[str(file.relative_to(folder)) for file in tables], fingerprint_files(tables), others])


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, through links too, in order."""
    walked = os.walk(folder, followlinks=True)
    return sorted(Path(directory, name) for directory, _, names in walked for name in names)
