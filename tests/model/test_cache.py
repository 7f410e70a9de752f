"""`VoCoCache`: what it is, and what it may be made of; its file is in `test_cache_file.py`."""

import re
from dataclasses import replace

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from tests.model.rows import random_images
from tests.tiny import tiny_model, tiny_processor, tiny_text_config
from voco_llama import VoCoCache
from voco_llama.errors import CheckpointError
from voco_llama.model.cache import rotate_keys
from voco_llama.settings import LoraSettings
from voco_llama.training.lora import add_adapters

# ---- in memory


def of_entries(states: torch.Tensor, places: list[int]) -> torch.Tensor:
    """Keys or values of some entries of two tokens each."""
    return states.unflatten(1, (-1, 2))[:, places].flatten(1, 2)


def test_a_cache_has_one_entry_an_image(model, cache):
    assert len(cache) == 4
    assert cache.num_voco == 2
    assert cache.counts.tolist() == [2] * 4
    assert cache.keys.shape == cache.values.shape == (2, 4 * 2, 2, 8)
    assert model.config.kv_shape == (2, 2, 8)
    assert cache.bytes_per_entry == 2 * 2 * 2 * 2 * 8 * 4
    assert cache.num_bytes == 4 * cache.bytes_per_entry
    assert not cache.keys.requires_grad


def test_a_cache_does_not_keep_the_vision_tokens_alive(cache):
    for tensor in (cache.keys, cache.values):
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_entries_are_picked_like_those_of_a_list(cache):
    for entries, places in (
        (1, [1]),
        (-1, [3]),
        (slice(1, 3), [1, 2]),
        ([2, 0, 2], [2, 0, 2]),
        (torch.tensor([3]), [3]),
        (slice(3, 1), []),
        (slice(0, 4, 2), [0, 2]),
        (slice(-2, 9), [2, 3]),
    ):
        picked = cache[entries]
        assert torch.equal(picked.keys, of_entries(cache.keys, places))
        assert torch.equal(picked.values, of_entries(cache.values, places))
        assert picked.fingerprint == cache.fingerprint
    for entry in (4, -5):
        with pytest.raises(IndexError):
            cache[entry]


def test_iterating_gives_every_entry(cache):
    assert [len(entry) for entry in cache] == [1] * 4


def test_cat_joins_in_order(cache):
    joined = VoCoCache.cat([cache[2:], cache[0]])
    assert torch.equal(joined.keys, of_entries(cache.keys, [2, 3, 0]))
    assert torch.equal(joined.values, of_entries(cache.values, [2, 3, 0]))


def test_cat_refuses_what_does_not_go_together(cache):
    with pytest.raises(CheckpointError, match="no cache to concatenate"):
        VoCoCache.cat([])
    with pytest.raises(CheckpointError, match="come from different models"):
        VoCoCache.cat([cache, replace(cache, fingerprint="other")])


def test_truncation_keeps_the_first_tokens(model, pixels, cache):
    assert torch.equal(cache.truncate(1).keys, cache.keys[:, ::2])
    torch.testing.assert_close(cache.truncate(1).keys, model.compress(pixels, 1).keys, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cache.truncate(1).values, model.compress(pixels, 1).values, atol=1e-5, rtol=1e-5)
    for num_voco in (0, 3, -1):
        with pytest.raises(CheckpointError, match=f"cannot truncate 2 VoCo tokens to {num_voco}"):
            cache.truncate(num_voco)


def test_every_image_is_compressed_alone(model, pixels, cache):
    for i in range(4):
        alone = model.compress(pixels[i : i + 1])
        torch.testing.assert_close(alone.keys, cache[i].keys, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(alone.values, cache[i].values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_rotated_keys_are_the_keys_at_the_new_position(rope):
    """Against the rotary embedding of transformers itself."""
    rotary = LlamaRotaryEmbedding(tiny_text_config(rope_parameters={"rope_theta": 10000.0, **rope}))
    raw = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0))

    def keys_at(position: torch.Tensor) -> torch.Tensor:
        cos, sin = rotary(raw, position)
        return apply_rotary_pos_emb(raw, raw, cos, sin)[1]

    start = torch.arange(5).expand(2, -1)
    offset = torch.tensor([[3], [200]]).expand(-1, 5)
    moved = rotate_keys(keys_at(start), offset[:, None], rotary.inv_freq)
    torch.testing.assert_close(moved, keys_at(start + offset), atol=1e-4, rtol=1e-4)
    assert rotate_keys(raw.bfloat16(), offset[:, None], rotary.inv_freq).dtype == torch.bfloat16


# ---- fingerprint


def test_the_fingerprint_is_the_models_own(processor, model, cache):
    assert cache.fingerprint == model.fingerprint() == tiny_model(processor).fingerprint()
    assert tiny_model(processor, seed=1).fingerprint() != model.fingerprint()
    assert tiny_model(tiny_processor(order="authors")).fingerprint() != model.fingerprint()


def test_the_fingerprint_is_the_same_in_bfloat16(processor):
    model = tiny_model(processor)
    assert model.to(torch.bfloat16).fingerprint() == tiny_model(processor).fingerprint()


def test_the_fingerprint_changes_with_any_weight(processor):
    model = tiny_model(processor)
    before = model.fingerprint()
    for name, parameter in model.named_parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.mul_(1.1).add_(0.01)
            assert model.fingerprint() != before, name
            parameter.copy_(kept)
    assert model.fingerprint() == before


def test_the_fingerprint_changes_with_vocos_embedding_alone(processor):
    model = tiny_model(processor)
    before = model.fingerprint()
    with torch.no_grad():
        model.get_input_embeddings().weight[processor.tokens.voco, 3] += 0.1
    assert model.fingerprint() != before


def _stepped(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def _loaded(model):
    model.load_state_dict({name: value + 0.1 for name, value in model.state_dict().items()})


def _assigned(model):
    model.load_state_dict({name: value + 0.1 for name, value in model.state_dict().items()}, assign=True)


def _edited_by_data(model):
    model.projector[0].weight.data += 0.1


def _edited_in_place_of_the_storage(model):
    """As an optimizer does whose parameters are views of one flat buffer."""
    weight = model.projector[0].weight
    buffer = weight.detach().flatten().clone()
    weight.data = buffer.view_as(weight)
    model.fingerprint()
    buffer += 0.1


def _merged(model):
    adapters = add_adapters(model, LoraSettings(rank=2))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    before = model.fingerprint()
    adapters.merge_adapter()
    assert model.fingerprint() != before


def _replaced(model):
    model.projector[0].weight = torch.nn.Parameter(model.projector[0].weight.detach() + 0.1)


def _moved_and_back(model):
    model.to(torch.float64)
    with torch.inference_mode():
        model.projector[0].weight.add_(0.1)
    model.to(torch.float32)


def _reconfigured(model):
    model.config.segment_attention = "bidirectional"


@pytest.mark.parametrize(
    "change",
    [
        _stepped,
        _loaded,
        _assigned,
        _edited_by_data,
        _edited_in_place_of_the_storage,
        _merged,
        _replaced,
        _moved_and_back,
        _reconfigured,
    ],
    ids=lambda change: change.__name__.strip("_"),
)
def test_a_fingerprint_is_never_that_of_before(processor, change):
    model = tiny_model(processor)
    cache = model.compress(processor.pixels(random_images(1)))
    assert model.fingerprint() == cache.fingerprint
    change(model)
    assert model.fingerprint() != cache.fingerprint
    with pytest.raises(ValueError, match="made by another model"):
        model.generate(**processor("What?"), cache=cache, max_new_tokens=1)


def test_a_fingerprint_of_tensors_without_a_version(processor):
    """As of a model that was loaded under `inference_mode`."""
    with torch.inference_mode():
        model = tiny_model(processor)
        before = model.fingerprint()
        assert before == tiny_model(processor).fingerprint()
        model.projector[0].weight.add_(0.1)
        assert model.fingerprint() != before


def test_a_fingerprint_does_not_depend_on_strides(processor):
    model = tiny_model(processor)
    before = model.fingerprint()
    weight = model.projector[0].weight
    weight.data = weight.detach().T.contiguous().T
    assert not weight.is_contiguous()
    assert model.fingerprint() == before


def test_the_fingerprint_does_not_change_with_what_compression_does_not_use(processor):
    model = tiny_model(processor)
    before = model.fingerprint()
    model.config.num_voco, model.config.condition = 1, "full"
    model.set_attn_implementation("eager")
    model.train().requires_grad_(False)
    assert model.fingerprint() == before


def test_entries_that_are_not_there_are_named(cache):
    for entries in (4, -5, [0, 4], torch.tensor([-5]), [True, False], [0.5], [True] * 5):
        with pytest.raises(CheckpointError, match="a cache of 4 entries has no .*: give numbers below 4"):
            cache[entries]


def test_entries_are_picked_by_a_mask_backwards_and_none_at_all(cache):
    assert torch.equal(cache[[True, False, False, True]].keys, of_entries(cache.keys, [0, 3]))
    assert torch.equal(cache[::-1].keys, of_entries(cache.keys, [3, 2, 1, 0]))
    assert len(cache[[]]) == 0


def test_it_is_shown_in_one_line(cache):
    shown = repr(cache)
    assert re.fullmatch(
        r"VoCoCache\(4 entries of 2 VoCo tokens, \d+ layers, 2 heads of 8, float32 on cpu, model [0-9a-f]{12}\)", shown
    )
