"""How many VoCo tokens an image needs: a small network that reads them, and says how far fewer would lead answers off.

An image compressed to N tokens holds the caches of 1, 2, ... N tokens too (`VoCoCache.truncate`). A `QualityHead` reads
the values of its VoCo tokens in one late layer, and predicts for some numbers n the divergence

    D(n) = mean over questions of KL(answer read through all N || answer read through the first n)

in nats an answer token. It falls with n, to 0 at N, by its form: a number's own part is added to those of all larger
ones, and none is negative. The fewest tokens that are predicted to stay within the divergence allowed are kept.

`voco-llama fit-quality` fits a head to a checkpoint (`voco_llama.fit_quality`) and saves it beside the weights.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from voco_llama.errors import CheckpointError, SettingsError, refused_as, shown
from voco_llama.files import written_aside
from voco_llama.model.cache import VoCoCache

QUALITY_FILE = Path("quality", "head.safetensors")
"""Below a checkpoint's folder; not beside its weights, so that their fingerprint stays what it was."""
FORMAT = "voco_llama.quality"
FORMAT_VERSION = 1
HIDDEN, PROJECTED, DROPPED = 64, 32, 0.2
WATCHED_EVERY = 20
"""Steps of fitting."""


@dataclass(frozen=True)
class HeadShape:
    """What a head is made for.

    Attributes:
        numbers: Numbers of VoCo tokens to choose from, rising; the last is N.
        layer: Whose values it reads.
        width: Numbers of a token's values there.
    """

    numbers: tuple[int, ...]
    layer: int
    width: int

    def fits(self, kv_shape: tuple[int, int, int]) -> bool:
        """Whether it can be that of a head for caches of so many layers, heads, numbers a head."""
        layers, heads, dimension = kv_shape
        are_whole = all(type(number) is int for number in (*self.numbers, self.layer, self.width))
        rise = are_whole and list(self.numbers) == sorted(set(self.numbers)) and self.numbers[:1] > (0,)
        return rise and 0 <= self.layer < layers and self.width == heads * dimension


class QualityHead(nn.Module):
    """See the module.

    Attributes:
        shape: What it is made for.
        fingerprint: Of the model that it was fitted to.
    """

    def __init__(self, shape: HeadShape, fingerprint: str) -> None:
        super().__init__()
        self.shape, self.fingerprint = shape, fingerprint
        most = shape.numbers[-1]
        self.project = nn.Linear(shape.width, PROJECTED)
        self.hidden = nn.Linear(most * PROJECTED, HIDDEN)
        self.out = nn.Linear(HIDDEN, len(shape.numbers) - 1)
        self.register_buffer("mean", torch.zeros(most, shape.width))
        self.register_buffer("scale", torch.ones(most, shape.width))

    def features(self, cache: VoCoCache) -> Tensor:
        """What it reads of entries of N tokens: float32 `[entries, N, width]`."""
        values = cache.values[self.shape.layer].flatten(1).float()
        return values.unflatten(0, (len(cache), self.shape.numbers[-1]))

    def forward(self, features: Tensor) -> Tensor:
        """The divergences at all numbers but N, `[entries, numbers - 1]`, in nats an answer token."""
        features = functional.dropout((features - self.mean) / self.scale, DROPPED, self.training)
        hidden = functional.dropout(functional.gelu(self.project(features)).flatten(1), DROPPED, self.training)
        parts = functional.softplus(self.out(functional.gelu(self.hidden(hidden))))
        return parts.flip(1).cumsum(1).flip(1)

    @torch.no_grad()
    def choose(self, cache: VoCoCache, quality: float) -> list[int]:
        """For each entry, of N tokens, the fewest tokens that keep within a divergence of `quality`."""
        predicted = self.to(cache.values.device)(self.features(cache))
        enough = functional.pad(predicted <= quality, (0, 1), value=True)  # all N are
        return [self.shape.numbers[place] for place in enough.long().argmax(dim=1).tolist()]

    def save(self, folder: str | Path, found: dict[str, object]) -> Path:
        """Write it into a checkpoint's folder, whole or not at all; `found` is what is known of it besides."""
        described = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "fingerprint": self.fingerprint,
            **asdict(self.shape),
            "found": found,
        }
        file = Path(folder) / QUALITY_FILE
        file.parent.mkdir(exist_ok=True)
        with written_aside(file) as aside:
            save_file(self.state_dict(), aside, metadata={"voco_llama": json.dumps(described)})
        return file

    @classmethod
    def load(cls, folder: str | Path, kv_shape: tuple[int, int, int]) -> "QualityHead | None":
        """That of a checkpoint's folder, whose caches have so many layers, heads, numbers a head; None: it has none.

        Raises:
            CheckpointError: It is damaged, of another version, or no head of such caches.
        """
        file = Path(folder) / QUALITY_FILE
        if not file.is_file():
            return None
        advice = "it is damaged or of another version; remove it and fit it again (voco-llama fit-quality)"
        with refused_as(CheckpointError, file, advice), safe_open(str(file), framework="pt") as opened:
            described = json.loads(opened.metadata()["voco_llama"])
            if (described["format"], described["format_version"]) != (FORMAT, FORMAT_VERSION):
                raise ValueError(f"format {described['format']} {described['format_version']}")
            shape, own = HeadShape(tuple(described["numbers"]), described["layer"], described["width"]), described
            if not (isinstance(own["fingerprint"], str) and shape.fits(kv_shape)):
                raise ValueError(f"{shape} of {shown(own['fingerprint'])}")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            with torch.device("meta"):  # else what the file says would decide how much memory is taken
                head = cls(shape, own["fingerprint"])
            head.load_state_dict(tensors, assign=True)
            if not all(tensor.dtype == torch.float32 and bool(tensor.isfinite().all()) for tensor in tensors.values()):
                raise ValueError("it has weights that are no float32 numbers")
        return head.eval()


class Choosing:
    """What a model does with its head."""

    _quality_heads: tuple[QualityHead, ...] = ()
    """One or none; in a tuple it is no part of the model: not saved, moved or trained with it."""

    @property
    def quality_head(self) -> QualityHead | None:
        """What chooses how many VoCo tokens an image needs; `from_pretrained` finds that of the checkpoint."""
        return self._quality_heads[0] if self._quality_heads else None

    def set_quality_head(self, head: QualityHead | None) -> None:
        """Have images choose their numbers by this head; `save_pretrained` leaves it out: it is of these weights."""
        self._quality_heads = () if head is None else (head,)

    def check_quality_head(self, quality: float, fingerprint: str | None = None) -> QualityHead:
        """The head that makes a choice of numbers of VoCo tokens.

        Args:
            quality: What is asked of it.
            fingerprint: Of the model; None: it is not compared.

        Raises:
            SettingsError: There is no head.
            CheckpointError: It was fitted to other weights.
        """
        if self.quality_head is None:
            raise SettingsError(
                f"quality={quality}: the checkpoint has no head that chooses numbers of VoCo tokens: fit one to it"
                " (voco-llama fit-quality), or give num_voco"
            )
        if fingerprint not in (None, self.quality_head.fingerprint):
            raise CheckpointError(
                "the head that chooses numbers of VoCo tokens was fitted to other weights: fit it again (voco-llama"
                " fit-quality)"
            )
        return self.quality_head


def numbers_up_to(most: int) -> tuple[int, ...]:
    """Numbers of tokens to choose from: each a third above the one before, at least by one, and `most`."""
    found = [1]
    while found[-1] < most:
        found.append(min(most, found[-1] + max(1, found[-1] // 3)))
    return tuple(found)


def divergences(whole: Tensor, fewer: Tensor) -> Tensor:
    """KL(whole || fewer) of next-token logits, `[tokens, vocabulary]` each, in nats: float32 `[tokens]`."""
    log_whole, log_fewer = (functional.log_softmax(logits.float(), dim=-1) for logits in (whole, fewer))
    return functional.kl_div(log_fewer, log_whole, reduction="none", log_target=True).sum(-1)


def fit_head(
    head: QualityHead,
    features: Tensor,
    measured: Tensor,
    watched: Tensor,
    steps: int,
    seed: int = 0,
    batch_size: int = 256,
) -> float:
    """Fit a head to measured divergences.

    The loss, a Poisson likelihood, is least where the prediction is the mean of what was measured, as a mean over
    questions is wanted; the squared error would look at the largest alone. One question says little of an image, so
    that a head soon learns the questions by heart: it is left as it was when watched rows were predicted best.

    Args:
        head: A new one.
        features: `[rows, N, width]`, of `QualityHead.features`.
        measured: `[rows, numbers - 1]`: of one question each.
        watched: bool `[rows]`: those that are not learned from.
        steps: Of AdamW.
        seed: Decides the order of the rows.
        batch_size: Rows a step.

    Returns:
        The loss on watched rows.
    """
    head.mean.copy_(features.mean(0))
    head.scale.copy_(features.std(0) + 1e-3 * features.std())
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(head.parameters(), lr=2e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    learned, best, kept = (~watched).nonzero()[:, 0], math.inf, head.state_dict()
    for step in range(1, steps + 1):
        rows = learned[torch.randint(len(learned), (min(batch_size, len(learned)),), generator=generator)]
        with torch.enable_grad():
            loss = _loss(head.train()(features[rows]), measured[rows])
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        schedule.step()
        if step % WATCHED_EVERY == 0 or step == steps:
            with torch.no_grad():
                now = float(_loss(head.eval()(features[watched]), measured[watched]))
            if now < best:
                best, kept = now, {name: value.clone() for name, value in head.state_dict().items()}
    head.load_state_dict(kept)
    return best


def _loss(predicted: Tensor, measured: Tensor) -> Tensor:
    return functional.poisson_nll_loss(predicted, measured, log_input=False, eps=1e-6)


class Outcome(NamedTuple):
    """What a divergence allowed leads to.

    Attributes:
        tokens: The mean number of tokens kept.
        divergence: The mean divergence that was measured there.
        dealt_out: The same if the numbers were dealt out to the images at random: a head that knows nothing has that.
    """

    tokens: float
    divergence: float
    dealt_out: float


def outcome(predicted: Tensor, measured: Tensor, numbers: Sequence[int], quality: float) -> Outcome:
    """Of rows of which divergences, `[rows, numbers - 1]`, were predicted and measured."""
    place = functional.pad(predicted <= quality, (0, 1), value=True).long().argmax(dim=1)
    measured = functional.pad(measured, (0, 1))
    shares = torch.bincount(place, minlength=len(numbers)) / len(place)
    tokens = torch.tensor(numbers, dtype=torch.float)[place].mean()
    found = measured.gather(1, place[:, None]).mean()
    return Outcome(float(tokens), float(found), float(shares @ measured.mean(0)))
