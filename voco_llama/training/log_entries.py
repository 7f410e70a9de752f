"""What an entry of a training's log says of its speed, by its names there and in words. It imports nothing slow."""

from collections.abc import Mapping

TEXT_SPEED, SEGMENT_SPEED = "text_tokens_per_second", "segment_tokens_per_second"
"""Tokens that the language model computed, of all processes: those of text, without padding, and those of segments (an
image's and its VoCo tokens), in two steps once for all rows of a pass that look at an image, else for each row."""

UTILIZATION = "model_flops_utilization"
"""FLOPs that the method needs (`voco_llama.model.flops`) a second, of those of the device's matrix products."""

PADDING = "padding_share"
"""Of the places of padded rows, those that hold nothing; in two steps these rows are there in attention alone."""

IMAGES, IMAGES_SHOWN = "images_a_step", "images_shown_a_step"
"""Images that a step computed, of all processes, and that its rows show: the more are shown, the more sharing saved."""

DATA_WAIT = "data_wait_share"
"""Of the time since the log entry before, what this process waited for batches; the device may have had work still."""

SPEED = (TEXT_SPEED, SEGMENT_SPEED, UTILIZATION, PADDING, IMAGES, IMAGES_SHOWN, DATA_WAIT)
"""What a log entry says of a training's speed."""


def speed_in_words(logs: Mapping[str, float]) -> list[str]:
    """What a line says of the speed in a log entry, as far as it has any; images only where some are shared."""
    parts = []
    if TEXT_SPEED in logs:
        parts += [
            f"{logs[TEXT_SPEED]:,.0f} text + {logs[SEGMENT_SPEED]:,.0f} segment tokens/s",
            f"MFU {_percent(logs[UTILIZATION])}",
        ]
        if logs[IMAGES] < logs[IMAGES_SHOWN]:
            parts.append(f"{logs[IMAGES]:,.0f} of {logs[IMAGES_SHOWN]:,.0f} images")
        parts.append(f"padding {_percent(logs[PADDING])}")
    return [*parts, f"data {_percent(logs[DATA_WAIT])}"]


def _percent(share: float) -> str:
    return f"{share:.0%}".replace("%", " %")
