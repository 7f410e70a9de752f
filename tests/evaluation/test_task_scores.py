"""What lmms-eval makes of answers to the tiny hub: an oracle gets full marks, a constant what arithmetic says."""

import functools
import json
from types import SimpleNamespace

import pytest

from tests.evaluation.lmms import JUDGED, POPE, UNJUDGED, Judge, TinyHub, answering, right_answer, serve
from voco_llama.errors import VoCoError
from voco_llama.evaluation.tasks import TASKS

FULL = {name: {TASKS[name].metric: 1.0} for name in UNJUDGED} | {
    **{name: {f"pope_{m}": 1.0 for m in ("accuracy", "precision", "recall", "f1_score")} for name in POPE},
    "mme": {"mme_perception_score": 2000.0, "mme_cognition_score": 200.0},
    "mmbench_en_dev_static": {"gpt_eval_score": 100.0, "submission": None},
    "mmbench_llava": {"gpt_eval_score": 100.0, "submission": None},
    "mmbench_en_dev": {"gpt_eval_score": 100.0, "submission": None},
    "seedbench": {"seed_all": 1.0, "seed_image": 1.0, "seed_video": 1.0},
    "vqav2_test": {"submission": None},
    "vqav2_testdev": {"submission": None},
    **{name: {"gpt_eval_score": 5.0, "gpt_eval_accuracy": 100.0} for name in JUDGED if "qa" in name},
    "videochatgpt_gen": dict.fromkeys(
        ("gpt_eval_score_correctness", "gpt_eval_score_detailed_orientation", "gpt_eval_score_context"), 5.0
    ),
    "videochatgpt_temporal": {"gpt_eval_score_temporal": 5.0},
    "videochatgpt_consistency": {"gpt_eval_score_consistency": 5.0},
}
"""Every metric but POPE's share of yes, which is of the questions, not of the answers."""

THIRD = pytest.approx(1 / 3)
CONSTANT = {
    # One of four answers is yes. Each of MME's pairs is half right: 50 for accuracy and nothing for both. Three of
    # nine are yes for POPE: precision 1/3, recall 1, F1 1/2, in each category too.
    "yes": {
        "gqa": {"exact_match": 0.25},
        "mme": {"mme_perception_score": 500.0, "mme_cognition_score": 50.0},
        **{n: {"pope_accuracy": THIRD, "pope_precision": THIRD, "pope_recall": 1, "pope_f1_score": 0.5} for n in POPE},
        "scienceqa_img": {"exact_match": 0.0},
        "seedbench": {"seed_all": 0.0, "seed_image": 0.0, "seed_video": 0.0},
        "mmbench_llava": {"gpt_eval_score": 0.0},
    },
    # Neither yes nor no: POPE takes it for wrong, and leaves it out of all but the accuracy. A is right for
    # MMBench's questions 1 and 3, but not for the rotation of question 1; for one of SEED's, ScienceQA's three.
    "A": {
        **{n: {"pope_accuracy": 0, "pope_precision": 0, "pope_recall": 0, "pope_f1_score": 0} for n in POPE},
        "mme": {"mme_perception_score": 0.0, "mme_cognition_score": 0.0},
        "mmbench_en_dev_static": {"gpt_eval_score": pytest.approx(100 / 3)},
        "mmbench_llava": {"gpt_eval_score": pytest.approx(100 / 3)},
        "seedbench": {"seed_all": THIRD, "seed_image": 0.5, "seed_video": 0.0},
        "scienceqa_img": {"exact_match": THIRD},
        "vqav2_val": {"exact_match": 0.0},
    },
    # Three of ten said three: seven times three others agree (1), three times two others do (2/3); ten of ten: 1.
    "three": {"vqav2_val": {"exact_match": pytest.approx(0.9 / 2)}},
    "Red.": {
        "vqav2_val": {"exact_match": 0.5},
        "msvd_qa": {"exact_match": THIRD},
        "msrvtt_qa": {"exact_match": THIRD},
        "gqa": {"exact_match": 0.0},
    },
}


def without_errors(metrics):
    """Metrics by name, without standard errors, the task's own name and POPE's share of yes."""
    named = {key.split(",")[0]: value for key, value in metrics.items() if "," in key and "_stderr" not in key}
    named.pop("pope_yes_ratio", None)
    return named


@pytest.fixture(scope="session")
def evaluated(tiny_hub, loaded_tasks, tmp_path_factory):
    """Runs tasks with an answerer, once for each of its names."""

    @functools.cache
    def evaluate(name, tasks):
        answer = right_answer if name == "oracle" else lambda document, task: name
        folder = tmp_path_factory.mktemp("results")
        results = tiny_hub.evaluate(answering(answer), [loaded_tasks[task] for task in tasks], folder)
        return SimpleNamespace(folder=folder, **results)

    return evaluate


def unjudged(evaluated, name):
    return evaluated(name, UNJUDGED)


@pytest.mark.parametrize("task", UNJUDGED)
def test_an_oracle_gets_full_marks(task, evaluated, tiny_hub):
    results = unjudged(evaluated, "oracle").results
    assert without_errors(results[task]) == FULL[task]


def test_nobody_is_asked_where_there_is_no_judge(evaluated, tiny_hub):
    asked = len(tiny_hub.judge.asked)
    for name in ("oracle", *CONSTANT):
        unjudged(evaluated, name)
    assert len(tiny_hub.judge.asked) == asked


@pytest.mark.parametrize(("answer", "task"), [(answer, task) for answer, tasks in CONSTANT.items() for task in tasks])
def test_a_constant_gets_what_arithmetic_says(answer, task, evaluated):
    metrics = without_errors(unjudged(evaluated, answer).results[task])
    expected = CONSTANT[answer][task]
    assert {name: metrics[name] for name in expected} == expected


@pytest.mark.parametrize(
    "name", ["vqav2_val", "gqa", "msvd_qa", "msrvtt_qa", "scienceqa_img", "seedbench", "mme", *POPE]
)
def test_the_points_of_a_question_are_in_its_sample(name, evaluated):
    samples = unjudged(evaluated, "oracle").samples[name]
    assert samples
    assert [TASKS[name].points(sample) for sample in samples] == [1.0] * len(samples)


def test_the_submission_of_test_dev(evaluated):
    (file,) = unjudged(evaluated, "oracle").folder.glob("submissions/vqav2_testdev*")
    assert file.name == "vqav2_testdev_submission.json"
    # "A red one.", normalized as LLaVA-1.5 does it
    assert json.loads(file.read_text()) == [{"question_id": n, "answer": "red 1"} for n in (1010, 1011)]


@pytest.mark.parametrize("task", JUDGED)
def test_an_oracle_gets_full_marks_of_the_judge(task, evaluated):
    assert without_errors(evaluated("oracle", JUDGED).results[task]) == FULL[task]


@pytest.mark.parametrize("task", JUDGED)
def test_a_constant_before_the_judge(task, evaluated, tiny_hub):
    """Grey is no answer to anything; MMBench's judge reads an A in it, the answer to one of three questions."""
    found = without_errors(evaluated("grey", JUDGED).results[task])
    third = {"mmbench_en_dev": {"gpt_eval_score": pytest.approx(100 / 3), "submission": None}}
    scores = dict.fromkeys(FULL[task], 1.0) | ({"gpt_eval_accuracy": 0.0} if "qa" in task else {})
    assert found == third.get(task, scores)


def test_ours_are_asked_as_lmms_eval_asks_about_activitynet(tiny_hub, loaded_tasks, evaluated):
    """The protocol is Video-ChatGPT's: the judge of our sets gets the texts that activitynetqa's gets."""
    evaluated("oracle", JUDGED)
    asked = [payload for payload in tiny_hub.judge.asked if "'pred' and 'score'" in payload["messages"][-1]["content"]]
    theirs = next(p for p in asked if "is the screen red" in p["messages"][1]["content"])
    ours = next(p for p in asked if "what does the screen show?" in p["messages"][1]["content"])
    text = ours["messages"][1]["content"].replace("what does the screen show?", "is the screen red")
    ours["messages"][1]["content"] = text.replace("Answer: color", "Answer: yes")
    assert ours == theirs
    assert ours["path"] == "/v1/chat/completions"
    assert ours["key"] == "Bearer a-key"
    assert (ours["temperature"], ours["max_tokens"]) == (0, 64)


@pytest.fixture
def judged(tiny_hub, tmp_path, monkeypatch):
    """Answers of an oracle to msvd_qa_judge before a judge of the test's own; returns metrics and the judge."""

    def judged(reply, status=200, address=lambda address: address):
        monkeypatch.setattr("lmms_eval.llm_judge.providers.openai.time", SimpleNamespace(sleep=lambda seconds: None))
        with serve(Judge(reply, status)) as judge:
            judge.address = address(judge.address)
            hub = TinyHub(tiny_hub.hub, tiny_hub.home, judge)
            try:
                return hub.evaluate(answering(right_answer), ["msvd_qa_judge"], tmp_path)["results"], judge
            except VoCoError as error:
                return str(error), judge

    return judged


@pytest.mark.parametrize("address", ["/v1", "/v1/chat/completions"])
def test_the_address_of_the_judge_in_both_forms(address, judged):
    cut = len("/v1/chat/completions")
    results, judge = judged(lambda prompt: "Sure: {'pred': 'Yes', 'score': 4.8}", address=lambda a: a[:-cut] + address)
    assert without_errors(results["msvd_qa_judge"]) == {"gpt_eval_score": 4.0, "gpt_eval_accuracy": 100.0}
    assert [payload["path"] for payload in judge.asked] == ["/v1/chat/completions"] * 3


@pytest.mark.parametrize(
    "reply",
    [
        "I cannot say.",
        "{'pred': 'maybe', 'score': 3}",
        "{'pred': 'yes', 'score': 6}",
        "{'pred': 'no', 'score': -1}",
        "{'pred': 'yes'}",
        "{'pred': 'yes', 'score': None}",
        "{'pred': True, 'score': 5}",
        "{'pred': 'yes', 'score': 5",
        "{'pred', 'score'}",
    ],
)
def test_a_verdict_that_cannot_be_read_is_an_error(reply, judged):
    def sometimes(prompt):
        return reply if "what does the screen show?" in prompt else "{'pred': 'yes', 'score': 5}"

    error, judge = judged(sometimes)
    assert error.startswith(f"question '8' on clip 'vid1': the judge's reply {reply!r} ")
    assert len(judge.asked) == 3


@pytest.mark.parametrize(
    ("reply", "status", "reason"),
    [
        (lambda prompt: "", 401, "HTTPError: 401 Client Error"),
        (lambda prompt: None, 200, "AttributeError: 'NoneType'"),
    ],
)
def test_a_judge_that_fails_is_asked_no_more(reply, status, reason, judged):
    error, judge = judged(reply, status)
    assert error.startswith(f"question '7' on clip 'vid1' (and 2 more): the judge gave no reply ({reason}")
    assert error.endswith("check API_TYPE, its address and key, and MODEL_VERSION")
    assert "\n" not in error
    assert len(judge.asked) == 5  # lmms-eval's own tries


def test_a_task_without_a_judge_needs_none(tiny_hub, tmp_path):
    hub = TinyHub(tiny_hub.hub, tiny_hub.home, Judge(str, address="http://127.0.0.1:9/nobody"))
    results = hub.evaluate(answering(right_answer), ["msvd_qa"], tmp_path)["results"]
    assert without_errors(results["msvd_qa"]) == {"exact_match": 1.0}
