"""Cross entropy and KL in chunks, against plain double precision; where the gradient goes; how large tensors get."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.model.rows import answered, batch_of, random_images
from tests.tiny import tiny_model, tiny_processor
from voco_llama.data.records import Record
from voco_llama.model.losses import Objective, TeacherStates, TeacherTopK, top_k
from voco_llama.tokens import IGNORE_INDEX

TOKENS, WIDTH, VOCABULARY, TEACHER_WIDTH = 23, 8, 61, 12
CHUNKS = [1, 5, 23, 1000]


class Setup:
    """A head, hidden states and targets of a student; a teacher's besides; the same in double precision."""

    def __init__(self, tokens: int = TOKENS, vocabulary: int = VOCABULARY) -> None:
        torch.manual_seed(0)
        self.head = nn.Linear(WIDTH, vocabulary, bias=False)
        self.hidden_states = torch.randn(tokens, WIDTH, requires_grad=True)
        self.targets = torch.randint(vocabulary, (tokens,))
        self.teacher_head = nn.Linear(TEACHER_WIDTH, vocabulary)
        self.teacher_states = 3 * torch.randn(tokens, TEACHER_WIDTH)
        self.teacher = TeacherStates(self.teacher_states, self.teacher_head)

    def plain(self, lm: float, kl: float, temperature: float, num_items: int) -> tuple[torch.Tensor, ...]:
        """Total, cross entropy, KL; gradients of the head and of the hidden states, all float64 and unchunked."""
        weight = self.head.weight.detach().double().requires_grad_()
        states = self.hidden_states.detach().double().requires_grad_()
        logits = states @ weight.T
        cross_entropy = -logits.log_softmax(-1)[torch.arange(len(states)), self.targets].sum() / num_items
        teacher_logits = self.teacher_states.double() @ self.teacher_head.weight.double().T
        p = ((teacher_logits + self.teacher_head.bias.double()) / temperature).softmax(-1).detach()
        q = (logits / temperature).softmax(-1)
        divergence = temperature**2 * (p * (p / q).log()).sum() / num_items
        total = lm * cross_entropy + kl * divergence
        return total.detach(), cross_entropy, divergence, *torch.autograd.grad(total, (weight, states))


@pytest.mark.parametrize("chunk_size", CHUNKS)
@pytest.mark.parametrize(("lm", "kl", "temperature"), [(1.0, 1.0, 1.0), (0.0, 1.0, 2.0), (0.3, 0.7, 0.5)])
def test_value_and_gradient_are_those_of_plain_double_precision(chunk_size, lm, kl, temperature):
    made = Setup()
    expected = made.plain(lm, kl, temperature, num_items=40)
    objective = Objective(lm, kl, temperature, chunk_size, made.teacher)
    losses = objective(made.head, made.hidden_states, made.targets, 40)
    losses.total.backward()
    got = (losses.total, losses.lm, losses.kl, made.head.weight.grad, made.hidden_states.grad)
    for ours, plain in zip(got, expected, strict=True):
        torch.testing.assert_close(ours.double(), plain.double(), rtol=1e-5, atol=1e-6)
    assert not losses.lm.requires_grad
    assert not losses.kl.requires_grad


def test_the_gradient_stops_at_the_teacher():
    made = Setup()
    made.teacher_states.requires_grad_()
    before = made.teacher_head.weight.clone()
    Objective(1.0, 1.0, 1.0, 5, made.teacher)(made.head, made.hidden_states, made.targets, 1).total.backward()
    assert made.teacher_states.grad is None
    assert all(parameter.grad is None for parameter in made.teacher_head.parameters())
    assert torch.equal(made.teacher_head.weight, before)
    assert made.head.weight.grad.abs().sum() > 0


def test_a_teacher_that_is_the_student_has_no_divergence():
    made = Setup()
    same = TeacherStates(made.hidden_states.detach(), made.head)
    losses = Objective(0.0, 1.0, 3.0, 5, same)(made.head, made.hidden_states, made.targets, 1)
    losses.total.backward()
    assert abs(float(losses.kl)) < 1e-5
    assert made.head.weight.grad.abs().max() < 1e-5


def test_the_number_of_tokens_must_agree():
    made = Setup()
    with pytest.raises(ValueError, match="the teacher predicts 23 tokens and the batch trains 22"):
        Objective(teacher=made.teacher)(made.head, made.hidden_states[1:], made.targets[1:], 1)


def test_no_tokens_at_all():
    made = Setup()
    teacher = TeacherStates(made.teacher_states[:0], made.teacher_head)
    losses = Objective(1.0, 1.0, 1.0, 5, teacher)(made.head, made.hidden_states[:0], made.targets[:0], None)
    losses.total.backward()
    assert float(losses.total.detach()) == 0
    assert torch.equal(made.head.weight.grad, torch.zeros_like(made.head.weight))


@pytest.mark.parametrize("chunk_size", CHUNKS)
@pytest.mark.parametrize("times", [1, 2])
def test_what_the_student_wrote_itself_has_no_cross_entropy(chunk_size, times):
    made = Setup()
    own = torch.arange(TOKENS) % 3 == 0
    logits = made.head(made.hidden_states)
    expected = functional.cross_entropy(logits[~own], made.targets[~own], reduction="sum") / 30
    divergence = made.plain(0.0, 1.0, 1.0, num_items=40)[2]
    objective = Objective(0.5, 2.0, 1.0, chunk_size, made.teacher, own=own, num_labeled=30).of_readings(times)
    states, targets = made.hidden_states.repeat(times, 1), made.targets.repeat(times)
    losses = objective(made.head, states, targets, times * 40)
    torch.testing.assert_close(losses.lm, expected.detach())
    torch.testing.assert_close(losses.kl.double(), divergence.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(losses.total, 0.5 * losses.lm + 2 * losses.kl)


def test_a_step_of_the_student_s_own_words_alone():
    made = Setup()
    objective = Objective(1.0, 1.0, teacher=made.teacher, own=torch.ones(TOKENS, dtype=torch.bool), num_labeled=0)
    losses = objective(made.head, made.hidden_states, made.targets, TOKENS)
    assert losses.lm == 0
    torch.testing.assert_close(losses.total, losses.kl)


# ---- memory


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation made, in the forward and in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor):
                self.numel = max(self.numel, leaf.numel())
        return output


@pytest.mark.parametrize("kind", ["states", "top_k"])
def test_memory_grows_with_the_chunk_and_not_with_the_tokens(kind):
    vocabulary, saved, largest = 301, {}, {}
    for tokens, chunk_size in ((64, 4), (256, 4), (64, 64)):
        made = Setup(tokens, vocabulary)
        teacher = made.teacher
        if kind == "top_k":
            with torch.no_grad():
                teacher = TeacherTopK(*top_k(made.teacher_head, made.teacher_states, 3, 1.0, chunk_size=4))
        kept: list[int] = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda x, kept=kept: (kept.append(x.numel()), x)[1], lambda x: x
        )
        with Largest() as watched:
            with hooks:
                total = Objective(1.0, 1.0, 1.0, chunk_size, teacher)(
                    made.head, made.hidden_states, made.targets, 1
                ).total
            total.backward()
        saved[tokens, chunk_size], largest[tokens, chunk_size] = max(kept), watched.numel
    head = max(WIDTH, TEACHER_WIDTH) * vocabulary
    assert max(saved.values()) <= max(head, 256 * TEACHER_WIDTH)  # no logits are kept for the backward pass
    assert largest[64, 4] == largest[256, 4]
    assert largest[64, 4] <= max(head, 4 * vocabulary)
    assert largest[64, 64] == 64 * vocabulary


# ---- top-k


def test_top_k_of_the_whole_vocabulary_is_the_full_divergence_and_fewer_is_below():
    made = Setup()
    full = Objective(0.0, 1.0, 2.0, 5, made.teacher)(made.head, made.hidden_states, made.targets, 1)
    (gradient,) = torch.autograd.grad(full.total, made.head.weight)
    divergences = []
    for k in (1, 4, 16, 40, VOCABULARY - 1, VOCABULARY):
        with torch.no_grad():
            teacher = TeacherTopK(*top_k(made.teacher_head, made.teacher_states, k, 2.0, chunk_size=7))
        losses = Objective(0.0, 1.0, 2.0, 5, teacher)(made.head, made.hidden_states, made.targets, 1)
        divergences.append(float(losses.kl))
    (same,) = torch.autograd.grad(losses.total, made.head.weight)
    torch.testing.assert_close(divergences[-1], float(full.kl), rtol=1e-5, atol=0)
    torch.testing.assert_close(divergences[-2], float(full.kl), rtol=1e-5, atol=0)  # a rest of one word
    torch.testing.assert_close(same, gradient, rtol=1e-4, atol=1e-5)
    assert all(smaller < larger for smaller, larger in pairwise(divergences[:5]))
    assert divergences[0] > 0


@pytest.mark.parametrize("k", [1, 7])
def test_top_k_against_plain_double_precision(k):
    made = Setup()
    p = (
        (made.teacher_states.double() @ made.teacher_head.weight.double().T) + made.teacher_head.bias.double()
    ).softmax(-1)
    values, ids = p.topk(k, dim=-1)
    weight = made.head.weight.detach().double().requires_grad_()
    q = (made.hidden_states.detach().double() @ weight.T).softmax(-1)
    picked, rest = q.gather(-1, ids), 1 - values.sum(-1)
    expected = (values * (values / picked).log()).sum() + (rest * (rest / (1 - picked.sum(-1))).log()).sum()
    (gradient,) = torch.autograd.grad(expected, weight)

    teacher = TeacherTopK(ids, values.log().float().detach())
    losses = Objective(0.0, 1.0, 1.0, 5, teacher)(made.head, made.hidden_states, made.targets, 1)
    losses.total.backward()
    torch.testing.assert_close(losses.kl.double(), expected.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(made.head.weight.grad.double(), gradient, rtol=1e-4, atol=1e-5)


def test_a_student_that_gives_the_rest_next_to_nothing_has_a_finite_gradient():
    made = Setup()
    ids = torch.tensor([[3]])
    hidden_states = torch.ones(1, WIDTH)
    with torch.no_grad():
        made.head.weight.zero_()
        made.head.weight[3] = 100.0  # the rest has e^-800
    losses = Objective(0.0, 1.0, 1.0, 5, TeacherTopK(ids, torch.tensor([[0.5]]).log()))(
        made.head, hidden_states, torch.tensor([3]), 1
    )
    losses.total.backward()
    assert float(losses.kl) == pytest.approx(0.5 * 800, rel=0.02)
    assert made.head.weight.grad.isfinite().all()
    assert float(made.head.weight.grad[3, 0]) == pytest.approx(0.5, rel=1e-4)


# ---- through the model


@pytest.mark.parametrize("num_items", [None, 0, torch.tensor(0)], ids=["of the batch", "int", "tensor"])
def test_a_batch_without_an_answer_teaches_nothing(num_items):
    """As LLaVA's unanswered conversations are; the loss is 0, not 0 / 0."""
    processor = tiny_processor(order="inline")
    row = processor.lay_out_record(Record("1", tuple(answered("Why?")[:1])))
    batch = batch_of(processor, [row], side="right", labels=True)
    model = tiny_model(processor).train()
    for objective in (None, Objective(chunk_size=3)):
        loss = model(**batch, num_items_in_batch=num_items, objective=objective).loss
        loss.backward()
        assert loss.item() == 0
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)


@pytest.fixture(scope="module")
def batch():
    processor = tiny_processor(order="inline")
    rows = [processor.lay_out(answered(text, "Yes." * n)) for n, text in ((1, "<image>\nWhat?"), (3, "Why <image>?"))]
    return batch_of(processor, rows, side="right", labels=True) | {"pixel_values": processor.pixels(random_images(2))}


def test_cross_entropy_alone_is_the_plain_loss(batch):
    model = tiny_model(tiny_processor(order="inline")).train()
    plain = model(**batch, num_items_in_batch=11)
    plain.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    out = model(**batch, num_items_in_batch=11, objective=Objective(chunk_size=3))
    out.loss.backward()
    torch.testing.assert_close(out.loss, plain.loss)
    torch.testing.assert_close(out.loss_lm, plain.loss.detach())
    assert out.logits is None
    assert out.loss_kl is None
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("num_items", [None, 11, torch.tensor(11)], ids=["of the batch", "int", "tensor"])
def test_in_one_chunk_loss_and_gradients_are_bit_for_bit_those_of_all_logits(batch, num_items):
    """The plain cross entropy of all logits at once, as trainings computed it before there were chunks."""
    model = tiny_model(tiny_processor(order="inline")).train()
    model(**batch, num_items_in_batch=num_items).loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    everywhere = model(**batch, with_logits=True)
    targets = functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)[everywhere.logits_mask]
    total = functional.cross_entropy(everywhere.logits.float(), targets, reduction="sum")
    expected = total / (len(targets) if num_items is None else num_items)
    expected.backward()
    assert torch.equal(model(**batch, num_items_in_batch=num_items).loss, expected)
    assert gradients.keys() == {name for name, p in model.named_parameters() if p.grad is not None}
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.equal(parameter.grad, gradients[name]), name


def test_logits_beside_a_loss_where_they_are_asked_for(batch):
    model = tiny_model(tiny_processor(order="inline"))
    with_both = model(**batch)
    assert with_both.logits is not None
    assert model(**batch, with_logits=False).logits is None
    model.train()
    assert model(**batch).logits is None
    assert torch.equal(model(**batch, with_logits=True).logits, with_both.logits)
    unlabeled = {name: value for name, value in batch.items() if name != "labels"}
    assert model(**unlabeled).logits is not None
    for with_logits in (True, False):
        out = model(**batch, with_logits=with_logits)
        assert out.hidden_states is None
        assert torch.equal(out.loss, with_both.loss)


def test_logits_of_other_tokens_leave_the_loss_as_it_is(batch):
    model = tiny_model(tiny_processor(order="inline"))
    expected = model(**batch)
    text = (batch["segment"] == 0) & (batch["document"] >= 0)
    for wanted in (text, text & (batch["labels"] == IGNORE_INDEX), torch.zeros_like(text)):
        out = model(**batch, logits_mask=wanted)
        assert torch.equal(out.loss, expected.loss)
        assert len(out.logits) == int(wanted.sum())


def test_hidden_states_instead_of_logits(batch):
    model = tiny_model(tiny_processor(order="inline"))
    out = model(**batch)
    unlabeled = {name: value for name, value in batch.items() if name != "labels"}
    states = model(**unlabeled, logits_mask=out.logits_mask, with_logits=False)
    assert states.logits is None
    assert torch.equal(states.logits_mask, out.logits_mask)
    assert torch.equal(model.get_output_embeddings()(states.hidden_states), out.logits)
    assert torch.equal(functional.linear(states.hidden_states, model.language_model.lm_head.weight), out.logits)


def test_an_objective_needs_labels(batch):
    model = tiny_model(tiny_processor(order="inline"))
    unlabeled = {name: value for name, value in batch.items() if name != "labels"}
    with pytest.raises(ValueError, match="pass labels and no logits_mask"):
        model(**unlabeled, objective=Objective())
    with pytest.raises(ValueError, match="pass labels and no logits_mask"):
        model(**batch, logits_mask=batch["labels"] >= 0, objective=Objective())
