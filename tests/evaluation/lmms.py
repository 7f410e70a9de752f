"""lmms-eval on the tiny hub: its surroundings, its tasks loaded once, models that answer without a network, a judge."""

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import voco_llama  # noqa: F401  makes torchvision importable beside a CPU-only torch, before lmms_eval wants it
from voco_llama.evaluation.run import TASKS_DIR

POPE = ("pope", "pope_adv", "pope_pop", "pope_random")
OURS = ("vqav2_testdev", "mmbench_llava", "msvd_qa", "msrvtt_qa")
UNJUDGED = (
    "gqa",
    "mmbench_en_dev_static",
    "mme",
    *POPE,
    "vqav2_val",
    "vqav2_test",
    "seedbench",
    "scienceqa_img",
    *OURS,
)
VIDEO_CHATGPT = ("videochatgpt_gen", "videochatgpt_temporal", "videochatgpt_consistency")
JUDGED = ("mmbench_en_dev", "activitynetqa", *VIDEO_CHATGPT, "msvd_qa_judge", "msrvtt_qa_judge")
JUDGE_NAME = "a-judge"


@dataclass
class Judge:
    """A judge over HTTP: gives full marks to an answer that is the right one, and keeps what it was asked."""

    reply: Callable[[str], str]
    status: int = 200
    asked: list[dict[str, Any]] = field(default_factory=list)
    address: str = ""


def full_marks(prompt: str) -> str:
    """`yes` and 5 where every prediction is the correct answer, else `no` and 1; MMBench's judge always says A."""
    if prompt.endswith("Your output: "):
        return "A"
    (correct,) = re.findall(r"Correct Answer: (.*)\n", prompt)
    predicted = re.findall(r"Predicted Answer[^:\n]*: (.*)\n", prompt)
    return "{'pred': 'yes', 'score': 5}" if set(predicted) == {correct} else "{'pred': 'no', 'score': 1}"


@contextlib.contextmanager
def serve(judge: Judge) -> Iterator[Judge]:
    """Serve the judge on this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            judge.asked.append(payload | {"path": self.path, "key": self.headers["Authorization"]})
            message = {"content": judge.reply(payload["messages"][-1]["content"])}
            body = json.dumps({"choices": [{"message": message}], "model": JUDGE_NAME, "usage": {}}).encode()
            self.send_response(judge.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        judge.address = f"http://127.0.0.1:{server.server_port}/v1/chat/completions"
        try:
            yield judge
        finally:
            server.shutdown()


@dataclass(frozen=True)
class TinyHub:
    """The folders that tasks read, and the judge they are sent to."""

    hub: Path
    home: Path
    judge: Judge

    @contextlib.contextmanager
    def surroundings(self) -> Iterator[None]:
        """What lmms-eval and its tasks read from the process: working directory and environment."""
        import datasets
        from lmms_eval.api import task

        folder = str(self.hub.parent / "datasets_cache")
        task._resolve_hf_datasets_cache_dir.cache_clear()  # it would keep the first one of the process
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (
                ("HF_HOME", str(self.home)),
                ("LMMS_EVAL_DATASETS_CACHE", folder),
                ("API_TYPE", "openai"),
                ("OPENAI_API_URL", self.judge.address),
                ("OPENAI_API_KEY", "a-key"),
                ("MODEL_VERSION", JUDGE_NAME),
                ("NO_PROXY", "127.0.0.1"),
            ):
                patch.setenv(name, value)
            patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
            patch.chdir(self.hub)
            map_rows = datasets.Dataset.map  # GQA asks for eight processes
            patch.setattr(datasets.Dataset, "map", lambda rows, function, num_proc=None: map_rows(rows, function))
            yield
        task._resolve_hf_datasets_cache_dir.cache_clear()

    def load(self, names: Sequence[str]) -> dict[str, Any]:
        """Tasks by name, as lmms-eval makes them from its unmodified files and from ours."""
        from lmms_eval.tasks import get_task_dict

        with self.surroundings():
            return get_task_dict(list(names), task_manager())

    def evaluate(self, model: Any, tasks: Sequence[Any], output: Path) -> dict[str, Any]:
        """`simple_evaluate` as our bridge calls it; of the results, what the tests look at."""
        from lmms_eval.evaluator import simple_evaluate

        arguments = SimpleNamespace(
            output_path=str(output), process_with_media=False, reasoning_tags=None, agentic_trace_mode="basic"
        )
        with self.surroundings():
            return simple_evaluate(
                model,
                tasks=list(tasks),
                task_manager=task_manager(),
                bootstrap_iters=0,
                cli_args=arguments,
                process_docs_parallel=1,
            )


@cache
def task_manager() -> Any:
    """Reading all task files takes seconds."""
    from loguru import logger

    logger.remove()
    from lmms_eval.tasks import TaskManager

    return TaskManager("WARNING", include_path=str(TASKS_DIR), model_name="voco_llama")


def answering(answer: Callable[[dict[str, Any], str], str]) -> Any:
    """A model of lmms-eval that answers from the document and the task's name; it looks at each question first."""
    from lmms_eval.api.model import lmms

    class Answering(lmms):
        is_simple = True

        def generate_until(self, requests: list[Any]) -> list[str]:
            answers = []
            for _, _, look, doc_id, task, split in (request.args for request in requests):
                document = self.task_dict[task][split][doc_id]
                assert isinstance(look(document), list)
                answers.append(answer(document, task))
            return answers

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            raise NotImplementedError

        generate_until_multi_round = loglikelihood

    return Answering()


def right_answer(document: dict[str, Any], task: str) -> str:
    """What the document says is right."""
    if task.startswith("vqav2"):
        return document["multiple_choice_answer"] or "A red one."
    return "ABC"[document["answer"]] if task == "scienceqa_img" else document["answer"]
