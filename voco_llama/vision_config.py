"""Configuration of a vision tower, in open_clip's form (`embed_dim`, `quick_gelu`, `vision_cfg`).

It is read from wherever a tower may come from, and translated from and to that of Hugging Face's CLIP. No weights are
read here.
"""

from pathlib import Path
from typing import Any

from voco_llama.errors import SettingsError, did_you_mean, refused_as, shown
from voco_llama.files import read_json

OPEN_CLIP_CONFIG_FILE = "open_clip_config.json"
CLIP_CONFIG_FILE = "config.json"
IMAGE_PROCESSOR_FILE = "preprocessor_config.json"
WEIGHTS = (".safetensors", ".bin", ".pt")
"""Endings of their files."""
CLIP_MODEL_TYPES = ("clip", "clip_vision_model")

LAYER_NORM_EPS, NUM_CHANNELS = 1e-5, 3
"""Of open_clip's towers, which have no settings for them."""

HIDDEN_ACTS = {"quick_gelu": True, "gelu": False}
"""Hugging Face's `hidden_act` -> open_clip's `quick_gelu`."""

HEAD_WIDTH, MLP_RATIO = 64, 4.0
"""open_clip's own values where a configuration has none."""


def read_vision_config(name: str) -> dict[str, Any]:
    """The open_clip configuration of a tower.

    Args:
        name: Name of an open_clip model (`ViT-L-14-336-quickgelu`), a JSON file, or a folder that holds
            `open_clip_config.json` or, in the Hugging Face layout of CLIP, `config.json`.

    Raises:
        SettingsError: There is no such model.
    """
    path = Path(name)
    if name.startswith(("hf-hub:", "local-dir:")):
        raise SettingsError(f"model.vision.name: {name}: download the tower (hf download), and name its folder")
    if path.is_dir():
        path = path / (OPEN_CLIP_CONFIG_FILE if (path / OPEN_CLIP_CONFIG_FILE).is_file() else CLIP_CONFIG_FILE)
    if path.suffix == ".json":
        advice = "give an open_clip configuration, or the config.json of a CLIP, as model.vision.name"
        return config_in_file(read_json(path, SettingsError, advice), str(path))
    import open_clip

    config = open_clip.get_model_config(name)
    if config is None:
        known = did_you_mean(name, open_clip.list_models()) or ": see open_clip.list_models()"
        raise SettingsError(f"model.vision.name: open_clip has no model {name!r}, and there is no such folder{known}")
    return config


def is_tag(name: str, pretrained: str) -> bool:
    """Whether weights are those that open_clip knows by a tag, also where a file has its name (`./openai` is that)."""
    import open_clip

    return pretrained in open_clip.list_pretrained_tags_by_model(name)


def weights_beside(name: str) -> Path | None:
    """Weights that lie beside a configuration of a tower that is named alone, so that they would not be read."""
    file = Path(name)
    if file.suffix != ".json" or not file.is_file():
        return None
    return next((other for other in sorted(file.parent.iterdir()) if other.suffix in WEIGHTS), None)


def read_normalization(name: str, pretrained: str | None) -> tuple[list[float], list[float]] | None:
    """Mean and standard deviation of the colors that a tower was trained with; None: nothing says so.

    Args:
        name, pretrained: As in `voco_llama.model.vision_weights.read_vision_weights`.

    Raises:
        SettingsError: A file that says so is damaged.
    """
    if pretrained is not None and is_tag(name, pretrained):
        import open_clip

        described, keys = open_clip.get_pretrained_cfg(name, pretrained), ("mean", "std")
        return tuple(list(described[key]) for key in keys) if all(described.get(key) for key in keys) else None
    folder = next((Path(one) for one in (pretrained, name) if one is not None and Path(one).is_dir()), None)
    files = ((OPEN_CLIP_CONFIG_FILE, "mean", "std"), (IMAGE_PROCESSOR_FILE, "image_mean", "image_std"))
    for file, mean, std in files if folder else ():
        if (folder / file).is_file():
            described = read_json(folder / file, SettingsError, "get it again")
            described = described.get("preprocess_cfg", described)
            if described.get(mean) and described.get(std):
                return described[mean], described[std]
    return None


def config_in_file(config: dict[str, Any], where: str) -> dict[str, Any]:
    """What a JSON file holds, as an open_clip configuration.

    Raises:
        SettingsError: It describes neither an open_clip model nor a CLIP of Hugging Face.
    """
    with refused_as(SettingsError, where, "get the configuration of the vision tower again"):
        if config.get("model_type") in CLIP_MODEL_TYPES:
            config = from_clip_config(config, where)
        config = config.get("model_cfg", config)
        if "vision_cfg" not in config:
            raise SettingsError(
                f"{where} describes no vision tower: give an open_clip configuration (with vision_cfg) or the"
                f" config.json of a CLIP (model_type {' or '.join(CLIP_MODEL_TYPES)})"
            )
        if num_patches(config) < 1:
            raise ValueError("not a single patch in an image")
    return config


def from_clip_config(config: dict[str, Any], where: str) -> dict[str, Any]:
    """Hugging Face's configuration of CLIP, or of its vision tower alone, in open_clip's form.

    Args:
        config: `CLIPConfig` or `CLIPVisionConfig` as a dictionary; what is missing has transformers' default.
        where: What messages call it.

    Raises:
        SettingsError: open_clip's vision transformer cannot be such a tower.
    """
    from transformers import CLIPVisionConfig

    # A config.json leaves out what equals the defaults.
    vision = CLIPVisionConfig().to_dict() | (config.get("vision_config") or config)
    if vision["hidden_act"] not in HIDDEN_ACTS:
        raise SettingsError(
            f"{where}: hidden_act {vision['hidden_act']!r} is not one of {', '.join(HIDDEN_ACTS)}: use another tower"
        )
    has, needs = (vision["layer_norm_eps"], vision["num_channels"]), (LAYER_NORM_EPS, NUM_CHANNELS)
    if has != needs:
        raise SettingsError(
            f"{where}: a tower with layer_norm_eps {has[0]} and {has[1]} channels is none of open_clip's {needs}: use"
            " another one"
        )
    width, embed_dim = vision["hidden_size"], config.get("projection_dim") or vision["projection_dim"]
    names = ("image_size", "patch_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    sizes = {"hidden_size": width, "projection_dim": embed_dim} | {name: vision[name] for name in names}
    for name, size in sizes.items():
        if type(size) is not int or not 0 < size < 2**31:
            raise SettingsError(f"{where}: {name} is {shown(size)}: get the configuration of the tower again")
    return {
        "embed_dim": embed_dim,
        "quick_gelu": HIDDEN_ACTS[vision["hidden_act"]],
        "vision_cfg": {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "layers": vision["num_hidden_layers"],
            "width": width,
            "head_width": width // vision["num_attention_heads"],
            "mlp_ratio": vision["intermediate_size"] / width,
        },
    }


def to_clip_config(config: dict[str, Any]) -> dict[str, Any]:
    """The keys of `transformers.CLIPVisionConfig` for a tower in open_clip's form; `from_clip_config` backwards."""
    vision = config["vision_cfg"]
    width = vision["width"]
    return {
        "hidden_size": width,
        "intermediate_size": round(width * vision.get("mlp_ratio", MLP_RATIO)),
        "projection_dim": config["embed_dim"],
        "num_hidden_layers": vision["layers"],
        "num_attention_heads": width // vision.get("head_width", HEAD_WIDTH),
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "hidden_act": {quick: name for name, quick in HIDDEN_ACTS.items()}[config.get("quick_gelu", False)],
    }


def num_patches(config: dict[str, Any]) -> int:
    """Patch tokens of one image."""
    vision = config["vision_cfg"]
    return (vision["image_size"] // vision["patch_size"]) ** 2
