"""A Trainer that goes on from a checkpoint of other processes, another backend, or another accumulation.

The order of rows is one for all processes, and elastic draws go by a row's place in the global batch; so all that is
asked of a division is the same global batch, and an epoch that ends at the same row (`going_on`). What the same backend
in as many processes wrote is loaded as that backend loads it, bit by bit; of anything else the weights, AdamW's moments
and the float32 weights are carried over, one tensor at a time.
"""

import logging
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from transformers import set_seed

from voco_llama.errors import CheckpointError, SettingsError, one_line, refused_as
from voco_llama.model.weights import read_weights
from voco_llama.sharding import OFFLOAD, Fsdp, Sharding, Zero
from voco_llama.sharding.carry import set_states, set_weights, set_zero_states
from voco_llama.sharding.states import read_states
from voco_llama.training.manifest import Manifest, Origin
from voco_llama.training.saving import SCHEDULER_FILE, SavingTrainer

logger = logging.getLogger(__name__)


def going_on(origin: Origin, checkpoint: Path | None, is_named: bool = False) -> Origin:
    """What checkpoints of a training say that goes on from one: an epoch is as long as it was there.

    Args:
        origin: As the settings have it.
        checkpoint: None: the training begins.
        is_named: Whether the user named it, so that it may be of another run.

    Raises:
        SettingsError: The global batch is another one, or its passes do not end where an epoch ended; what is offloaded
            would have to be carried over, or what is older than manifests; or a named one was made otherwise.
    """
    if checkpoint is None:
        return origin
    made = Manifest.read(checkpoint)
    if made is None:
        _check_loads_it(checkpoint, origin)
        return origin
    if is_named and (made.origin.settings, made.origin.seed, made.origin.records) != (
        origin.settings,
        origin.seed,
        origin.records,
    ):
        raise SettingsError(
            f"resume={checkpoint} was made with other settings, seed or data, which would stay in force: give those, or"
            " begin from its weights alone with model.checkpoint"
        )
    if is_carried(made.origin, origin) and any(OFFLOAD in each.backend for each in (made.origin, origin)):
        raise SettingsError(
            f"{checkpoint} was made under {made.origin.backend} by {made.origin.batch.processes} processes, and what is"
            f" offloaded cannot be carried over to {origin.backend} of {origin.batch.processes}: go on as it was made"
        )
    before, now = made.origin.batch, origin.batch
    if before.size != now.size:
        raise SettingsError(
            f"{checkpoint} was made with a global batch of {before}, and now it is {now}: set"
            f" global_batch_size={before.size}, or choose another output_dir"
        )
    rows = made.origin.rows_an_epoch
    if before != now and rows % now.a_pass:
        fitting = (n for n in range(now.rows, 0, -1) if not math.gcd(rows, now.size) % (n * now.processes))
        advice = next(
            (f"set trainer.per_device_train_batch_size={n} and global_batch_size={now.size}" for n in fitting),
            f"use {before.processes} processes",
        )
        raise SettingsError(
            f"an epoch of {checkpoint} has {rows} rows, and forward passes of {now.processes} processes x {now.rows}"
            f" rows do not end there: {advice}"
        )
    return replace(origin, rows_an_epoch=rows)


def _check_loads_it(checkpoint: Path, origin: Origin) -> None:
    """Refuse a checkpoint without a manifest that the backend cannot load by itself: nothing says how to carry it."""
    is_zero = (checkpoint / "latest").exists()
    if is_zero != origin.backend.startswith(Zero.name):
        wrote = Zero.name if is_zero else Sharding.name
        raise SettingsError(
            f"{checkpoint} is older than manifests and was made under {wrote}, which cannot be carried over to"
            f" {origin.backend}: go on as it was made"
        )


def is_carried(there: Origin, here: Origin) -> bool:
    """Whether a backend cannot load by itself what another one, or itself in other processes, wrote."""
    if here.backend == Sharding.name or here.backend != there.backend:
        return here.backend != there.backend
    return here.backend == Fsdp.name or here.batch.processes != there.batch.processes


class ResumingTrainer(SavingTrainer):
    """See the module."""

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, checkpoint: str | None) -> Any:
        made = None if checkpoint is None else Manifest.read(Path(checkpoint))
        if made is None or not is_carried(made.origin, self.origin):
            with _data_alone(checkpoint):
                return super()._prepare_for_training(max_steps, train_dataloader, checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        with _reading(checkpoint):
            self._carry_over(Path(checkpoint), made)
        return prepared

    def _carry_over(self, checkpoint: Path, made: Manifest) -> None:
        states = read_states(checkpoint, made.origin.backend, made.parameters)
        if self.is_deepspeed_enabled:
            weights = read_weights(checkpoint)
            set_weights(self.model, weights)
            set_zero_states(self.model_wrapped, weights, states)
            self.model_wrapped.global_steps = made.step
        else:
            if self.is_fsdp_enabled:
                set_weights(self.model, read_weights(checkpoint))
            set_states(self.model, self.optimizer.optimizer, states)
        self.lr_scheduler.load_state_dict(torch.load(checkpoint / SCHEDULER_FILE, weights_only=True))
        for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        there, here = made.origin, self.origin
        logger.info(
            "the optimizer's state of %s (%s) is carried over to %s (%s)",
            there.backend, there.batch, here.backend, here.batch,
        )  # fmt: skip

    def _load_from_checkpoint(self, checkpoint: str, *args: Any, **kwargs: Any) -> None:
        with _reading(checkpoint):
            super()._load_from_checkpoint(checkpoint, *args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _reading(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """The Trainer's own; for other processes than wrote it, of the seed, the step and the process's number."""
        made = None if checkpoint is None else Manifest.read(Path(checkpoint))
        if made is None or made.origin.batch.processes == self.args.world_size:
            with _reading(checkpoint):
                super()._load_rng_state(checkpoint)
            return
        entropy = np.random.SeedSequence([self.args.seed, made.step, self.args.process_index])
        seed = int(entropy.generate_state(1)[0])
        logger.info(
            "random numbers of process %d go on from seed %d: there were %d processes, and now there are %d",
            self.args.process_index, seed, made.origin.batch.processes, self.args.world_size,
        )  # fmt: skip
        set_seed(seed)


@contextmanager
def _data_alone(checkpoint: str | None) -> Iterator[None]:
    """Around the loading of DeepSpeed's own, whose other errors are bugs: a file that names code is refused."""
    try:
        yield
    except UnpicklingError as error:
        raise CheckpointError(
            f"{checkpoint}: a file of it holds more than data ({one_line(error)}): remove it, and the same command goes"
            " on from the one before"
        ) from error


def _reading(checkpoint: str | None) -> AbstractContextManager[None]:
    return refused_as(CheckpointError, checkpoint, "remove it, and the same command goes on from the one before")
