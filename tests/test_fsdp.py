"""FSDP2 as one of four processes sees it: units, types, what is gathered and summed how often, and what it weighs.

The other three are made up: what they would send is whatever lies in memory.
"""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard import _fsdp_param_group
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.model.rows import answered, batch_of, random_images
from tests.tiny import tiny_model, tiny_processor, tiny_text_config
from voco_llama.model.losses import Objective
from voco_llama.preflight.plan import parameter_groups
from voco_llama.sharding import Fsdp, Units, weights_are_divided
from voco_llama.training.stages import set_trainable

PROCESSES = 4


@pytest.fixture(autouse=True)
def one_of_four():
    torch.distributed.init_process_group("fake", rank=0, world_size=PROCESSES, store=FakeStore())
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(num_voco=2)


def divided(model, dtype=torch.float32, trains=("projector", "language"), **kwargs):
    set_trainable(model.train(), trains)
    arguments = SimpleNamespace(bf16=False, fp16=False, device=torch.device("cpu"), world_size=PROCESSES)
    Fsdp(**kwargs).divide(model, arguments, dtype)
    return model


def losses(model, processor, **kwargs):
    rows = [processor.lay_out(answered(text, "Yes." * 3)) for text in ("<image>\nWhat?", "Why?")]
    batch = batch_of(processor, rows, side="right", labels=True)
    return model(**batch, pixel_values=processor.pixels(random_images(1)), **kwargs).loss


@pytest.fixture
def calls(monkeypatch):
    """How often weights are gathered, and gradients summed."""
    calls = Counter()

    def counted(name):
        function = getattr(_fsdp_param_group, name)

        def call(*args, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(_fsdp_param_group, name, call)

    counted("foreach_all_gather")
    counted("foreach_reduce")
    return calls


@pytest.mark.parametrize("tied", [False, True])
def test_layers_are_units_and_tied_words_are_in_one(processor, tied):
    model = divided(tiny_model(processor, text_config=tiny_text_config(tie_word_embeddings=tied)))
    assert weights_are_divided(model)
    units = {name for name, module in model.named_modules() if isinstance(module, FSDPModule)}
    layers = {f"language_model.model.layers.{n}" for n in range(2)}
    blocks = {f"vision.visual.transformer.resblocks.{n}" for n in range(2)}
    words = set() if tied else {"language_model.model.embed_tokens"}
    assert units == {"", "vision", *layers, *blocks, *words}
    losses(model, processor).backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in model.parameters())


def test_what_trains_is_float32_and_what_does_not_as_asked(processor):
    model = divided(tiny_model(processor).to(torch.float16), torch.bfloat16, trains=["projector"])
    types = {parameter.dtype for parameter in model.projector.parameters()}
    frozen = {p.dtype for part in (model.vision, model.language_model) for p in part.parameters()}
    assert (types, frozen, model.config.dtype) == ({torch.float32}, {torch.bfloat16}, torch.bfloat16)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")  # 5.17 knows no other name
@pytest.mark.parametrize("two_steps", [False, True])
def test_nothing_is_gathered_or_summed_more_often_than_once(processor, calls, two_steps):
    """However many chunks the losses have, and whether layers are computed again."""
    found = []
    for chunk, again in ((1024, False), (4, True)):
        model = tiny_model(processor)
        model.check_two_steps()
        if again:
            model.gradient_checkpointing_enable()
        divided(model)
        calls.clear()
        losses(model, processor, objective=Objective(chunk_size=chunk), two_steps=two_steps).backward()
        found.append(dict(calls))
    units = 1 + 1 + 2  # the whole, embeddings, layers
    assert found[0]["foreach_reduce"] == units
    assert found[1] == found[0]


def test_layers_stay_whole_if_asked(processor, calls):
    gathered = []
    for reshards in (True, False):
        model = divided(tiny_model(processor), reshards=reshards)
        calls.clear()
        losses(model, processor).backward()
        gathered.append(calls["foreach_all_gather"])
    assert gathered[1] < gathered[0]


def test_a_process_holds_what_the_estimate_says(processor):
    model = tiny_model(processor, text_config=tiny_text_config(hidden_size=64, vocab_size=260))
    set_trainable(model, ["projector", "language"])
    groups = parameter_groups(model)
    divided(model)
    losses(model, processor).backward()
    optimizer = torch.optim.AdamW(parameter for parameter in model.parameters() if parameter.requires_grad)
    optimizer.step()

    def held(tensors):
        storages = (tensor.to_local().untyped_storage() for tensor in tensors)  # gradients of a unit share one
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    terms, host = Fsdp().states(groups, PROCESSES, half=False, units=Units(0, 1, 1, 1))
    estimated = {term.name: term.bytes for term in terms}
    assert host == 0
    for name, tensors in (("weights", model.parameters()), ("gradients", gradients), ("optimizer", moments)):
        assert held(tensors) == pytest.approx(estimated[name], rel=0.01), name
