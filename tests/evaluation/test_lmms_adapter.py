"""Our model as one of lmms-eval's: how it is found, made from arguments, told apart, and how generation is read."""

from importlib.metadata import entry_points
from types import SimpleNamespace

import pytest
from PIL import Image

from tests.tiny import tiny_model, tiny_processor
from voco_llama.errors import CheckpointError, SettingsError
from voco_llama.evaluation.harness import Harness
from voco_llama.evaluation.lmms_adapter import (
    DEFAULT_NEW_TOKENS,
    TIMED_QUESTIONS,
    VoCoLlamaAdapter,
    gathered_counts,
    read_generation,
)
from voco_llama.evaluation.lmms_evaluator import find_tasks


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    processor = tiny_processor(num_voco=2)
    tiny_model(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def test_lmms_eval_finds_it_by_name():
    from lmms_eval.models import get_model

    (entry,) = entry_points(group="lmms_eval.models", name="voco_llama")
    assert entry.load()().model_id == "voco_llama"
    assert get_model("voco_llama") is VoCoLlamaAdapter


def test_it_is_made_from_a_string_of_arguments(checkpoint):
    adapter = VoCoLlamaAdapter.create_from_arg_string(
        f"pretrained={checkpoint},num_voco=1,condition=voco,reuse=False,dtype=float64",
        {"batch_size": "8", "device": "cpu"},
    )
    answerer = adapter.answerer
    assert (answerer.num_voco, answerer.batch_size, answerer.reuse) == (1, 8, False)
    assert str(answerer.inference.model.dtype) == "torch.float64"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_vocos": 1}, "model argument 'num_vocos' is unknown: choose from pretrained, condition"),
        ({"batch_size": "auto"}, "batch_size must be a whole number"),
        ({"condition": "lower"}, "condition is 'lower': choose one of full, voco, blind"),
    ],
)
def test_wrong_arguments_are_refused(checkpoint, arguments, message):
    with pytest.raises(SettingsError, match=message):
        VoCoLlamaAdapter(checkpoint, device="cpu", **arguments)


def test_its_name_tells_apart_all_that_answers_depend_on(checkpoint, tmp_path):
    processor = tiny_processor(num_voco=2)
    tiny_model(processor, seed=1).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    same = {"device": "cpu"}
    names = [
        str(VoCoLlamaAdapter(folder, **same, **changes))
        for folder, changes in [
            (checkpoint, {}), (str(tmp_path), {}), (checkpoint, {"num_voco": 1}), (checkpoint, {"condition": "full"}),
            (checkpoint, {"condition": "blind"}), (checkpoint, {"max_new_tokens": 4}),
            (checkpoint, {"dtype": "bfloat16"}),
        ]
    ]  # fmt: skip
    assert len(set(names)) == len(names)
    assert str(VoCoLlamaAdapter(checkpoint, **same, batch_size=3, reuse=False)) == names[0]


def test_what_it_cannot_do_is_said(checkpoint):
    adapter = VoCoLlamaAdapter(checkpoint, device="cpu")
    with pytest.raises(SettingsError, match="likelihoods"):
        adapter.loglikelihood([])
    with pytest.raises(SettingsError, match="several rounds"):
        adapter.generate_until_multi_round([])


@pytest.mark.parametrize(
    ("given", "limit", "generation", "until"),
    [
        (
            {"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False}, None,
            {"max_new_tokens": 16, "num_beams": 1, "do_sample": False}, (),
        ),
        ({"until": ["\n\n"], "max_new_tokens": 64}, 16, {"max_new_tokens": 16, "do_sample": False}, ("\n\n",)),
        ({"until": "ASSISTANT:", "max_new_tokens": 4}, 16, {"max_new_tokens": 4, "do_sample": False}, ("ASSISTANT:",)),
        (
            {"until": ["ASSISTANT:"], "image_aspect_ratio": "original"}, None,
            {"max_new_tokens": DEFAULT_NEW_TOKENS, "do_sample": False}, ("ASSISTANT:",),
        ),
        (
            {"temperature": 0.2, "top_p": 0.9, "do_sample": True, "num_beams": 3, "max_new_tokens": 8}, None,
            {"temperature": 0.2, "top_p": 0.9, "do_sample": True, "num_beams": 3, "max_new_tokens": 8}, (),
        ),
        ({"top_p": None, "max_new_tokens": 8}, None, {"max_new_tokens": 8, "do_sample": False}, ()),
    ],
)  # fmt: skip
def test_generation_is_as_the_task_says(given, limit, generation, until):
    before = dict(given)
    assert read_generation(given, limit) == (generation, until)
    assert given == before


def test_generation_that_is_not_understood_is_refused():
    with pytest.raises(SettingsError, match="generation keyword 'penalty_alpha' is not understood"):
        read_generation({"penalty_alpha": 0.6}, None)


def test_folder_without_a_model(tmp_path):
    with pytest.raises(CheckpointError, match="holds no saved model"):
        VoCoLlamaAdapter(str(tmp_path))


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
