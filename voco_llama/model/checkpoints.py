"""Building a model from its parts: an open_clip tower, a language model, a projector."""

from collections.abc import Collection
from typing import Any

from transformers import PreTrainedModel

from voco_llama.choices import Condition
from voco_llama.configuration import VoCoLlamaConfig
from voco_llama.errors import CheckpointError
from voco_llama.layout import SegmentShape
from voco_llama.model.vision_weights import load_vision_tower
from voco_llama.model.voco_llama import VoCoLlama
from voco_llama.model.weights import Weights, check_fit
from voco_llama.tokens import TokenIds, extend_embeddings


def build_model(
    language_model: PreTrainedModel,
    vision_config: dict[str, Any],
    vision_weights: Weights | None,
    tokens: TokenIds,
    vocab_size: int,
    segment: SegmentShape,
    projector: str = "mlp2x_gelu",
    vision_layer: int = -2,
    condition: Condition = "voco",
    new_tokens: Collection[int] | None = None,
    projector_weights: Weights | None = None,
    **compression: Any,
) -> VoCoLlama:
    """Join the parts.

    Args:
        language_model: Kept as it is, its embeddings extended for the added tokens.
        vision_config: From `read_vision_config`.
        vision_weights: From `read_vision_weights`; None leaves the tower at random.
        tokens: Ids of the tokenizer, `<image>` and `<voco>` included.
        vocab_size: Length of the tokenizer.
        segment: Shape of a segment; its number of vision tokens must be the tower's.
        projector: `linear` or `mlp2x_gelu`.
        vision_layer: Layer whose patch tokens are used.
        condition: Visibility the model will be trained with.
        new_tokens: Ids that get a mean embedding; None: both added tokens. Others keep theirs.
        projector_weights: Under our names (`voco_llama.model.layouts.projector_weights`); None: a fresh projector.
        **compression: `segment_attention`, `voco_embeddings`, `compressor`, `q_former` of `VoCoLlamaConfig`.

    Raises:
        CheckpointError: The weights of a part do not fit it.
    """
    extend_embeddings(language_model, tokens, vocab_size, new_tokens)
    config = VoCoLlamaConfig(
        text_config=language_model.config,
        vision_config=vision_config,
        vision_layer=vision_layer,
        projector_type=projector,
        num_voco=segment.num_voco,
        condition=condition,
        image_token_id=tokens.image,
        voco_token_id=tokens.voco,
        segment_prefix_ids=segment.prefix,
        segment_infix_ids=segment.infix,
        attn_implementation=language_model.config._attn_implementation,
        **compression,
    )
    expected = config.segment_shape().num_vision
    if segment.num_vision != expected:
        raise CheckpointError(
            f"the rows have {segment.num_vision} vision tokens an image and the model {expected}: build the processor"
            " for this tower"
        )
    model = VoCoLlama(config, language_model, load_vision_tower(config, vision_weights))
    if projector_weights is not None:
        load_projector(model, projector_weights)
    return model


def load_projector(model: VoCoLlama, weights: Weights) -> None:
    """Fill the projector.

    Raises:
        CheckpointError: Names or shapes do not fit; nothing is loaded then.
    """
    advice = (
        "check model.projector (linear or mlp2x_gelu) and that tower and language model are those it was trained with"
    )
    check_fit(model.projector.state_dict(), weights, "the projector's weights", advice)
    model.projector.load_state_dict(weights)
