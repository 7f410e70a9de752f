"""What contradicts what: every check of training settings that looks at more than one of them, or at the disk.

All of them run before any weight is loaded, the cheap ones first, and each ends in one line that says which setting
to change.
"""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from voco_llama.choices import PARTS
from voco_llama.composition import flatten, to_plain
from voco_llama.data.media.roots import list_archives
from voco_llama.data.prompts import PromptStyle
from voco_llama.data.readers import check_streamed
from voco_llama.errors import SettingsError, did_you_mean, require
from voco_llama.files import check_writable, read_json
from voco_llama.settings import CompressionSettings, ModelSettings, StageSettings, TrainSettings
from voco_llama.sharding import sharding_of
from voco_llama.training.batch import rows_of_a_pass
from voco_llama.training.inputs import check_inputs
from voco_llama.training.liger import check_liger, check_liger_is_here
from voco_llama.training.loss_checks import check_losses
from voco_llama.training.passes import check_flash_is_here, check_passes
from voco_llama.training.position_checks import check_positions_here
from voco_llama.training.trackers import check_trackers
from voco_llama.training.trainer_values import check_trainer_values
from voco_llama.vision_config import num_patches, read_vision_config, weights_beside

OWNED_KEYS = {
    "output_dir": "output_dir",
    "seed": "seed",
    "data_seed": "seed",
    "resume_from_checkpoint": "resume",
    "train_sampling_strategy": "data.grouping",
}
"""Keys of TrainingArguments that a setting of ours decides."""

FIXED_KEYS = (
    "remove_unused_columns",
    "eval_strategy",
    "load_best_model_at_end",
    "do_eval",
    "do_predict",
    "push_to_hub",
)
"""Keys of TrainingArguments that make no sense here: rows are laid out by us, and evaluation is its own command."""

POSITIVE = (
    "compression.q_former.*",
    "data.sources.*.weight",
    "data.sources.*.limit",
    "data.sources.*.assumed_characters",
    "data.max_length",
    "data.num_frames",
    "data.share_media",
    "data.shuffle_buffer",
    "loss.temperature",
    "loss.chunk_size",
    "loss.own_answer_tokens",
    "loss.reconstruction_learning_rate",
    "model.lora.alpha",
    "hardware.*",
    "projector_learning_rate",
    "stall_limit",
    "k",
    "records_per_file",
)
"""Settings that are above 0 where they are not null; `*` stands for anything."""

LEAST_TEXT = 2
"""Tokens of a row: one that is read, and one that is learned."""


def check_settings(settings: TrainSettings, paths: bool = True) -> None:
    """Refuse settings that contradict each other or, with `paths`, name a file or folder that is not there.

    What is wrong with the settings themselves is said first: it is mended without a file.

    Raises:
        SettingsError: The first contradiction found.
    """
    _check_ranges(settings)
    _check_compression(settings)
    _check_stage(settings.stage, settings)
    _check_model(settings.model, settings)
    PromptStyle(settings.prompt.template, settings.prompt.order, settings.prompt.system)
    check_passes(settings)
    check_liger(settings)
    _check_data(settings)
    check_losses(settings)
    _check_trainer(settings)
    if paths:
        check_flash_is_here(settings)
        check_liger_is_here(settings)
        check_trackers(settings.trainer)
        check_inputs(settings)
        _check_run(settings)
        _check_segments_fit(settings)
        if settings.stage.name != "clip":
            check_positions_here(settings, segments_a_row(settings))


def _check_ranges(settings: TrainSettings) -> None:
    for key, value in flatten(to_plain(settings)):
        if value not in (None, []) and any(fnmatchcase(key, pattern) for pattern in POSITIVE):
            least = "1 or more" if isinstance(value, int) else "a number above 0"
            require(value > 0, f"{key} is {value}: give {least}")
    utilization = settings.hardware.utilization
    require(utilization <= 1, f"hardware.utilization is {utilization:g}: give a part of gpu_tflops, as 0.4 for 40 %")


def _check_compression(settings: TrainSettings) -> None:
    compression = settings.compression
    condition, num_voco, choices = compression.condition, compression.num_voco, compression.num_voco_choices
    require(
        num_voco >= 1 or condition == "full",
        f"compression.num_voco is {num_voco}, but under condition voco it must be at least 1: text sees an image"
        " through them alone",
    )
    require(num_voco >= 0, f"compression.num_voco is {num_voco}: give 0 or more")
    require(
        choices is not None or compression.readings == 1,
        f"compression.readings is {compression.readings}, and nothing is drawn: set compression.num_voco_choices, or"
        " readings=1",
    )
    if choices is not None:
        require(
            bool(choices) and min(choices) >= 1 and max(choices) == num_voco,
            f"compression.num_voco_choices is {choices}: give numbers from 1 to compression.num_voco ({num_voco}), and"
            " that number among them",
        )
        require(
            condition == "voco",
            "compression.num_voco_choices is for condition voco: text that sees the image does not read it through"
            " them",
        )
        readings, most = compression.readings, len(set(choices))
        require(
            1 <= readings <= most,
            f"compression.readings is {readings}: give 1 to {most}, as many as there are num_voco_choices",
        )
    if compression.compressor != "language_model":
        _check_external(compression)


def _check_external(compression: CompressionSettings) -> None:
    name = f"compression.compressor={compression.compressor} compresses outside the language model"
    require(compression.condition == "voco", f"{name}: it has no condition full; leave that to language_model")
    require(compression.num_voco_choices is None, f"{name}, to one number of tokens: set num_voco_choices to null")
    require(
        compression.segment_attention == "causal" and compression.voco_embeddings == "shared",
        f"{name}, which sees no vision tokens: leave segment_attention=causal and voco_embeddings=shared",
    )
    shape = compression.q_former
    require(
        shape.width % shape.heads == 0,
        f"compression.q_former: {shape.heads} heads do not divide a width of {shape.width}: change one",
    )


def _check_stage(stage: StageSettings, settings: TrainSettings) -> None:
    for part in stage.trains:
        require(part in PARTS, f"stage.trains names '{part}': choose from {', '.join(PARTS)}")
    require(bool(stage.trains), f"stage.trains is empty: name what is trained ({', '.join(PARTS)})")
    require(
        (stage.name == "clip") == ("vision" in stage.trains),
        f"stage {stage.name} with stage.trains={stage.trains}: the vision tower trains in stage clip, and only there",
    )
    require(
        stage.name != "voco" or settings.compression.condition == "voco",
        "stage voco trains compression, but compression.condition is full: use compression=voco_1 (or another voco_N),"
        " or stage=instruct for the upper bound",
    )
    if stage.name == "clip":
        require(
            Path(settings.model.vision.name).suffix == ".json"
            and settings.model.vision.pretrained is None
            and settings.model.checkpoint is None,
            "stage clip trains a tiny tower from scratch for the toy world: set model.vision.name to an open_clip model"
            " config (.json), and model.vision.pretrained and model.checkpoint to null",
        )
        require(settings.model.tokenizer is not None, "stage clip reads captions: set model.tokenizer")


def _check_model(model: ModelSettings, settings: TrainSettings) -> None:
    if model.checkpoint is not None or settings.stage.name == "clip":
        return
    require(
        (model.language.pretrained is None) != (model.language.config is None),
        "set exactly one of model.language.pretrained (trained weights) and model.language.config (random weights),"
        " or model.checkpoint to start from a model of ours",
    )
    require(
        model.tokenizer is not None or model.language.pretrained is not None,
        "model.language.config brings no tokenizer: set model.tokenizer",
    )
    require(
        model.vision.pretrained is None
        or (not Path(model.vision.name).is_dir() and not model.vision.name.endswith(".json")),
        f"model.vision.name={model.vision.name} brings its own weights or none: set model.vision.pretrained to null",
    )

    beside = weights_beside(model.vision.name)
    require(
        beside is None,
        f"model.vision.name={model.vision.name} is a configuration alone, whose tower has random weights, and beside it"
        f" lies {beside}: name the folder for a tower with those, or put the configuration elsewhere",
    )


def _check_data(settings: TrainSettings) -> None:
    """Refuse settings of the data that contradict each other or the stage; nothing is read from disk."""
    data = settings.data
    require(bool(data.sources), "data.sources is empty: choose a data=... group or list a source")
    for index, source in enumerate(data.sources):
        list_archives(source.archives, f"data.sources.{index}.archives")
    require(
        not data.keep_in_memory or not settings.trainer.get("dataloader_num_workers"),
        "data.keep_in_memory keeps rows in the training process: set trainer.dataloader_num_workers=0",
    )
    if data.share_media > 1:
        rows_of_a_pass(settings)
    if not data.streaming:
        return
    for source in data.sources:
        check_streamed(source.format, source.file)
    require(
        data.grouping == "none",
        f"data.streaming with data.grouping={data.grouping} would read everything for its lengths: set"
        " data.grouping=none",
    )
    require(
        data.share_media == 1,
        f"data.streaming with data.share_media={data.share_media} would read everything for which rows look at the same"
        " image: set data.share_media=1",
    )
    require(not data.keep_in_memory, "data.streaming and data.keep_in_memory contradict each other: choose one")
    require(settings.stage.name != "clip", "stage clip trains on the toy world: set data.streaming=false")


def _check_run(settings: TrainSettings) -> None:
    if settings.resume not in ("auto", "never"):
        require(
            (Path(settings.resume) / "trainer_state.json").is_file(),
            f"resume={settings.resume} is no checkpoint of a run: name a folder checkpoint-N, or auto or never",
        )
    check_writable("output_dir", Path(settings.output_dir))


def _check_segments_fit(settings: TrainSettings) -> None:
    if settings.stage.name == "clip" or (config := _vision_config(settings.model)) is None:
        return
    available = num_patches(config)
    require(
        settings.compression.num_voco <= available,
        f"compression.num_voco is {settings.compression.num_voco}, but an image has only {available} vision tokens:"
        " use fewer",
    )
    compresses_inside = settings.compression.compressor == "language_model"
    tokens_for_text(settings, (available if compresses_inside else 0) + settings.compression.num_voco)


def _vision_config(model: ModelSettings) -> dict[str, Any] | None:
    """Of the tower, in open_clip's form; None where a checkpoint in another layout than ours does not say it so."""
    if model.checkpoint is None:
        return read_vision_config(model.vision.name)
    config = read_json(Path(model.checkpoint) / "config.json").get("vision_config")
    return config if isinstance(config, dict) and "vision_cfg" in config else None


def _check_trainer(settings: TrainSettings) -> None:
    from transformers.training_args import TrainingArguments

    trainer, known = settings.trainer, list(TrainingArguments.__dataclass_fields__)
    for key in trainer:
        if key in OWNED_KEYS:
            raise SettingsError(f"trainer.{key} is decided by the setting {OWNED_KEYS[key]}: set that")
        if key in FIXED_KEYS:
            raise SettingsError(f"trainer.{key} cannot be set: rows are laid out here, and there is no evaluation set")
        if key not in known:
            raise SettingsError(f"unknown setting 'trainer.{key}'{did_you_mean(key, known)} (TrainingArguments' keys)")
    check_trainer_values(trainer)
    require(
        settings.global_batch_size is None or "gradient_accumulation_steps" not in trainer,
        "trainer.gradient_accumulation_steps is decided by the setting global_batch_size: set that, or set it to null",
    )
    require(
        not (trainer.get("bf16") and trainer.get("fp16")), "trainer.bf16 and trainer.fp16 are both true: choose one"
    )
    rate = settings.projector_learning_rate
    require(
        rate is None or "projector" in settings.stage.trains,
        f"projector_learning_rate is {rate}: set it in a stage that trains the projector, or null",
    )
    sharding = sharding_of(trainer)
    if settings.optimizer == "muon":
        require(
            settings.stage.name != "clip", "optimizer=muon is for language models: set optimizer=trainer for stage clip"
        )
        require(
            not sharding.cuts_matrices,
            f"optimizer=muon needs whole matrices, and {sharding.name} cuts them into pieces: set optimizer=trainer",
        )
    require(
        settings.stage.name != "clip" or not sharding.cuts_weights,
        f"stage clip trains a small tower in one process, and {sharding.name} would cut its weights: set trainer=cpu or"
        " gpu_bf16",
    )
    sharding.check(settings.model.checkpoint is None and settings.model.language.config is not None)


def segments_a_row(settings: TrainSettings) -> int:
    """Segments of a usual row: the frames of a clip, one image, or none."""
    return {"language": 0, "video": settings.data.num_frames}.get(settings.stage.name, 1)


def tokens_for_text(settings: TrainSettings, segment_tokens: int) -> int:
    """Tokens that a row of full length has left for its text, where one segment takes `segment_tokens`.

    Raises:
        SettingsError: None are left.
    """
    segments, longest = segments_a_row(settings), settings.data.max_length
    left = longest - segments * segment_tokens
    if left < LEAST_TEXT:
        raise SettingsError(
            f"data.max_length is {longest}, but {segments} segment{'' if segments == 1 else 's'} of {segment_tokens}"
            f" token{'' if segment_tokens == 1 else 's'} {'is' if segments == 1 else 'are'}"
            f" {segments * segment_tokens}: raise it{'' if segments == 1 else ', or lower data.num_frames'}"
        )
    return left
