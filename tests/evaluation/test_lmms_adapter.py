"""Our model as lmms-eval finds, makes and names it, and what a task's keywords become.

What lmms-eval makes of its answers is tested through `evaluate`.
"""

import copy
from importlib.metadata import entry_points
from types import SimpleNamespace

import pytest
from PIL import Image

from tests.tiny import tiny_model, tiny_processor
from voco_llama.errors import CheckpointError, SettingsError
from voco_llama.evaluation.harness import Harness
from voco_llama.evaluation.lmms_adapter import (
    DEFAULT_NEW_TOKENS,
    MODEL_NAME,
    TIMED_QUESTIONS,
    VoCoLlamaAdapter,
    find_tasks,
    gathered_counts,
    read_generation,
)


def save(folder, seed=0):
    processor = tiny_processor(num_voco=2)
    tiny_model(processor, seed=seed).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save(tmp_path_factory.mktemp("checkpoint"))


def test_lmms_eval_finds_the_installed_entry_point():
    from lmms_eval.models import get_model

    (entry,) = entry_points(group="lmms_eval.models", name=MODEL_NAME)
    manifest = entry.load()()
    assert (manifest.model_id, manifest.chat_class_path) == (MODEL_NAME, None)
    assert get_model(MODEL_NAME) is VoCoLlamaAdapter
    assert VoCoLlamaAdapter.is_simple


def test_made_from_lmms_evals_strings(checkpoint):
    """The numbers of `--model_args` arrive as numbers, `--batch_size` as a string."""
    arguments = f"pretrained={checkpoint},num_voco=1,reuse=False,dtype=float32"
    adapter = VoCoLlamaAdapter.create_from_arg_string(arguments, {"batch_size": "8", "device": "cpu"})
    answerer = adapter.answerer
    assert (answerer.num_voco, answerer.batch_size, answerer.reuse, answerer.go_on) == (1, 8, False, False)
    assert (adapter.rank, adapter.world_size) == (0, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"conv_template": "vicuna_v1"},
            "model argument 'conv_template' is unknown: choose from pretrained, condition",
        ),
        ({"batch_size": "auto"}, "batch_size must be a whole number of at least 1, not 'auto'"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, not 0"),
        ({"condition": "lower"}, "condition 'lower' is unknown"),
    ],
)
def test_bad_arguments(checkpoint, changes, message):
    with pytest.raises(SettingsError, match=message):
        VoCoLlamaAdapter(**{"pretrained": checkpoint, "device": "cpu", **changes})


def test_folder_without_a_model(tmp_path):
    with pytest.raises(CheckpointError, match="holds no saved model"):
        VoCoLlamaAdapter(str(tmp_path))


def test_identity_is_of_all_that_answers_depend_on(checkpoint, tmp_path):
    """Where answers are kept, those of other weights or another condition are not taken for these."""
    other = save(tmp_path, seed=1)
    made = [
        str(VoCoLlamaAdapter(**{"pretrained": checkpoint, "device": "cpu", **changes}))
        for changes in (
            {},
            {"pretrained": other},
            {"condition": "full"},
            {"condition": "blind"},
            {"num_voco": 1},
            {"max_new_tokens": 3},
            {"dtype": "float64"},
        )
    ]
    assert len(set(made)) == len(made)
    for changes in ({"batch_size": 1}, {"reuse": False}, {"num_voco": 2}):
        assert str(VoCoLlamaAdapter(**{"pretrained": checkpoint, "device": "cpu", **changes})) == made[0]


@pytest.mark.parametrize(
    ("given", "limit", "generation", "until"),
    [
        ({}, None, {"max_new_tokens": DEFAULT_NEW_TOKENS}, ()),
        ({"max_new_tokens": 16, "until": "\n\n"}, None, {"max_new_tokens": 16}, ("\n\n",)),
        ({"max_new_tokens": 16, "until": ["a", "b"]}, None, {"max_new_tokens": 16}, ("a", "b")),
        ({"until": None}, 8, {"max_new_tokens": 8}, ()),
        ({"max_new_tokens": 4}, 8, {"max_new_tokens": 4}, ()),
        (
            {"temperature": 0, "top_p": None, "num_beams": 1, "do_sample": False, "image_aspect_ratio": "original"},
            None,
            {"num_beams": 1, "max_new_tokens": DEFAULT_NEW_TOKENS},
            (),
        ),
        ({"temperature": 0.0, "top_p": 1.0, "top_k": 5, "do_sample": True}, 1, {"max_new_tokens": 1}, ()),
    ],
)
def test_greedy_keywords(given, limit, generation, until):
    before = copy.deepcopy(given)
    assert read_generation(given, limit) == ({"do_sample": False, **generation}, until)
    assert given == before


def test_sampling_is_left_as_the_task_says():
    given = {"temperature": 0.2, "top_p": 0.9, "do_sample": True, "max_new_tokens": 3}
    assert read_generation(given, None) == (given, ())


def test_unknown_keyword():
    with pytest.raises(SettingsError, match="generation keyword 'num_frames' is not understood"):
        read_generation({"num_frames": 8}, None)


@pytest.mark.parametrize("name", ["loglikelihood", "generate_until_multi_round"])
def test_other_requests_are_refused(checkpoint, name):
    with pytest.raises(SettingsError, match="cannot be evaluated: choose"):
        getattr(VoCoLlamaAdapter(checkpoint, device="cpu"), name)([])


def test_requests_are_answered_one_after_the_other(checkpoint):
    """Documents are looked up when their turn comes, in the task and the split that the request names."""
    adapter = VoCoLlamaAdapter(checkpoint, device="cpu", batch_size=1, max_new_tokens=2)
    seen = []
    pictures = [Image.new("RGB", (16, 16), color) for color in ("red", "green")]
    adapter.task_dict = {"gqa": {"test": pictures}, "text": {"test": [None]}}
    look = lambda document: seen.append(document) or (document and [document])  # noqa: E731
    asked = [("gqa", 1), ("text", 0), ("gqa", 0), ("gqa", 1), ("gqa", 1), ("gqa", 1)]
    arguments = [("What?", {"max_new_tokens": 9}, look, number, task, "test") for task, number in asked]
    requests = [SimpleNamespace(args=args) for args in arguments]
    questions = adapter.questions(requests)
    assert [q.id for q in questions[:3]] == ["gqa document 1", "text document 0", "gqa document 0"]
    assert {(q.prompt, q.generation["max_new_tokens"]) for q in questions} == {("What?", 2)}
    assert seen == []
    answers = list(adapter.generate_until(requests))
    assert len(answers) == 6
    assert len({answers[i] for i in (0, 3, 4, 5)}) == 1
    assert seen == [pictures[1], None, pictures[0], *[pictures[1]] * 3]
    assert [q.id for q in adapter.timed_questions] == [q.id for q in questions[:TIMED_QUESTIONS]]
    counts = gathered_counts(adapter)
    assert (counts.answers, counts.visuals, counts.compressed) == (6, 5, 2)
    assert counts == adapter.answerer.counts


def test_a_task_that_lmms_eval_does_not_know(tmp_path):
    harness = Harness(None, tmp_path, tmp_path, None, tmp_path)
    with pytest.raises(SettingsError, match="lmms-eval knows no task 'gqaa'"):
        find_tasks(["gqaa"], harness)
