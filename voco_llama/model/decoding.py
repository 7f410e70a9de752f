"""What `generate` of transformers needs to go on from prompts of ours: where rows end, what is streamed."""

from typing import Any

from torch import Tensor
from transformers import StoppingCriteria
from transformers.generation import BaseStreamer


class LastPosition(StoppingCriteria):
    """Ends each row with the first token that has no position in the language model.

    Attributes:
        real: bool `[batch, length]`, the tokens of the prompts that have positions.
        limit: Number of positions.
    """

    def __init__(self, real: Tensor, limit: int) -> None:
        self.length, self.room = real.shape[1], limit - real.sum(dim=1)

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Which rows end, bool; `input_ids` are `[batch x copies, length]`, since beams are copies of rows."""
        room = self.room.repeat_interleave(input_ids.shape[0] // len(self.room))
        return input_ids.shape[1] - self.length > room


class NewTokens(BaseStreamer):
    """Hands a streamer the new tokens alone: an empty prompt first, since some leave out what comes first."""

    def __init__(self, streamer: BaseStreamer) -> None:
        self.streamer, self.is_prompt = streamer, True

    def put(self, value: Tensor) -> None:
        """The prompt of all rows, `[batch, length]`, then a token a row, `[batch]`."""
        self.streamer.put(value[:, :0] if self.is_prompt else value)
        self.is_prompt = False

    def end(self) -> None:
        """No more come."""
        self.streamer.end()
