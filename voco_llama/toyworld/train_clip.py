"""Stage `clip`: a tiny open_clip model learns from captions, so that the frozen tower of later stages means something.

Toy scale only: all pairs are held in memory, and one process trains (the loss contrasts the samples of one batch).
The loss is open_clip's own. Resumable like every stage, and short enough not to need it.

Writes into the run's folder `open_clip_config.json` and `open_clip_model.safetensors`; the folder is then what
`model.vision.name` of the other stages names.
"""

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from open_clip import CLIP, ClipLoss
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, set_seed

from voco_llama.data.media.images import ImageTransform, load_image
from voco_llama.data.records import Record
from voco_llama.errors import DataError, SettingsError, require
from voco_llama.files import write_atomically, written_aside
from voco_llama.model.weights import OPEN_CLIP_WEIGHTS_FILE
from voco_llama.settings import TrainSettings
from voco_llama.training.arguments import training_arguments
from voco_llama.training.batch import GlobalBatch
from voco_llama.training.build import load_tokenizer, open_mixture
from voco_llama.training.checks import check_settings
from voco_llama.training.interrupts import Interrupts
from voco_llama.training.progress import loss_curve
from voco_llama.training.run_folder import RunFolder
from voco_llama.training.run_logs import MetricsLog, process_log
from voco_llama.training.sampling import GroupedSampler
from voco_llama.training.stages import count_parameters, format_table
from voco_llama.training.trainer import VoCoTrainer
from voco_llama.training.watch import Watch
from voco_llama.vision_config import OPEN_CLIP_CONFIG_FILE, read_vision_config

logger = logging.getLogger(__name__)

HELD_OUT_SHARE = 0.05
MAX_HELD_OUT = 200
MAX_PAIRS = 200_000
MAX_LOGIT_SCALE = 100.0
"""CLIP's bound on the inverse temperature."""


class ContrastiveModel(nn.Module):
    """An open_clip model that returns its loss, as the Trainer wants it."""

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.clip = clip
        self.loss = ClipLoss()

    def forward(self, pixel_values: Tensor, text: Tensor) -> dict[str, Tensor]:
        """`[pairs, 3, height, width]` and `[pairs, context_length]` to the loss of matching them."""
        image_features, text_features = self.features(pixel_values, text)
        scale = self.clip.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)
        return {"loss": self.loss(image_features, text_features, scale)}

    def features(self, pixel_values: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors of images and of captions, each `[pairs, embed_dim]`."""
        return self.clip.encode_image(pixel_values, normalize=True), self.clip.encode_text(text, normalize=True)


def train_clip(settings: TrainSettings) -> Path:
    """Train the tower; returns the run's folder, for `model.vision.name`.

    Raises:
        VoCoError: Settings or data cannot be used.
    """
    check_settings(settings)
    run = RunFolder(settings)
    if run.is_finished():
        logger.info("%s is finished: nothing to do", run.path)
        return run.path
    with (
        Interrupts() as interrupts,
        run.taken(),
        process_log(run.path),
        Watch(run.path, settings.stall_limit) as watch,
    ):
        _train_clip(settings, run, interrupts, watch)
        logger.info("trained: %s", run.path)
    return run.path


def _train_clip(settings: TrainSettings, run: RunFolder, interrupts: Interrupts, watch: Watch) -> None:
    arguments = training_arguments(settings)
    watch.start(arguments.world_size)
    checkpoint = run.checkpoint()
    if arguments.world_size > 1 or arguments.gradient_accumulation_steps > 1:
        raise SettingsError("stage clip contrasts the samples of one batch: use one process and no accumulation")
    set_seed(settings.seed)

    config, tokenizer = read_vision_config(settings.model.vision.name), load_tokenizer(settings.model.tokenizer)
    check_captions(tokenizer, config, settings.model.vision.name)
    pairs = read_pairs(settings, config, tokenizer)
    num_held_out = min(MAX_HELD_OUT, int(len(pairs) * HELD_OUT_SHARE))
    held_out, trained = pairs[:num_held_out], pairs[num_held_out:]
    if len(trained) < arguments.per_device_train_batch_size or num_held_out < 2:
        raise DataError(f"stage clip needs more than {len(pairs)} pairs for batches of {arguments.train_batch_size}")

    run.begin()
    model = ContrastiveModel(build_clip(config))
    logger.info("what trains:\n%s", format_table(count_parameters(model.clip)))
    order = GroupedSampler(
        "none", torch.ones(len(trained)), torch.zeros(len(trained)), arguments.train_batch_size, settings.seed
    )
    trainer = VoCoTrainer(
        origin=run.origin(GlobalBatch.of(settings, processes=1), len(trained)),
        order=order,
        model=model,
        args=arguments,
        train_dataset=trained,
        interrupts=interrupts,
        watch=watch,
        callbacks=[MetricsLog(run.path)],
    )
    started = time.perf_counter()
    trainer.train_from(checkpoint)
    accuracy = retrieval_accuracy(model, held_out)
    shown = ", ".join(f"{name} {value:.1%}" for name, value in accuracy.items())
    logger.info("retrieval among %d held-out pairs: %s", num_held_out, shown)
    save_clip(model.clip, config, run.path)
    run.finish(
        {
            "stage": "clip",
            "steps": trainer.state.global_step,
            "seconds": time.perf_counter() - started,
            "loss_curve": loss_curve(trainer.state.log_history),
            "retrieval_accuracy": accuracy,
            "held_out_pairs": num_held_out,
        }
    )


def check_captions(tokenizer: PreTrainedTokenizerBase, config: dict[str, Any], where: str) -> None:
    """Refuse a tokenizer whose tokens the text tower has no embeddings for.

    Raises:
        SettingsError: Of what the tower's configuration or the tokenizer lacks.
    """
    require("text_cfg" in config, f"model.vision.name: {where} has no text_cfg: give one of a whole open_clip model")
    ends = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    missing = [name for name, token in ends.items() if token is None]
    require(not missing, f"model.tokenizer has no {' and no '.join(missing)} token: give the toy world's")
    rows = config["text_cfg"]["vocab_size"]
    require(
        len(tokenizer) <= rows,
        f"model.tokenizer has {len(tokenizer)} tokens, and the text tower of {where} {rows} embeddings: give the"
        " tokenizer that it was made for",
    )


def build_clip(config: dict[str, Any]) -> CLIP:
    """A fresh open_clip model of a model configuration."""
    return CLIP(
        embed_dim=config["embed_dim"],
        vision_cfg=config["vision_cfg"],
        text_cfg=config["text_cfg"],
        quick_gelu=config.get("quick_gelu", False),
    )


def save_clip(clip: CLIP, config: dict[str, Any], folder: Path) -> None:
    """Write what `open_clip.create_model('local-dir:<folder>')` and `model.vision.name=<folder>` read."""
    transform = ImageTransform(config["vision_cfg"]["image_size"])
    preprocess = {"mean": list(transform.mean), "std": list(transform.std), "resize_mode": "longest"}
    weights = {name: value.detach().cpu().contiguous() for name, value in clip.state_dict().items()}
    with written_aside(folder / OPEN_CLIP_WEIGHTS_FILE) as aside:
        save_file(weights, str(aside))
    described = {"model_cfg": config, "preprocess_cfg": preprocess}  # last: by it the folder counts as a tower
    write_atomically(folder / OPEN_CLIP_CONFIG_FILE, json.dumps(described, indent=2) + "\n")


def read_pairs(
    settings: TrainSettings, config: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Tensor]]:
    """Every (image, caption) of the data: `pixel_values` `[3, H, W]` and `text` `[context_length]` int64.

    Raises:
        DataError: A record has no image of its own, or there are too many for memory.
    """
    mixture = open_mixture(settings)
    if len(mixture) > MAX_PAIRS:
        raise DataError(f"stage clip holds all pairs in memory and takes {MAX_PAIRS} at most, not {len(mixture)}")
    transform = ImageTransform(config["vision_cfg"]["image_size"])
    text_config = config["text_cfg"]

    def load(record: Record) -> dict[str, Tensor]:
        if len(record.images) != 1 or record.turns[-1].role != "assistant":
            raise DataError(f"{record.source}: stage clip needs records of one image and its caption")
        ids = encode_caption(record.turns[-1].text, tokenizer, text_config["context_length"])
        try:
            image = load_image(record.images[0])
        except DataError as error:
            raise DataError(f"{record.source}: {error}") from error
        return {"pixel_values": transform(image), "text": ids}

    return [mixture.try_load(index, load) for index in range(len(mixture))]


def encode_caption(caption: str, tokenizer: PreTrainedTokenizerBase, context_length: int) -> Tensor:
    """`<s> caption </s>`, cut or padded to `[context_length]` int64; its end is always the end token."""
    ids = tokenizer(caption.strip(), add_special_tokens=False)["input_ids"][: context_length - 2]
    ids = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
    return torch.tensor(ids + [tokenizer.pad_token_id] * (context_length - len(ids)))


@torch.no_grad()
def retrieval_accuracy(model: ContrastiveModel, pairs: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """Share of images that find their caption, and of captions that find their image; equal captions count as one."""
    model.eval()
    device = next(model.parameters()).device
    text = torch.stack([pair["text"] for pair in pairs]).to(device)
    images, captions = model.features(torch.stack([pair["pixel_values"] for pair in pairs]).to(device), text)
    similarity = images @ captions.T
    found = {"image_to_text": similarity.argmax(dim=1), "text_to_image": similarity.argmax(dim=0)}
    return {name: (text[index] == text).all(dim=1).float().mean().item() for name, index in found.items()}
