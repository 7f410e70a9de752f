"""Tiny random models and processors for the tests, built through the production code."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from voco_llama.data.media.images import ImageTransform
from voco_llama.data.processor import VoCoProcessor
from voco_llama.data.prompts import PromptStyle
from voco_llama.model.voco_llama import VoCoLlama
from voco_llama.tokens import add_special_tokens

torch.set_num_threads(1)  # on models this small, waiting for each other costs threads several times what they save

IMAGE_SIZE, PATCH_SIZE = 16, 8
NUM_VISION = (IMAGE_SIZE // PATCH_SIZE) ** 2
VISION_CONFIG = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "width": 16,
        "layers": 2,
        "head_width": 8,
        "mlp_ratio": 2.0,
    },
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: any text round-trips, one token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )


def unlike_its_start(module: torch.nn.Module, scale: float = 0.1) -> torch.nn.Module:
    """Noise on every parameter: norms and biases, which start at 1 and 0, then differ from each other."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return module


def tiny_vision_config(image_size: int = IMAGE_SIZE) -> dict:
    return VISION_CONFIG | {"vision_cfg": VISION_CONFIG["vision_cfg"] | {"image_size": image_size}}


def tiny_processor(
    num_voco: int = 2, condition: str = "voco", order: str = "first", image_size: int = IMAGE_SIZE, **kwargs
) -> VoCoProcessor:
    tokenizer = tiny_tokenizer()
    add_special_tokens(tokenizer)
    return VoCoProcessor(
        tokenizer,
        ImageTransform(image_size=image_size),
        PromptStyle(order=order, system=kwargs.pop("system", "Hi.")),
        num_vision=(image_size // PATCH_SIZE) ** 2,
        num_voco=num_voco,
        condition=condition,
        **kwargs,
    )


def tiny_text_config(layers: int = 2, **kwargs) -> LlamaConfig:
    shape = dict(vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=layers)
    shape |= dict(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, pad_token_id=0)
    shape |= dict(bos_token_id=1, eos_token_id=2, initializer_range=0.3)
    return LlamaConfig(**{**shape, **kwargs})


def tiny_model(
    processor: VoCoProcessor, layers: int = 2, attention: str = "sdpa", seed: int = 0, text_config=None, **compression
) -> VoCoLlama:
    """A random model in evaluation mode; the same weights for the same seed and shape."""
    torch.manual_seed(seed)
    text_config = text_config or tiny_text_config(layers)
    language_model = AutoModelForCausalLM.from_config(text_config, attn_implementation=attention)
    model = VoCoLlama.from_parts(
        language_model,
        tiny_vision_config(processor.image_transform.image_size),
        None,
        processor.tokens,
        len(processor.tokenizer),
        processor.segment_shape(),
        condition=processor.condition,
        **compression,
    )
    return model.eval()
