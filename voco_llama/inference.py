"""A checkpoint that answers: images compressed in batches, questions laid out, answers generated.

Whatever asks a saved model stands on `Inference`: the commands `ask`, `evaluate` and `evaluate-clips`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from voco_llama.choices import CONDITIONS, DTYPES, Condition, require_choice
from voco_llama.data.conversations import Conversation, Prompt, conversations_of
from voco_llama.errors import SettingsError, one_line, require
from voco_llama.llava_folder import adapter_base, check_is_model
from voco_llama.model.cache import VoCoCache
from voco_llama.model.quality import QUALITY_FILE
from voco_llama.provenance import SAMPLED, fingerprint_files

if TYPE_CHECKING:
    from voco_llama.configuration import VoCoLlamaConfig
    from voco_llama.data.processor import VoCoProcessor
    from voco_llama.model.voco_llama import VoCoLlama

logger = logging.getLogger(__name__)

PROMPTS = (".jinja", ".model")
"""Suffixes of files that decide what a question is to the model: chat templates, tokenizers of SentencePiece."""


@dataclass(frozen=True)
class Inference:
    """A model in evaluation mode on its device, and the processor saved with it."""

    model: "VoCoLlama"
    processor: "VoCoProcessor"

    @classmethod
    def load(cls, folder: Path, device: str | None = None, dtype: str = "auto") -> "Inference":
        """What `save_pretrained` of model and processor wrote, ready to answer.

        Args:
            folder: Of the checkpoint.
            device: None: the GPU if there is one, else the CPU.
            dtype: Of the weights and the caches; `auto`: as saved.

        Raises:
            CheckpointError: The folder holds no saved model.
            SettingsError: There is no such device or dtype.
        """
        from voco_llama.data.processor import VoCoProcessor
        from voco_llama.model.voco_llama import VoCoLlama

        check_is_model(Path(folder))
        require_choice("dtype", dtype, ("auto", *DTYPES, "float64"))
        usable = find_device(device)
        processor = VoCoProcessor.from_pretrained(folder)
        model = VoCoLlama.from_pretrained(str(folder), dtype=dtype)
        return cls(model.to(usable).eval(), processor)

    def check_condition(self, condition: str, num_voco: int | None = None) -> None:
        """Refuse to call whole what a compressor outside the language model has left of an image (`SettingsError`).

        Of more VoCo tokens than training had, a warning tells.
        """
        config, compressor = self.model.config, self.model.config.compressor
        require(
            condition != "full" or compressor == "language_model",
            f"condition=full: the language model sees nothing of an image but what the {compressor} makes of it: leave"
            " condition out",
        )
        if condition == config.condition == "voco" and num_voco is not None and num_voco > config.num_voco:
            had = config.num_voco
            logger.warning("num_voco=%d: in training an image had %d VoCo tokens, never so many", num_voco, had)

    def check_frames(self, num_frames: int, condition: str, num_voco: int | None = None) -> None:
        """Refuse more frames than the language model has positions for, before any is read.

        Raises:
            SettingsError: It names the tokens, the positions, and what to set.
        """
        from voco_llama.configuration import max_positions  # transformers is slow to import

        shape, limit = self.model.config.segment_shape(num_voco), max_positions(self.model.config.text_config)
        tokens = num_frames * (shape.num_voco + (shape.num_compressed if condition == "full" else 0))
        if limit is not None and tokens >= limit:
            raise SettingsError(
                f"num_frames={num_frames}: the frames of a clip are {tokens:,} tokens under condition {condition}, and"
                f" the language model was made for {limit:,} (max_position_embeddings), the question among them: lower"
                f" num_frames{' or num_voco' if condition == 'voco' else ', or set condition=voco'}"
            )

    @torch.inference_mode()
    def compress(
        self,
        images: Sequence[Image.Image] | Image.Image,
        num_voco: int | None = None,
        batch_size: int | None = None,
        condition: Condition | None = None,
        quality: float | None = None,
    ) -> VoCoCache:
        """A cache with one entry an image.

        Args:
            images: At least one.
            num_voco: VoCo tokens an image; the model's own number by default.
            batch_size: Images to compress at a time; by default all.
            condition: Under which the cache is to be read. None: the one that the model was trained with. `voco`: so be
                it, also with weights trained with `full`, whose VoCo tokens have learned nothing: the lower bound.
            quality: Have each image choose its number of VoCo tokens, `num_voco` at most (`VoCoLlama.compress`).

        Raises:
            SettingsError: The model was trained with `full` and `voco` is not asked for, or it cannot make that number
                of tokens.
        """
        require(
            (condition or self.model.config.condition) == "voco",
            "the model was trained with condition full, so that a cache holds VoCo tokens that learned nothing: let it"
            " see the images (answer(..., images=...)), or ask for that lower bound with condition='voco'",
        )
        images = [images] if isinstance(images, Image.Image) else images
        require(len(images) > 0, "there is no image to compress: pass at least one")
        size = batch_size or len(images)
        chunks = (self.processor.pixels(images[i : i + size]) for i in range(0, len(images), size))
        how = {"num_voco": num_voco, "quality": quality}
        return VoCoCache.cat([self.model.compress(c.to(self.model.device), **how) for c in chunks])

    @torch.inference_mode()
    def answer(
        self,
        prompts: Prompt | Sequence[Prompt],
        cache: VoCoCache | None = None,
        images: Sequence[Image.Image] | Image.Image | None = None,
        condition: Condition | None = None,
        num_voco: int | None = None,
        max_new_tokens: int = 64,
        counts: Sequence[int] | None = None,
        **generation: Any,
    ) -> list[str]:
        """Answers to a batch of questions, without special tokens; greedy unless told otherwise.

        Args:
            prompts: What the users say, each a text, or a list of messages that ends with the question
                (`voco_llama.data.conversations`). Marks `<image>` say where images stand
                (`voco_llama.data.prompts.with_marks`): a question looks at its images with marks and without, and at
                none if there are none.
            cache: What text reads under `voco`; its entries may have unequal numbers of VoCo tokens.
            images: In place of a cache, what it sees under `full`; under `voco` they are compressed first.
            condition: Of the layout and the mask. None: `voco` with a cache, else the one that the model was trained
                with.
            num_voco: VoCo tokens an image; the cache's, or the model's own, by default.
            max_new_tokens: Length limit of an answer.
            counts: How many images, or entries of the cache, each question looks at, one question after another. None:
                each looks at all; only where every question has marks, and they are as many as the images together,
                or where none has any and there is an image (no cache) for each, each looks at its own.
            **generation: Passed on to `generate` of transformers.

        Raises:
            SettingsError: Arguments contradict each other.
            DataError: A question with its images is too long for the model, or messages are no conversation.
        """
        conversations = conversations_of(prompts)
        require(len(conversations) > 0, "there is no question: pass at least one")
        images = [images] if isinstance(images, Image.Image) else images
        require(cache is None or not images, "pass either images or a cache, not both")
        condition = condition or ("voco" if cache is not None else self.model.config.condition)
        require_choice("condition", condition, CONDITIONS)
        seen = looked_at(conversations, len(images or ()) if cache is None else len(cache), cache is None, counts)
        conversations = [one.looking_at([1] * len(places)) for one, places in zip(conversations, seen, strict=True)]
        order = [place for places in seen for place in places]
        if condition == "voco" and images:
            cache, images = self.compress(images, num_voco, condition="voco"), None
        if cache is not None:
            cache = cache if order == list(range(len(cache))) else cache[order]
        shown = [images[place] for place in order] if images else None
        numbers = num_voco if cache is None or num_voco is not None else cache.counts
        laid_out = self.processor(text=conversations, images=shown, condition=condition, num_voco=numbers)
        batch = {name: v.to(self.model.device) if isinstance(v, torch.Tensor) else v for name, v in laid_out.items()}
        generation = {"do_sample": False, "max_new_tokens": max_new_tokens, **generation}
        ids = self.model.generate(**batch, cache=cache, **generation)
        return [text.strip() for text in self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def find_device(name: str | None) -> torch.device:
    """The device of that name; None: the GPU if there is one.

    Raises:
        SettingsError: It cannot be used.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=name).item()
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # as builds and drivers have it
        raise SettingsError(f"device={name} cannot be used ({one_line(error)}): set cpu, or cuda:0") from error


def looked_at(
    conversations: Sequence[Conversation], number: int, are_images: bool, counts: Sequence[int] | None = None
) -> list[Sequence[int]]:
    """Which of so many images, or entries of a cache, each question looks at (see `Inference.answer`).

    Raises:
        SettingsError: `counts` is not about these questions and images.
    """
    marks = [one.num_marks for one in conversations]
    if counts is None and all(marks) and sum(marks) == number:
        counts = marks
    elif counts is None and are_images and not any(marks) and len(conversations) == number:
        counts = [1] * number
    if counts is None:
        return [range(number)] * len(conversations)
    require(
        len(counts) == len(conversations) and sum(counts) == number,
        f"counts {list(counts)} is not about {len(conversations)} questions and {number} images: give a number for each"
        " question, as many images together",
    )
    ends = accumulate(counts, initial=0)
    return [range(*bounds) for bounds in pairwise(ends)]


def saved_config(folder: Path) -> "VoCoLlamaConfig":
    """The configuration of a checkpoint's model; no weights are read."""
    from voco_llama.configuration import VoCoLlamaConfig  # transformers is slow to import

    return VoCoLlamaConfig.from_pretrained(folder)


def head_fingerprint(folder: Path) -> str | None:
    """A hash of the head beside a checkpoint that chooses numbers of VoCo tokens; None: there is none."""
    file = Path(folder) / QUALITY_FILE
    return fingerprint_files([file]) if file.is_file() else None


def checkpoint_fingerprint(folder: Path) -> str:
    """A hash of the saved weights and of the files beside them that say how to ask, of adapters and base."""
    folders = dict.fromkeys((Path(folder), adapter_base(Path(folder))))  # in this order: names may be in both
    files = (file for place in folders for file in place.iterdir() if file.suffix in (*SAMPLED, *PROMPTS))
    return fingerprint_files(file for file in files if file.is_file())
