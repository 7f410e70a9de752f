"""Questions to answers: each image compressed once and read from the cache, or seen whole, or not seen at all.

Questions are worked through in windows of consecutive ones, and answers come in the order of the questions, so that
whoever keeps them loses at most a window to a crash. Compressed images stay in memory beyond their window, the
longest unused ones leaving first. Inside a window, questions of like length share a batch.
"""

import contextlib
import json
import logging
import statistics
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch

from voco_llama.choices import ANSWER_CONDITIONS, check_quality, require_choice
from voco_llama.data.conversations import Conversation, conversations_of
from voco_llama.errors import DataError, one_line
from voco_llama.evaluation.questions import Question, Visual, cut, see
from voco_llama.inference import Inference
from voco_llama.model.cache import VoCoCache

logger = logging.getLogger(__name__)
T = TypeVar("T")

WINDOW_BATCHES = 16
REUSE_BYTES = 2**31
"""Keys and values that are kept beyond their window."""


@dataclass
class Counts:
    """What answering took.

    Attributes:
        answers: Questions answered.
        compressed: Images and frames that were compressed.
        visuals: Images and frames that the questions looked at, each counted as often as it was asked about.
        seconds: Time spent on answering, by the wall clock: decoding images, compressing, generating.
        model_seconds: The part of it in the model, its processor's layout and pixels included.
        failures: Ids of questions that were given up, where the settings allow it, and why.
        looked: Under `voco`, of each question that was answered, also by a run that this one goes on with: the keys of
            what it looked at, and the VoCo tokens of each image, or of each frame of a clip.
    """

    answers: int = 0
    compressed: int = 0
    visuals: int = 0
    seconds: float = 0.0
    model_seconds: float = 0.0
    failures: dict[str, str] = field(default_factory=dict)
    looked: dict[str, dict[str, list[int]]] = field(default_factory=dict)

    def kept(self) -> Counter[int]:
        """How many images were kept as so many VoCo tokens, each counted once."""
        distinct = {key: tokens for looked_at in self.looked.values() for key, tokens in looked_at.items()}
        return Counter(chain.from_iterable(distinct.values()))


@dataclass
class _Asked:
    """A question of a window, what it looks at (None: that failed), and its answer."""

    question: Question
    visuals: tuple[Visual, ...] | None
    answer: str = ""


@dataclass
class Answerer:
    """Answers questions with one model under one condition.

    Attributes:
        inference: The model and its processor.
        condition: `voco`: text reads the VoCo cache of the images, compressed beforehand. `full`: text sees the
            vision tokens. `blind`: there is no image. None: as the model was trained.
        num_voco: VoCo tokens an image; the model's own number by default.
        quality: Have each image choose its number of them, `num_voco` at most (`VoCoLlama.compress`).
        batch_size: Questions, or images to compress, at a time.
        reuse: Compress an image once for all questions on it; otherwise once a question.
        go_on: List a question that fails and go on, its answer empty; otherwise stop there. Whatever it fails with is
            the question's, a bug too; but where the device is lost, all of the rest would fail.
        advice: What to do about a question that stops it.
        record: A file to which `Counts.looked` goes window by window, and from which a run goes on; None: no file.
        counts: What was done so far.
    """

    inference: Inference
    condition: str | None = None
    num_voco: int | None = None
    batch_size: int = 32
    reuse: bool = True
    go_on: bool = False
    quality: float | None = None
    advice: str = "mend it, or set go_on=true to list it and go on"
    record: Path | None = None
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        config = self.inference.model.config
        self.condition = self.condition or config.condition
        require_choice("condition", self.condition, ANSWER_CONDITIONS)
        self.inference.check_condition(self.condition, self.num_voco)
        self.num_voco = self.num_voco or config.num_voco
        check_quality(self.quality, self.condition)
        if self.quality is not None:
            self.inference.model.check_quality_head(self.quality, self.inference.model.fingerprint())
        if self.condition == "voco" or (self.condition == "full" and self.num_voco):
            self.inference.model.check_num_voco(self.num_voco)
        self._kept: OrderedDict[str, VoCoCache] = OrderedDict()

    def answer(self, questions: Sequence[Question]) -> Iterator[str]:
        """Answer in the order of the questions.

        Raises:
            DataError: A question cannot be answered; it is named. Answers of earlier windows have been given.
        """
        size = WINDOW_BATCHES * self.batch_size
        for start in range(0, len(questions), size):
            window = questions[start : start + size]
            started = time.perf_counter()
            texts = self._window(window)
            self._write_record(window)
            self.counts.seconds += time.perf_counter() - started
            self.counts.answers += len(window)
            done = start + len(window)
            logger.info(
                "%d of %d questions answered, %d images compressed", done, len(questions), self.counts.compressed
            )
            yield from texts

    def read_record(self) -> None:
        """Take up what a run that was cut off wrote: a line that a kill tore is left out, as its answers are."""
        for line in self.record.read_text(encoding="utf-8").splitlines() if self.record.is_file() else ():
            with contextlib.suppress(ValueError):
                self.counts.looked |= json.loads(line)

    def _write_record(self, window: Sequence[Question]) -> None:
        """Before the window's answers are given."""
        looked = {
            question.id: self.counts.looked[question.id] for question in window if question.id in self.counts.looked
        }
        if self.record is not None and looked:
            self.record.parent.mkdir(parents=True, exist_ok=True)
            with self.record.open("a", encoding="utf-8") as file:
                file.write(f"\n{json.dumps(looked)}\n")  # it may follow half a line that a kill left

    def see(self, question: Question) -> tuple[Visual, ...]:
        """What a question looks at, unless the condition is to see nothing."""
        if self.condition == "blind":
            return ()
        return tuple(see(looked_at, self.inference.processor.num_frames) for looked_at in question.look())

    def _look(self, question: Question) -> tuple[Visual, ...]:
        visuals = self.see(question)
        self.counts.visuals += sum(map(len, visuals))
        return visuals if self.reuse else tuple(replace(v, key=f"{id(question)}/{v.key}") for v in visuals)

    def _window(self, window: Sequence[Question]) -> list[str]:
        asked = [_Asked(q, self._each([q], lambda q: [q], lambda some: [self._look(some[0])])[0]) for q in window]
        entries = self._entries(asked) if self.condition == "voco" else None
        groups: dict[tuple, list[_Asked]] = {}
        for one in asked:
            if one.visuals is not None and (entries is None or all(visual.key in entries for visual in one.visuals)):
                if entries is not None:
                    self.counts.looked[one.question.id] = {
                        visual.key.rpartition("/")[2]: entries[visual.key].counts.tolist() for visual in one.visuals
                    }
                groups.setdefault(tuple(sorted(one.question.generation.items())), []).append(one)
        for members in groups.values():
            members.sort(key=lambda one: (sum(map(len, one.visuals)), len(str(one.question.prompt))))
            for start in range(0, len(members), self.batch_size):
                batch = members[start : start + self.batch_size]
                texts = self._each(batch, lambda one: [one.question], lambda some: self._generate(some, entries))
                for one, text in zip(batch, texts, strict=True):
                    one.answer = text or ""
        return [one.answer for one in asked]

    def _generate(self, some: Sequence[_Asked], entries: Mapping[str, VoCoCache] | None) -> list[str]:
        """Answers to questions that are generated alike."""
        visuals = [visual for one in some for visual in one.visuals]
        images = [image for visual in visuals for image in visual.shown()] if self.condition == "full" else None
        started = time.perf_counter()
        caches = [] if entries is None else [visual.entries(entries[visual.key]) for visual in visuals]
        texts = self.inference.answer(
            [_prompt(one.question, one.visuals) for one in some],
            VoCoCache.cat(caches) if caches else None,
            images,
            "full" if self.condition == "full" else "voco",
            None if caches else self.num_voco,  # rows have the entries' own numbers
            counts=[sum(map(len, one.visuals)) for one in some],
            **some[0].question.generation,
        )
        self.counts.model_seconds += time.perf_counter() - started
        return [cut(text, one.question.until) for text, one in zip(texts, some, strict=True)]

    def _entries(self, asked: Sequence[_Asked]) -> dict[str, VoCoCache]:
        """The caches of all that the window looks at, by key; the entries of a clip are in order of time."""
        wanted: dict[str, tuple[Visual, list[Question]]] = {}
        for one in asked:
            for visual in one.visuals or ():
                wanted.setdefault(visual.key, (visual, []))[1].append(one.question)
        entries = {key: self._kept[key] for key in wanted if key in self._kept}
        missing = [key for key in wanted if key not in entries]
        for start in range(0, len(missing), self.batch_size):
            keys = missing[start : start + self.batch_size]
            caches = self._each(
                keys, lambda key: wanted[key][1], lambda some: self._compress([wanted[key][0] for key in some])
            )
            entries |= {key: cache for key, cache in zip(keys, caches, strict=True) if cache is not None}
        if self.reuse:
            self._keep(entries)
        return entries

    def _compress(self, visuals: Sequence[Visual]) -> list[VoCoCache]:
        images = [visual.read() for visual in visuals]
        started = time.perf_counter()
        frames = list(chain.from_iterable(images))
        cache = self.inference.compress(frames, self.num_voco, self.batch_size, "voco", self.quality)
        self.counts.compressed += len(cache)
        self.counts.model_seconds += time.perf_counter() - started
        ends = accumulate(map(len, images), initial=0)
        return [cache[range(*ends)] for ends in pairwise(ends)]  # copies, for each may outlive the others

    def _keep(self, entries: Mapping[str, VoCoCache]) -> None:
        for key, cache in entries.items():
            self._kept[key] = cache
            self._kept.move_to_end(key)
        held = sum(cache.num_bytes for cache in self._kept.values())
        while held > REUSE_BYTES:
            _, cache = self._kept.popitem(last=False)
            held -= cache.num_bytes

    def _each(
        self, some: Sequence[T], asked: Callable[[T], Sequence[Question]], work: Callable[[Sequence[T]], list[Any]]
    ) -> list[Any]:
        """What `work` makes of all; if it fails, of each alone, so that the one that fails is found.

        That one's failure is that of the questions that asked for it: it stops the run, or is listed, and None given.
        """
        if len(some) > 1:
            try:
                return work(some)
            except Exception as error:
                first, last = asked(some[0])[0].id, asked(some[-1])[0].id
                logger.warning("%s to %s: %s: one by one", first, last, named(error))
            # Only here, where the error and the memory that its frames hold are gone.
            return [found for one in some for found in self._each([one], asked, work)]
        questions = asked(some[0])
        try:
            return work(some)
        except Exception as error:
            if isinstance(error, torch.AcceleratorError):
                raise DataError(
                    f"{questions[0].id}: the device was lost ({named(error)}): the same command goes on"
                ) from error
            for question in questions:
                self.give_up(question.id, "cannot be answered", error)
            return [None]

    def give_up(self, id: str, what: str, error: Exception) -> None:
        """List a question with what it fails with, its first failure, where the settings say so.

        Raises:
            DataError: They do not.
        """
        if not self.go_on:
            raise DataError(f"{id}: {what} ({named(error)}): {self.advice}") from error
        if id not in self.counts.failures:
            logger.warning("%s: %s (%s)", id, what, named(error))
            self.counts.failures[id] = named(error)


def first_token_seconds(answerer: Answerer, questions: Sequence[Question]) -> dict[str, float | None]:
    """Time to the first token of single questions, in seconds, medians over those given.

    Returns:
        `image`: From the image: seeing (compressing) it and the first token. `cache`: From its cache, under `voco`.
    """
    inference, condition = answerer.inference, answerer.condition
    times: dict[str, list[float]] = {"image": [], "cache": []}
    for question in questions:
        visuals = answerer.see(question)
        images = [image for visual in visuals for image in visual.shown()]
        prompt, cache = _prompt(question, visuals), None
        started = time.perf_counter()
        if condition == "voco" and images:
            cache = inference.compress(images, answerer.num_voco, condition="voco", quality=answerer.quality)
            images = []
        if inference.model.device.type != "cpu":
            torch.accelerator.synchronize()  # a device works on after the call has returned
        compressed = time.perf_counter()
        shown = "full" if condition == "full" else "voco"
        num_voco = None if cache is not None else answerer.num_voco
        inference.answer([prompt], cache, images, shown, num_voco, max_new_tokens=1)
        ended = time.perf_counter()  # the answer is text: the device is done
        times["image"].append(ended - started)
        if cache is not None:
            times["cache"].append(ended - compressed)
    return {name: round(statistics.median(found), 6) if found else None for name, found in times.items()}


def _prompt(question: Question, visuals: Sequence[Visual]) -> Conversation:
    """The question with a mark for each image and frame."""
    (conversation,) = conversations_of([question.prompt])
    return conversation.looking_at(list(map(len, visuals)))


def named(error: BaseException) -> str:
    """An error's type and text, on one line."""
    return f"{type(error).__name__}: {one_line(error)}"
