"""Muon: which parameters it has, and that its steps are what they should be."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from tests.tiny import tiny_model, tiny_processor
from voco_llama.errors import SettingsError
from voco_llama.training.optimizer import ADAM_RMS, MuonAdamW, muon, orthogonalized
from voco_llama.training.run import train

LR = 1e-2


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    sizes = dict(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes))


def build(model: nn.Module, weight_decay: float = 0.0) -> MuonAdamW:
    return muon(model, LR, weight_decay, (0.9, 0.95), eps=1e-8)


def give_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_matrices_between_layers_are_muons_and_all_else_is_adamws(model):
    of_muon = {id(p) for group in build(model).param_groups if group["muon"] for p in group["params"]}
    of_adamw = {id(p) for group in build(model).param_groups if not group["muon"] for p in group["params"]}
    for name, parameter in model.named_parameters():
        is_matrix = name.endswith("_proj.weight")
        assert (id(parameter) in of_muon) == is_matrix, name
        assert (id(parameter) in of_adamw) != is_matrix, name


def test_offsets_of_voco_embeddings_are_a_table_too():
    model = tiny_model(tiny_processor(), voco_embeddings="distinct")
    (of_adamw,) = (group["params"] for group in build(model).param_groups if not group["muon"])
    assert any(parameter is model.voco_offsets.weight for parameter in of_adamw)


def test_what_is_frozen_is_left_out(model):
    model.get_input_embeddings().weight.requires_grad_(False)
    model.model.layers[0].requires_grad_(False)
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert {id(p) for group in build(model).param_groups for p in group["params"]} == trained


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 24, 16), (1, 16, 24)])
def test_directions_are_nearly_the_polar_factor(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalized(matrices)
    assert found.dtype == torch.float32
    singular = torch.linalg.svdvals(found)
    assert singular.min() > 0.4
    assert singular.max() < 1.3
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    assert nn.functional.cosine_similarity(found.flatten(1), (left @ right).flatten(1)).min() > 0.95


def test_a_step_of_a_matrix_is_as_large_as_adamws(model):
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    give_gradients(model, 0)
    build(model).step()
    for name, parameter in model.named_parameters():
        if name.endswith("_proj.weight"):
            rms = (parameter - before[name]).pow(2).mean().sqrt()
            assert 0.6 * ADAM_RMS * LR < rms < 1.2 * ADAM_RMS * LR, name


def test_the_rest_steps_exactly_as_adamw(model):
    rest = [p for name, p in model.named_parameters() if not name.endswith("_proj.weight")]
    twins = [nn.Parameter(parameter.detach().clone()) for parameter in rest]
    reference = torch.optim.AdamW(twins, lr=LR, betas=(0.9, 0.95), weight_decay=0.0)
    optimizer = build(model, weight_decay=0.5)
    for step in range(3):
        give_gradients(model, step)
        for twin, parameter in zip(twins, rest, strict=True):
            twin.grad = parameter.grad.clone()
        reference.step()
        optimizer.step()
    for twin, parameter in zip(twins, rest, strict=True):
        torch.testing.assert_close(parameter, twin, rtol=0, atol=0)


def test_momentum_and_decay_of_a_matrix_by_hand():
    matrix = nn.Parameter(torch.eye(2))
    optimizer = MuonAdamW([{"params": [matrix], "muon": True, "weight_decay": 0.5}], lr=LR)
    expected, momentum = torch.eye(2), torch.zeros(2, 2)
    for gradient in (torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.0, 1.0], [-1.0, 0.5]])):
        matrix.grad = gradient.clone()
        optimizer.step()
        momentum = 0.95 * momentum + 0.05 * gradient
        direction = orthogonalized((0.05 * gradient + 0.95 * momentum)[None])[0]
        expected = expected * (1 - LR * 0.5) - LR * ADAM_RMS * 2**0.5 * direction
    torch.testing.assert_close(matrix.detach(), expected)


def test_goes_on_from_its_state(model):
    optimizer = build(model)
    give_gradients(model, 0)
    optimizer.step()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = copy.deepcopy(optimizer.state_dict())
    give_gradients(model, 1)
    optimizer.step()
    expected = {name: value.clone() for name, value in model.state_dict().items()}

    model.load_state_dict(weights)
    resumed = build(model)
    resumed.load_state_dict(state)
    give_gradients(model, 1)
    resumed.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_a_closure_is_refused(model):
    with pytest.raises(ValueError, match="closure"):
        build(model).step(lambda: torch.tensor(0.0))


def test_an_optimizer_that_is_not_installed_is_one_line(settings_for):
    with pytest.raises(SettingsError, match="^trainer.optim=galore_adamw with optim_args=None: cannot be") as caught:
        train(settings_for("toy/instruct", "optimizer=trainer", "trainer.max_steps=1", "trainer.optim=galore_adamw"))
    assert "\n" not in str(caught.value)
