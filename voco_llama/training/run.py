"""`train`: one stage from settings to a saved model. It reads as a story; the chapters are the modules beside it."""

import functools
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import set_seed

from voco_llama.data.collate import Collator
from voco_llama.data.mixture import Mixture, NumberedRows, summarize_bad_records
from voco_llama.data.processor import VoCoProcessor
from voco_llama.errors import SettingsError
from voco_llama.settings import TrainSettings
from voco_llama.sharding import sharding_of
from voco_llama.training.arguments import training_arguments
from voco_llama.training.batch import GlobalBatch
from voco_llama.training.build import build_or_load, build_processor, open_mixture
from voco_llama.training.card import write_card
from voco_llama.training.checks import check_settings
from voco_llama.training.elastic import ElasticDraw
from voco_llama.training.interrupts import Interrupts
from voco_llama.training.liger import use_liger
from voco_llama.training.lora import add_adapters, save_and_merge, trained_by
from voco_llama.training.loss_checks import teacher_budgets
from voco_llama.training.losses import ScheduledLoss
from voco_llama.training.own_answers import OwnAnswers, OwnDraw
from voco_llama.training.passes import uses_two_steps
from voco_llama.training.progress import loss_curve
from voco_llama.training.records_log import RecordsLog
from voco_llama.training.resuming import going_on
from voco_llama.training.run_folder import RunFolder
from voco_llama.training.run_logs import MetricsLog, process_log
from voco_llama.training.sampling import EpochSampler, GroupedSampler, StreamSampler
from voco_llama.training.stages import format_table, set_trainable
from voco_llama.training.teachers.teacher import build_teacher, check_teacher
from voco_llama.training.teachers.top_k import open_top_k
from voco_llama.training.trainer import VoCoTrainer
from voco_llama.training.watch import Watch

logger = logging.getLogger(__name__)

CHARACTERS_PER_TOKEN = 4
"""Of English text, about; lengths only decide which rows are batched together."""


def train(settings: TrainSettings) -> Path:
    """Train one stage, or go on with it; a finished run is left as it is. Under torchrun every process calls this.

    Returns:
        The folder of the trained model and its processor.

    Raises:
        VoCoError: Settings, data or a checkpoint cannot be used; one line says which and why.
    """
    check_settings(settings)
    if settings.dry_run:
        raise SettingsError("dry_run=true trains nothing: call voco_llama.preflight.dry_run.dry_run")
    if settings.stage.name == "clip":
        raise SettingsError("stage clip trains a tower alone: call voco_llama.toyworld.train_clip.train_clip")

    run = RunFolder(settings)
    if run.is_finished():
        logger.info("%s is finished: nothing to do", run.path)
        return run.final
    with (
        Interrupts() as interrupts,
        run.taken(),
        process_log(run.path),
        Watch(run.path, settings.stall_limit) as watch,
    ):
        _train(settings, run, interrupts, watch)
    return run.final


def _train(settings: TrainSettings, run: RunFolder, interrupts: Interrupts, watch: Watch) -> None:
    arguments = training_arguments(settings)
    watch.start(arguments.world_size)
    checkpoint = run.checkpoint()
    set_seed(settings.seed)
    mixture = open_mixture(settings, run.bad_records)
    batch = GlobalBatch.of(settings, arguments.world_size)
    origin = going_on(run.origin(batch, len(mixture)), checkpoint, run.names_checkpoint)
    if settings.loss.teacher == "checkpoint":
        check_teacher(settings.loss.teacher_checkpoint, build_processor(settings), teacher_budgets(settings.loss))
    model, processor = build_or_load(settings)
    rows = NumberedRows(mixture, processor.row)
    if settings.loss.teacher == "top_k":
        rows = open_top_k(settings, mixture, processor, rows)
    adapters = add_adapters(model, settings.model.lora) if settings.model.lora.rank else None
    in_two_steps = uses_two_steps(settings)
    if in_two_steps:
        model.check_two_steps()
    use_liger(model, arguments)
    table = set_trainable(model, settings.stage.trains, trained_by(adapters))
    logger.info("what trains:\n%s", format_table(table))
    sharding_of(settings.trainer).divide(model, arguments, getattr(torch, settings.model.dtype))
    order = order_of(mixture, processor.num_vision + processor.num_voco, settings, batch)
    order.rows = origin.rows_an_epoch if origin.rows_an_epoch != batch.rows_an_epoch(len(mixture)) else None
    compression = settings.compression
    elastic = None
    if (choices := compression.num_voco_choices) is not None:
        elastic = ElasticDraw(choices, compression.draw, batch.size, settings.seed, compression.readings)
    if arguments.should_save:
        run.begin()

    trainer = VoCoTrainer(
        origin=origin,
        order=order,
        use_muon=settings.optimizer == "muon",
        learning_rates=learning_rates_of(settings),
        scheduled_loss=ScheduledLoss(settings.loss, build_teacher(settings, model, processor, adapters)),
        own_answers=own_answers_of(settings, processor, batch),
        elastic=elastic,
        interrupts=interrupts,
        watch=watch,
        records=RecordsLog(run.path, mixture, batch, origin.rows_an_epoch),
        callbacks=[MetricsLog(run.path)],
        model=model,
        args=arguments,
        train_dataset=KeptRows(rows) if settings.data.keep_in_memory else rows,
        data_collator=Collator(processor.tokens, two_steps=in_two_steps),
        processing_class=processor,
    )
    started = time.perf_counter()
    trainer.train_from(checkpoint)
    data_wait_share = trainer.data_wait.share
    if adapters is not None:
        save_and_merge(adapters, run.unfinished_final if arguments.should_save else None)
    model.remove_reconstruction()
    save_final(trainer, run.unfinished_final)
    if arguments.should_save:
        bad_records = summarize_bad_records(run.bad_records)
        log_bad_records(bad_records)
        result = {
            "stage": settings.stage.name,
            "steps": trainer.state.global_step,
            "seconds": time.perf_counter() - started,
            "data_wait_share": data_wait_share,
            "loss_curve": loss_curve(trainer.state.log_history),
            "parameters": [vars(count) for count in table],
            "bad_records": bad_records,
        }
        write_card(run.unfinished_final, run.path.name, settings, mixture.num_records, result, run.starts())
        run.place_final()
        run.finish(result)
        logger.info("trained: %s", run.final)


def own_answers_of(settings: TrainSettings, processor: VoCoProcessor, batch: GlobalBatch) -> OwnAnswers | None:
    """What lets the student write answers; None: it writes none."""
    if not (share := settings.loss.own_answers):
        return None
    return OwnAnswers(OwnDraw(share, batch.size, settings.seed), processor, settings.loss.own_answer_tokens)


class KeptRows(Sequence[dict[str, Tensor]]):
    """Rows that are prepared when first asked for, and kept."""

    def __init__(self, rows: Sequence[dict[str, Tensor]]) -> None:
        self._num = len(rows)
        self._row = functools.cache(rows.__getitem__)

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self._row(index)


def learning_rates_of(settings: TrainSettings) -> dict[str, float]:
    """Of parts of the model that have one of their own."""
    rates = {
        "projector": settings.projector_learning_rate,
        "reconstruction": settings.loss.reconstruction_learning_rate,
    }
    return {part: rate for part, rate in rates.items() if rate is not None}


def order_of(mixture: Mixture, tokens_per_medium: int, settings: TrainSettings, batch: GlobalBatch) -> EpochSampler:
    """The order of samples.

    Raises:
        DataError: There is not even one batch.
    """
    batch.check_enough(len(mixture))
    if settings.data.streaming:
        return StreamSampler(mixture, settings.data.shuffle_buffer, settings.seed)
    lengths = mixture.characters / CHARACTERS_PER_TOKEN + mixture.media * tokens_per_medium
    share, is_text_only = settings.data.share_media, mixture.media == 0
    medium = None if share == 1 else mixture.medium
    return GroupedSampler(settings.data.grouping, lengths, is_text_only, batch.size, settings.seed, share, medium)


def save_final(trainer: VoCoTrainer, folder: Path) -> None:
    """Save model and processor; every process takes part, one writes."""
    trainer.save_model(str(folder))
    if trainer.args.should_save:
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle with this machine's paths


def log_bad_records(bad_records: list[dict[str, Any]], shown: int = 10) -> None:
    """Say how many records were skipped, and which (the first few; all stand in `result.json`)."""
    if bad_records:
        lines = [f"  {entry['error']}" for entry in bad_records[:shown]]
        if len(bad_records) > shown:
            lines.append(f"  and {len(bad_records) - shown} more, listed in result.json")
        logger.warning("%d bad records were skipped:\n%s", len(bad_records), "\n".join(lines))
