"""Which way a forward pass goes: in two steps, or whole rows under a mask (`TrainSettings.two_steps`)."""

from transformers.utils import is_flash_attn_2_available

from voco_llama.errors import require
from voco_llama.packing import TEXT_BEFORE_IMAGE
from voco_llama.settings import TrainSettings

MODELS_BESIDE = ("checkpoint", "adapters_off")
"""Teachers that are models at hand."""

IMAGES_FIRST = ("first", "authors")
"""Orders of a prompt in which no text stands before an image."""


def uses_two_steps(settings: TrainSettings) -> bool:
    """Whether the training goes in two steps."""
    return settings.two_steps is not False and _cannot(settings) is None


def check_passes(settings: TrainSettings) -> None:
    """Refuse a pass that cannot be, and an attention that cannot express it.

    Raises:
        SettingsError: It says why.
    """
    reason = _cannot(settings)
    require(settings.two_steps is not True or reason is None, f"two_steps=true: {reason}")
    if settings.model.attention != "flash_attention_2":
        return
    require(
        uses_two_steps(settings),
        "model.attention=flash_attention_2 cannot express the VoCo mask and would let text see the image: use sdpa,"
        " eager or flex_attention, or train in two steps" + (f" ({reason})" if reason else " (two_steps=true)"),
    )
    require(
        settings.loss.teacher not in MODELS_BESIDE or settings.prompt.order in IMAGES_FIRST,
        "model.attention=flash_attention_2 cannot express the mask under which the teacher reads text before an image:"
        f" set prompt.order to one of {', '.join(IMAGES_FIRST)}, or use sdpa",
    )
    require(
        settings.compression.segment_attention == "causal",
        "model.attention=flash_attention_2 is causal: set compression.segment_attention=causal, or use sdpa",
    )


def check_flash_is_here(settings: TrainSettings) -> None:
    """Refuse flash attention where the package is missing (`SettingsError`)."""
    require(
        settings.model.attention != "flash_attention_2" or is_flash_attn_2_available(),
        "model.attention=flash_attention_2 needs the package flash-attn and a GPU, which are not here: use sdpa, whose"
        " kernels are flash attention's too where there is no mask, as in two steps",
    )


def _cannot(settings: TrainSettings) -> str | None:
    """Why it cannot go in two steps; None: it can."""
    before_image = settings.compression.condition == "full" and settings.prompt.order not in IMAGES_FIRST
    if before_image and settings.stage.name != "language":
        return f"prompt.order={settings.prompt.order}: {TEXT_BEFORE_IMAGE}"
    return None
