"""`voco-llama export`: a checkpoint of any layout written in another one."""

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

from voco_llama.errors import SettingsError
from voco_llama.settings import ExportSettings

if TYPE_CHECKING:
    from voco_llama.data.processor import VoCoProcessor

logger = logging.getLogger(__name__)


def export(settings: ExportSettings) -> Path:
    """Read a checkpoint and write it in another layout, with the processor's files.

    Returns:
        The folder written.

    Raises:
        CheckpointError: The checkpoint cannot be read, or the layout has no place for a part of it.
        SettingsError: The output is in use, or a setting is for LLaVA's folders alone.
    """
    output = Path(settings.output)
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise SettingsError(f"output: {output} is in use: name a new or empty folder")
    from voco_llama.data.processor import VoCoProcessor
    from voco_llama.llava_folder import is_llava
    from voco_llama.model.export import export_llava
    from voco_llama.model.voco_llama import VoCoLlama

    if is_llava(settings.checkpoint):
        options = {"vision_tower": settings.vision_tower, "num_voco": settings.num_voco}
        processor = VoCoProcessor.from_llava(settings.checkpoint, **options)
        model = VoCoLlama.from_llava(settings.checkpoint, **options, dtype=settings.dtype)
    else:
        for key in ("vision_tower", "num_voco"):
            if getattr(settings, key) is not None:
                raise SettingsError(f"{key} is for the folder of a LLaVA, and {settings.checkpoint} is none: remove it")
        processor = VoCoProcessor.from_pretrained(settings.checkpoint)
        model = VoCoLlama.from_pretrained(settings.checkpoint, dtype=settings.dtype)
    output.mkdir(parents=True, exist_ok=True)
    if settings.layout == "voco":
        model.save_pretrained(output)
        processor.save_pretrained(output)
    else:
        export_llava(model, output, settings.layout, processor.style.order)
        _write_processor(processor, output, with_images=settings.layout == "llava_hf")
    logger.info("written: %s", output)
    return output


def _write_processor(processor: "VoCoProcessor", folder: Path, with_images: bool) -> None:
    """Write the tokenizer for LLaVA's own code, or (`with_images`) the whole `LlavaProcessor` of transformers.

    That one pads images to a square as LLaVA does. Its prompts are the caller's to write.
    """
    processor.tokenizer.save_pretrained(folder)
    if not with_images:
        return
    from transformers import LlavaProcessor
    from transformers.models.llava.image_processing_llava import LlavaImageProcessor

    from voco_llama.tokens import IMAGE_TOKEN

    transform = processor.image_transform
    image_processor = LlavaImageProcessor(
        do_pad=True,
        size={"shortest_edge": transform.image_size},
        crop_size={"height": transform.image_size, "width": transform.image_size},
        image_mean=list(transform.mean),
        image_std=list(transform.std),
    )
    LlavaProcessor(
        image_processor=image_processor,
        tokenizer=processor.tokenizer,
        patch_size=transform.image_size // math.isqrt(processor.num_vision),
        vision_feature_select_strategy="default",
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
