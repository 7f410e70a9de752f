"""The memory model against what PyTorch really allocates, autograd really keeps, and DeepSpeed itself estimates."""

from dataclasses import replace

import pytest
import torch
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, Qwen3Config

from tests.tiny import tiny_model, tiny_processor, tiny_text_config
from voco_llama.preflight.memory import (
    BOOL,
    MOMENTS,
    Adapters,
    Decoder,
    Pass,
    Plan,
    Tower,
    adapter_parameters,
    estimate,
    kept_by_layer,
    with_rows,
)
from voco_llama.preflight.plan import parameter_groups
from voco_llama.settings import LoraSettings
from voco_llama.sharding import FLOAT32, Group, Zero
from voco_llama.training.lora import add_adapters, trained_by
from voco_llama.training.stages import set_trainable

ROWS, LENGTH = 3, 20
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def decoder_of(config):
    head_dim = config.hidden_size // config.num_attention_heads
    heads = (config.num_attention_heads, config.num_key_value_heads)
    return Decoder(
        config.hidden_size, config.intermediate_size, config.num_hidden_layers, *heads, head_dim, config.vocab_size
    )


def plan_of(groups=(), decoder=None, work=None, **kwargs):
    decoder = decoder or decoder_of(tiny_text_config())
    work = work or Pass(ROWS, LENGTH, 0, 0, FLOAT32)
    return Plan(tuple(groups), decoder, Tower(16, 5, 16), work, **{"half": False, **kwargs})


def kept_bytes(module, run):
    """Bytes of distinct storages that autograd keeps, parameters left out."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    del output
    return sum(size for size, _ in kept.values())


def language_model(layers, attention="sdpa", **shape):
    config = tiny_text_config(layers, **shape)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).train()


def bytes_of_one_layer(make, attention="sdpa"):
    """What autograd keeps of a third layer: that of three less that of two."""
    sizes = []
    for layers in (2, 3):
        model = make(layers)
        embeddings = torch.randn(ROWS, LENGTH, model.config.hidden_size, requires_grad=True)
        mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril().expand(ROWS, 1, -1, -1)
        if attention == "eager":
            mask = torch.zeros(mask.shape).masked_fill(~mask, -1e9)
        decoder = model.get_decoder()
        sizes.append(kept_bytes(decoder, lambda d=decoder, e=embeddings, m=mask: d(inputs_embeds=e, attention_mask=m)))
    return sizes[1] - sizes[0]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_a_layer_keeps_just_what_is_counted(attention, train, kv_heads):
    shape = {"num_key_value_heads": kv_heads}
    kept = bytes_of_one_layer(
        lambda layers: language_model(layers, attention, **shape).requires_grad_(train), attention
    )
    work = Pass(ROWS, LENGTH, 0, 0, FLOAT32, attention, weights_train=train)
    assert kept == kept_by_layer(plan_of(decoder=decoder_of(tiny_text_config(**shape)), work=work))


@pytest.mark.parametrize("train", [True, False])
def test_a_layer_that_norms_its_heads_keeps_just_what_is_counted(train):
    """Qwen3, whose heads are wider than the hidden size has room for."""
    shape = dict(hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=16)

    def make(layers):
        config = Qwen3Config(vocab_size=64, num_hidden_layers=layers, **shape)
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train().requires_grad_(train)

    decoder = Decoder(32, 48, 2, 4, 2, 16, 64, norms_heads=True)
    work = Pass(ROWS, LENGTH, 0, 0, FLOAT32, weights_train=train)
    assert bytes_of_one_layer(make) == kept_by_layer(plan_of(decoder=decoder, work=work))


@pytest.mark.parametrize("targets", [TARGETS, ("q_proj", "down_proj"), ("v_proj", "o_proj")])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_layer_with_adapters_keeps_just_what_is_counted(targets, dropout):
    from peft import LoraConfig, inject_adapter_in_model

    def make(layers):
        config = LoraConfig(r=4, lora_dropout=dropout, target_modules=list(targets))
        return inject_adapter_in_model(config, language_model(layers)).train()

    work = Pass(ROWS, LENGTH, 0, 0, FLOAT32, weights_train=False)
    plan = plan_of(work=work, adapters=Adapters(4, dropout, targets, FLOAT32))
    # on a CPU dropout keeps its mask in float32, on a GPU as bool, which is counted
    masks = (FLOAT32 - BOOL) * sum(decoder_of(tiny_text_config()).linear()[name][0] for name in targets)
    kept = bytes_of_one_layer(make) - (ROWS * LENGTH * masks if dropout else 0)
    assert kept == kept_by_layer(plan)


def step_once(model):
    """One AdamW step on random gradients' paths; the optimizer."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    sum(parameter.float().square().sum() for parameter in trained).backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("trains", "rank"), [(["projector", "language"], 0), (["projector"], 0), (["language"], 4)])
def test_states_are_just_what_is_allocated(dtype, trains, rank):
    model = tiny_model(tiny_processor()).to(dtype)
    adapters = add_adapters(model, LoraSettings(rank=rank)) if rank else None
    set_trainable(model, trains, trained_by(adapters))
    optimizer = step_once(model)
    found = estimate(plan_of(parameter_groups(model)))
    parameters = list(model.parameters())
    assert found.of("weights") == sum(p.nbytes for p in parameters)
    assert found.of("gradients") == sum(p.grad.nbytes for p in parameters if p.grad is not None)
    moments = [state[name].nbytes for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert found.of("optimizer") == sum(moments) > 0


def test_a_tied_weight_counts_once():
    text = tiny_text_config(tie_word_embeddings=True)
    untied, tied = (tiny_model(tiny_processor(), text_config=config) for config in (tiny_text_config(), text))
    (before, after) = (sum(g.trained + g.frozen for g in parameter_groups(model)) for model in (untied, tied))
    assert before - after == untied.get_output_embeddings().weight.numel()


def test_adapters_are_counted():
    model = tiny_model(tiny_processor())
    adapters = add_adapters(model, LoraSettings(rank=4))
    counted = adapter_parameters(decoder_of(model.language_model.config), 4, LoraSettings().targets)
    trained = sum(parameter.numel() for parameter in trained_by(adapters))
    assert trained == counted + model.language_model.config.hidden_size  # and VoCo's embedding


PARAMETERS = 6_738_415_616


def zero(level, processes, frozen=0, offloads=()):
    groups = [Group("language", PARAMETERS, 0, 2), Group("vision", 0, frozen, 2)]
    return estimate(plan_of(groups, processes=processes, half=True, sharding=Zero(level, offloads)))


def states(found):
    names = ("weights", "gradients", "optimizer", "float32 gradients")
    return sum(found.of(name) for name in names)


@pytest.mark.parametrize("processes", [1, 8])
def test_zero_2_as_deepspeed_estimates_it(processes):
    _, theirs = estimate_zero2_model_states_mem_needs(PARAMETERS, processes, 1, cpu_offload=False)
    assert states(zero(2, processes)) == pytest.approx(theirs, abs=4)  # each term is rounded down
    _, theirs = estimate_zero2_model_states_mem_needs(PARAMETERS, processes, 1, cpu_offload=True)
    assert states(zero(2, processes, offloads=("optimizer",))) == theirs


def test_zero_3_as_deepspeed_estimates_it():
    """Theirs counts 18 bytes and the largest layer; ours counts the 16-bit weights beside the 18 of ZeRO-2."""
    _, theirs, layer = estimate_zero3_model_states_mem_needs(PARAMETERS, 0, 8, 1, cpu_offload=False)
    assert layer == 0
    assert states(zero(3, 8)) - theirs == pytest.approx(2 * PARAMETERS / 8, abs=4)
    for offloads in (("optimizer",), ("optimizer", "param")):
        _, theirs, _ = estimate_zero3_model_states_mem_needs(
            PARAMETERS, 0, 8, 1, cpu_offload=True, cpu_offload_params="param" in offloads
        )
        ours = zero(3, 8, offloads=offloads)
        assert states(ours) == pytest.approx(theirs, abs=4)


def test_what_each_level_divides():
    whole = zero(1, 1)
    for level, divided in (
        (1, {"optimizer"}),
        (2, {"optimizer", "gradients"}),
        (3, {"optimizer", "gradients", "weights"}),
    ):
        found = zero(level, 8)
        for name in ("weights", "gradients", "optimizer"):
            assert found.of(name) == whole.of(name) // (8 if name in divided else 1)


def test_float32_gradients_of_zero_3_are_those_of_a_group_of_parameters():
    assert zero(3, 1).of("float32 gradients") == 4_000_000_000
    assert zero(2, 1).of("float32 gradients") == 4 * PARAMETERS


def test_several_plain_processes_keep_gradients_twice():
    groups = [Group("language", 1000, 500, 4)]
    one, two = (estimate(plan_of(groups, processes=n)) for n in (1, 2))
    assert (one.of("buckets"), two.of("buckets")) == (0, 4000)
    assert estimate(plan_of(groups, half=True)).of("autocast copies") == 2000


def test_moments_and_peak():
    work = Pass(8, 2048, 8, 8 * 1471, chunk=8 * 1471)
    decoder = Decoder(4096, 11008, 32, 32, 32, 128, 32002)
    groups = [Group("language", PARAMETERS, 0, 2)]
    plan = plan_of(groups, decoder, work, processes=8, half=True, sharding=Zero(3))
    found = estimate(plan)
    assert found.peak == max(found.at(moment) for moment in MOMENTS) == found.at("head")
    assert found.at("update") == states(found) + found.of("CUDA context")
    chunked = estimate(replace(plan, work=replace(work, chunk=1024)))
    assert chunked.peak == chunked.at("layer")
    assert chunked.of("logits") * work.trained_tokens == found.of("logits") * 1024
    assert found.of("layers") == 2 * 8 * 2048 * 4096 * 32
    plain = estimate(replace(plan, work=replace(work, checkpointing=False)))
    assert plain.of("layers") == 32 * found.of("layer again") == 32 * kept_by_layer(plan)
    assert not plain.of("layer again")


def test_rows_scale_what_depends_on_them():
    plan = plan_of([Group("language", 1000, 0, 4)], work=Pass(4, 64, 8, 100))
    two = with_rows(plan, 2)
    assert (two.work.rows, two.work.images, two.work.trained_tokens) == (2, 4, 50)
    for name in ("layers", "logits", "inputs", "mask", "images"):
        assert 2 * estimate(two).of(name) == estimate(plan).of(name) > 0
    assert estimate(two).of("weights") == estimate(plan).of("weights")


def test_logits_of_a_real_loss():
    """What the head and the cross entropy keep lies within what is counted, and is most of it."""
    vocabulary, tokens, hidden = 5000, 64, 32
    head = nn.Linear(hidden, vocabulary, bias=False).to(torch.bfloat16)
    states = torch.randn(tokens, hidden, dtype=torch.bfloat16, requires_grad=True)
    kept = kept_bytes(head, lambda: cross_entropy(head(states).float(), torch.arange(tokens), reduction="sum"))
    logits = estimate(plan_of(work=Pass(1, 100, 0, tokens), decoder=Decoder(32, 48, 2, 4, 4, 8, vocabulary))).of(
        "logits"
    )
    log_probabilities = FLOAT32 * tokens * vocabulary
    assert log_probabilities <= kept <= 1.05 * log_probabilities
    assert logits == 14 * tokens * vocabulary  # besides: logits in bf16, the gradients of both
