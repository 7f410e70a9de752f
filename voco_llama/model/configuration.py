"""Configuration of `VoCoLlama`: the language model's, the vision tower's, and what joins them."""

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from voco_llama.errors import SettingsError
from voco_llama.layout import CONDITIONS, Condition, SegmentShape

PROJECTORS = ("linear", "mlp2x_gelu")


class VoCoLlamaConfig(PreTrainedConfig):
    """What it takes to rebuild the model without its weights.

    Attributes:
        text_config: Configuration of any causal language model of transformers with rotary positions.
        vision_config: open_clip model configuration: `embed_dim`, `quick_gelu`, `vision_cfg`, `text_cfg`.
        vision_layer: Layer whose patch tokens are used; -2 is the one before the last (LLaVA, the paper).
        projector_type: `linear` (the paper) or `mlp2x_gelu` (LLaVA-1.5).
        num_voco: VoCo tokens the model was trained with.
        condition: Visibility the model was trained with: `voco`, or `full` for the upper bound.
        image_token_id: Id of `<image>`; None until a tokenizer is known.
        voco_token_id: Id of `<voco>`.
        segment_prefix_ids: Token ids before the vision tokens of a segment (the authors' order: BOS).
        segment_infix_ids: Token ids between vision and VoCo tokens (the authors' order: a newline).
    """

    model_type = "voco_llama"
    sub_configs: ClassVar = {"text_config": AutoConfig}

    def __init__(
        self,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        vision_config: dict[str, Any] | None = None,
        vision_layer: int = -2,
        projector_type: str = "mlp2x_gelu",
        num_voco: int = 1,
        condition: Condition = "voco",
        image_token_id: int | None = None,
        voco_token_id: int | None = None,
        segment_prefix_ids: tuple[int, ...] | list[int] = (),
        segment_infix_ids: tuple[int, ...] | list[int] = (),
        **kwargs: Any,
    ) -> None:
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        if projector_type not in PROJECTORS:
            raise SettingsError(f"projector {projector_type!r} is unknown: choose one of {', '.join(PROJECTORS)}")
        if condition not in CONDITIONS:
            raise SettingsError(f"condition {condition!r} is unknown: choose one of {', '.join(CONDITIONS)}")
        self.text_config = text_config if text_config is not None else AutoConfig.for_model("llama")
        self.vision_config = vision_config or {}
        self.vision_layer = vision_layer
        self.projector_type = projector_type
        self.num_voco = num_voco
        self.condition = condition
        self.image_token_id = image_token_id
        self.voco_token_id = voco_token_id
        self.segment_prefix_ids = list(segment_prefix_ids)
        self.segment_infix_ids = list(segment_infix_ids)
        kwargs.setdefault("tie_word_embeddings", self.text_config.tie_word_embeddings)
        super().__init__(**kwargs)

    @property
    def image_size(self) -> int:
        """Side of the square input image in pixels."""
        return self.vision_config["vision_cfg"]["image_size"]

    @property
    def num_vision_tokens(self) -> int:
        """Patch tokens of one image."""
        return (self.image_size // self.vision_config["vision_cfg"]["patch_size"]) ** 2

    def segment_shape(self, num_voco: int | None = None) -> SegmentShape:
        """Shape of a segment, with another number of VoCo tokens on request."""
        return SegmentShape(
            self.num_vision_tokens,
            self.num_voco if num_voco is None else num_voco,
            tuple(self.segment_prefix_ids),
            tuple(self.segment_infix_ids),
        )
