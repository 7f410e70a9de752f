"""lmms-eval's evaluator as a function: its tasks found, loaded, asked to our model, and scored.

Nothing but this and `lmms_adapter` imports lmms-eval. What it is given around it is in `harness`, and what becomes of
questions that fail in `guard`.
"""

import contextlib
import functools
import logging
import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import yaml
from PIL import ImageFile

from voco_llama.errors import DataError, SettingsError, one_line, refused_as
from voco_llama.evaluation.answering import first_token_seconds
from voco_llama.evaluation.guard import Guard, last_try, or_nothing
from voco_llama.evaluation.harness import Harness, TaskFiles, quiet, replaced, surroundings
from voco_llama.evaluation.lmms_adapter import MODEL_NAME, VoCoLlamaAdapter

if TYPE_CHECKING:
    from lmms_eval.api.task import ConfigurableTask

logger = logging.getLogger(__name__)


def find_tasks(tasks: Sequence[str], harness: Harness) -> dict[str, TaskFiles]:
    """Where tasks are defined and which data sets they read; nothing is loaded.

    Raises:
        SettingsError: lmms-eval knows no such task.
        DataError: The local hub lacks its data set.
    """
    from lmms_eval import utils

    quiet()
    index = _task_manager(harness.task_folder).task_index
    found = {}
    for task in tasks:
        if task not in index:
            raise SettingsError(f"lmms-eval knows no task {task!r}: check its name and version")
        file = Path(index[task]["yaml_path"])
        dataset = utils.load_yaml_config(str(file), mode="full")["dataset_path"]
        if harness.hub is not None and not (harness.hub / dataset / "README.md").is_file():
            raise DataError(
                f"{harness.hub / dataset}: has no data set card README.md, which task {task} reads: put the data set"
                " there, make the toy world, or set hub=null for the Hugging Face hub"
            )
        files = sorted(f for f in file.parent.rglob("*") if f.is_file() and "__pycache__" not in f.parts)
        found[task] = TaskFiles(tuple(files), dataset)
    return found


def run_tasks(
    adapter: VoCoLlamaAdapter,
    tasks: Mapping[str, TaskFiles],
    harness: Harness,
    run_id: str,
    limit: int | None,
    seed: int,
) -> dict[str, Any] | None:
    """Have lmms-eval ask and score.

    Returns:
        What `simple_evaluate` gives; None in all processes but the first.

    Raises:
        DataError: A data set cannot be read, a question cannot be answered or an answer not scored; or what lmms-eval
            writes cannot be written.
    """
    from lmms_eval import evaluator
    from lmms_eval.api.task import _resolve_hf_datasets_cache_dir

    _resolve_hf_datasets_cache_dir.cache_clear()  # else the first evaluation of a process decides for all
    arguments = SimpleNamespace(
        output_path=str(harness.work), process_with_media=False, reasoning_tags=None, agentic_trace_mode="basic"
    )
    guard = Guard(adapter.answerer.give_up)
    with surroundings(harness, run_id), _guarded(guard, harness):
        loaded = [guard.watch(name, task, limit) for name, task in _load_tasks(adapter, tasks, harness).items()]
        try:
            results = evaluator.simple_evaluate(
                adapter,
                tasks=loaded,
                task_manager=_task_manager(harness.task_folder),
                use_cache=None if harness.responses is None else str(harness.responses),
                limit=limit,
                bootstrap_iters=0,
                cli_args=arguments,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                process_docs_parallel=1,
                verbosity="WARNING",
            )
        except (OSError, sqlite3.Error) as error:
            raise DataError(
                f"{harness.work.parent}: lmms-eval cannot write there ({one_line(error)}): make room, or mend it; the"
                " same command goes on"
            ) from error
        failed = adapter.answerer.counts.failures
        timed = [question for question in adapter.timed_questions if question.id not in failed]
        try:
            adapter.first_token_seconds = first_token_seconds(adapter.answerer, timed)
        except Exception as error:  # the answers are there; a timing is not worth losing them
            logger.warning("the time to the first token was not measured (%s)", error)
    return results


def _load_tasks(
    adapter: VoCoLlamaAdapter, tasks: Mapping[str, TaskFiles], harness: Harness
) -> "dict[str, ConfigurableTask]":
    """Tasks with their data, which the first of several processes prepares for all.

    lmms-eval tries each task on its first document, image and all: what that fails with is found when it is asked.

    Raises:
        DataError: A data set cannot be read.
    """
    from lmms_eval.api.task import ConfigurableTask
    from lmms_eval.tasks import get_task_dict

    found, manager = {}, _task_manager(harness.task_folder)
    with contextlib.ExitStack() as stack:
        if adapter.world_size > 1:
            stack.enter_context(adapter.accelerator.main_process_first())
        first_document = {
            "test_docs": ConfigurableTask.test_docs_no_media,
            "validation_docs": ConfigurableTask.validation_docs_no_media,
            "doc_to_text": or_nothing(ConfigurableTask.doc_to_text),
            "doc_to_target": or_nothing(ConfigurableTask.doc_to_target),
        }
        stack.enter_context(replaced(ConfigurableTask, **first_document))
        for name, files in tasks.items():
            where = f"task {name}: its data set {harness.hub / files.dataset if harness.hub else files.dataset}"
            with refused_as(DataError, where, "put the data set there anew, or leave the task out (tasks=[...])"):
                try:
                    found |= get_task_dict([name], manager)
                except Exception as error:
                    raise last_try(error) from None
    return found


@contextlib.contextmanager
def _guarded(guard: Guard, harness: Harness) -> Iterator[None]:
    """Parts of lmms-eval replaced meanwhile: those whose failures name no document, and those that write elsewhere."""
    from lmms_eval import evaluator
    from lmms_eval.api.task import ConfigurableTask
    from lmms_eval.caching import response_cache
    from lmms_eval.evaluator_utils import TaskOutput
    from tenacity import stop_after_attempt

    nothing = evaluator._ProcessedDocument({}, {}, None)
    process, aggregate = evaluator._process_document_results, TaskOutput.calculate_aggregate_metric
    with contextlib.ExitStack() as stack:
        stack.enter_context(replaced(evaluator, _process_document_results=guard.scoring(process, nothing)))
        stack.enter_context(replaced(TaskOutput, calculate_aggregate_metric=guard.aggregating(aggregate)))
        stack.enter_context(replaced(ImageFile, LOAD_TRUNCATED_IMAGES=False))  # GQA's task decodes while it is loaded
        stack.enter_context(replaced(response_cache, find_local_scratch=lambda: None))  # else in /tmp and the like
        if not sys.stderr.isatty():
            silent = functools.partial(_silent, evaluator.tqdm)
            stack.enter_context(replaced(evaluator, tqdm=silent))
        if harness.local:
            for method in (ConfigurableTask.download, ConfigurableTask.process_results):
                stack.enter_context(replaced(method.retry, stop=stop_after_attempt(1)))
        yield


def _silent(bar: Any, *args: Any, **kwargs: Any) -> Any:
    return bar(*args, **kwargs | {"disable": True})


@functools.cache
def _task_manager(task_folder: Path) -> Any:
    """It reads all 1600 files of lmms-eval's tasks for their names: with libyaml, a tenth of the time."""
    from lmms_eval import utils
    from lmms_eval.tasks import TaskManager

    class Loader(getattr(yaml, "CFullLoader", yaml.FullLoader)):
        pass

    Loader.add_constructor("!function", utils.ignore_constructor)
    with replaced(yaml, full_load=functools.partial(yaml.load, Loader=Loader)):
        return TaskManager("WARNING", include_path=str(task_folder), model_name=MODEL_NAME)
