"""What contradicts what: every check of training settings that looks at more than one of them, or at the disk.

All of them run before any weight is loaded, the cheap ones first, and each ends in one line that says which setting
to change.
"""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from voco_llama.choices import PARTS
from voco_llama.composition import did_you_mean
from voco_llama.errors import SettingsError
from voco_llama.settings import CompressionSettings, ModelSettings, StageSettings, TrainSettings
from voco_llama.training.data_checks import check_data, check_data_paths, tokens_for_text
from voco_llama.training.loss_checks import check_loss_paths, check_losses, require, require_path

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

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def check_settings(settings: TrainSettings, paths: bool = True) -> None:
    """Refuse settings that contradict each other or name something that is not there.

    Args:
        settings: From `voco_llama.composition.compose`.
        paths: Whether files and folders must be there; False checks a configuration on any machine.

    Raises:
        SettingsError: The first contradiction found.
    """
    _check_compression(settings)
    _check_stage(settings.stage, settings)
    _check_model(settings.model, settings)
    check_data(settings)
    check_losses(settings)
    if paths:
        _check_paths(settings)
        _check_segments_fit(settings)
        check_loss_paths(settings)
    _check_trainer(settings)


def _check_compression(settings: TrainSettings) -> None:
    condition, num_voco = settings.compression.condition, settings.compression.num_voco
    require(
        num_voco >= (1 if condition == "voco" else 0),
        f"compression.num_voco is {num_voco}, but under condition {condition} it must be at least"
        f" {1 if condition == 'voco' else 0}"
        + (": text sees an image through them alone" if condition == "voco" else ""),
    )
    _check_elastic(settings.compression)
    if settings.compression.compressor != "language_model":
        _check_external(settings.compression)


def _check_elastic(compression: CompressionSettings) -> None:
    choices, num_voco = compression.num_voco_choices, compression.num_voco
    if choices is None:
        return
    require(
        bool(choices) and all(1 <= n <= num_voco for n in choices) and max(choices) == num_voco,
        f"compression.num_voco_choices is {choices}: give numbers from 1 to compression.num_voco ({num_voco}), and"
        " that number among them",
    )
    require(
        compression.condition == "voco",
        "compression.num_voco_choices is for condition voco: text that sees the image does not read it through them",
    )


def _check_external(compression: CompressionSettings) -> None:
    name = f"compression.compressor={compression.compressor} compresses outside the language model"
    require(compression.condition == "voco", f"{name}: it has no condition full; leave that to language_model")
    require(compression.num_voco_choices is None, f"{name}, to one number of tokens: set num_voco_choices to null")
    require(
        compression.segment_attention == "causal" and compression.voco_embeddings == "shared",
        f"{name}, which sees no vision tokens: leave segment_attention=causal and voco_embeddings=shared",
    )
    shape = compression.q_former
    for key in ("layers", "width", "heads", "cross_attention_every"):
        value = getattr(shape, key)
        require(value > 0, f"compression.q_former.{key} is {value}: give 1 or more")
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
    require(
        model.attention != "flash_attention_2",
        "model.attention=flash_attention_2 cannot express the VoCo mask and would let text see the image:"
        " use sdpa, eager or flex_attention",
    )
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


def _check_paths(settings: TrainSettings) -> None:
    check_data_paths(settings)
    model = settings.model
    if model.checkpoint is not None:
        require_path("model.checkpoint", model.checkpoint, settings, "; train that stage first")
        require(
            (Path(model.checkpoint) / "config.json").is_file(),
            f"model.checkpoint: {model.checkpoint} holds no config.json: name the folder `final` of a finished run",
        )
    else:
        names = {"model.vision.name": model.vision.name, "model.tokenizer": model.tokenizer}
        if model.projector_weights is not None:
            require_path("model.projector_weights", model.projector_weights, settings)
        if settings.stage.name != "clip":
            names |= {
                "model.language.pretrained": model.language.pretrained,
                "model.language.config": model.language.config,
            }
        for key, name in names.items():
            if name is not None and not _HUB_NAME.fullmatch(name):
                require_path(key, name, settings)
    if settings.resume not in ("auto", "never"):
        require(
            (Path(settings.resume) / "trainer_state.json").is_file(),
            f"resume={settings.resume} is no checkpoint of a run: name a folder checkpoint-N, or auto or never",
        )
    require(not Path(settings.output_dir).is_file(), f"output_dir: {settings.output_dir} is a file, not a folder")


def _check_segments_fit(settings: TrainSettings) -> None:
    vision = _vision_config(settings.model)
    if vision is None or settings.stage.name == "clip":
        return
    available = (vision["image_size"] // vision["patch_size"]) ** 2
    require(
        settings.compression.num_voco <= available,
        f"compression.num_voco is {settings.compression.num_voco}, but an image has only {available} vision tokens:"
        " use fewer",
    )
    compresses_inside = settings.compression.compressor == "language_model"
    tokens_for_text(settings, (available if compresses_inside else 0) + settings.compression.num_voco)


def _vision_config(model: ModelSettings) -> dict[str, Any] | None:
    """`vision_cfg` of the tower, read without importing it; None where it is not known that way."""
    package = importlib.util.find_spec("open_clip").submodule_search_locations[0]
    name = Path(model.vision.name)
    if model.checkpoint is not None:
        file = Path(model.checkpoint) / "config.json"
    elif name.is_dir():
        file = name / "open_clip_config.json"
    else:
        file = name if name.suffix == ".json" else Path(package) / "model_configs" / f"{name}.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise SettingsError(f"model: {file} is not JSON ({error})") from error
    config = config.get("vision_config") or config.get("model_cfg") or config
    vision = config.get("vision_cfg", {})
    return vision if {"image_size", "patch_size"} <= vision.keys() else None


def _check_trainer(settings: TrainSettings) -> None:
    trainer = settings.trainer
    for key in trainer:
        if key in OWNED_KEYS:
            raise SettingsError(f"trainer.{key} is decided by the setting {OWNED_KEYS[key]}: set that")
        if key in FIXED_KEYS:
            raise SettingsError(
                f"trainer.{key} cannot be set: training lays out its own rows and has no evaluation set"
            )
    require(
        settings.global_batch_size is None or "gradient_accumulation_steps" not in trainer,
        "trainer.gradient_accumulation_steps is decided by the setting global_batch_size: set that, or set it to null",
    )
    for key in ("num_processes", "gpu_memory_gb"):
        value = getattr(settings.hardware, key)
        require(value is None or value > 0, f"hardware.{key} is {value}: give a number above 0, or null")
    require(
        not (trainer.get("bf16") and trainer.get("fp16")), "trainer.bf16 and trainer.fp16 are both true: choose one"
    )
    from transformers.training_args import TrainingArguments

    known = list(TrainingArguments.__dataclass_fields__)
    for key in trainer:
        if key not in known:
            raise SettingsError(f"unknown setting 'trainer.{key}'{did_you_mean(key, known)} (TrainingArguments' keys)")
    rate = settings.projector_learning_rate
    require(
        rate is None or (rate > 0 and "projector" in settings.stage.trains),
        f"projector_learning_rate is {rate}: give a number above 0, in a stage that trains the projector, or null",
    )
    if settings.optimizer == "muon":
        require(
            settings.stage.name != "clip", "optimizer=muon is for language models: set optimizer=trainer for stage clip"
        )
        require(
            trainer.get("deepspeed") is None and not trainer.get("fsdp"),
            "optimizer=muon needs whole matrices, and DeepSpeed and FSDP cut them into pieces: set optimizer=trainer",
        )
    if trainer.get("deepspeed") is not None:
        _check_deepspeed(trainer["deepspeed"], settings.model)


def _check_deepspeed(deepspeed: Any, model: ModelSettings) -> None:
    if isinstance(deepspeed, str):
        try:
            deepspeed = json.loads(Path(deepspeed).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise SettingsError(f"trainer.deepspeed: {deepspeed} cannot be read as JSON ({error})") from error
    zero = deepspeed.get("zero_optimization") if isinstance(deepspeed, dict) else None
    stage = zero.get("stage") if isinstance(zero, dict) else None
    require(
        stage in (1, 2, 3), f"trainer.deepspeed.zero_optimization.stage is {stage}: give 1, 2 or 3, or deepspeed=null"
    )
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    known = {name for key, entry in DeepSpeedZeroConfig.model_fields.items() for name in (key, entry.alias) if name}
    for key in zero:
        where = f"trainer.deepspeed.zero_optimization.{key}"
        require(key in known, f"unknown setting '{where}'{did_you_mean(key, sorted(known))}")
        require(stage == 3 or not key.startswith("stage3_"), f"{where} is for stage 3, but stage is {stage}: remove it")
    require(
        stage != 3 or bool(zero.get("stage3_gather_16bit_weights_on_model_save")),
        "trainer.deepspeed.zero_optimization.stage3_gather_16bit_weights_on_model_save must be true: without it the"
        " trained weights stay in pieces",
    )
    require(
        stage != 3 or model.checkpoint is not None or model.language.config is None,
        "model.language.config (random weights) with ZeRO-3 would skip their initialization: use trainer=zero2, or"
        " start from a checkpoint",
    )
