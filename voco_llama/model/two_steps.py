"""The pass in two steps: segments alone, and text that reads them, one call of each decoder layer over both.

All that has to be computed lies in one run of packed tokens (`voco_llama.packing`): every distinct segment once, and
the text of all rows without padding. Whatever a layer does to single tokens, it does to this run. Only attention knows
of segments and rows. It is causal everywhere, so no mask exists:

    segments  [segments, heads, length, dimension]: each for itself
    rows      [rows, heads, longest, dimension]: text, and in between, at their places, the keys and values of the
              segments' tokens that a row reads, moved to their positions there

    [V V C T T] = segment [V V C] and row [. . c T T]; c is read, and asks nothing itself (its query is any, its answer
    is dropped)

Compressing is the same without text: of each layer the keys and values of VoCo tokens are kept, and nothing else. In
the last layer a segment's vision tokens are needed for nothing, so it runs without them.

The masked pass (`VoCoLlama.forward`) is the definition that this is tested against.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from voco_llama.choices import SegmentAttention
from voco_llama.errors import SettingsError
from voco_llama.layout import PADDING_DOCUMENT
from voco_llama.model.cache import rotate_keys
from voco_llama.packing import Packing
from voco_llama.visibility import BlockMask, TokenFacts, attention_mask

TWO_STEPS = "voco_two_steps"
"""Name under which transformers finds the attention of this pass."""

CAUSAL_BY_THEMSELVES = ("sdpa", "flash_attention_2")
"""Attention implementations that are causal when they get no mask."""

KeptKeys = list[tuple[Tensor, Tensor]]
"""Of each layer the keys and values of VoCo tokens, `[segments, heads, N, head_dim]`."""

_PASSED_ON = {"attention_mask", "position_ids", "position_embeddings", "past_key_values", "use_cache", "cache_position"}
"""What decoders give their layers, and `run_layers` too or, without a cache, in vain."""


@dataclass(frozen=True)
class Reading:
    """What attention has to know of the packed tokens; a layer passes it on with its keyword arguments.

    Attributes:
        packing: On the device.
        backend: Attention implementation of transformers that does the work.
        inverse_frequency: `[head_dim / 2]`, by which keys are moved.
        segment_mask, row_mask: For all segments, and for all rows; None: the backend is causal by itself.
        attends: `[N]`: the places in a segment whose tokens see others, all the rest themselves alone; None: all do.
        kept: Where the keys and values of VoCo tokens are put, layer by layer; None: nowhere.
    """

    packing: Packing
    backend: str
    inverse_frequency: Tensor
    segment_mask: Tensor | BlockMask | None
    row_mask: Tensor | BlockMask | None
    attends: Tensor | None
    kept: KeptKeys | None

    @classmethod
    def of(
        cls,
        packing: Packing,
        backend: str,
        segment_attention: SegmentAttention,
        inverse_frequency: Tensor,
        dtype: torch.dtype,
        kept: KeptKeys | None = None,
    ) -> "Reading":
        """Of packed tokens whose hidden states have this dtype.

        Raises:
            SettingsError: The backend cannot express the segment attention.
        """

        def mask(
            segment: Tensor, voco: Tensor, attention: SegmentAttention, queries: Tensor | None = None
        ) -> Tensor | BlockMask | None:
            if attention == "causal" and backend in CAUSAL_BY_THEMSELVES:
                return None
            facts = TokenFacts.of_batch(
                {
                    "segment": segment,
                    "voco": voco,
                    "position": segment,
                    "document": torch.where(segment > 0, 0, PADDING_DOCUMENT),
                }
            )
            asking = facts if queries is None else facts.at(slice(None), queries)
            return attention_mask(backend, asking, facts, "full", dtype, attention)

        segment_mask = row_mask = attends = None
        if packing.num_segments:
            if segment_attention == "independent" and packing.are_images:
                attends = packing.voco_places
            segment = packing.segment[:1].clamp(1) if segment_attention == "causal" else packing.segment
            voco = packing.voco[: segment.numel()].view_as(segment) >= 0
            segment_mask = mask(segment, voco, segment_attention, attends)
        if packing.longest:
            row = torch.ones(1, packing.longest, dtype=torch.long, device=packing.sources.device)
            row_mask = mask(row, torch.zeros_like(row, dtype=torch.bool), "causal")
        return cls(packing, backend, inverse_frequency, segment_mask, row_mask, attends, kept)

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        """Of one layer.

        Args:
            module: The attention module of the layer.
            query, key, value: `[1, heads, tokens, head_dim]`.
            **options: As transformers passes them to an attention implementation.

        Returns:
            `[1, tokens, heads, head_dim]`.
        """
        packing, run = self.packing, _implementation(module, self.backend)
        divide, shape = packing.num_segment_tokens, (packing.num_segments, packing.segment_length)
        # [1, heads, tokens, head_dim] -> [tokens, heads, head_dim], a view
        query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
        attended = []
        if divide:
            segments = [states[:divide].unflatten(0, shape).transpose(1, 2) for states in (query, key, value)]
            attended.append(self._within_segments(module, *segments, **options).flatten(0, 1))
            if self.kept is not None:  # copied, so that nothing keeps the storage of all tokens alive
                kept_keys, kept_values = (states.index_select(2, packing.voco_places) for states in segments[1:])
                self.kept.append((kept_keys, kept_values))
        if packing.text_places.numel():
            read_keys, read_values = key[packing.sources], value[packing.sources]
            if packing.offsets is not None:
                read_keys = rotate_keys(read_keys, packing.offsets[:, None], self.inverse_frequency)
            queries = packing.in_rows(query[divide:])
            keys, values = packing.in_rows(key[divide:], read_keys), packing.in_rows(value[divide:], read_values)
            rows = run(
                module, *(states.transpose(1, 2) for states in (queries, keys, values)), self.row_mask, **options
            )
            attended.append(rows[0].flatten(0, 1).index_select(0, packing.text_places))
        return torch.cat(attended)[None]

    def _within_segments(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        """Queries, keys and values `[segments, heads, length, head_dim]` to `[segments, length, heads, head_dim]`.

        A token that sees itself alone attends to its own value, whatever its query: there is nothing to compute.
        """
        run = _implementation(module, self.backend)
        if self.attends is None:
            return run(module, query, key, value, self.segment_mask, **options)[0]
        attended = run(module, query.index_select(2, self.attends), key, value, self.segment_mask, **options)[0]
        own = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1).transpose(1, 2)
        return own.index_copy(1, self.attends, attended)


def run_layers(
    decoder: nn.Module,
    embeddings: Tensor,
    packing: Packing,
    segment_attention: SegmentAttention,
    kept: KeptKeys | None = None,
) -> Tensor:
    """The decoder's layers over packed tokens.

    Args:
        decoder: A language model without its head, which `check_decoder` accepts.
        embeddings: `[tokens, hidden]`.
        packing: On their device.
        segment_attention: Of a segment's vision tokens among themselves.
        kept: As in `Reading`.

    Returns:
        The last hidden states of `packing.outputs`, `[wanted, hidden]`.
    """
    config, hidden_states = decoder.config, embeddings[None]
    backend = config._attn_implementation
    how = (backend, segment_attention, decoder.rotary_emb.inv_freq, embeddings.dtype, kept)
    layers = decoder.layers[: config.num_hidden_layers]
    # Called once, whatever the rows are like: under ZeRO-3 all processes call all modules equally often, in one order.
    rotary = decoder.rotary_emb(hidden_states, position_ids=packing.position_ids[None])
    reading = Reading.of(packing, *how)
    with attention_named(config, TWO_STEPS):
        for number, layer in enumerate(layers, start=1):
            if number == len(layers) and packing.last is not None:
                hidden_states, rotary = hidden_states[:, packing.kept], tuple(part[:, packing.kept] for part in rotary)
                packing = packing.last
                reading = Reading.of(packing, *how)
            hidden_states = layer(
                hidden_states,
                attention_mask=None,
                position_ids=packing.position_ids[None],
                past_key_values=None,
                use_cache=False,
                position_embeddings=rotary,
                reading=reading,
            )
    return decoder.norm(hidden_states[0, packing.outputs])


@contextmanager
def attention_named(config: PreTrainedConfig, name: str) -> Iterator[None]:
    """Have a language model's layers use the attention implementation of this name."""
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def keeping_attention(config: PreTrainedConfig, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """A checkpointing function whose second forward, in the backward pass, has the attention of the first."""

    def run(function: Callable[..., Any], *args: Any) -> Any:
        name = config._attn_implementation

        def as_before(*again: Any) -> Any:
            with attention_named(config, name):
                return function(*again)

        return checkpoint(as_before, *args)

    return run


def check_decoder(decoder: nn.Module) -> None:
    """Refuse a language model that does more between embeddings and head than run its layers and its norm.

    It is run once with layers and norm that change nothing: then nothing may change, and the layers may be given
    nothing that `run_layers` does not give them.

    Raises:
        SettingsError: Its layers cannot be run one by one.
    """
    missing = [name for name in ("layers", "norm", "rotary_emb") if not hasattr(decoder, name)]
    given: dict[str, Any] = {}

    def unchanged(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        given.update({f"argument {place}": value for place, value in enumerate(args, start=2)} | kwargs)
        return hidden_states

    if not missing:
        device = decoder.rotary_emb.inv_freq.device
        embeddings = torch.ones(1, 3, decoder.config.hidden_size, device=device)
        places = torch.arange(3, device=device)[None]
        with ExitStack() as stubs:
            for module in (*decoder.layers, decoder.norm):
                stubs.enter_context(patch.object(module, "forward", unchanged))
            stubs.enter_context(attention_named(decoder.config, "eager"))  # the plainest mask; no layer looks at it
            out = decoder(inputs_embeds=embeddings, position_ids=places, use_cache=False).last_hidden_state
        if not torch.equal(out, embeddings):
            missing = ["embeddings that go into the layers as they are"]
        missing += [name for name, value in given.items() if value is not None and name not in _PASSED_ON]
    if missing:
        raise SettingsError(
            f"the language model ({type(decoder).__name__}) cannot be run layer by layer ({', '.join(missing)}): use a"
            " model like Llama, Qwen2, Qwen3 or Mistral"
        )


def _implementation(module: nn.Module, backend: str) -> Callable[..., tuple[Tensor, Any]]:
    """The attention implementation of transformers; the eager one stands in the file of each model."""
    if backend == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    implementation = ALL_ATTENTION_FUNCTIONS[backend]

    def run(module: nn.Module, *args: Any, **options: Any) -> tuple[Tensor, Any]:
        with attention_named(module.config, backend):  # flash attention looks up there which one it is
            return implementation(module, *args, **options)

    return run


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    reading: Reading,
    position_ids: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """What transformers calls. Positions are left out: flash attention would take them for borders of rows."""
    return reading.attend(module, query, key, value, **options), None


AttentionInterface.register(TWO_STEPS, _attention)
