"""What tells a model from every other: a cache is read again only by the model that wrote it."""

import hashlib
import json
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from voco_llama.model.voco_llama import VoCoLlama

SAMPLES = 64
"""Of each weight."""

_NOT_IDENTITY = ("dtype", "torch_dtype", "transformers_version", "_name_or_path", "use_cache", "architectures")


@torch.no_grad()
def fingerprint(model: "VoCoLlama") -> str:
    """A hash of the configuration and of samples of every weight; the same in float32 and bfloat16.

    VoCo's embedding enters whole: it may be all that was trained.
    """
    config = model.config
    described = {
        "text": {k: v for k, v in config.text_config.to_dict().items() if k not in _NOT_IDENTITY},
        "vision": config.vision_config.get("vision_cfg"),
        "vision_layer": config.vision_layer,
        "segment": [config.segment_prefix_ids, config.segment_infix_ids],
        "compression": [config.segment_attention, config.voco_embeddings, config.compressor],
    }
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    samples = [model.get_input_embeddings().weight[config.voco_token_id].detach().to(torch.bfloat16)]
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        flat = parameter.detach().flatten()
        samples.append(flat[:: max(1, flat.numel() // SAMPLES)].to(torch.bfloat16))
    digest.update(torch.cat(samples).cpu().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()
