"""A thin `transformers.Trainer`: our order of samples, elastic VoCo tokens, weighted losses, readable progress lines.

The loss is what an `Objective` says, summed over trained tokens and divided by
`num_items_in_batch`, which the Trainer counts over all accumulation steps and processes and hands to `forward` (since
the model says `accepts_loss_kwargs`). Processes average gradients over processes; the Trainer multiplies the
loss by their number, so that a global batch has one gradient however it is divided.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from transformers import PrinterCallback

from voco_llama.errors import SettingsError, refused_as
from voco_llama.layout import HostRows
from voco_llama.model.voco_llama import VoCoLlama
from voco_llama.sharding import use_plugin
from voco_llama.training.batch import GlobalBatch
from voco_llama.training.elastic import ElasticDraw
from voco_llama.training.interrupts import Interrupts, outlives_one_sigterm
from voco_llama.training.log_entries import DATA_WAIT
from voco_llama.training.loss_watch import LossWatch
from voco_llama.training.losses import LossLog, ScheduledLoss
from voco_llama.training.own_answers import OWN_ROWS, OwnAnswers
from voco_llama.training.progress import Progress
from voco_llama.training.records_log import RecordsLog
from voco_llama.training.resuming import ResumingTrainer
from voco_llama.training.sampling import EpochSampler
from voco_llama.training.speed import DataWait, Speed, matrix_peak
from voco_llama.training.stages import give_learning_rate, part_parameters, trained_parts
from voco_llama.training.watch import Watch

logger = logging.getLogger(__name__)


class VoCoTrainer(ResumingTrainer):
    """See the module.

    Args:
        order: The order of samples.
        use_muon: Train with `voco_llama.training.optimizer` instead of the optimizer that the arguments name.
        learning_rates: Of parts of the model (`voco_llama.training.stages.part_parameters`) that have one of their own
            and not that of the arguments.
        elastic: Draws how many VoCo tokens each row keeps; None: all of them.
        scheduled_loss: Weights of the losses, and the teacher; None: the model has a loss of its own.
        own_answers: Lets the student write answers of its own into the batches; None: they stay as they are.
        interrupts: End it after a step; None: a signal ends it at once.
        records: Writes down which rows each step trained on; None: nobody does.
        watch: Ends it where a process is gone or stands still; None: nobody looks.
        kwargs: What `ResumingTrainer` takes.
    """

    def __init__(
        self,
        *,
        order: EpochSampler,
        use_muon: bool = False,
        learning_rates: Mapping[str, float] = MappingProxyType({}),
        elastic: ElasticDraw | None = None,
        scheduled_loss: ScheduledLoss | None = None,
        own_answers: OwnAnswers | None = None,
        interrupts: Interrupts | None = None,
        records: RecordsLog | None = None,
        watch: Watch | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.scheduled_loss = scheduled_loss
        self.loss_log = LossLog()
        if scheduled_loss is not None and scheduled_loss.teacher is not None:
            scheduled_loss.teacher.prepare(self.accelerator, self.args)
        self.order = order
        self.elastic, self.own_answers = elastic, own_answers
        self._num_labeled: Tensor | int | None = None
        self._last_step, self._micro_step = -1, 0
        self.use_muon = use_muon
        self.learning_rates = learning_rates
        self.data_wait = DataWait()
        self.speed: Speed | None = None
        """None before training, and where what trains is no `VoCoLlama`."""
        self.remove_callback(PrinterCallback)
        self.add_callback(Progress(order, self.measure_from))
        self.interrupts, self.records = interrupts, records
        self.loss_watch = LossWatch(Path(self.args.output_dir), records)
        for callback in (interrupts, records, self.loss_watch, watch):  # first, who decides to write a checkpoint
            if callback is not None:
                self.add_callback(callback)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        self.is_fsdp_enabled = use_plugin(self.accelerator, self.args)

    def train_from(self, checkpoint: Path | None) -> None:
        """Train, from the start or from a checkpoint on.

        Raises:
            Interrupted: A signal ended it; the checkpoint that its text names was written first.
            CheckpointError: The checkpoint cannot be read.
        """
        if checkpoint is not None:
            logger.info("going on from %s", checkpoint)
        if self.interrupts is not None:
            self.interrupts.takes_steps = True
        try:
            self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        finally:
            if self.records is not None:
                self.records.close()
        if self.interrupts is not None:
            self.interrupts.check(Path(self.args.output_dir, f"checkpoint-{self.state.global_step}"))

    def measure_from(self, step: int) -> None:
        """Measure speed and the wait for data from now on, when so many steps are done."""
        model = self.accelerator.unwrap_model(self.model)
        if isinstance(model, VoCoLlama):
            half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision)
            peak = matrix_peak(self.args.device, half or model.dtype)
            self.speed = Speed(model.config, trained_parts(model), peak, self.args.world_size)
            self.speed.start(step)
        self.data_wait.start()

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """None here: they are counted for many steps at once (`store_flos`), so that none waits for the device."""
        return 0

    def store_flos(self) -> None:
        """`total_flos` of the Trainer's state are FLOPs that the method needs (`voco_llama.model.flops`)."""
        if self.speed is not None:
            self.current_flos += self.speed.new_flops()
        super().store_flos()

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        return self.order

    def get_train_dataloader(self) -> DataLoader:
        return outlives_one_sigterm(super().get_train_dataloader())

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Optimizer:
        """The Trainer's own, or Muon; parts may have a learning rate of their own."""
        if self.optimizer is not None:
            return self.optimizer
        if self.use_muon:
            from voco_llama.training.optimizer import muon  # brings timm, which takes seconds to import

            wanted = self.args
            betas = (wanted.adam_beta1, wanted.adam_beta2)
            self.optimizer = muon(self.model, wanted.learning_rate, wanted.weight_decay, betas, eps=wanted.adam_epsilon)
        else:
            named = f"trainer.optim={self.args.optim.value} with optim_args={self.args.optim_args}"
            with refused_as(SettingsError, named, "choose another, or install what it needs"):
                super().create_optimizer(*args, **kwargs)
        for part, learning_rate in self.learning_rates.items():
            give_learning_rate(self.optimizer, part_parameters(self.model, part), learning_rate)
        return self.optimizer

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """The Trainer's own: all batches of a step; each is timed. None where a run goes on from its last step."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return [], None
        found = self.data_wait.timed(epoch_iterator)
        if self.own_answers is not None and self.scheduled_loss.weights(self._done)["kl"]:
            found = iter(self._with_own_answers([*islice(found, num_batches)], device))
        batches, num_items = super().get_batch_samples(found, num_batches, device)
        if self.records is not None:
            self.records.take(batches)
        return batches, num_items

    @property
    def _done(self) -> float:
        """Part of the training that is done."""
        return self.state.global_step / self.state.max_steps

    def _with_own_answers(self, batches: list[dict[str, Any]], device: torch.device) -> list[dict[str, Any]]:
        """The batches of a step, in some rows of which the student has written an answer itself."""
        if (most := self.own_answers.most_tokens) is None:
            longest = torch.tensor([self.own_answers.longest(batches)], device=device)
            most = int(self.accelerator.gather(longest).max())
        student, firsts = self.accelerator.unwrap_model(self.model), map(self._first_row, range(len(batches)))
        with self.accelerator.autocast():
            batches = self.own_answers.of_step(student, batches, self.state.global_step, [*firsts], self.elastic, most)
        labeled = [{"labels": batch[OWN_ROWS].others(batch["labels"])} for batch in batches]
        self._num_labeled = self._get_num_items_in_batch(labeled, device)
        return batches

    def _first_row(self, number: int) -> int:
        """Place in the global batch of the first row of this process's `number`-th batch of a step."""
        batch = GlobalBatch(self.args.world_size, self.args.per_device_train_batch_size)
        return batch.first_row(number, self.args.process_index)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One forward and backward pass."""
        loss = super().training_step(*args, **kwargs)
        self.loss_watch.add(self.state.global_step, loss)
        return loss

    def _as_read(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch as the model reads it, each row once or several times; its work is counted."""
        in_two_steps, rows = "rows" in batch, HostRows.of_batch(batch)
        if self.elastic is not None:
            rows = rows.read_through(
                self._drawn_num_voco(len(rows.fields["document"])), self.processing_class.tokens.pad
            )
        if self.speed is not None:
            images = batch.get("pixel_values")
            self.speed.add(rows.fields, 0 if images is None else len(images), in_two_steps)
        if in_two_steps:
            others = {name: value for name, value in batch.items() if name not in ("rows", "labels")}
            return {**others, "rows": rows, "two_steps": True}
        return {**batch, **rows.fields, "media": rows.media, "medium": rows.medium}

    def _drawn_num_voco(self, num_rows: int) -> Tensor:
        """For each reading VoCo tokens of the next batch's rows, which stands `micro_step`-th in its accumulation."""
        step = self.state.global_step
        self._micro_step = self._micro_step + 1 if step == self._last_step else 0
        self._last_step = step
        return self.elastic(step, self._first_row(self._micro_step), num_rows)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The model's loss by the objective of this moment; a teacher reads the batch first, and once."""
        step, readings = self.state.global_step, 1 if self.elastic is None else self.elastic.readings
        if num_items_in_batch is not None:
            num_items_in_batch = num_items_in_batch * readings
        own = inputs.get(OWN_ROWS)
        inputs = {name: value for name, value in inputs.items() if name != OWN_ROWS}
        if self.scheduled_loss is None:  # what trains is no `VoCoLlama`
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        student = self.accelerator.unwrap_model(model)
        objective = self.scheduled_loss.objective(self._done, student, inputs)
        if own is not None:
            words = own.tokens(HostRows.of_batch(inputs).fields["labels"])
            objective = replace(objective, own=words, num_labeled=self._num_labeled)
        inputs = {**self._as_read(inputs), "objective": objective.of_readings(readings)}
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if not self.scheduled_loss.settings.is_plain:
            is_scaled = self.args.average_tokens_across_devices and num_items_in_batch is not None
            self.loss_log.add(step, outputs, self.accelerator.num_processes if is_scaled else 1)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with the single losses and the speed; stop a run whose loss is no number any more.

        Raises:
            SettingsError: The loss, or the norm of the gradient, is NaN or infinite.
        """
        if "loss" in logs:
            step, reduce = self.state.global_step, self.accelerator.reduce
            logs |= self.loss_log.take(step, lambda x: reduce(x, "mean"))
            if self.speed is not None:
                logs |= self.speed.take(step, lambda x: reduce(x.to(self.args.device), "sum"))
            logs[DATA_WAIT] = self.data_wait.take()
        super().log(logs, *args, **kwargs)
        if logs.get("loss") == 0:
            logger.warning(
                "the loss is 0 up to step %d: nothing is left to learn, or no row had an answer to train on, which"
                " voco-llama data check tells",
                self.state.global_step,
            )
        if "loss" in logs:
            self.loss_watch.check(self.state.global_step, logs, may_skip=self.args.fp16)
