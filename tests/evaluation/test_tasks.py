"""What is read out of lmms-eval's results, and which judge they need."""

import pytest

from voco_llama.errors import DataError, SettingsError
from voco_llama.evaluation.tasks import GROUPS, TASKS, check_task, describe, judge_of


def pope(prediction, score):
    return {"pope_accuracy": {"prediction": prediction, "score": score}, "filtered_resps": [prediction]}


def mme(category, score, answer="yes", metric="mme_perception_score"):
    return {metric: {"category": category, "score": score}, "filtered_resps": [answer]}


def test_pope_is_f1_beside_accuracy_and_unreadable_answers_are_counted():
    samples = [pope("yes", 1.0), pope("no", 0.0), pope("maybe", 0.0), pope("", 0.0)]
    metrics = {
        "pope_f1_score": 0.5,
        "pope_accuracy": 0.25,
        "pope_f1_score_stderr": "N/A",
        "pope_accuracy_stderr_clt": 0.1,
    }
    assert describe("pope", metrics, samples) == {
        "task": "pope", "metric": "pope_f1_score", "questions": 4, "value": 0.5, "full": 1.0, "accuracy": 0.25,
        "details": {"pope_accuracy": 0.25, "unreadable": 2.0},
    }  # fmt: skip


def test_mmes_full_mark_is_200_for_each_category_of_perception_that_is_there():
    samples = [mme("color", 1.0), mme("color", 0.0, "a dog"), mme("count", 1.0, "N"), mme("OCR", 1.0, "Yes.")]
    samples += [mme("code_reasoning", 1.0, "no way", metric="mme_cognition_score")]
    described = describe("mme", {"mme_perception_score": 450.0, "mme_cognition_score": 200.0}, samples)
    assert (described["value"], described["full"], described["accuracy"]) == (450.0, 600.0, 0.8)
    assert described["details"] == {"mme_cognition_score": 200.0, "unreadable": 1.0}


@pytest.mark.parametrize(
    ("task", "sample", "points", "full"),
    [
        ("gqa", {"exact_match": 1.0}, 1.0, 1.0),
        ("vqav2_val", {"exact_match": 0.6}, 0.6, 1.0),
        ("seedbench", {"seed_all": {"pred": "b", "answer": "B "}}, 1.0, 1.0),
        ("activitynetqa", {"gpt_eval_accuracy": {"Correctness": "Yes"}}, 1.0, 100.0),
        ("msvd_qa_judge", {"gpt_eval_accuracy": {"Correctness": "no"}}, 0.0, 100.0),
    ],
)
def test_points_of_a_question(task, sample, points, full):
    described = describe(task, {TASKS[task].metric: 0.0}, [sample])
    assert (TASKS[task].points(sample), described["accuracy"], described["full"]) == (points, points, full)


@pytest.mark.parametrize(("task", "value", "accuracy"), [("mmbench_llava", 80.0, 0.8), ("videochatgpt_gen", 4.0, 0.8)])
def test_a_score_that_is_no_sum_over_questions_is_its_own_accuracy(task, value, accuracy):
    assert describe(task, {TASKS[task].metric: value}, [{}])["accuracy"] == accuracy


def test_a_submission_has_no_value():
    assert describe("vqav2_test", {"submission": None}, [{}]) == {
        "task": "vqav2_test", "metric": "submission", "questions": 1, "details": {"unreadable": 0.0},
    }  # fmt: skip


@pytest.mark.parametrize(("metrics", "samples"), [({}, [{"exact_match": 1.0}]), ({"exact_match": 1.0}, [])])
def test_no_result_is_refused(metrics, samples):
    with pytest.raises(DataError, match="task gqa: lmms-eval gave no exact_match"):
        describe("gqa", metrics, samples)


def test_judges():
    assert judge_of(["gqa", "pope"], {}) is None
    whole = {"OPENAI_API_URL": "http://judge", "OPENAI_API_KEY": "k", "MODEL_VERSION": "m"}
    assert judge_of(["gqa", "activitynetqa"], whole) == "m"
    for lost, message in (
        ("OPENAI_API_URL", "OPENAI_API_URL not set"),
        ("OPENAI_API_KEY", "OPENAI_API_KEY not set"),
        ("MODEL_VERSION", "MODEL_VERSION not set"),
    ):
        with pytest.raises(SettingsError, match=f"task mmbench_en_dev .*{message}"):
            judge_of(["mmbench_en_dev"], {name: value for name, value in whole.items() if name != lost})
    azure = {"API_TYPE": "azure", "AZURE_ENDPOINT": "http://judge", "AZURE_API_KEY": "k", "MODEL_VERSION": "m"}
    assert judge_of(["videochatgpt_gen"], azure) == "m"
    with pytest.raises(SettingsError, match="API_TYPE=own is unknown"):
        judge_of(["videochatgpt_gen"], whole | {"API_TYPE": "own"})


def test_unknown_tasks_are_refused():
    assert all(task in TASKS for tasks in GROUPS.values() for task in tasks)
    with pytest.raises(SettingsError, match="task 'pop' is not known here: choose from gqa"):
        check_task("pop")
