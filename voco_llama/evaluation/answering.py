"""Questions to answers: each image compressed once and read from the cache, or seen whole, or not seen at all.

Questions are worked through in windows of consecutive ones, and answers come in the order of the questions, so that
whoever keeps them loses at most a window to a crash. Compressed images stay in memory beyond their window, the
longest unused ones leaving first. Inside a window, questions of like length share a batch.
"""

import logging
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import Any

import torch
from PIL import Image

from voco_llama.choices import ANSWER_CONDITIONS, require_choice
from voco_llama.errors import DataError, SettingsError, one_line
from voco_llama.evaluation.questions import Question, Visual, cut, see, with_marks
from voco_llama.inference import Inference
from voco_llama.model.cache import VoCoCache

logger = logging.getLogger(__name__)

WINDOW_BATCHES = 16
REUSE_BYTES = 2**31
"""Keys and values that are kept beyond their window."""
FAILURES = (RuntimeError, OSError, DataError, Image.DecompressionBombError)
"""What a question can fail with: running out of memory is a RuntimeError, a damaged image file an OSError."""


@dataclass(frozen=True)
class Failure:
    """A question that could not be answered, and why."""

    id: str
    error: str


@dataclass
class Counts:
    """What answering took.

    Attributes:
        answers: Questions answered.
        compressed: Images and frames that were compressed.
        visuals: Images and frames that the questions looked at, each counted as often as it was asked about.
        seconds: Time spent on answering, by the wall clock: decoding images, compressing, generating.
        model_seconds: The part of it in the model, its processor's layout and pixels included.
        failures: Questions that were given up, where the settings allow it.
    """

    answers: int = 0
    compressed: int = 0
    visuals: int = 0
    seconds: float = 0.0
    model_seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)


@dataclass
class Answerer:
    """Answers questions with one model under one condition.

    Attributes:
        inference: The model and its processor.
        condition: `voco`: text reads the VoCo cache of the images, compressed beforehand. `full`: text sees the
            vision tokens. `blind`: there is no image.
        num_voco: VoCo tokens an image; the model's own number by default.
        batch_size: Questions, or images to compress, at a time.
        reuse: Compress an image once for all questions on it; otherwise once a question.
        go_on: List a question that fails and go on, its answer empty; otherwise stop there.
        counts: What was done so far.
    """

    inference: Inference
    condition: str = "voco"
    num_voco: int | None = None
    batch_size: int = 32
    reuse: bool = True
    go_on: bool = False
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        require_choice("condition", self.condition, ANSWER_CONDITIONS)
        config = self.inference.model.config
        self.num_voco = self.num_voco or config.num_voco
        if self.condition == "voco" and not self.num_voco:
            raise SettingsError(
                "the checkpoint was made without VoCo tokens (a LLaVA): set condition=full, or num_voco for the lower"
                " bound"
            )
        if self.condition == "voco" and config.compressor != "language_model" and self.num_voco != config.num_voco:
            raise SettingsError(
                f"num_voco={self.num_voco}: a {config.compressor} was made for {config.num_voco} tokens an image and"
                " cannot be cut short: leave num_voco out"
            )
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
            self.counts.seconds += time.perf_counter() - started
            self.counts.answers += len(window)
            logger.info(
                "%d of %d questions answered, %d images compressed",
                start + len(window),
                len(questions),
                self.counts.compressed,
            )
            yield from texts

    def see(self, question: Question) -> tuple[Visual, ...]:
        """What a question looks at, unless the condition is to see nothing."""
        if self.condition == "blind":
            return ()
        return tuple(see(looked_at, self.inference.processor.num_frames) for looked_at in question.look())

    def _look(self, question: Question) -> tuple[Visual, ...]:
        visuals = self.see(question)
        self.counts.visuals += sum(map(len, visuals))
        return visuals

    def _window(self, window: Sequence[Question]) -> list[str]:
        seen = [self._guarded([q], lambda q=q: self._look(q)) for q in window]
        entries = self._entries(window, seen) if self.condition == "voco" else {}
        texts = [""] * len(window)
        groups: dict[tuple, list[int]] = {}
        for i, question in enumerate(window):
            lacking = self.condition == "voco" and any(self._key(i, visual) not in entries for visual in seen[i] or ())
            if seen[i] is not None and not lacking:
                groups.setdefault(tuple(sorted(question.generation.items())), []).append(i)
        for members in groups.values():
            members.sort(key=lambda i: (sum(map(len, seen[i])), len(window[i].prompt)))
            for start in range(0, len(members), self.batch_size):
                batch = members[start : start + self.batch_size]
                for i, text in zip(batch, self._batch(window, seen, entries, batch), strict=True):
                    texts[i] = text
        return texts

    def _batch(
        self,
        window: Sequence[Question],
        seen: Sequence[tuple[Visual, ...]],
        entries: Mapping[str, VoCoCache],
        batch: Sequence[int],
    ) -> list[str]:
        """Answers to questions of one kind; a failing question is looked for one by one."""

        def generate() -> list[str]:
            asked = [window[i] for i in batch]
            looked_at = [(i, visual) for i in batch for visual in seen[i]]
            shown = [image for _, visual in looked_at for image in visual.shown()] if self.condition == "full" else None
            started = time.perf_counter()
            caches = [entries[self._key(i, visual)][visual.order] for i, visual in looked_at if entries]
            texts = self.inference.answer(
                [with_marks(window[i].prompt, seen[i]) for i in batch],
                VoCoCache.cat(caches) if caches else None,
                shown,
                "full" if self.condition == "full" else "voco",
                self.num_voco,
                **asked[0].generation,
            )
            self.counts.model_seconds += time.perf_counter() - started
            return [cut(text, question.until) for text, question in zip(texts, asked, strict=True)]

        if len(batch) == 1:
            return self._guarded([window[batch[0]]], generate) or [""]
        try:
            return generate()
        except FAILURES as error:
            first, last = window[batch[0]].id, window[batch[-1]].id
            logger.warning("%s to %s: %s: answering one by one", first, last, _line(error))
        return [text for i in batch for text in self._batch(window, seen, entries, [i])]

    def _key(self, index: int, visual: Visual) -> str:
        return visual.key if self.reuse else f"{index}/{visual.key}"

    def _entries(self, window: Sequence[Question], seen: Sequence[tuple[Visual, ...] | None]) -> dict[str, VoCoCache]:
        """The caches of all that the window looks at, by key; the entries of a clip are in order of time."""
        wanted: dict[str, tuple[Visual, list[Question]]] = {}
        for i, (question, visuals) in enumerate(zip(window, seen, strict=True)):
            for visual in visuals or ():
                wanted.setdefault(self._key(i, visual), (visual, []))[1].append(question)
        entries = {key: self._kept[key] for key in wanted if key in self._kept}
        missing = [(key, *wanted[key]) for key in wanted if key not in entries]
        for start in range(0, len(missing), self.batch_size):
            entries |= self._compress(missing[start : start + self.batch_size])
        if self.reuse:
            self._keep(entries)
        return entries

    def _compress(self, some: Sequence[tuple[str, Visual, Sequence[Question]]]) -> dict[str, VoCoCache]:
        """Caches by key of what is looked at and by whom; a failing image is looked for one by one."""

        def compress() -> dict[str, VoCoCache]:
            images = [visual.read() for _, visual, _ in some]
            started = time.perf_counter()
            cache = self.inference.compress(list(chain.from_iterable(images)), self.num_voco, self.batch_size)
            self.counts.compressed += len(cache)
            self.counts.model_seconds += time.perf_counter() - started
            ends = list(accumulate(map(len, images), initial=0))
            # Copies: each may outlive the others.
            return {key: cache[range(*ends[i : i + 2])] for i, (key, _, _) in enumerate(some)}

        if len(some) == 1:
            return self._guarded(some[0][2], compress) or {}
        try:
            return compress()
        except FAILURES as error:
            first, last = some[0][2][0].id, some[-1][2][0].id
            logger.warning("images of %s to %s: %s: one by one", first, last, _line(error))
        return {key: cache for one in some for key, cache in self._compress([one]).items()}

    def _keep(self, entries: Mapping[str, VoCoCache]) -> None:
        for key, cache in entries.items():
            self._kept[key] = cache
            self._kept.move_to_end(key)
        held = sum(len(cache) * cache.bytes_per_entry for cache in self._kept.values())
        while held > REUSE_BYTES:
            _, cache = self._kept.popitem(last=False)
            held -= len(cache) * cache.bytes_per_entry

    def _guarded(self, asked: Sequence[Question], work: Callable[[], Any]) -> Any:
        """What `work` gives; its failure is that of the questions: it stops the run, or is listed (None is given)."""
        try:
            return work()
        except FAILURES as error:
            if not self.go_on:
                raise DataError(
                    f"{asked[0].id}: cannot be answered ({_line(error)}): mend it, or set go_on=true to list it and go"
                    " on"
                ) from error
            listed = {failure.id for failure in self.counts.failures}
            for question in asked:
                if question.id not in listed:
                    logger.warning("%s: given up (%s)", question.id, _line(error))
                    self.counts.failures.append(Failure(question.id, _line(error)))
                    listed.add(question.id)
            return None


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
        prompt, cache = with_marks(question.prompt, visuals), None
        started = time.perf_counter()
        if condition == "voco" and images:
            cache, images = inference.compress(images, answerer.num_voco), []
        if inference.model.device.type != "cpu":
            torch.accelerator.synchronize()  # a device works on after the call has returned
        compressed = time.perf_counter()
        shown = "full" if condition == "full" else "voco"
        inference.answer(
            [prompt], cache, images, shown, answerer.num_voco, max_new_tokens=1
        )  # text: the device is done
        ended = time.perf_counter()
        times["image"].append(ended - started)
        if cache is not None:
            times["cache"].append(ended - compressed)
    return {name: round(statistics.median(found), 6) if found else None for name, found in times.items()}


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
