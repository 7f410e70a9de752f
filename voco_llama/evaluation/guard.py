"""What tasks of lmms-eval fail with, named by task and document; lmms-eval by itself ends in whatever exception it is.

A question that cannot be read or scored is given up as one that cannot be answered. One that is not scored is in no
score; one that has no answer, or is not asked, counts as wrong.

Where a judge gives no verdict, some tasks log an error and score a 0: such an error is a failure like the others.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

from voco_llama.errors import DataError
from voco_llama.evaluation.answering import named
from voco_llama.evaluation.tasks import TASKS

SHOWN_DOCUMENTS = 5


def document(task: str, doc_id: int | str) -> str:
    """How a question is called in messages, and where questions that failed are listed."""
    return f"{task} document {doc_id}"


class Guard:
    """Watches tasks; `give_up(document, what, error)` lists a failure or raises a `DataError` that names it."""

    def __init__(self, give_up: Callable[[str, str, Exception], None]) -> None:
        self._give_up = give_up
        self._unpaired: set[str] = set()

    def watch(self, name: str, task: Any, limit: int | None) -> Any:
        """Name what its questions cannot be read for, and, where it is scored by pairs, those without the other."""
        self._check_pairs(name, task, limit)
        read, construct, caught = task.doc_to_text, task.construct_requests, []

        def doc_to_text(doc: Mapping[str, Any]) -> Any:
            try:
                text = read(doc)
                if not isinstance(text, str):
                    raise DataError(f"its question is no text but of type {type(text).__name__}")
                return text
            except Exception as error:
                caught.append(error)
                return ""

        def construct_requests(doc_id: int, ctx: Any, **kwargs: Any) -> Any:
            if caught:
                self._give_up(document(name, doc_id), "cannot be read", caught.pop())
            return construct(doc_id, ctx, **kwargs)

        task.doc_to_text, task.construct_requests = doc_to_text, construct_requests
        return task

    def _check_pairs(self, name: str, task: Any, limit: int | None) -> None:
        columns = TASKS[name].paired_by
        found: dict[tuple, list[int]] = defaultdict(list)
        for doc_id, doc in enumerate(islice(task.eval_docs_no_media, limit)) if columns else ():
            found[tuple(doc.get(column) for column in columns)].append(doc_id)
        for key, ids in found.items():
            if len(ids) != 2:
                of = ", ".join(f"{column} {value!r}" for column, value in zip(columns, key, strict=True))
                cut = f" among the first {limit} (perhaps another limit keeps pairs together)" if limit else ""
                more = ", ..." if len(ids) > SHOWN_DOCUMENTS else ""
                listed = ", ".join(map(str, ids[:SHOWN_DOCUMENTS])) + more
                wrong = DataError(f"{of} has {len(ids)} questions{cut}, documents {listed}")
                for doc_id in ids:
                    self._give_up(document(name, doc_id), f"cannot be scored, as {name} is scored by pairs", wrong)
                    self._unpaired.add(document(name, doc_id))

    def scoring(self, process: Callable[..., Any], nothing: Any) -> Callable[..., Any]:
        """lmms-eval's scoring of one document: `nothing` where that failed."""

        @functools.wraps(process)
        def scored(item: tuple, *, task: Any, **kwargs: Any) -> Any:
            name = document(task.config.task, item[0])
            if name in self._unpaired:
                return nothing
            try:
                with _errors_of_judges(task.config.task):
                    return process(item, task=task, **kwargs)
            except Exception as error:
                self._give_up(name, "cannot be scored", last_try(error))
                return nothing

        return scored

    @staticmethod
    def aggregating(aggregate: Callable[..., None]) -> Callable[..., None]:
        """lmms-eval's putting together of one task's scores."""

        @functools.wraps(aggregate)
        def aggregated(output: Any, *args: Any, **kwargs: Any) -> None:
            try:
                with _errors_of_judges(output.task_name):
                    aggregate(output, *args, **kwargs)
            except Exception as error:
                raise DataError(
                    f"task {output.task_name}: its scores cannot be put together ({named(error)}): look for a damaged"
                    " row in its data set, or leave the task out (tasks=[...])"
                ) from error

        return aggregated


@contextmanager
def _errors_of_judges(task: str) -> Iterator[None]:
    """Raise what is logged as an error meanwhile, but for a request that is made again, if the task has a judge."""
    if not TASKS[task].needs_judge:
        yield
        return
    from loguru import logger

    logged: list[str] = []
    sink = logger.add(lambda message: logged.append(message.record["message"]), level="ERROR", format="{message}")
    try:
        yield
    finally:
        logger.remove(sink)
    for text in logged:
        if " on attempt " not in text:
            raise DataError(text)


def last_try(error: Exception) -> Exception:
    """What the last try failed with, where lmms-eval tried several times."""
    last = getattr(error, "last_attempt", None)
    return error if last is None else last.exception()


def or_nothing(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which gives an empty text where it fails."""

    @functools.wraps(function)
    def tried(*args: Any) -> Any:
        try:
            return function(*args)
        except Exception:
            return ""

    return tried
