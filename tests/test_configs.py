"""Every shipped configuration composes, passes the checks, and makes TrainingArguments."""

import copy
import functools
from dataclasses import replace

import pytest

from voco_llama.choices import PARTS
from voco_llama.composition import compose, flatten, to_plain
from voco_llama.config_files import CONFIG_DIR
from voco_llama.settings import TeacherSettings, TrainSettings
from voco_llama.sharding import undivided
from voco_llama.training.checks import check_settings

GROUPS = ("model", "compression", "prompt", "data", "stage", "loss", "trainer", "hardware")
FILES = sorted(
    file.relative_to(CONFIG_DIR / "experiment").with_suffix("").as_posix()
    for file in (CONFIG_DIR / "experiment").rglob("*.yaml")
)
NUMBERED = {
    "voco": (1, 2, 4, 8, 16, 32, 64, 128),
    "average_pool": (1,),
    "q_former": (1,),
    "voco_{}_llava": (1,),
    **{f"{model}/voco": (1,) for model in ("vicuna_13b", "llama3_70b", "qwen3_8b", "mistral_7b")},
    "small/voco": (1, 2, 4, 16),
    "small/average_pool": (1,),
    "small/q_former": (1,),
    "real/voco": (1, 2, 4, 16),
    "real/average_pool": (1, 4),
    "real/q_former": (1,),
    "toy/voco": (1, 2, 4, 8, 16),
    "toy/voco_{}_kl": (1, 4),
    "toy/voco_{}_bidirectional": (1, 4),
    "toy/voco_{}_distinct": (4,),
    "toy/voco_{}_reconstruction": (1,),
    "toy/voco_{}_independent": (1,),
    "toy/average_pool": (1, 4),
    "toy/q_former": (1, 4),
}
"""Files whose name takes the number of VoCo tokens, and the numbers of README, the plans and the suites."""
EXPERIMENTS = sorted(
    [
        *{*FILES} - {name.replace("_{}", "") for name in NUMBERED},
        *(
            (name if "{}" in name else f"{name}_{{}}").format(number)
            for name, numbers in NUMBERED.items()
            for number in numbers
        ),
    ]
)
CHOICES = [(group, file.stem) for group in GROUPS for file in sorted((CONFIG_DIR / group).rglob("*.yaml"))]
NEEDS = {
    ("stage", "clip"): ["model.vision.name=tiny.json"],
    ("stage", "voco"): ["compression=voco"],
    ("loss", "kl"): ["stage=voco", "loss.teacher_checkpoint=somewhere"],
    ("loss", "lm_kl"): ["stage=voco", "loss.teacher_checkpoint=somewhere"],
    ("trainer", "zero3"): ["model.checkpoint=somewhere"],
    ("hardware", "gpus_8x80gb_offload"): ["model.checkpoint=somewhere"],
}
"""What a choice demands of others, beside the defaults."""


def composed(experiment: str) -> TrainSettings:
    return copy.deepcopy(_composed(experiment))


@functools.cache
def _composed(experiment: str) -> TrainSettings:
    return compose([f"experiment={experiment}"])


def test_nothing_ships_untested():
    tested = {f"{group}/{name}.yaml" for group, name in CHOICES} | {f"experiment/{name}.yaml" for name in FILES}
    top = {
        "train.yaml",
        "training.yaml",
        "teacher.yaml",
        "fit_quality.yaml",
        "evaluate.yaml",
        "evaluate_clips.yaml",
        "evaluate_text.yaml",
        "convert_gguf.yaml",
        "data_prepare.yaml",
        "data_check.yaml",
        "data_stats.yaml",
        "data_preview.yaml",
        "report.yaml",
        "ask.yaml",
        "export.yaml",
        "toyworld.yaml",
        "bench.yaml",
        "status.yaml",
    }
    shipped = {file.relative_to(CONFIG_DIR).as_posix() for file in CONFIG_DIR.rglob("*.yaml")}
    tables = {file for file in shipped if file.startswith("plan/")}  # tests/sweep/test_tables.py
    shapes = {f"shape/{name}.yaml" for name in ("tiny", "small", "smollm2_135m", "7b")}  # tests/bench
    sets = {file for file in shipped if file.startswith("data_sets/")}  # tests/data_tools/test_sets.py
    assert shipped == tested | top | tables | sets | shapes | {"sweep.yaml", "paths/default.yaml"}
    assert {"toy/clip", "toy/video", "voco_1", "toy/voco_4_distinct", "video_7b"} <= set(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments(name):
    settings = composed(name)
    check_settings(settings, paths=False)
    small, _, rest = name.partition("/")
    language = f"{settings.model.language.pretrained}/" if small == "small" else ""
    assert settings.output_dir == (f"runs/small/{language}{rest}" if language else f"runs/{name}")
    assert set(settings.stage.trains) <= set(PARTS)


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_group_choices(group, name):
    overrides = ["stage=instruct", f"{group}={name}", *NEEDS.get((group, name), [])]
    check_settings(compose(overrides), paths=False)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_make_training_arguments(name, tmp_path):
    from transformers import TrainingArguments

    from voco_llama.training.arguments import training_arguments

    settings = composed(name)
    settings.output_dir = str(tmp_path)
    # else a process group is built: what the distributed tests are for
    settings.trainer = undivided(settings.trainer | {"use_cpu": True})
    made = training_arguments(settings)
    assert isinstance(made, TrainingArguments)
    assert made.learning_rate == settings.trainer["learning_rate"]
    assert made.activation_checkpointing == settings.trainer.get("gradient_checkpointing", False)
    assert made.remove_unused_columns is False
    if settings.global_batch_size is not None:
        assert made.per_device_train_batch_size * made.gradient_accumulation_steps == settings.global_batch_size


ROWS_7B = ("instruct_7b", "average_pool_1", "q_former_1", "elastic_128", *(f"voco_{2**n}" for n in range(8)))


@pytest.mark.parametrize("name", ROWS_7B)
def test_the_paper_recipe(name):
    settings = composed(name)
    assert settings.data.sources[0].file == "data/LLaVA-Instruct-150K/llava_v1_5_mix665k.json"
    assert settings.model.checkpoint == "runs/align_7b/final"
    trainer = settings.trainer
    assert trainer["num_train_epochs"] == 2
    assert trainer["learning_rate"] == 2e-5
    assert (trainer["lr_scheduler_type"], trainer["warmup_steps"], trainer["weight_decay"]) == ("cosine", 0.03, 0.0)
    assert settings.global_batch_size == 128  # on any hardware: tests/dry_run/test_run.py
    assert (trainer["bf16"], trainer["gradient_checkpointing"]) == (True, True)
    assert trainer["deepspeed"]["zero_optimization"]["stage"] == 3


@pytest.mark.parametrize("model", ["smollm2_360m", "qwen3_0.6b"])
def test_the_small_experiments_take_another_model_by_one_override(model):
    """And go on from its alignment, not from another's."""
    align, voco = (compose([f"experiment=small/{name}", f"model={model}"]) for name in ("align", "voco_4"))
    language = align.model.language.pretrained
    assert language == compose([f"model={model}"]).model.language.pretrained
    assert voco.model == replace(align.model, checkpoint=f"{align.output_dir}/final")
    assert voco.output_dir == f"runs/small/{language}/voco_4"
    own, default = (flatten_settings(settings) for settings in (voco, composed("small/voco_4")))
    changed = {key for key in own if own[key] != default[key]}
    assert changed <= {"model.language.pretrained", "model.vision.name", "model.checkpoint", "output_dir"}


def test_the_small_recipe():
    rows = [composed(f"small/{name}") for name in ("instruct", "voco_1", "average_pool_1", "q_former_1", "elastic")]
    assert {(s.global_batch_size, s.trainer["learning_rate"], s.trainer["num_train_epochs"]) for s in rows} == {
        (128, 1e-4, 1)
    }
    assert {s.model.checkpoint for s in rows} == {f"{composed('small/align').output_dir}/final"}
    assert {s.prompt.template for s in rows} == {"chat"}
    assert all(s.model.dtype == "float32" and s.trainer["bf16"] and not s.model.lora.rank for s in rows)


@pytest.mark.parametrize("model", ["vicuna_13b", "llama3_70b", "qwen3_8b", "mistral_7b"])
@pytest.mark.parametrize(("stage", "of_7b"), [("align", "align_7b"), ("instruct", "instruct_7b"), ("voco_1", "voco_1")])
def test_other_language_models_have_the_recipe_of_7b(model, stage, of_7b):
    """But for places, and how a step is divided."""
    own, of_7b = (flatten_settings(composed(name)) for name in (f"{model}/{stage}", of_7b))
    changed = {key for key in own.keys() | of_7b.keys() if own.get(key) != of_7b.get(key)}
    by_size = ("hardware.", "trainer.per_device_train_batch_size", "trainer.deepspeed.")
    assert {key for key in changed if not key.startswith(by_size)} <= {
        "model.language.pretrained",
        "model.checkpoint",
        "output_dir",
        *(["prompt.template"] if model != "vicuna_13b" and stage != "align" else []),
    }
    expected = "plain" if stage == "align" else "vicuna_v1" if model == "vicuna_13b" else "chat"
    assert composed(f"{model}/{stage}").prompt.template == expected
    assert composed(f"{model}/{stage}").model.checkpoint in (None, f"runs/{model}/align/final")


def flatten_settings(settings):
    return dict(flatten(to_plain(settings)))


def test_upper_bound_and_compression_train_for_as_long():
    steps = {
        name: compose([f"experiment=toy/{name}"]).trainer["max_steps"] for name in ("instruct_long", "voco_1", "voco_4")
    }
    assert len(set(steps.values())) == 1


@pytest.mark.parametrize("overrides", [["experiment=toy/voco_4", "loss=kl"], ["experiment=toy/voco_1_kl"]])
def test_the_teacher_command_takes_the_settings_of_a_training(overrides):
    """The loss that it begins with gives way to the experiment's."""
    train, teacher = (
        compose(overrides, name, schema) for name, schema in (("train", TrainSettings), ("teacher", TeacherSettings))
    )
    assert to_plain(teacher) == to_plain(train) | {"k": 64, "records_per_file": 1024}
    assert compose([], "teacher", TeacherSettings).loss.kl == 1
