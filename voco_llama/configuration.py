"""Configuration of `VoCoLlama`: the language model's, the vision tower's, and what joins them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from transformers import AutoConfig, PreTrainedConfig

from voco_llama.choices import (
    COMPRESSORS,
    CONDITIONS,
    PROJECTORS,
    SEGMENT_ATTENTIONS,
    VOCO_EMBEDDINGS,
    Condition,
    SegmentAttention,
    require_choice,
)
from voco_llama.errors import CheckpointError, refused_as
from voco_llama.layout import SegmentShape
from voco_llama.llava_folder import CONFIG_FILE, is_llava, read_llava_folder
from voco_llama.tokens import AddedTokens
from voco_llama.vision_config import num_patches


class Heads(NamedTuple):
    """Attention heads of a language model: of queries, of keys and values, and the dimension of each."""

    query: int
    key_value: int
    dimension: int

    @classmethod
    def of(cls, text_config: PreTrainedConfig) -> "Heads":
        """Those of a causal language model's configuration."""
        heads = text_config.num_attention_heads
        dimension = getattr(text_config, "head_dim", None) or text_config.hidden_size // heads
        return cls(heads, getattr(text_config, "num_key_value_heads", None) or heads, dimension)


def max_positions(text_config: PreTrainedConfig) -> int | None:
    """Positions that a causal language model was made for, `max_position_embeddings`, or as many as its scaling says.

    Models scaled by a factor state the positions before it (linear scaling, YaRN) or after it (Llama 3). None: it does
    not say.
    """
    stated = getattr(text_config, "max_position_embeddings", None)
    rope = getattr(text_config, "rope_parameters", None) or {}
    if stated is None or rope.get("rope_type", "default") == "default":
        return stated
    return max(stated, int((rope.get("original_max_position_embeddings") or stated) * (rope.get("factor") or 1)))


def entries_of_rows(shape: SegmentShape, tokens: AddedTokens, condition: Condition) -> dict[str, Any]:
    """The entries of the configuration that say what rows look like: model and processor agree on them."""
    return {
        "num_voco": shape.num_voco,
        "condition": condition,
        "image_token_id": tokens.image,
        "voco_token_id": tokens.voco,
        "segment_prefix_ids": list(shape.prefix),
        "segment_infix_ids": list(shape.infix),
    }


class VoCoLlamaConfig(PreTrainedConfig):
    """What it takes to rebuild the model without its weights.

    Attributes:
        text_config: Configuration of any causal language model of transformers with rotary positions.
        vision_config: open_clip model configuration: `embed_dim`, `quick_gelu`, `vision_cfg`, `text_cfg`.
        vision_layer: Layer whose patch tokens are used; -2 is the one before the last (LLaVA, the paper).
        projector_type: `linear` (the paper) or `mlp2x_gelu` (LLaVA-1.5).
        num_voco: VoCo tokens the model was trained with.
        condition: Visibility the model was trained with: `voco`, or `full` for the upper bound.
        segment_attention: Of the vision tokens of a segment among themselves (`voco_llama.visibility`): `causal` (the
            paper), `bidirectional` or `independent`.
        voco_embeddings: `shared`: one embedding for all VoCo tokens (the paper). `distinct`: besides, a trained offset
            for each of them.
        compressor: What makes the VoCo tokens: the `language_model` under its mask (the method), or, as baselines,
            `average_pool` or `q_former` outside it (`voco_llama.model.parts`).
        q_former: Shape of the Q-Former: `layers`, `width`, `heads`, `cross_attention_every`.
        reconstruction: Whether the decoder of the reconstruction is there (`voco_llama.model.reconstruction`): in
            checkpoints of a training that has one.
        image_token_id: Id of `<image>`; None until a tokenizer is known.
        voco_token_id: Id of `<voco>`.
        segment_prefix_ids: Token ids before the vision tokens of a segment (the authors' order: BOS).
        segment_infix_ids: Token ids between vision and VoCo tokens (the authors' order: a newline).
        eos_token_id: Of what ends an answer: the tokenizer's, which training teaches, and those of the language model's
            own configurations; None in checkpoints of before this entry (`VoCoLlama.end_answers_at`).
    """

    model_type = "voco_llama"
    sub_configs: ClassVar = {"text_config": AutoConfig}

    text_config: PreTrainedConfig | dict[str, Any] | None = None
    vision_config: dict[str, Any] | None = None
    vision_layer: int = -2
    projector_type: str = "mlp2x_gelu"
    num_voco: int = 1
    condition: Condition = "voco"
    segment_attention: SegmentAttention = "causal"
    voco_embeddings: str = "shared"
    compressor: str = "language_model"
    q_former: dict[str, int] | None = None
    reconstruction: bool = False
    image_token_id: int | None = None
    voco_token_id: int | None = None
    segment_prefix_ids: Sequence[int] = ()
    segment_infix_ids: Sequence[int] = ()
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Unknown choices are refused, and what was given as a dictionary or left out becomes what it stands for."""
        for name, value, choices in (
            ("projector", self.projector_type, PROJECTORS),
            ("condition", self.condition, CONDITIONS),
            ("segment_attention", self.segment_attention, SEGMENT_ATTENTIONS),
            ("voco_embeddings", self.voco_embeddings, VOCO_EMBEDDINGS),
            ("compressor", self.compressor, COMPRESSORS),
        ):
            require_choice(name, value, choices)
        if not isinstance(self.text_config, PreTrainedConfig):
            self.text_config = AutoConfig.for_model(**(self.text_config or {"model_type": "llama"}))
        self.vision_config = self.vision_config or {}
        self.segment_prefix_ids, self.segment_infix_ids = list(self.segment_prefix_ids), list(self.segment_infix_ids)
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = self.text_config.tie_word_embeddings
        super().__post_init__(**kwargs)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> Any:
        """As in transformers; of a LLaVA's folder, the configuration that the model made of it will have."""
        if not is_llava(folder):
            with refused_as(CheckpointError, f"{folder}: its {CONFIG_FILE}", "give the folder of a saved model"):
                read = super().from_pretrained(folder, **kwargs)
                config = read[0] if isinstance(read, tuple) else read  # a tuple where unused arguments are wanted
                config.segment_shape(), config.kv_shape, config.image_size  # refused now, and not when used
                return read
        described = read_llava_folder(folder)
        described.text_config.vocab_size = max(described.text_config.vocab_size, len(described.tokenizer))
        return cls(
            text_config=described.text_config,
            vision_config=described.vision_config,
            vision_layer=described.vision_layer,
            projector_type=described.projector,
            **entries_of_rows(described.shape, described.tokens, described.condition),
        )

    @property
    def image_size(self) -> int:
        """Side of the square input image in pixels."""
        return self.vision_config["vision_cfg"]["image_size"]

    @property
    def num_vision_tokens(self) -> int:
        """Patch tokens of one image."""
        return num_patches(self.vision_config)

    @property
    def added_tokens(self) -> AddedTokens:
        """Ids of the two tokens of ours."""
        return AddedTokens(self.image_token_id, self.voco_token_id)

    @property
    def compresses_outside(self) -> bool:
        """Whether an external compressor makes the VoCo tokens, so that the language model sees no vision tokens."""
        return self.compressor != "language_model"

    def segment_shape(self, num_voco: int | None = None) -> SegmentShape:
        """Shape of a segment, with another number of VoCo tokens on request."""
        return SegmentShape(
            0 if self.compresses_outside else self.num_vision_tokens,
            self.num_voco if num_voco is None else num_voco,
            tuple(self.segment_prefix_ids),
            tuple(self.segment_infix_ids),
        )

    @property
    def kv_shape(self) -> tuple[int, int, int]:
        """Layers, key-value heads and head dimension of what the language model keeps of a token."""
        heads = Heads.of(self.text_config)
        return self.text_config.num_hidden_layers, heads.key_value, heads.dimension

    def kv_bytes(self, num_tokens: int, dtype: torch.dtype) -> int:
        """Bytes of the keys and values of `num_tokens` tokens in all layers, kept in `dtype`.

        `2 x layers x key-value heads x head dimension x tokens x bytes of a number`; a token of a 7B Llama in fp16
        takes 524,288 bytes.
        """
        return 2 * math.prod(self.kv_shape) * num_tokens * dtype.itemsize

    def check_rows(self, shape: SegmentShape, tokens: AddedTokens, condition: Condition, where: str) -> None:
        """Refuse a processor whose rows are not this model's.

        Raises:
            CheckpointError: It names what differs.
        """
        theirs = entries_of_rows(shape, tokens, condition)
        ours = {name: getattr(self, name) for name in theirs}
        theirs["num_vision"], ours["num_vision"] = shape.num_vision, self.segment_shape().num_vision
        differ = [f"{name} {ours[name]} and {value}" for name, value in theirs.items() if ours[name] != value]
        if differ:
            raise CheckpointError(
                f"{where}: model and processor disagree: {', '.join(differ)}: the files are of different models"
            )


AutoConfig.register(VoCoLlamaConfig.model_type, VoCoLlamaConfig)
