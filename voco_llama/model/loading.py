"""A model from its parts, from what `save_pretrained` wrote, or from a LLaVA's own files.

Names and shapes of every part are held against the model before anything is loaded; then the tensors are handed over.
"""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME

from voco_llama.choices import Condition
from voco_llama.configuration import VoCoLlamaConfig, entries_of_rows
from voco_llama.errors import CheckpointError, refused_as
from voco_llama.files import read_json
from voco_llama.hub import local_folder
from voco_llama.layout import SegmentShape
from voco_llama.llava_folder import check_is_model, is_llava, load_tokenizer, read_config, read_llava_folder
from voco_llama.model.adapters import WHOLE_FILE, merge_adapters, read_adapters
from voco_llama.model.language import fill_language_model
from voco_llama.model.layouts import clip_to_open_clip, place_in_llava, split_llava
from voco_llama.model.quality import QualityHead
from voco_llama.model.vision_weights import load_vision_tower, read_vision_weights
from voco_llama.model.weights import Weights, check_fit, check_loaded, check_one_set, read_weights, weights_file
from voco_llama.tokens import TokenIds, extend_embeddings
from voco_llama.visibility import check_backend

logger = logging.getLogger(__name__)

PROJECTOR_FILE = "mm_projector.bin"


class LoadingMixin:
    """The ways to get a `VoCoLlama`."""

    @classmethod
    def from_pretrained(cls, folder: str | Path, revision: str | None = None, **kwargs: Any) -> Self:
        """Load what `save_pretrained` wrote; keyword arguments as in transformers (`dtype`, `attn_implementation`).

        A LLaVA's folder is read by `from_llava`. A name `user/model` where no such folder is: a model of the hub, of
        which `revision` names a branch, a tag or a commit.

        Raises:
            CheckpointError: The folder holds no `VoCoLlama`, or its weights are not this model's: a tensor is
                missing, unexpected, or of another shape.
        """
        folder = local_folder(folder, revision=revision)
        check_is_model(folder)
        check_one_set(folder)
        if kwargs.get("attn_implementation") is not None:
            check_backend(kwargs["attn_implementation"])
        if is_llava(folder):
            return cls.from_llava(folder, **kwargs)
        with refused_as(CheckpointError, f"{folder}: its configuration or weights", "give the folder of a saved model"):
            model, info = super().from_pretrained(folder, output_loading_info=True, **kwargs)
        check_loaded(info, f"{folder}: its weights", "the folder is damaged or its config.json was edited")
        if read_config(folder).get("eos_token_id") is None:  # saved before the configuration knew
            model.end_answers_at(_taught_end(folder))
        model.set_quality_head(QualityHead.load(folder, model.config.kv_shape))
        return model

    @classmethod
    def from_llava(
        cls,
        folder: str | Path,
        tokenizer: PreTrainedTokenizerBase | None = None,
        vision_tower: str | None = None,
        num_voco: int | None = None,
        condition: Condition | None = None,
        dtype: str | torch.dtype = "auto",
        attn_implementation: str = "sdpa",
    ) -> Self:
        """LLaVA-1.5, in its own layout or llava-hf's, or a VoCo-LLaMA of the authors.

        The processor that goes with it is `VoCoProcessor.from_llava` of the same folder and `num_voco`.

        Args:
            folder: With `config.json`, weights and tokenizer; or with LLaVA's LoRA adapters, which are merged into
                their base.
            tokenizer: In place of the folder's, as it was trained with; left as it is.
            vision_tower: In place of the tower that the folder names, if that is neither a known one nor a folder.
            num_voco: VoCo tokens of a segment; None: what our export says, else 1 under `voco` and 0 under `full`.
            condition: None: what our export says, else `voco` where the tokenizer has `<voco>` (the authors'
                checkpoints) and `full` where not.
            dtype: Of the weights; `auto`: as stored.
            attn_implementation: One of `voco_llama.choices.BACKENDS`.

        Raises:
            CheckpointError: The folder is no such model, is damaged, or is one that ours cannot be.
        """
        described = read_llava_folder(local_folder(folder), vision_tower, tokenizer, num_voco, condition)
        where = str(described.path)
        if not weights_file(described.base) and (described.path / PROJECTOR_FILE).is_file():
            raise CheckpointError(
                f"{where}: holds a projector alone ({PROJECTOR_FILE}): set model.projector_weights to it, beside the"
                " language model and the tower that it was trained with (model.language.pretrained, model.vision)"
            )
        weights, adapters, replaced = read_weights(described.base), {}, {}
        if described.base != described.path:
            logger.info("the adapters in %s are merged into %s", where, described.base)
            adapters, replaced = read_adapters(described.path)
            if not any(place_in_llava(name)[0] == "projector" for name in (*weights, *replaced)):
                raise CheckpointError(
                    f"{where}: has no {WHOLE_FILE}, which holds the projector: get it with the adapters"
                )
        parts = split_llava(weights, where, replaced)
        if parts.vision:
            vision = clip_to_open_clip(parts.vision, described.vision_config["embed_dim"], where)
        elif described.vision_source is not None and not described.trained_tower:
            vision = read_vision_weights(*described.vision_source)
        else:
            trained = ", which was trained with it," if described.trained_tower else ""
            raise CheckpointError(f"{where}: the weights of its vision tower{trained} are missing: get it again")
        language_model = fill_language_model(
            described.text_config, parts.language, where, dtype=dtype, attention=attn_implementation
        )
        if adapters:
            language_model = merge_adapters(language_model, adapters, described.path)
        model = cls.from_parts(
            language_model,
            described.vision_config,
            vision,
            described.tokens,
            len(described.tokenizer),
            described.shape,
            projector=described.projector,
            vision_layer=described.vision_layer,
            condition=described.condition,
            new_tokens=described.new_tokens,
            projector_weights=parts.projector,
        )
        if (file := described.path / GENERATION_CONFIG_NAME).is_file():
            model.end_answers_at(read_json(file, advice="get it again").get("eos_token_id"))
        return model.to(language_model.dtype).eval()

    @classmethod
    def from_parts(
        cls,
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
    ) -> Self:
        """Join the parts.

        Args:
            language_model: Kept as it is, its embeddings extended for the added tokens.
            vision_config: From `read_vision_config`.
            vision_weights: From `read_vision_weights`; None leaves the tower at random.
            tokens, vocab_size: Of the tokenizer: ids of its special tokens, and its length.
            segment: Its number of vision tokens must be the tower's.
            new_tokens: Ids that get a mean embedding; None: both added tokens. Others keep theirs.
            projector_weights: From `voco_llama.model.layouts.split_llava`; None: a fresh projector.
            projector, vision_layer, condition, **compression: As in `VoCoLlamaConfig`.

        Raises:
            CheckpointError: The weights of a part do not fit it.
        """
        extend_embeddings(language_model, tokens, vocab_size, new_tokens)
        config = VoCoLlamaConfig(
            text_config=language_model.config,
            vision_config=vision_config,
            vision_layer=vision_layer,
            projector_type=projector,
            attn_implementation=language_model.config._attn_implementation,
            **entries_of_rows(segment, tokens, condition),
            **compression,
        )
        expected = config.segment_shape().num_vision
        if segment.num_vision != expected:
            raise CheckpointError(
                f"the rows have {segment.num_vision} vision tokens an image and the model {expected}: build the"
                " processor for this tower"
            )
        model = cls(config, language_model, load_vision_tower(config, vision_weights))
        model.end_answers_at(tokens.eos)
        if projector_weights is not None:
            advice = (
                "check model.projector (linear or mlp2x_gelu) and that tower and language model are those it was"
                " trained with"
            )
            check_fit(model.projector.state_dict(), projector_weights, "the projector's weights", advice)
            model.projector.load_state_dict(projector_weights)
        return model


def _taught_end(folder: Path) -> int | None:
    """The token that training taught to end answers: the end of the tokenizer beside the weights, if one is there."""
    if not (folder / "tokenizer_config.json").is_file():
        return None
    return load_tokenizer(folder, str(folder)).eos_token_id
