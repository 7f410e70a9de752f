"""LLaVA-1.5 and the authors' VoCo-LLaMA as models of ours, from their own files.

Names and shapes of every part are held against the model before anything is built; then the tensors are handed over.
"""

from pathlib import Path

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from voco_llama.choices import Condition
from voco_llama.errors import CheckpointError
from voco_llama.llava_folder import LlavaFolder, read_llava_folder
from voco_llama.model.checkpoints import build_model
from voco_llama.model.layouts import clip_to_open_clip, split_llava
from voco_llama.model.vision_weights import read_vision_weights
from voco_llama.model.voco_llama import VoCoLlama
from voco_llama.model.weights import Weights, check_fit, has_weights, read_weights
from voco_llama.tokens import IMAGE_TOKEN, VOCO_TOKEN, add_special_tokens

PROJECTOR_FILE = "mm_projector.bin"


def load_llava(
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    vision_tower: str | None = None,
    num_voco: int | None = None,
    condition: Condition | None = None,
    dtype: str | torch.dtype = "auto",
    attn_implementation: str = "sdpa",
) -> VoCoLlama:
    """See `VoCoLlama.from_llava`."""
    described = read_llava_folder(folder, vision_tower)
    tokenizer = described.tokenizer(tokenizer)
    trained = described.condition(tokenizer)
    condition = condition or trained
    num_voco = described.num_voco(condition) if num_voco is None else num_voco
    known = [token for token in (IMAGE_TOKEN, VOCO_TOKEN) if token in tokenizer.get_vocab()]
    tokens = add_special_tokens(tokenizer)
    new_tokens = [
        token
        for name, token in ((IMAGE_TOKEN, tokens.image), (VOCO_TOKEN, tokens.voco))
        if name not in known or token >= described.text_config.vocab_size
    ]
    where = str(folder)
    parts = split_llava(_read_weights(described), where)
    vision = _vision_weights(described, parts.vision)
    language_model = fill_language_model(
        described.text_config, parts.language, where, dtype=dtype, attention=attn_implementation
    )
    model = build_model(
        language_model,
        described.vision_config,
        vision,
        tokens,
        len(tokenizer),
        described.segment_shape(tokenizer, num_voco, described.order(trained)),
        projector=described.projector,
        vision_layer=described.vision_layer,
        condition=condition,
        new_tokens=new_tokens,
        projector_weights=parts.projector,
    )
    return model.to(language_model.dtype).eval()


def fill_language_model(
    config: PreTrainedConfig, weights: Weights, where: str, dtype: str | torch.dtype, attention: str
) -> PreTrainedModel:
    """A causal language model with weights under its own names.

    Args:
        config: Its configuration.
        weights: Tied weights may be left out.
        where: What messages call the weights.
        dtype: `auto`: that of the configuration, or else of the weights.
        attention: Name of the attention implementation.

    Raises:
        CheckpointError: Names or shapes do not fit; nothing is built then.
    """
    with torch.device("meta"):
        skeleton = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)  # from_config would shard it under ZeRO-3
    tied = (skeleton._tied_weights_keys or ()) if config.tie_word_embeddings else ()
    advice = "the config.json is another model's, or the files are damaged; get both again"
    check_fit(skeleton.state_dict(), weights, f"{where}: the language model's weights", advice, optional=tied)
    if dtype == "auto":
        dtype = config.dtype or next(iter(weights.values())).dtype
    return type(skeleton).from_pretrained(
        None, config=config, state_dict=weights, dtype=dtype, attn_implementation=attention
    )


def _read_weights(described: LlavaFolder) -> Weights:
    folder = described.path
    if not has_weights(folder) and (folder / PROJECTOR_FILE).is_file():
        raise CheckpointError(
            f"{folder}: holds a projector alone ({PROJECTOR_FILE}): set model.projector_weights to it, beside the"
            " language model and the tower that it was trained with (model.language.pretrained, model.vision)"
        )
    return read_weights(folder)


def _vision_weights(described: LlavaFolder, stored: Weights) -> Weights:
    """The tower's weights under open_clip's names: the stored ones, or those of the tower that the folder names."""
    if stored:
        return clip_to_open_clip(stored, described.vision_config["embed_dim"], str(described.path))
    if described.vision_source is None:
        raise CheckpointError(f"{described.path}: the weights of its vision tower are missing: get it again")
    return read_vision_weights(*described.vision_source)
