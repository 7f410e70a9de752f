"""`ask`: look at an image or a clip once, keep its VoCo cache, and answer any number of questions from it."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch

from voco_llama.data.media.images import load_image
from voco_llama.data.media.video import read_frames
from voco_llama.errors import SettingsError
from voco_llama.evaluation.answering import generate_texts
from voco_llama.evaluation.results import load_checkpoint

logger = logging.getLogger(__name__)


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


@torch.inference_mode()
def ask(settings: AskSettings) -> list[str]:
    """Compress once, then answer every question from the cache.

    Returns:
        The answers, in order.

    Raises:
        CheckpointError: The checkpoint cannot be loaded.
        DataError: The image or the clip cannot be read.
    """
    model, processor = load_checkpoint(settings.checkpoint, settings.device, settings.dtype)
    if settings.image is not None:
        images = [load_image(settings.image)]
    else:
        images = read_frames(settings.video, processor.num_frames)
    cache = model.compress(processor.pixels(images).to(model.device), settings.num_voco)
    logger.info(
        "%s: %d x %d vision tokens became %d VoCo tokens each, %s bytes of keys and values in all",
        settings.image or settings.video,
        len(images),
        processor.num_vision,
        cache.num_voco,
        f"{len(cache) * cache.bytes_per_entry:,}",
    )
    laid_out = processor(text=settings.questions, condition="voco", num_voco=cache.num_voco)
    return generate_texts(model, processor, laid_out, cache, settings.max_new_tokens)
