"""The folders and the surroundings that lmms-eval runs in: working directory, environment, settings of `datasets`.

Tasks write files where they please: below `output_path`, or, as one of SEED's, into the working directory. Both are one
folder of ours (`working_folder`), whose links lead to the data sets of a local hub, so that nothing is written there.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voco_llama.errors import SettingsError, one_line
from voco_llama.files import locked, write_atomically
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
        submissions: Files that tasks wrote, those for a server among them.
        local: Whether tasks are to be tried once, as their data lies on this machine and no judge is asked.
    """

    hub: Path | None
    task_folder: Path
    datasets_cache: Path
    responses: Path | None
    submissions: Path
    local: bool = False

    @property
    def work(self) -> Path:
        """Where lmms-eval and its tasks work and write meanwhile."""
        return self.submissions.with_name(f".{self.submissions.name}")


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
def working_folder(harness: Harness) -> Iterator[None]:
    """Have `harness.work`, with links to the hub's folders; what tasks wrote there becomes `harness.submissions`.

    One process at a time has it: where several share an evaluation, the first. What a kill left of it is cleared.

    Raises:
        SettingsError: Another evaluation is at work there, or the folder cannot be written.
    """
    work = harness.work
    with locked(work.with_name(f"{work.name}.lock"), remains=False):
        try:
            links = _make(work, harness.hub)
            yield
            for link in links:
                link.unlink()
            _remove(harness.submissions)
            if any(work.iterdir()):
                work.rename(harness.submissions)
        finally:
            _remove(work)


def _make(work: Path, hub: Path | None) -> list[Path]:
    """An empty folder but for links to the folders of the hub, which are returned."""
    try:
        _remove(work)
        work.mkdir()
        links = {} if hub is None else {work / folder.name: folder for folder in hub.iterdir() if folder.is_dir()}
        for link, folder in links.items():
            link.symlink_to(folder)
    except OSError as error:
        raise _unwritable(work, error) from error
    return list(links)


def _unwritable(work: Path, error: OSError) -> SettingsError:
    return SettingsError(f"output={work.parent}: cannot be written ({one_line(error)}): name another")


def _remove(folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder)  # takes away the links in it and leaves what they lead to


@contextlib.contextmanager
def replaced(owner: Any, **values: Any) -> Iterator[None]:
    """Attributes of a module, a class or an object have other values meanwhile."""
    before = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


@contextlib.contextmanager
def surroundings(harness: Harness, run_id: str) -> Iterator[None]:
    """What lmms-eval finds around it while it runs; put back afterwards.

    `run_id` names the store of answers: it is the same for a run and the one that goes on with it.
    """
    import datasets

    with contextlib.ExitStack() as stack:
        cache = str(harness.datasets_cache)
        stack.enter_context(replaced(datasets.config, HF_DATASETS_CACHE=cache))
        mapped = _by_as_many_processes_as_cores(datasets.Dataset.map)
        stack.enter_context(replaced(datasets.Dataset, map=mapped))
        changed = {"LMMS_EVAL_DATASETS_CACHE": cache, "HF_DATASETS_CACHE": cache, "LMMS_CACHE_RUN_ID": run_id}
        if "HF_HOME" in os.environ:
            changed["HF_HOME"] = str(Path(os.environ["HF_HOME"]).absolute())
        stack.callback(os.environ.update, {name: os.environ[name] for name in changed if name in os.environ})
        for name, value in changed.items():
            stack.callback(os.environ.pop, name, None)  # before the update above
            os.environ[name] = value
        if not datasets.are_progress_bars_disabled():
            stack.callback(datasets.enable_progress_bars)
            datasets.disable_progress_bars()
        if harness.hub is not None:
            stack.enter_context(replaced(datasets.config, HF_HUB_OFFLINE=True))
        stack.enter_context(contextlib.chdir(harness.work))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))  # MMBench prints its categories
        yield


def _by_as_many_processes_as_cores(function: Callable[..., Any]) -> Callable[..., Any]:
    """GQA's task forks eight processes of ours, whatever the machine: each counts as large as this one is by then."""

    @functools.wraps(function)
    def mapped(*args: Any, num_proc: int | None = None, **kwargs: Any) -> Any:
        return function(*args, num_proc=num_proc and min(num_proc, os.cpu_count() or 1), **kwargs)

    return mapped


def forget_empty_answers(responses: Path) -> None:
    """Leave of what a run that was cut off kept the logs alone, and of these the lines that hold an answer.

    Empty answers are those of questions that failed, among others: lmms-eval keeps none, but takes those of its logs
    for answers when it goes on. Its data bases are made anew of the logs: a kill or a full disk may have torn them.
    """
    for file in sorted(responses.rglob("*.jsonl")):
        kept = file.read_bytes()
        answered = b"".join(line + b"\n" for line in kept.split(b"\n") if _holds_an_answer(line))
        if answered != kept:
            write_atomically(file, answered.decode())
    for file in sorted(responses.rglob("*.db*")):
        file.unlink(missing_ok=True)


def _holds_an_answer(line: bytes) -> bool:
    with contextlib.suppress(Exception):  # cut off while it was written, somewhere
        return bool(json.loads(json.loads(line)["response"]).strip())
    return False


def state_of_files(folder: Path) -> str:
    """A hash of the names, sizes and times of all files below a folder, after which a cache of them is named."""
    digest = hashlib.sha256()
    for file in files_below(folder):
        status = _status(file)
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
    others = [[str(file.relative_to(folder)), _status(file).st_size] for file in files if file.suffix not in TABLES]
    return fingerprint_data([[str(file.relative_to(folder)) for file in tables], fingerprint_files(tables), others])


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, through links too, in order."""
    walked = os.walk(folder, followlinks=True)
    return sorted(Path(directory, name) for directory, _, names in walked for name in names)


def _status(file: Path) -> os.stat_result:
    """Of a file, or of a link that leads nowhere: a clip that is gone is found out when it is asked about."""
    return file.stat() if file.exists() else file.lstat()
