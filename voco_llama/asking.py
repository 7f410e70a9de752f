"""`voco-llama ask`: questions on images, a clip or text alone, with what was said before them."""

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from voco_llama.choices import ANSWER_CONDITIONS, Condition, check_quality, require_choice
from voco_llama.data.conversations import Conversation, read_messages
from voco_llama.data.media.images import load_image
from voco_llama.data.media.video import read_frames
from voco_llama.data.records import IMAGE_MARK, Turn
from voco_llama.errors import DataError, refused_as, require, shown
from voco_llama.inference import Inference
from voco_llama.model.cache import VoCoCache

logger = logging.getLogger(__name__)

_TYPED_BREAK = re.compile(rf"{IMAGE_MARK}\\n|\\n{IMAGE_MARK}")
"""LLaVA's line break beside a mark, as it comes out of a shell: a backslash and an n."""


@dataclass(frozen=True)
class AskSettings:
    """What to ask.

    Attributes:
        checkpoint: Folder of a saved model and its processor.
        image: Files, which every question looks at, or one file. Without `image` and `video` questions are on text
            alone.
        video: A clip.
        questions: Or one question.
        history: A file of JSON with what was said before each question, `[{"role": "user", "content": "What is it?"},
            {"role": "assistant", "content": "A cat."}]`; a message of the `system` may come first, in place of the
            prompt's own system text.
        follow_up: The questions are one conversation: each is asked after those before it and their answers.
        condition: `full`: text sees the images; `voco`: it reads their VoCo tokens; `blind`: it has neither, and no
            image is given. None: as the checkpoint was trained.
        num_voco: VoCo tokens an image or frame; None: as many as the checkpoint was trained with.
        quality: Keep of each image or frame the fewest VoCo tokens whose answers stay close to those of all, `num_voco`
            at most: by how much they may differ, in nats an answer token (0.05: closely). None: keep `num_voco`.
        num_frames: Frames taken from a clip; None: as in training.
        max_new_tokens: Length limit of an answer.
        device: None: the GPU if there is one.
        dtype: Of the weights and the cache; `auto`: as saved.
    """

    checkpoint: Path
    image: list[Path] = field(default_factory=list)
    video: Path | None = None
    questions: list[str] = field(default_factory=list, metadata={"is_prose": True})
    history: Path | None = None
    follow_up: bool = False
    condition: str | None = None
    num_voco: int | None = None
    quality: float | None = None
    num_frames: int | None = None
    max_new_tokens: int = 64
    device: str | None = None
    dtype: str = "auto"

    def __post_init__(self) -> None:
        images = [self.image] if isinstance(self.image, str | Path) else self.image
        questions = [self.questions] if isinstance(self.questions, str) else self.questions
        for name, values in (("image", images), ("questions", questions)):
            for value in values:
                require(isinstance(value, str | Path), f"{name} is {shown(value)}: give one, or a list of some")
        questions = [_TYPED_BREAK.sub(lambda found: found[0].replace(r"\n", "\n"), text) for text in questions]
        object.__setattr__(self, "image", [Path(image) for image in images])
        object.__setattr__(self, "questions", questions)
        if self.condition is not None:
            require_choice("condition", self.condition, ANSWER_CONDITIONS)
        looks = bool(images) or self.video is not None
        if self.condition == "blind":
            require(not looks, "condition=blind is on text alone: leave image and video out")
        elif not looks:
            marked = next((text for text in questions if IMAGE_MARK in text), None)
            require(
                marked is None,
                f"a question has an {IMAGE_MARK} mark and there is nothing to look at: name image=FILE or video=FILE,"
                " or take the mark out",
            )
        require(not images or self.video is None, "name one thing to look at: either image=FILE or video=FILE")
        require(
            bool(questions) and all(question.strip() for question in questions),
            "there is no question: give questions='What is this?', or several: questions='[\"What is this?\"]'",
        )
        for name in ("num_voco", "num_frames", "max_new_tokens"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} must be at least 1, not {value}")
        check_quality(self.quality, self.condition)


def ask(settings: AskSettings) -> list[str]:
    """Answer questions on images or a clip, compressed once and read from its cache, or seen whole; or on text alone.

    Returns:
        The answers, in order.

    Raises:
        CheckpointError: The checkpoint cannot be loaded.
        DataError: An image, the clip or the history cannot be read, or a question with it is too long for the model.
        SettingsError: A file is not there, or the model cannot do what is asked.
    """
    files = {"image": settings.image, "video": [settings.video], "history": [settings.history]}
    for name, file in ((name, file) for name, some in files.items() for file in some if file is not None):
        require(Path(file).is_file(), f"{name}: {file} is no file (from {Path.cwd()}): check its name")
    history = Conversation(()) if settings.history is None else read_history(settings.history)
    require(
        not history.num_marks or bool(settings.image) or settings.video is not None or settings.condition == "blind",
        f"history: {settings.history} has {IMAGE_MARK} marks and there is nothing to look at: name image=FILE or"
        " video=FILE, or take the marks out",
    )
    images = [load_image(file) for file in settings.image]
    inference = Inference.load(settings.checkpoint, settings.device, settings.dtype)
    counts = [1] * len(images)
    condition = settings.condition or inference.model.config.condition
    inference.check_condition(condition, settings.num_voco)
    check_quality(settings.quality, condition)
    if settings.video is not None:
        num_frames = settings.num_frames or inference.processor.num_frames
        inference.check_frames(num_frames, condition, settings.num_voco)
        images = read_frames(settings.video, num_frames)
        counts = [len(images)]
    what, cache = ", ".join(map(str, settings.image)) or settings.video, None
    if not images:
        logger.info("no image: the questions are on text alone")
    elif condition == "full":
        logger.info("%s: %d x %d vision tokens, seen whole", what, len(images), inference.processor.num_vision)
    else:
        cache = inference.compress(images, settings.num_voco, condition="voco", quality=settings.quality)
        images = []
        logger.info(
            "%s: %d x %d vision tokens became %s VoCo tokens each, %s bytes of keys and values in all",
            what,
            len(cache),
            inference.processor.num_vision,
            cache.described_counts,
            f"{cache.num_bytes:,}",
        )
    asker = _Asker(inference, settings, "full" if condition == "full" else "voco", cache, images)
    if settings.follow_up:
        return asker.follow_up(history, counts)
    asked = [replace(history, turns=(*history.turns, Turn("user", text))) for text in settings.questions]
    return asker.answers([conversation.looking_at(counts) for conversation in asked])


def read_history(file: Path) -> Conversation:
    """What was said before a question, of a file with messages; it may be a system text alone.

    Raises:
        DataError: It is no such file, or the messages do not end with an answer.
    """
    with refused_as(DataError, file, "give a list of messages in JSON"):
        messages = json.loads(file.read_text(encoding="utf-8"))
    return read_messages(messages, str(file), ends_with="assistant")


@dataclass(frozen=True)
class _Asker:
    """Answers with one model on one thing, of which it has a cache, or images to be seen whole, or nothing."""

    inference: Inference
    settings: AskSettings
    condition: Condition
    cache: VoCoCache | None
    images: Sequence[Image.Image]

    def answers(self, conversations: Sequence[Conversation]) -> list[str]:
        """Answers to conversations that look at equally many of the images, from the first on."""
        number = conversations[0].num_marks
        cache = self.cache[:number] if self.cache is not None and number else None
        num_voco = self.settings.num_voco if cache is None else None  # else each entry's own
        images, limit = self.images[:number], self.settings.max_new_tokens
        return self.inference.answer(conversations, cache, images, self.condition, num_voco, max_new_tokens=limit)

    def follow_up(self, history: Conversation, counts: Sequence[int]) -> list[str]:
        """Answers to questions of one conversation; each looks at the images that were shown until then."""
        asked = [Turn("user", question) for question in self.settings.questions]
        whole = replace(history, turns=(*history.turns, *asked)).looking_at(counts)
        said, answers = list(whole.turns[: len(history.turns)]), []
        for question in whole.turns[len(history.turns) :]:
            said.append(question)
            (answer,) = self.answers([replace(whole, turns=tuple(said))])
            if IMAGE_MARK in answer:
                raise DataError(f"the model answers {shown(answer)}, and no history can have {IMAGE_MARK} in an answer")
            said.append(Turn("assistant", answer))
            answers.append(answer)
        return answers
