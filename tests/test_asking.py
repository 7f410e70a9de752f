"""`voco-llama ask`: on images, a clip, or text alone, with what was said before."""

import json
import re

import pytest
from PIL import Image

from tests.evaluation.hub import write_clip
from tests.tiny import tiny_model, tiny_processor
from voco_llama import cli
from voco_llama.asking import AskSettings, ask
from voco_llama.data.media.video import read_frames
from voco_llama.errors import DataError, SettingsError
from voco_llama.inference import Inference
from voco_llama.model.voco_llama import VoCoLlama

QUESTIONS = ["What is it?", "Is it red, or is it blue?"]
HISTORY = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Oh?"}]


def saved(folder, **changes):
    processor = tiny_processor(num_voco=2, num_frames=3, **changes)
    tiny_model(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("model"), order="inline")


@pytest.fixture(scope="module")
def full_folder(tmp_path_factory):
    """The upper bound: text sees the images."""
    return saved(tmp_path_factory.mktemp("full"), order="inline", condition="full")


@pytest.fixture(scope="module")
def inference(folder):
    return Inference.load(folder, "cpu")


@pytest.fixture(scope="module")
def images():
    return [Image.new("RGB", (16, 16), color) for color in ("red", "green", "blue")]


@pytest.fixture
def files(images, tmp_path):
    for name, image in zip("ab", images, strict=False):
        image.save(tmp_path / f"{name}.png")
    return [tmp_path / "a.png", tmp_path / "b.png"]


def said(*texts):
    """Messages of user and assistant by turns."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def test_ask_compresses_once_and_answers_every_question(folder, inference, images, tmp_path):
    """Of a clip, every question reads all frames."""
    images[0].save(tmp_path / "image.png")
    asked = AskSettings(folder, image=tmp_path / "image.png", questions=QUESTIONS, max_new_tokens=5, device="cpu")
    assert ask(asked) == inference.answer(QUESTIONS, inference.compress(images[:1]), max_new_tokens=5)
    write_clip(tmp_path / "clip.mp4", "red", "green", "blue")
    asked = AskSettings(folder, video=tmp_path / "clip.mp4", questions=QUESTIONS, num_voco=1, device="cpu")
    assert len(ask(asked)) == len(QUESTIONS)


# ---- as people type it


def asked_by_command(capsys, folder, *overrides):
    given = [override.partition("=")[0] for override in overrides]
    defaults = [default for default in ("device=cpu", "max_new_tokens=4") if default.partition("=")[0] not in given]
    status = cli.main(["ask", f"checkpoint={folder}", *defaults, *overrides])
    captured = capsys.readouterr()
    return status, captured.out, captured.err.strip().splitlines()


def test_a_question_is_a_text_and_images_are_several(folder, inference, images, tmp_path, capsys):
    for name, image in zip("ab", images, strict=False):
        image.save(tmp_path / f"{name}.png")
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    both = inference.answer(["<image> <image>\nWhat is it"], images=images[:2], max_new_tokens=4)
    for question in ("questions=What is it", "questions=[What is it]"):
        status, out, _ = asked_by_command(capsys, folder, f"image=[{a},{b}]", question)
        assert (status, out) == (0, f"Q: What is it\nA: {both[0]}\n")
    assert AskSettings(folder, str(a), questions=r"<image>\nWhat?").questions == ["<image>\nWhat?"]


def test_what_cannot_be_asked_is_one_line(folder, images, tmp_path, capsys):
    images[0].save(tmp_path / "a.png")
    write_clip(tmp_path / "clip.mp4", "red", "green", "blue")
    (tmp_path / "text.png").write_text("no image")
    image, question = f"image={tmp_path / 'a.png'}", "questions=What is it"
    for overrides, complaint in (
        (
            [image, "image=b.png", question],
            r"image is given twice .*: give it once, or both as a list, image=\[.*,b.png\]",
        ),
        ([image, question, "questions=Why"], "questions is given twice"),
        ([f"image={tmp_path / 'gone.png'}", question], r"image: .*gone.png is no file \(from .*\): check its name"),
        ([f"image={tmp_path}", question], "image: .* is no file"),
        ([f"video={tmp_path / 'gone.mp4'}", question], "video: .*gone.mp4 is no file"),
        ([f"image={tmp_path / 'text.png'}", question], "text.png: not an image that can be read"),
        (
            ["questions=<image>What is it"],
            "a question has an <image> mark and there is nothing to look at: name image=F",
        ),
        ([image, f"video={tmp_path / 'clip.mp4'}", question], "name one thing to look at: either image=FILE or video="),
        ([image, question, "condition=blind"], "condition=blind is on text alone: leave image and video out"),
        ([image, question, "condition=lower"], "condition is 'lower': choose one of full, voco, blind"),
        ([image, "question=What is it"], "unknown setting 'question'; did you mean 'questions'"),
        ([image, "questions=[{a: b}]"], "questions is {'a': 'b'}: give one, or a list of some"),
        ([image, "questions=[]"], "there is no question"),
        ([image, "questions=' '"], "there is no question"),
        ([image, question, "max_new_tokens=0"], "max_new_tokens must be at least 1, not 0"),
        ([image, question, "num_voco=0"], "num_voco must be at least 1"),
        ([image, question, "device=gpu"], "device=gpu cannot be used .*: set cpu, or cuda:0"),
        ([image, question, "dtype=float"], "dtype is 'float': choose one of auto, float32"),
        (
            [f"video={tmp_path / 'clip.mp4'}", question, "num_frames=300"],
            r"num_frames=300: the frames of a clip are 600 tokens under condition voco, .* 512 \(max_position_embed"
            r"dings\), .* lower num_frames or num_voco",
        ),
        ([image, f"questions={'a' * 600}"], "takes 6.. tokens, and the language model was made for 512"),
    ):
        status, out, err = asked_by_command(capsys, folder, *overrides)
        assert (status, out) == (2, ""), overrides
        errors = [line for line in err if line.startswith("error: ")]
        assert len(errors) == 1, err
        assert re.search(complaint, errors[0]), errors[0]


def test_a_checkpoint_that_is_not_there_is_one_line(images, tmp_path, capsys):
    images[0].save(tmp_path / "a.png")
    status, _, err = asked_by_command(capsys, tmp_path / "gone", f"image={tmp_path / 'a.png'}", "questions=What is it")
    assert (status, len(err)) == (2, 1)
    assert re.search(r"error: .*gone: holds no saved model \(no such folder\)", err[0])


def test_frames_of_a_clip_are_as_many_as_wanted(folder, inference, tmp_path):
    clip = tmp_path / "clip.mp4"
    write_clip(clip, "red", "green", "blue")
    for condition, number in (("voco", 2), ("full", 1)):
        frames, marks = read_frames(clip, number), "<image>" * number
        expected = inference.answer([f"{marks}\nWhat?"], images=frames, condition=condition, max_new_tokens=5)
        settings = AskSettings(
            folder,
            video=clip,
            questions="What?",
            num_frames=number,
            condition=condition,
            max_new_tokens=5,
            device="cpu",
        )
        assert ask(settings) == expected


def test_a_question_is_asked_as_it_is_typed(folder, images, tmp_path, capsys):
    images[0].save(tmp_path / "a.png")
    status, out, _ = asked_by_command(capsys, folder, f"image={tmp_path / 'a.png'}", "questions=~/x?")
    assert (status, out.splitlines()[0]) == (0, "Q: ~/x?")


# ---- with what was said before


def asking(folder, **changes):
    return ask(AskSettings(folder, **{"questions": QUESTIONS, "max_new_tokens": 5, "device": "cpu"} | changes))


@pytest.mark.parametrize("condition", ["voco", "full"])
def test_questions_that_follow_up_are_one_conversation(condition, folder, full_folder, images, files, tmp_path):
    """The image is compressed once, and stands before all that was said, in each turn."""
    where = {"voco": folder, "full": full_folder}[condition]
    inference = Inference.load(where, "cpu")
    looks = {"images": images[:1], "max_new_tokens": 5}
    (first,) = inference.answer(said(f"<image>\n{QUESTIONS[0]}"), **looks)
    (second,) = inference.answer(said(f"<image>\n{QUESTIONS[0]}", first, QUESTIONS[1]), **looks)
    assert asking(where, image=files[0], follow_up=True) == [first, second]
    assert asking(where, image=files[0])[1] != second
    (tmp_path / "history.json").write_text(json.dumps(HISTORY), encoding="utf-8")
    (first,) = inference.answer(said("<image>\nHi.", "Oh?", QUESTIONS[0]), **looks)
    (second,) = inference.answer(said("<image>\nHi.", "Oh?", QUESTIONS[0], first, QUESTIONS[1]), **looks)
    history = {"image": files[0], "history": tmp_path / "history.json"}
    assert asking(where, **history, follow_up=True) == [first, second]
    (alone,) = inference.answer(said("<image>\nHi.", "Oh?", QUESTIONS[1]), **looks)
    assert asking(where, **history) == [first, alone]


@pytest.mark.parametrize("condition", ["voco", "full"])
def test_an_image_is_looked_at_from_the_turn_on_that_shows_it(
    condition, folder, full_folder, images, files, monkeypatch
):
    """As many marks as images in all the questions together: each where it stands; what is compressed, once."""
    where = {"voco": folder, "full": full_folder}[condition]
    inference = Inference.load(where, "cpu")
    questions = ["Is <image> red?", "And blue?", "<image> too?"]
    answers, texts = [], []
    for question, number in zip(questions, (1, 1, 2), strict=True):
        texts.append(question)
        answers += inference.answer(said(*texts), images=images[:number], max_new_tokens=5)
        texts.append(answers[-1])
    compressed = []
    compress = VoCoLlama.compress
    monkeypatch.setattr(
        VoCoLlama, "compress", lambda *given, **n: compressed.append(len(given[1])) or compress(*given, **n)
    )
    assert asking(where, image=files, questions=questions, follow_up=True) == answers
    assert compressed == ([2] if condition == "voco" else [])
    questions = ["Why?", "<image> and <image>?"]  # the first is on text alone
    (first,) = inference.answer(said("Why?"), max_new_tokens=5)
    (second,) = inference.answer(said("Why?", first, questions[1]), images=images[:2], max_new_tokens=5)
    assert asking(where, image=files, questions=questions, follow_up=True) == [first, second]


def test_a_clips_frames_stand_in_the_first_turn(folder, inference, tmp_path):
    write_clip(tmp_path / "clip.mp4", "red", "green", "blue")
    frames = read_frames(tmp_path / "clip.mp4", 3)
    first = f"{'<image>' * 3}\n{QUESTIONS[0]}"
    answers = inference.answer(said(first), images=frames, max_new_tokens=5)
    answers += inference.answer(said(first, answers[0], QUESTIONS[1]), images=frames, max_new_tokens=5)
    assert asking(folder, video=tmp_path / "clip.mp4", follow_up=True) == answers


@pytest.mark.parametrize("condition", [None, "voco", "full", "blind"])
def test_without_an_image_questions_are_on_text_alone(condition, folder, full_folder, inference, tmp_path):
    for where in (folder, full_folder):
        expected = Inference.load(where, "cpu").answer(QUESTIONS, max_new_tokens=5)
        assert asking(where, condition=condition) == expected
    history = tmp_path / "history.json"
    history.write_text(json.dumps([{"role": "system", "content": "Oh."}, *HISTORY]), encoding="utf-8")
    first, second = asking(folder, condition=condition, history=history, follow_up=True)
    system = {"role": "system", "content": "Oh."}
    assert [second] == inference.answer(
        [system, *said("Hi.", "Oh?", QUESTIONS[0], first, QUESTIONS[1])], max_new_tokens=5
    )
    history.write_text(json.dumps([system]), encoding="utf-8")
    assert asking(folder, history=history, questions="Why?") == inference.answer(
        [system, *said("Why?")], max_new_tokens=5
    )


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("[", "history.json: cannot be read .*: give a list of messages in JSON"),
        ('{"role": "user"}', r"history.json is \{'role': 'user'\}: give a text, or a list of messages"),
        (json.dumps(said("Hi.")), "history.json ends with the user's turn: end it with an answer"),
        (
            json.dumps(said("Hi.", "Oh?")[1:]),
            "history.json: message 0 is the assistant's where the user's turn belongs",
        ),
        (json.dumps(said("Hi.", "<image>")), "history.json: message 1 is the assistant's and holds <image>"),
    ],
)
def test_a_history_that_is_none_is_one_line(folder, files, content, complaint, tmp_path, capsys):
    (tmp_path / "history.json").write_text(content, encoding="utf-8")
    typed = [f"image={files[0]}", f"history={tmp_path / 'history.json'}", "questions=What?"]
    status, out, err = asked_by_command(capsys, folder, *typed)
    assert (status, out, len(err)) == (2, "", 1)
    assert re.search(f"error: .*{complaint}", err[0])


def test_an_answer_with_a_mark_cannot_be_history(folder, files, monkeypatch):
    monkeypatch.setattr(Inference, "answer", lambda *_, **__: ["an <image>"])
    with pytest.raises(DataError, match="answers 'an <image>', and no history can have <image> in an answer"):
        asking(folder, image=files[0], follow_up=True)
    assert asking(folder, image=files[0], questions="Why?") == ["an <image>"]


def test_a_history_about_an_image_that_is_not_given_is_one_line(folder, tmp_path):
    history = tmp_path / "history.json"
    history.write_text(json.dumps(said("<image>What?", "A cat.")), encoding="utf-8")
    with pytest.raises(SettingsError, match=r"history.json has <image> marks and there is nothing to look at: name"):
        asking(folder, history=history, questions="Why?")
    assert asking(folder, history=history, questions="Why?", condition="blind")


def test_a_history_that_is_not_there_is_one_line(folder, tmp_path):
    with pytest.raises(SettingsError, match=r"history: .*gone.json is no file"):
        asking(folder, history=tmp_path / "gone.json")


def test_a_conversation_is_printed_as_questions_are(folder, files, capsys):
    expected = asking(folder, image=files[0], follow_up=True, max_new_tokens=4)
    typed = [f"image={files[0]}", f"questions={json.dumps(QUESTIONS)}", "follow_up=true"]
    status, out, _ = asked_by_command(capsys, folder, *typed)
    lines = [f"Q: {question}\nA: {answer}\n" for question, answer in zip(QUESTIONS, expected, strict=True)]
    assert (status, out) == (0, "".join(lines))
