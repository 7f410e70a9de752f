"""The reading through the most VoCo tokens as the teacher of the others, against readings computed one by one."""

import pytest
import torch
from torch import Tensor

from tests.model.rows import answered, batch_of, random_images
from tests.tiny import tiny_model, tiny_processor
from voco_llama.layout import HostRows
from voco_llama.model.losses import Objective, OwnReadings
from voco_llama.model.voco_llama import VoCoLlama

NUM_VOCO = torch.tensor([[1, 2, 1], [3, 3, 2], [4, 4, 4]])
"""Of three readings of three rows."""
LM, KL, TEMPERATURE = 0.3, 0.7, 2.0


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(num_voco=4, order="inline")


@pytest.fixture(scope="module")
def rows(processor):
    texts = (("<image>\nWhat?", "Yes."), ("Why?", "So."), ("<image> or <image>?", "Both of them."))
    fields = batch_of(processor, [processor.lay_out(answered(*text)) for text in texts], side="right", labels=True)
    return HostRows(fields), processor.pixels(random_images(3))


def step(model: VoCoLlama, processor, rows, objective: Objective, two_steps: bool) -> tuple[list[float], list[Tensor]]:
    """Losses of all readings together, and gradients."""
    host, pixels = rows
    media = torch.tensor([[0, -1], [1, 2]])
    shared = HostRows(host.fields, media, torch.tensor([0, -1, 1])).read_through(NUM_VOCO, processor.tokens.pad)
    model.zero_grad()
    tokens = int((host.fields["labels"][:, 1:] >= 0).sum())
    kwargs = {"rows": shared} if two_steps else {**shared.fields, "media": shared.media, "medium": shared.medium}
    objective = objective.of_readings(len(NUM_VOCO))
    out = model(**kwargs, pixel_values=pixels, objective=objective, two_steps=two_steps, num_items_in_batch=3 * tokens)
    out.loss.backward()
    return [out.loss.item(), out.loss_lm.item(), out.loss_kl.item()], [p.grad.clone() for p in trained(model)]


def trained(model: VoCoLlama) -> list[Tensor]:
    return [p for p in model.parameters() if p.grad is not None]


def one_by_one(model: VoCoLlama, processor, rows) -> tuple[list[float], list[Tensor]]:
    """The same in plain double precision, from the logits of a masked pass for each reading."""
    host, pixels = rows
    model.zero_grad()
    logits, targets = [], None
    for num_voco in NUM_VOCO:
        fields = host.read_through(num_voco[None], processor.tokens.pad).fields
        logits.append(model(**fields, pixel_values=pixels, with_logits=True).logits.double())
        targets = fields["labels"][fields["labels"] >= 0]
    lm = -torch.stack([said.log_softmax(-1)[torch.arange(len(targets)), targets].mean() for said in logits]).mean()
    *others, teacher = ((said / TEMPERATURE).log_softmax(-1) for said in logits)
    teacher = teacher.detach()
    divergences = [(teacher.exp() * (teacher - other)).sum(-1).mean() for other in others]
    kl = TEMPERATURE**2 * torch.stack(divergences).mean()
    loss = LM * lm + KL * kl
    loss.backward()
    return [loss.item(), lm.item(), kl.item()], [p.grad.clone() for p in trained(model)]


@pytest.mark.parametrize("two_steps", [True, False])
@pytest.mark.parametrize("chunk_size", [1, 4, 1000])
def test_losses_and_gradients_are_those_of_readings_one_by_one(processor, rows, chunk_size, two_steps):
    model = tiny_model(processor).train()
    expected, gradients = one_by_one(model, processor, rows)
    tokens = int((rows[0].fields["labels"][:, 1:] >= 0).sum())
    objective = Objective(LM, KL, TEMPERATURE, chunk_size, OwnReadings(tokens))
    found, ours = step(model, processor, rows, objective, two_steps)
    assert found == pytest.approx(expected, rel=1e-5)
    assert expected[2] > 1e-3
    for plain, got in zip(gradients, ours, strict=True):
        torch.testing.assert_close(got, plain, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
def test_the_reading_that_teaches_has_no_gradient_of_the_divergence(chunk_size):
    torch.manual_seed(0)
    head, states = torch.nn.Linear(8, 31), torch.randn(3 * 5, 8, requires_grad=True)
    objective = Objective(0.0, 1.0, 1.0, chunk_size, OwnReadings(5)).of_readings(3)
    objective(head, states, torch.randint(31, (15,)), 15).total.backward()
    assert states.grad[:10].abs().sum(dim=1).min() > 0
    assert torch.equal(states.grad[10:], torch.zeros(5, 8))


def test_the_head_runs_once_for_each_token_and_on_no_token_too():
    head, calls = torch.nn.Linear(8, 31), []
    head.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    objective = Objective(1.0, 1.0, 1.0, 6, OwnReadings(5)).of_readings(3)
    objective(head, torch.randn(15, 8), torch.randint(31, (15,)), 15)
    assert calls == [6, 6, 3]
    calls.clear()
    none = Objective(1.0, 1.0, 1.0, 6, OwnReadings(0)).of_readings(3)
    losses = none(head, torch.zeros(0, 8, requires_grad=True), torch.zeros(0, dtype=torch.long), 0)
    losses.total.backward()
    assert (calls, losses.total.item()) == ([0, 0], 0)


def test_the_readings_must_be_of_equal_length():
    with pytest.raises(ValueError, match="the teacher predicts 12 tokens and the batch trains 11"):
        Objective(teacher=OwnReadings(4)).of_readings(3)(None, torch.zeros(11, 8), torch.zeros(11), 1)
