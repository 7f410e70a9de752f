"""A training with a reconstruction: its decoder is in checkpoints, learns, and is gone at the end."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.training.conftest import losses, settings_in
from voco_llama.errors import SettingsError
from voco_llama.model.voco_llama import VoCoLlama
from voco_llama.training.build import build_or_load
from voco_llama.training.run import train

RECONSTRUCTION = (
    "compression.num_voco=4",
    "compression.num_voco_choices=[1,2,4]",
    "compression.readings=3",
    "loss.reconstruction=0.3",
    "trainer.save_strategy=steps",
    "trainer.save_steps=2",
)


def curve_of(folder) -> list[dict]:
    return json.loads((folder.parent / "result.json").read_text())["loss_curve"]


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    return train(settings_in(world, tmp_path_factory.mktemp("whole") / "run", "toy/voco_1", *RECONSTRUCTION))


def has_decoder(folder) -> bool:
    return any(name.startswith("reconstruction.") for name in load_file(folder / "model.safetensors"))


def test_the_decoder_is_in_checkpoints_and_not_in_the_model(trained):
    assert has_decoder(trained.parent / "checkpoint-2")
    assert VoCoLlama.from_pretrained(trained.parent / "checkpoint-2").reconstruction is not None
    assert not has_decoder(trained)
    assert VoCoLlama.from_pretrained(trained).reconstruction is None


def test_each_loss_is_said_and_goes_down(trained):
    curve = curve_of(trained)
    for entry in curve:
        assert entry["loss"] == pytest.approx(entry["loss_lm"] + 0.3 * entry["loss_reconstruction"], rel=1e-5)
    assert curve[-1]["loss_reconstruction"] < curve[0]["loss_reconstruction"]


def test_a_killed_run_goes_on_to_the_same_curve_and_the_decoder_may_be_left_at_the_next(
    trained, settings_for, killed_and_gone_on, tmp_path
):
    again = killed_and_gone_on(settings_for("toy/voco_1", *RECONSTRUCTION))
    assert losses(again.parent) == losses(trained.parent)
    plain = ["trainer.max_steps=1", f"model.checkpoint={trained.parent}/checkpoint-2", f"output_dir={tmp_path}/plain"]
    assert not has_decoder(train(settings_for("toy/voco_1", *plain)))


@pytest.mark.parametrize("optimizer", ["trainer", "muon"])
def test_the_decoder_has_a_learning_rate_of_its_own(settings_for, optimizer):
    """A first step of Adam is as long as the rate, and variances begin at 0."""
    one = ["trainer.max_steps=1", "trainer.save_steps=1", "trainer.warmup_steps=0", f"optimizer={optimizer}"]
    rates = ["trainer.learning_rate=1e-5", "loss.reconstruction_learning_rate=1e-2"]
    final = train(settings_for("toy/voco_1", *RECONSTRUCTION, *one, *rates))
    variance = load_file(final.parent / "checkpoint-1" / "model.safetensors")["reconstruction.variance"]
    torch.testing.assert_close(variance.abs(), torch.full_like(variance, 1e-2), rtol=1e-3, atol=0)


def test_a_layer_that_the_language_model_has_not_is_refused(settings_for):
    with pytest.raises(SettingsError, match=r"loss.reconstruction_layer is 4, and .* has 2 layers: give"):
        build_or_load(settings_for("toy/voco_1", *RECONSTRUCTION, "loss.reconstruction_layer=4"))
