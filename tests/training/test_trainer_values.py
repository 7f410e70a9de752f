"""Values of `trainer.*`: refused at the start, also by a dry run, in one line that says what the key takes."""

import re

import pytest

from voco_llama import cli
from voco_llama.composition import compose
from voco_llama.errors import SettingsError
from voco_llama.training.checks import check_settings
from voco_llama.training.trainer_values import check_trainer_values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_steps": "abc"}, "trainer.max_steps is 'abc': give a whole number"),
        ({"max_steps": 1e3}, "trainer.max_steps is 1000.0: give a whole number"),
        ({"max_steps": True}, "trainer.max_steps is True: give a whole number"),
        ({"max_steps": None}, "trainer.max_steps is null: give a whole number"),
        ({"max_steps": 0}, "trainer.max_steps is 0: give 1 or more, or -1 to train num_train_epochs"),
        ({"max_steps": -5}, "trainer.max_steps is -5: give 1 or more"),
        ({"learning_rate": "abc"}, "trainer.learning_rate is 'abc': give a number"),
        ({"learning_rate": -1}, "trainer.learning_rate is -1: give 0 or more"),
        ({"per_device_train_batch_size": 0}, "trainer.per_device_train_batch_size is 0: give a number above 0"),
        ({"num_train_epochs": 0}, "trainer.num_train_epochs is 0: give a number above 0"),
        ({"save_steps": -1}, "trainer.save_steps is -1: give a number above 0"),
        ({"adam_beta1": 1}, "trainer.adam_beta1 is 1: give 0 or more, and less than 1"),
        ({"bf16": "maybe"}, "trainer.bf16 is 'maybe': give true or false"),
        ({"lr_scheduler_type": "foo"}, "trainer.lr_scheduler_type is 'foo': choose one of linear, cosine, "),
        ({"save_strategy": False}, "trainer.save_strategy is False: choose one of no, steps"),
        ({"log_level": "loud"}, "trainer.log_level is 'loud': choose one of "),
        ({"optim": 3}, "trainer.optim is 3: choose one of adamw_torch, "),
        ({"report_to": 3}, "trainer.report_to is 3: give a text or [a, b]"),
        ({"deepspeed": 3}, "trainer.deepspeed is 3: give {key: value} or a text"),
        ({"run_name": 7}, "trainer.run_name is 7: give a text, as trainer.run_name='\"7\"', or null"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "trainer.lr_scheduler_type=warmup_stable_decay with lr_"),
        ({"save_strategy": "best"}, "trainer.save_strategy is best, and nothing is evaluated: give steps"),
        ({"label_smoothing_factor": 0.1}, "trainer.label_smoothing_factor is 0.1: give 0: the model's own loss"),
        ({"dataloader_persistent_workers": True}, "is true without workers: set trainer.dataloader_num_workers"),
        ({"optim_args": "foo"}, "trainer.optim_args is 'foo': give name=value"),
        ({"gradient_checkpointing_kwargs": {"foo": 1}}, "gradient_checkpointing_kwargs names 'foo': choose one of use"),
        ({"neftune_noise_alpha": -1}, "trainer.neftune_noise_alpha is -1: give 0 or more"),
        ({"torch_compile_mode": "foo"}, "trainer.torch_compile_mode is 'foo': choose one of default"),
        ({"torch_compile_backend": "foo"}, "trainer.torch_compile_backend is 'foo': choose one of "),
        ({"lr_scheduler_kwargs": {"a": 1}}, "trainer.lr_scheduler_type=linear with lr_scheduler_kwargs={'a': 1}: "),
    ],
)
def test_values_that_cannot_be_used(values, message):
    with pytest.raises(SettingsError, match=re.escape(message)) as raised:
        check_trainer_values(values)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "values",
    [
        {"max_steps": -1, "warmup_steps": 0.03, "learning_rate": 1, "num_train_epochs": 0.5, "logging_steps": 0.1},
        {"report_to": "none", "disable_tqdm": None, "save_total_limit": None, "optim_target_modules": ["a"]},
        {"report_to": ["tensorboard"], "gradient_checkpointing_kwargs": {"use_reentrant": False}, "max_grad_norm": 1},
        {"deepspeed": {"zero_optimization": {"stage": 2}}, "fsdp": "full_shard", "ddp_backend": "gloo"},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-6}},
        {"optim_args": "a=1, b=2", "torch_compile_mode": "max-autotune", "torch_compile_backend": "inductor"},
        {"lr_scheduler_type": "reduce_lr_on_plateau"},
    ],
)
def test_values_that_can(values):
    check_trainer_values(values)


def test_a_training_and_its_dry_run_refuse_them(capsys):
    with pytest.raises(SettingsError, match="trainer.max_steps is 'abc': give a whole number"):
        check_settings(compose(["trainer.max_steps=abc"]), paths=False)
    assert cli.main(["train", "dry_run=true", "trainer.save_steps=abc"]) == 2
    assert capsys.readouterr().err == "error: trainer.save_steps is 'abc': give a number\n"
    with pytest.raises(SettingsError, match="trainer.learning_rate is nan: give a finite number"):
        compose(["trainer.learning_rate=nan"])
    assert compose(["trainer.max_grad_norm=inf"]).trainer["max_grad_norm"] == float("inf")
