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
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from voco_llama.choices import ANSWER_CONDITIONS, require_choice
from voco_llama.errors import DataError, SettingsError
from voco_llama.evaluation.questions import Question, Visual, cut, see, with_marks
from voco_llama.model.cache import VoCoCache

if TYPE_CHECKING:
    from voco_llama.data.processor import VoCoProcessor
    from voco_llama.model.voco_llama import VoCoLlama

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
        model: In evaluation mode, on the device to use.
        processor: Saved with the model.
        condition: `voco`: text reads the VoCo cache of the images, compressed beforehand. `full`: text sees the
            vision tokens. `blind`: there is no image.
        num_voco: VoCo tokens an image; the model's own number by default.
        batch_size: Questions, or images to compress, at a time.
        reuse: Compress an image once for all questions on it; otherwise once a question.
        go_on: List a question that fails and go on, its answer empty; otherwise stop there.
        counts: What was done so far.
    """

    model: "VoCoLlama"
    processor: "VoCoProcessor"
    condition: str = "voco"
    num_voco: int | None = None
    batch_size: int = 32
    reuse: bool = True
    go_on: bool = False
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        require_choice("condition", self.condition, ANSWER_CONDITIONS)
        most = self.model.config.num_voco
        self.num_voco = self.num_voco or most
        if self.condition == "voco" and not self.num_voco:
            raise SettingsError(
                "the checkpoint was made without VoCo tokens (a LLaVA): set condition=full, or num_voco for the lower"
                " bound"
            )
        if self.condition == "voco" and self.model.config.compressor != "language_model" and self.num_voco != most:
            raise SettingsError(
                f"num_voco={self.num_voco}: a {self.model.config.compressor} was made for {most} tokens an image and"
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

    @torch.inference_mode()
    def _window(self, window: Sequence[Question]) -> list[str]:
        texts: dict[int, str] = {}
        seen = [self._guarded([q], lambda q=q: self._look(q)) for q in window]
        entries = self._entries(window, seen) if self.condition == "voco" else {}
        groups: dict[tuple, list[int]] = {}
        for i, question in enumerate(window):
            if seen[i] is None or any(self._key(i, v) not in entries for v in seen[i] if self.condition == "voco"):
                texts[i] = ""
                continue
            groups.setdefault(tuple(sorted(question.generation.items())), []).append(i)
        for members in groups.values():
            members.sort(key=lambda i: (sum(len(v.images) for v in seen[i]), len(window[i].prompt)))
            for start in range(0, len(members), self.batch_size):
                batch = members[start : start + self.batch_size]
                for i, text in zip(batch, self._batch(window, seen, entries, batch), strict=True):
                    texts[i] = text
        return [texts[i] for i in range(len(window))]

    def _batch(
        self,
        window: Sequence[Question],
        seen: Sequence[tuple[Visual, ...]],
        entries: Mapping[str, VoCoCache],
        batch: Sequence[int],
    ) -> list[str]:
        """Answers to questions of one kind; a failing question is looked for one by one."""

        def generate(members: Sequence[int]) -> list[str]:
            return self._generate(
                [window[i] for i in members],
                [seen[i] for i in members],
                [entries[self._key(i, visual)] for i in members for visual in seen[i] if entries],
            )

        if len(batch) == 1:
            found = self._guarded([window[batch[0]]], lambda: generate(batch))
            return [""] if found is None else found
        try:
            return generate(batch)
        except FAILURES as error:
            asked = [window[i] for i in batch]
            logger.warning("%s to %s: %s: answering one by one", asked[0].id, asked[-1].id, _line(error))
        return [text for i in batch for text in self._batch(window, seen, entries, [i])]

    def _generate(
        self, asked: Sequence[Question], seen: Sequence[tuple[Visual, ...]], caches: Sequence[VoCoCache]
    ) -> list[str]:
        started = time.perf_counter()
        prompts = [with_marks(q.prompt, visuals) for q, visuals in zip(asked, seen, strict=True)]
        laid_out = self.processor(
            text=prompts,
            images=[image for visuals in seen for visual in visuals for image in visual.images] or None
            if self.condition == "full"
            else None,
            condition="full" if self.condition == "full" else "voco",
            num_voco=self.num_voco,
        )
        cache = VoCoCache.cat(caches) if caches else None
        texts = generate_texts(self.model, self.processor, laid_out, cache, **asked[0].generation)
        self.counts.model_seconds += time.perf_counter() - started
        return [cut(text, question.until) for text, question in zip(texts, asked, strict=True)]

    def _look(self, question: Question) -> tuple[Visual, ...]:
        if self.condition == "blind":
            return ()
        visuals = tuple(see(shown, self.processor.num_frames) for shown in question.look())
        self.counts.visuals += sum(len(visual.images) for visual in visuals)
        return visuals

    def _key(self, index: int, visual: Visual) -> str:
        return visual.key if self.reuse else f"{index}/{visual.key}"

    def _entries(self, window: Sequence[Question], seen: Sequence[tuple[Visual, ...] | None]) -> dict[str, VoCoCache]:
        """The caches of all that the window looks at, by key."""
        wanted: dict[str, tuple[Visual, list[Question]]] = {}
        for i, (question, visuals) in enumerate(zip(window, seen, strict=True)):
            for visual in visuals or ():
                wanted.setdefault(self._key(i, visual), (visual, []))[1].append(question)
        entries = {key: self._kept[key] for key in wanted if key in self._kept}
        missing = [(key, *wanted[key]) for key in wanted if key not in entries]
        for start in range(0, len(missing), self.batch_size):
            some = missing[start : start + self.batch_size]
            entries |= self._compress_some(some)
        if self.reuse:
            self._keep(entries)
        return entries

    def _compress_some(self, some: Sequence[tuple[str, Visual, Sequence[Question]]]) -> dict[str, VoCoCache]:
        def compress(part: Sequence[tuple[str, Visual, Sequence[Question]]]) -> dict[str, VoCoCache]:
            started = time.perf_counter()
            images = [image for _, visual, _ in part for image in visual.images]
            chunks = [images[i : i + self.batch_size] for i in range(0, len(images), self.batch_size)]
            pixels = (self.processor.pixels(chunk).to(self.model.device) for chunk in chunks)
            cache = VoCoCache.cat([self.model.compress(chunk, num_voco=self.num_voco) for chunk in pixels])
            self.counts.compressed += len(images)
            self.counts.model_seconds += time.perf_counter() - started
            found, at = {}, 0
            for key, visual, _ in part:
                found[key] = cache[list(range(at, at + len(visual.images)))]  # a copy: it may outlive the others
                at += len(visual.images)
            return found

        try:
            return compress(some)
        except FAILURES as error:
            if len(some) > 1:
                first, last = some[0][2][0].id, some[-1][2][0].id
                logger.warning("images of %s to %s: %s: one by one", first, last, _line(error))
        found: dict[str, VoCoCache] = {}
        for one in some:
            found |= self._guarded(one[2], lambda one=one: compress([one])) or {}
        return found

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


@torch.inference_mode()
def first_token_seconds(answerer: Answerer, questions: Sequence[Question]) -> dict[str, float | None]:
    """Time to the first token of single questions, in seconds, medians over those given.

    Returns:
        `image`: From the image: seeing (compressing) it and the first token. `cache`: From its cache, under `voco`.
    """
    model, processor, condition = answerer.model, answerer.processor, answerer.condition
    times: dict[str, list[float]] = {"image": [], "cache": []}
    for question in questions:
        visuals = () if condition == "blind" else tuple(see(v, processor.num_frames) for v in question.look())
        images = [image for visual in visuals for image in visual.images] or None
        prompt, cache = [with_marks(question.prompt, visuals)], None
        started = time.perf_counter()
        if condition == "voco" and images:
            cache = model.compress(processor.pixels(images).to(model.device), num_voco=answerer.num_voco)
            images = None
        if model.device.type != "cpu":
            torch.accelerator.synchronize()  # a device works on after the call has returned
        compressed = time.perf_counter()
        shown = "full" if condition == "full" else "voco"
        laid_out = processor(text=prompt, images=images, condition=shown, num_voco=answerer.num_voco)
        generate_texts(model, processor, laid_out, cache, max_new_tokens=1)  # ends in text: the device has finished
        ended = time.perf_counter()
        times["image"].append(ended - started)
        if cache is not None:
            times["cache"].append(ended - compressed)
    return {name: round(statistics.median(found), 6) if found else None for name, found in times.items()}


def generate_texts(
    model: "VoCoLlama",
    processor: "VoCoProcessor",
    laid_out: dict[str, Any],
    cache: VoCoCache | None,
    max_new_tokens: int,
    **generation: Any,
) -> list[str]:
    """Answers to a batch that the processor laid out, as text without special tokens; greedy unless told otherwise."""
    batch = {name: v.to(model.device) if isinstance(v, torch.Tensor) else v for name, v in laid_out.items()}
    generation = {"do_sample": False, **generation}
    ids = model.generate(**batch, cache=cache, max_new_tokens=max_new_tokens, **generation)
    return [text.strip() for text in processor.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
