"""A tiny LLaVA of transformers with random weights, written to disk in the layouts that real ones are published in."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

from tests.tiny import IMAGE_SIZE, PATCH_SIZE, VISION_CONFIG, tiny_text_config, tiny_tokenizer, unlike_its_start
from voco_llama.model.layouts import LlavaParts, join_llava
from voco_llama.model.weights import below

VISION = VISION_CONFIG["vision_cfg"]
SPARE_ROWS = 5


def tiny_llava() -> LlavaForConditionalGeneration:
    """Its vocabulary: the tokenizer's 259, `<image>`, and spare rows, as llava-hf has them."""
    vision_config = CLIPVisionConfig(
        hidden_size=VISION["width"],
        intermediate_size=int(VISION["width"] * VISION["mlp_ratio"]),
        num_hidden_layers=VISION["layers"],
        num_attention_heads=VISION["width"] // VISION["head_width"],
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_act="quick_gelu",
        projection_dim=VISION_CONFIG["embed_dim"],
        initializer_factor=10.0,  # else the features hardly depend on the image
    )
    config = LlavaConfig(
        vision_config=vision_config,
        text_config=tiny_text_config(vocab_size=len(tiny_tokenizer()) + 1 + SPARE_ROWS),
        image_token_id=len(tiny_tokenizer()),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    torch.manual_seed(0)
    return unlike_its_start(LlavaForConditionalGeneration(config)).eval()


def parts_of(llava: LlavaForConditionalGeneration) -> LlavaParts:
    """By the names in memory, which are the newer ones; the tower's differ with the version of transformers."""
    weights = llava.state_dict()
    tower = below(weights, "model.vision_tower.")
    language = {f"model.{name}": tensor for name, tensor in below(weights, "model.language_model.").items()}
    projector = below(weights, "model.multi_modal_projector.")
    return LlavaParts(
        language | {"lm_head.weight": weights["lm_head.weight"]},
        {name.replace("linear_1", "0").replace("linear_2", "2"): tensor for name, tensor in projector.items()},
        below(tower, "vision_model.") or tower,
    )


def write_hub(llava: LlavaForConditionalGeneration, folder: Path, names: str) -> Path:
    """llava-hf's layout with `old` names (as on the hub), `new` ones, or as transformers `saves` it in shards."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)
    if names == "saved":
        llava.save_pretrained(folder, max_shard_size="30KB")
        assert (folder / "model.safetensors.index.json").is_file()
        return folder
    llava.config.save_pretrained(folder)
    weights = join_llava(parts_of(llava), "llava_hf") if names == "old" else llava.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    return folder


def write_own(
    llava: LlavaForConditionalGeneration, folder: Path, tower: str = "inside", drop_rows: bool = True
) -> Path:
    """LLaVA's own layout in .bin shards; the tower among the weights, or only in the folder `clip`."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_tokenizer().save_pretrained(folder)
    parts = parts_of(llava)
    vocabulary = len(tiny_tokenizer())
    tables = ("model.embed_tokens.weight", "lm_head.weight")
    language = {k: v[:vocabulary].clone() if drop_rows and k in tables else v for k, v in parts.language.items()}
    weights = join_llava(LlavaParts(language, parts.projector, parts.vision if tower == "inside" else {}), "llava")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)  # as old checkpoints have it
    half = len(weights) // 2
    shards = {"pytorch_model-00001-of-00002.bin": list(weights)[:half]}
    shards |= {"pytorch_model-00002-of-00002.bin": list(weights)[half:]}
    for file, names in shards.items():
        torch.save({name: weights[name] for name in names}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, names in shards.items() for name in names}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    clip = folder / "clip"
    clip.mkdir(exist_ok=True)
    llava.config.vision_config.save_pretrained(clip)
    if tower != "inside":
        save_file({f"vision_model.{k}": v.contiguous() for k, v in parts.vision.items()}, clip / "model.safetensors")
    text = llava.config.text_config.to_dict() | {"vocab_size": vocabulary, "model_type": "llava"}
    theirs = {
        "architectures": ["LlavaLlamaForCausalLM"],
        "image_aspect_ratio": "pad",
        "mm_hidden_size": VISION["width"],
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "clip",
        "tokenizer_model_max_length": 2048,
        "tune_mm_mlp_adapter": False,
        "use_mm_proj": True,
    }
    (folder / "config.json").write_text(json.dumps(text | theirs))
    return folder
