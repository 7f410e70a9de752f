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

from voco_llama.choices import Condition
from voco_llama.errors import CheckpointError, SettingsError, one_line
from voco_llama.layout import SegmentShape
from voco_llama.tokens import VOCO_TOKEN, check_vocabulary, token_ids
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

    def tokenizer(self, given: PreTrainedTokenizerBase | None = None) -> PreTrainedTokenizerBase:
        """The folder's tokenizer as it is there, or a copy of a given one; no token is added yet.

        Raises:
            CheckpointError: There is none, or its length and the table of embeddings disagree.
        """
        tokenizer = self._load_tokenizer() if given is None else copy.deepcopy(given)
        check_vocabulary(tokenizer, self.text_config.vocab_size, str(self.path))
        return tokenizer

    def _load_tokenizer(self) -> PreTrainedTokenizerBase:
        try:
            return AutoTokenizer.from_pretrained(self.path, config=PreTrainedConfig())
        except (OSError, ValueError, TypeError, ImportError) as error:
            raise CheckpointError(
                f"{self.path}: its tokenizer cannot be loaded ({one_line(error)}): put the files of the tokenizer"
                " into the folder"
            ) from error

    def condition(self, tokenizer: PreTrainedTokenizerBase) -> Condition:
        """Visibility it was trained with: `voco` where the tokenizer, as it came, knows `<voco>`."""
        return self.export.get("condition") or ("voco" if VOCO_TOKEN in tokenizer.get_vocab() else "full")

    def order(self, condition: Condition) -> str:
        """Where an image stands in its prompts (`voco_llama.data.prompts`)."""
        return self.export.get("order") or ("authors" if condition == "voco" else "llava")

    def num_voco(self, condition: Condition) -> int:
        """VoCo tokens an image: the export's, else 1 under `voco` (their folders do not say) and 0 under `full`."""
        return self.export.get("num_voco", 1 if condition == "voco" else 0)

    def segment_shape(self, tokenizer: PreTrainedTokenizerBase, num_voco: int, order: str) -> SegmentShape:
        """Shape of a segment; the authors' order has BOS and a newline inside it."""
        if order != "authors":
            return SegmentShape(num_patches(self.vision_config), num_voco)
        bos = token_ids(tokenizer).bos
        newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
        prefix = () if bos is None else (bos,)
        return SegmentShape(num_patches(self.vision_config), num_voco, prefix, tuple(newline))


def is_llava(folder: str | Path) -> bool:
    """Whether a folder's `config.json` is a LLaVA's, in any layout."""
    try:
        config = json.loads((Path(folder) / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and (
        "mm_vision_tower" in config or (config.get("model_type") == "llava" and "vision_config" in config)
    )


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
