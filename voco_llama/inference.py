"""A checkpoint that answers: images compressed in batches, questions laid out, answers generated; and `voco-llama ask`.

Whatever asks a saved model stands on `Inference`: the commands `ask`, `evaluate` and `evaluate-clips`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from voco_llama.choices import Condition
from voco_llama.data.media.images import load_image
from voco_llama.data.media.video import read_frames
from voco_llama.errors import SettingsError
from voco_llama.llava_folder import adapter_base, check_is_model
from voco_llama.model.cache import VoCoCache
from voco_llama.provenance import SAMPLED, fingerprint_files

if TYPE_CHECKING:
    from voco_llama.data.processor import VoCoProcessor
    from voco_llama.model.voco_llama import VoCoLlama

logger = logging.getLogger(__name__)


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
        """
        from voco_llama.data.processor import VoCoProcessor
        from voco_llama.model.voco_llama import VoCoLlama

        check_checkpoint(folder)
        processor = VoCoProcessor.from_pretrained(folder)
        model = VoCoLlama.from_pretrained(str(folder), dtype=dtype)
        return cls(model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval(), processor)

    @torch.inference_mode()
    def compress(
        self, images: Sequence[Image.Image], num_voco: int | None = None, batch_size: int | None = None
    ) -> VoCoCache:
        """A cache with one entry an image, of `num_voco` tokens (by default the model's own number).

        At least one image is given; `batch_size` are compressed at a time, by default all.
        """
        size = batch_size or len(images)
        chunks = (self.processor.pixels(images[i : i + size]) for i in range(0, len(images), size))
        return VoCoCache.cat([self.model.compress(c.to(self.model.device), num_voco=num_voco) for c in chunks])

    @torch.inference_mode()
    def answer(
        self,
        prompts: Sequence[str],
        cache: VoCoCache | None = None,
        images: Sequence[Image.Image] | None = None,
        condition: Condition = "voco",
        num_voco: int | None = None,
        max_new_tokens: int = 64,
        **generation: Any,
    ) -> list[str]:
        """Answers to a batch of questions, without special tokens; greedy unless told otherwise.

        Args:
            prompts: What the user says; each mark `<image>` reads an entry of the cache or sees an image, in order, and
                prompts without any mark read all of the cache.
            cache: What text reads under `voco`.
            images: What it sees under `full`; under `voco` they are compressed first.
            condition: Of the layout and the mask.
            num_voco: VoCo tokens an image; the cache's, or the model's own, by default.
            max_new_tokens: Length limit of an answer.
            **generation: Passed on to `generate` of transformers.
        """
        if num_voco is None and cache is not None:
            num_voco = cache.num_voco
        laid_out = self.processor(text=prompts, images=images or None, condition=condition, num_voco=num_voco)
        batch = {name: v.to(self.model.device) if isinstance(v, torch.Tensor) else v for name, v in laid_out.items()}
        generation = {"do_sample": False, "max_new_tokens": max_new_tokens, **generation}
        ids = self.model.generate(**batch, cache=cache, **generation)
        return [text.strip() for text in self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def check_checkpoint(folder: Path) -> None:
    """Refuse a folder without a saved model (`CheckpointError`)."""
    check_is_model(Path(folder))


def checkpoint_fingerprint(folder: Path) -> str:
    """A hash of the saved weights and of the configuration and processor files beside them, of adapters and base."""
    folders = dict.fromkeys((Path(folder), adapter_base(Path(folder))))  # in this order: names may be in both
    return fingerprint_files(f for place in folders for f in place.iterdir() if f.suffix in SAMPLED and f.is_file())


@dataclass(frozen=True)
class AskSettings:
    """What to ask.

    Attributes:
        checkpoint: Folder of a saved model and its processor.
        image: An image file; exactly one of `image` and `video` is given.
        video: A clip; its frames are compressed one by one.
        questions: At least one.
        num_voco: VoCo tokens an image or frame; None: as many as the checkpoint was trained with.
        max_new_tokens: Length limit of an answer.
        device: None: the GPU if there is one.
        dtype: Of the weights and the cache; `auto`: as saved.
    """

    checkpoint: Path
    image: Path | None = None
    video: Path | None = None
    questions: list[str] = field(default_factory=list)
    num_voco: int | None = None
    max_new_tokens: int = 64
    device: str | None = None
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if (self.image is None) == (self.video is None):
            raise SettingsError("name one thing to look at: either image=FILE or video=FILE")
        if not self.questions:
            raise SettingsError("there is no question: give questions='[\"What is this?\"]'")


def ask(settings: AskSettings) -> list[str]:
    """Compress an image or a clip once, then answer every question from its cache.

    Returns:
        The answers, in order.

    Raises:
        CheckpointError: The checkpoint cannot be loaded.
        DataError: The image or the clip cannot be read.
    """
    inference = Inference.load(settings.checkpoint, settings.device, settings.dtype)
    if settings.image is not None:
        images = [load_image(settings.image)]
    else:
        images = read_frames(settings.video, inference.processor.num_frames)
    cache = inference.compress(images, settings.num_voco)
    logger.info(
        "%s: %d x %d vision tokens became %d VoCo tokens each, %s bytes of keys and values in all",
        settings.image or settings.video,
        len(images),
        inference.processor.num_vision,
        cache.num_voco,
        f"{len(cache) * cache.bytes_per_entry:,}",
    )
    return inference.answer(settings.questions, cache, max_new_tokens=settings.max_new_tokens)
