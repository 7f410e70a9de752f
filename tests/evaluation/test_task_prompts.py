"""What each task asks, to the letter, beside what LLaVA-1.5's own evaluation asks.

The marks of images are not in these texts: they go before them, a line of their own.
"""

import pytest

from tests.evaluation.lmms import JUDGED, UNJUDGED

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
COLORS = "\nA. red\nB. green\nC. blue\nD. grey"
MSVD = ["what is the color of the screen?", "what does the screen show?", "what is the color of the screen?"]

LLAVA = {
    "gqa": ["What color is it?" + SHORT, "Is it blue?" + SHORT, "Is it red?" + SHORT, "Is it dark?" + SHORT],
    "mme": ["Is it red?" + SHORT, "Is it blue?" + SHORT] * 11,
    "pope": [f"Is there a {thing} in the image?{SHORT}" for thing in ("dog", "ball", "cat")] * 3,
    "pope_adv": [f"Is there a {thing} in the image?{SHORT}" for thing in ("dog", "ball", "cat")],
    "pope_pop": [f"Is there a {thing} in the image?{SHORT}" for thing in ("dog", "ball", "cat")],
    "pope_random": [f"Is there a {thing} in the image?{SHORT}" for thing in ("dog", "ball", "cat")],
    "vqav2_val": ["What color?" + SHORT, "How many?" + SHORT],
    "vqav2_test": ["What color?" + SHORT, "How many?" + SHORT],
    "vqav2_testdev": ["What color?" + SHORT, "How many?" + SHORT],
    "seedbench": [
        f"Which color is it?{COLORS}{LETTER}",
        f"Which color is the ball?{COLORS}{LETTER}",
        f"Which color comes last?{COLORS}{LETTER}",
    ],
    "mmbench_llava": [
        "Which color?\nA. red\nB. green\nC. blue" + LETTER,
        "Look closely.\nWhich color?\nA. red\nB. green" + LETTER,
        "How many?\nA. one\nB. two\nC. three\nD. four" + LETTER,
        "Which color?\nA. green\nB. red\nC. blue" + LETTER,
    ],
}
"""Tasks that ask as LLaVA-1.5 does."""

MMBENCH = [
    "Which color? There are several options:\nA. red\nB. green\nC. blue\n" + LETTER,
    "Look closely. Which color? There are several options:\nA. red\nB. green\n" + LETTER,
    "How many? There are several options:\nA. one\nB. two\nC. three\nD. four\n" + LETTER,
    "Which color? There are several options:\nA. green\nB. red\nC. blue\n" + LETTER,
]
OTHERS = {
    # Not LLaVA's: the hint on the question's line, "There are several options:", and an empty line before the request.
    "mmbench_en_dev": MMBENCH,
    "mmbench_en_dev_static": MMBENCH,
    # LLaVA's file of these questions was not at hand to compare with.
    "scienceqa_img": [
        "Which is warm?\nA. red\nB. blue" + LETTER,
        "Context: Grass has it.\nWhich is it?\nA. red\nB. green\nC. blue" + LETTER,
        "What is 1 + 1?\nA. 1\nB. 2" + LETTER,
    ],
    # LLaVA-1.5 has no protocol for clips: these are lmms-eval's, and Video-ChatGPT's question alone.
    "activitynetqa": [
        "Is the screen red? Answer the question using a single word or phrase.",
        "What color is it? Answer the question using a single word or phrase.",
    ],
    "videochatgpt_gen": ["What happens?"] * 2,
    "videochatgpt_temporal": ["What happens?"] * 2,
    "videochatgpt_consistency": ["What happens?", "What changes?"] * 2,
    **dict.fromkeys(("msvd_qa", "msrvtt_qa", "msvd_qa_judge", "msrvtt_qa_judge"), MSVD),
}


def test_every_task_has_its_prompts_here():
    assert {*LLAVA, *OTHERS} == {*UNJUDGED, *JUDGED}
    assert not LLAVA.keys() & OTHERS.keys()


@pytest.mark.parametrize("name", [*LLAVA, *OTHERS])
def test_prompts(name, loaded_tasks):
    task = loaded_tasks[name]
    assert [task.doc_to_text(document) for document in task.eval_docs] == {**LLAVA, **OTHERS}[name]


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("gqa", {"max_new_tokens": 16}),
        ("mme", {"max_new_tokens": 16}),
        ("pope", {"max_new_tokens": 128}),
        ("vqav2_testdev", {"max_new_tokens": 16}),
        ("mmbench_llava", {"max_new_tokens": 1024, "until": ["ASSISTANT:"]}),
        ("seedbench", {"until": ["ASSISTANT:"]}),
        ("msvd_qa", {"max_new_tokens": 1024, "do_sample": False}),
        ("msvd_qa_judge", {"max_new_tokens": 1024, "do_sample": False}),
    ],
)
def test_generation(name, kept, loaded_tasks):
    keywords = loaded_tasks[name].config.generation_kwargs
    assert {key: keywords[key] for key in kept} == kept
    assert ("max_new_tokens" in keywords) == ("max_new_tokens" in kept)


@pytest.mark.parametrize(
    ("missing", "options"),
    [(None, ""), (float("nan"), ""), ("nan", ""), ("None", ""), ("NaN", ""), ("red", "\nA. red")],
)
def test_options_end_at_the_first_missing_one(missing, options, loaded_tasks):
    document = {"question": "Which?", "hint": missing, "A": missing, "B": None, "C": "blue", "D": "grey"}
    hint = "red\n" if options else ""
    assert loaded_tasks["mmbench_llava"].doc_to_text(document) == f"{hint}Which?{options}{LETTER}"


def test_what_questions_look_at(loaded_tasks, tiny_hub):
    def looked_at(name):
        task = loaded_tasks[name]
        with tiny_hub.surroundings():
            return [task.doc_to_visual(document) for document in task.eval_docs]

    assert [len(images) for images in looked_at("seedbench")] == [1, 1, 3]
    assert [len(images) for images in looked_at("scienceqa_img")] == [1, 1, 0]
    assert [image.getpixel((0, 0)) for (image,) in looked_at("gqa")] == [(20, 200, 20)] + [(200, 20, 20)] * 3
    clips = tiny_hub.hub / "voco-llama/MSVD-QA/videos"
    assert looked_at("msvd_qa") == [[str(clips / f"vid{number}.mp4")] for number in (1, 1, 2)]
    assert looked_at("activitynetqa") == [
        [f"{tiny_hub.home}/activitynetqa/all_test/v_{n}"] for n in ("one.mp4", "two.mkv")
    ]


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ("gone.mp4", r"question '7' on clip 'vid1': no clip 'gone.mp4' in .*/MSRVTT-QA/videos: put it there, or run"),
        ("../README.md", r"question '7' on clip 'vid1': '../README.md' leaves the folder"),
        ("/etc/passwd", r"question '7' on clip 'vid1': '/etc/passwd' leaves the folder"),
    ],
)
def test_a_clip_that_cannot_be_shown_is_named(video, message, loaded_tasks, tiny_hub):
    from voco_llama.errors import DataError

    document = {"video": video, "video_name": "vid1", "question_id": "7"}
    with tiny_hub.surroundings(), pytest.raises(DataError, match=message):
        loaded_tasks["msrvtt_qa"].doc_to_visual(document)
