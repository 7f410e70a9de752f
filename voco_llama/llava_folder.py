"""What a LLaVA folder says of itself before any weight is read: its layout, its parts, its tokenizer.

Three kinds are known, and told apart by what stands in `config.json`:

    llava       LLaVA's own (`liuhaotian/llava-v1.5-7b`): the language model's keys with `mm_*` among them
    llava       the same with `<voco>` in its tokenizer: the VoCo-LLaMA authors' checkpoints
    llava_hf    `llava-hf/llava-1.5-7b-hf`: `text_config` and `vision_config`
"""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from voco_llama.choices import Condition, Order
from voco_llama.errors import CheckpointError, SettingsError, one_line
from voco_llama.layout import SegmentShape
from voco_llama.tokens import VOCO_TOKEN, TokenIds, add_special_tokens, check_vocabulary, segment_affixes
from voco_llama.vision_config import from_clip_config, num_patches, read_vision_config

CONFIG_FILE = "config.json"
EXPORT_KEY = "voco_llama"
"""Of `config.json`: what our export adds to say how the model was trained (condition, num_voco, order)."""

LANGUAGE_TYPES = {"llava": "llama", "llava_llama": "llama", "llava_mistral": "mistral", "llava_qwen": "qwen2"}
"""`model_type` of LLaVA's own layout -> that of its language model."""

KNOWN_TOWERS = {
    "openai/clip-vit-large-patch14-336": ("ViT-L-14-336-quickgelu", "openai"),
    "openai/clip-vit-large-patch14": ("ViT-L-14-quickgelu", "openai"),
}
"""What `mm_vision_tower` names on the hub -> the same tower's name and tag in open_clip."""

_OWN_KEYS = ("mm_", "image_", "tune_", "freeze_", "use_mm_proj", "tokenizer_", "unfreeze_", "s2", EXPORT_KEY)
_DROPPED = ("architectures", "model_type", "transformers_version", "_name_or_path", "auto_map", "quantization_config")


@dataclass(frozen=True)
class LlavaFolder:
    """See the module.

    Attributes:
        path: The folder.
        layout: `llava` or `llava_hf`.
        text_config: Of the language model, with the vocabulary of the stored weights.
        vision_config: Of the tower, in open_clip's form.
        vision_source: Where the tower's weights are if they are not among the folder's: name and `pretrained` as
            `read_vision_weights` takes them; None: nowhere else.
        vision_layer: Layer whose patch tokens are used.
        projector: `linear` or `mlp2x_gelu`.
        max_length: Longest row it was trained with, where it says so.
        export: What our own export wrote beside, else empty.
    """

    path: Path
    layout: str
    text_config: PreTrainedConfig
    vision_config: dict[str, Any]
    vision_source: tuple[str, str | None] | None
    vision_layer: int
    projector: str
    max_length: int | None
    export: dict[str, Any]

    def rows(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        num_voco: int | None = None,
        condition: Condition | None = None,
    ) -> "LlavaRows":
        """What rows look like to the model that this LLaVA becomes.

        Args:
            tokenizer: In place of the folder's; left as it is.
            num_voco: None: the export's, else 1 under `voco` (the authors' folders do not say) and 0 under `full`.
            condition: None: what it was trained with, `voco` where the tokenizer knows `<voco>`.

        Raises:
            CheckpointError: There is no tokenizer, or its length and the table of embeddings disagree.
        """
        tokenizer = self._load_tokenizer() if tokenizer is None else copy.deepcopy(tokenizer)
        check_vocabulary(tokenizer, self.text_config.vocab_size, str(self.path))
        known = set(tokenizer.get_vocab().values())
        trained = self.export.get("condition") or ("voco" if VOCO_TOKEN in tokenizer.get_vocab() else "full")
        condition = condition or trained
        order = self.export.get("order") or ("authors" if trained == "voco" else "llava")
        if num_voco is None:
            num_voco = self.export.get("num_voco", 1 if condition == "voco" else 0)
        tokens = add_special_tokens(tokenizer)
        shape = SegmentShape(num_patches(self.vision_config), num_voco, *segment_affixes(tokenizer, order))
        new = [id for id in (tokens.image, tokens.voco) if id not in known or id >= self.text_config.vocab_size]
        return LlavaRows(tokenizer, tokens, tuple(new), shape, condition, order)

    def _load_tokenizer(self) -> PreTrainedTokenizerBase:
        try:
            return AutoTokenizer.from_pretrained(self.path, config=PreTrainedConfig())
        except (OSError, ValueError, TypeError, ImportError) as error:
            raise CheckpointError(
                f"{self.path}: its tokenizer cannot be loaded ({one_line(error)}): put the files of the tokenizer"
                " into the folder"
            ) from error


@dataclass(frozen=True)
class LlavaRows:
    """What rows look like to a LLaVA as a model of ours; its configuration, weights and processor are made of it.

    Attributes:
        tokenizer: With `<image>` and `<voco>`.
        tokens: Its ids.
        new_tokens: Those of the two that have no embedding worth keeping.
        shape: Of a segment.
        condition: Visibility.
        order: Where an image stands in its prompts (`voco_llama.data.prompts`).
    """

    tokenizer: PreTrainedTokenizerBase
    tokens: TokenIds
    new_tokens: tuple[int, ...]
    shape: SegmentShape
    condition: Condition
    order: Order


def is_llava(folder: str | Path) -> bool:
    """Whether a folder's `config.json` is a LLaVA's, in any layout."""
    config = read_config(folder)
    return "mm_vision_tower" in config or (config.get("model_type") == "llava" and "vision_config" in config)


def read_config(folder: str | Path) -> dict[str, Any]:
    """What a folder's `config.json` says; nothing where there is none that can be read."""
    try:
        config = json.loads((Path(folder) / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def read_llava_folder(folder: str | Path, vision_tower: str | None = None) -> LlavaFolder:
    """Read a LLaVA's `config.json`.

    Args:
        folder: The LLaVA.
        vision_tower: In place of what `mm_vision_tower` names: a folder, or open_clip's name of a tower of OpenAI.

    Raises:
        CheckpointError: It is not there, no LLaVA, or one that this project cannot be.
    """
    file = Path(folder) / CONFIG_FILE
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}): name a folder of LLaVA-1.5") from error
    if not is_llava(folder):
        raise CheckpointError(
            f"{file}: model_type {config.get('model_type')!r} without mm_vision_tower is no LLaVA-1.5: name a folder of"
            " one, or its language model as model.language.pretrained"
        )
    if "vision_config" in config:
        return _read_hub_layout(Path(folder), config)
    return _read_own_layout(Path(folder), config, vision_tower)


def _read_hub_layout(folder: Path, config: dict[str, Any]) -> LlavaFolder:
    from transformers import LlavaConfig

    layers, strategy = config.get("vision_feature_layer", -2), config.get("vision_feature_select_strategy", "default")
    _require(isinstance(layers, int), folder, f"vision_feature_layer {layers}", "one layer's features")
    _require(strategy == "default", folder, f"vision_feature_select_strategy {strategy!r}", "patch tokens (default)")
    act, bias = config.get("projector_hidden_act", "gelu"), config.get("multimodal_projector_bias", True)
    _require(act == "gelu" and bias, folder, f"projector_hidden_act {act!r}, bias {bias}", "a GELU projector with bias")
    try:
        read = LlavaConfig.from_dict(config)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: cannot be read ({one_line(error)}): get it again") from error
    vision = read.vision_config.to_dict()
    kind = vision.get("model_type")
    _require(kind == "clip_vision_model", folder, f"a vision tower of type {kind!r}", "CLIP")
    return LlavaFolder(
        folder,
        "llava_hf",
        read.text_config,
        _as_open_clip(vision, folder),
        None,
        layers,
        "mlp2x_gelu",
        None,
        config.get(EXPORT_KEY) or {},
    )


def _read_own_layout(folder: Path, config: dict[str, Any], vision_tower: str | None) -> LlavaFolder:
    kind, feature = config.get("model_type"), config.get("mm_vision_select_feature", "patch")
    _require(kind in LANGUAGE_TYPES, folder, f"model_type {kind!r}", f"one of {', '.join(LANGUAGE_TYPES)}")
    _require(feature == "patch", folder, f"mm_vision_select_feature {feature!r}", "patch tokens (patch)")
    aspect = config.get("image_aspect_ratio") or "pad"
    _require("anyres" not in aspect, folder, f"image_aspect_ratio {aspect!r} (LLaVA-1.6)", "one square image (pad)")
    _require(not config.get("mm_use_im_start_end"), folder, "mm_use_im_start_end", "images without marks around them")
    projector = config.get("mm_projector_type", "linear")
    _require(projector in ("linear", "mlp2x_gelu"), folder, f"projector {projector!r}", "linear or mlp2x_gelu")
    text = {key: value for key, value in config.items() if not key.startswith(_OWN_KEYS) and key not in _DROPPED}
    tower = vision_tower or config["mm_vision_tower"]
    name, pretrained = _tower(folder, tower)
    try:
        vision_config = read_vision_config(name)
    except SettingsError as error:
        raise CheckpointError(
            f"{folder}: its mm_vision_tower is {tower!r}, and no such tower is known ({error}): convert it once with"
            " `voco-llama export layout=voco vision_tower=...`"
        ) from error
    return LlavaFolder(
        folder,
        "llava",
        AutoConfig.for_model(LANGUAGE_TYPES[kind], **text),
        vision_config,
        (name, pretrained),
        config.get("mm_vision_select_layer", -2),
        projector,
        config.get("tokenizer_model_max_length"),
        config.get(EXPORT_KEY) or {},
    )


def _tower(folder: Path, tower: str) -> tuple[str, str | None]:
    """Name and `pretrained` of a tower: a known one, a folder (beside the weights, or any), or open_clip's name."""
    if tower in KNOWN_TOWERS:
        return KNOWN_TOWERS[tower]
    for path in (folder / tower, Path(tower)):
        if path.is_dir():
            return str(path), None
    return tower, "openai"


def _as_open_clip(vision: dict[str, Any], folder: Path) -> dict[str, Any]:
    try:
        return from_clip_config(vision, str(folder / CONFIG_FILE))
    except SettingsError as error:
        raise CheckpointError(str(error)) from error


def _require(holds: bool, folder: Path, found: str, needed: str) -> None:
    if not holds:
        raise CheckpointError(f"{folder / CONFIG_FILE}: has {found}, and only {needed} is supported: use LLaVA-1.5")
