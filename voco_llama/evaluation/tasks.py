"""What this package knows of the tasks of lmms-eval: the main metric, its full mark, and the points of a question.

Scores themselves come from lmms-eval. What it does silently is counted here: answers that its scorers cannot read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from voco_llama.errors import DataError, SettingsError, require

Sample = Mapping[str, Any]
"""A scored question as lmms-eval logs it: its answer, and an entry for each metric."""

MME_CATEGORY_MARK = 200.0
JUDGE_VARIABLES = {
    "openai": ("OPENAI_API_URL", "OPENAI_API_KEY"),
    "azure": ("AZURE_ENDPOINT", "AZURE_API_KEY"),
}
"""API_TYPE to the environment variables that lmms-eval's judges read."""


@dataclass(frozen=True)
class Task:
    """A task of lmms-eval.

    Attributes:
        metric: The one that goes into tables.
        full: What a perfect answerer gets; MME's depends on the categories that are among the samples.
        points: A question's points, 0 to 1; None where the score is not a sum over questions.
        is_unreadable: The answer is none of those the scorer knows: POPE's leaves it out of precision, recall and F1
            silently, MME's takes it for wrong.
        needs_judge: A language model over HTTP reads the answers.
        paired_by: Columns of the data set that exactly two rows share, which are scored together.
    """

    metric: str
    full: float | Callable[[Sequence[Sample]], float] = 1.0
    points: Callable[[Sample], float] | None = None
    is_unreadable: Callable[[Sample], bool] = lambda sample: False
    needs_judge: bool = False
    paired_by: tuple[str, ...] = ()


def _mme_entry(sample: Sample) -> Mapping[str, Any]:
    return sample.get("mme_perception_score") or sample["mme_cognition_score"]


def _mme_full(samples: Sequence[Sample]) -> float:
    categories = {s["mme_perception_score"]["category"] for s in samples if s.get("mme_perception_score")}
    return MME_CATEGORY_MARK * len(categories)


def _is_neither_yes_nor_no(sample: Sample) -> bool:
    return sample["pope_accuracy"]["prediction"] not in ("yes", "no")


def _mme_reads_nothing(sample: Sample) -> bool:
    """MME takes an answer by its first four characters, or by its only one."""
    answer = str(sample["filtered_resps"][0]).lower().strip().replace(".", "")
    return answer not in ("y", "n") and not any(word in answer[:4] for word in ("yes", "no"))


def _seed_points(sample: Sample) -> float:
    entry = sample["seed_all"]
    return float(entry["pred"].lower().strip() == entry["answer"].lower().strip())


def _judged(sample: Sample) -> float:
    return float("yes" in str(sample["gpt_eval_accuracy"]["Correctness"]).lower())


_PER_CENT, _OUT_OF_FIVE = 100.0, 5.0
_MATCH = Task("exact_match", points=lambda sample: float(sample["exact_match"]))
_JUDGED = Task("gpt_eval_accuracy", _PER_CENT, _judged, needs_judge=True)
_POPE = Task(
    "pope_f1_score", points=lambda sample: float(sample["pope_accuracy"]["score"]), is_unreadable=_is_neither_yes_nor_no
)

TASKS: dict[str, Task] = {
    "gqa": _MATCH,
    "vqav2_val": _MATCH,
    "vqav2_test": Task("submission"),
    "vqav2_testdev": Task("submission"),
    "scienceqa_img": _MATCH,
    "mme": Task(
        "mme_perception_score",
        _mme_full,
        lambda sample: float(_mme_entry(sample)["score"]),
        _mme_reads_nothing,
        paired_by=("category", "question_id"),
    ),
    "pope": _POPE,
    "pope_adv": _POPE,
    "pope_pop": _POPE,
    "pope_random": _POPE,
    "mmbench_en_dev": Task("gpt_eval_score", _PER_CENT, needs_judge=True),
    "mmbench_en_dev_static": Task("gpt_eval_score", _PER_CENT),
    "mmbench_llava": Task("gpt_eval_score", _PER_CENT),
    "seedbench": Task("seed_all", points=_seed_points),
    "activitynetqa": _JUDGED,
    "videochatgpt_gen": Task("gpt_eval_score_correctness", _OUT_OF_FIVE, needs_judge=True),
    "videochatgpt_temporal": Task("gpt_eval_score_temporal", _OUT_OF_FIVE, needs_judge=True),
    "videochatgpt_consistency": Task("gpt_eval_score_consistency", _OUT_OF_FIVE, needs_judge=True),
    "msvd_qa": _MATCH,
    "msrvtt_qa": _MATCH,
    "msvd_qa_judge": _JUDGED,
    "msrvtt_qa_judge": _JUDGED,
}
GROUPS: dict[str, tuple[str, ...]] = {
    "pope_full": ("pope_adv", "pope_pop", "pope_random"),
    "videochatgpt": ("videochatgpt_gen", "videochatgpt_temporal", "videochatgpt_consistency"),
}
"""Names for several tasks: each becomes a column of its own."""


def check_task(name: str) -> None:
    """Refuse a task whose scores are not understood here (`SettingsError`)."""
    require(name in TASKS, f"task {name!r} is not known here: choose from {', '.join([*TASKS, *GROUPS])}")


def judge_of(tasks: Sequence[str], environment: Mapping[str, str]) -> str | None:
    """The name of the judge that tasks need, or None if they need none.

    Raises:
        SettingsError: One is needed, and the environment does not say where it is or with which key.
    """
    judged = [name for name in tasks if TASKS[name].needs_judge]
    if not judged:
        return None
    kind = environment.get("API_TYPE", "openai")
    missing = [name for name in (*JUDGE_VARIABLES.get(kind, ()), "MODEL_VERSION") if not environment.get(name)]
    if kind not in JUDGE_VARIABLES or missing:
        wrong = f"API_TYPE={kind} is unknown" if kind not in JUDGE_VARIABLES else f"{' and '.join(missing)} not set"
        raise SettingsError(
            f"task {judged[0]} is scored by a judge and there is none ({wrong}): set the judge's address, key and"
            " MODEL_VERSION in the environment, or choose a task without a judge"
        )
    return environment["MODEL_VERSION"]


def describe(name: str, metrics: Mapping[str, Any], samples: Sequence[Sample]) -> dict[str, Any]:
    """A task's column of a result: main metric, full mark, plain accuracy, and what else lmms-eval says.

    Args:
        name: A key of `TASKS`.
        metrics: Metric to value, as lmms-eval aggregated it.
        samples: All scored questions of the task.

    Raises:
        DataError: The main metric is not among the metrics: the task gave no result.
    """
    task = TASKS[name]
    numbers = {key: float(value) for key, value in metrics.items() if isinstance(value, int | float)}
    if not samples or (task.metric not in numbers and task.metric != "submission"):
        raise DataError(
            f"task {name}: lmms-eval gave no {task.metric} (of {len(samples)} questions): look for its message above"
        )
    described: dict[str, Any] = {"task": name, "metric": task.metric, "questions": len(samples)}
    if task.metric in numbers:
        value, full = numbers[task.metric], task.full(samples) if callable(task.full) else task.full
        accuracy = value / full if task.points is None else sum(map(task.points, samples)) / len(samples)
        described |= {"value": value, "full": full, "accuracy": accuracy}
    unreadable = sum(task.is_unreadable(sample) for sample in samples)
    others = {key: value for key, value in numbers.items() if key != task.metric and "stderr" not in key}
    return described | {"details": {**others, "unreadable": float(unreadable)}}
