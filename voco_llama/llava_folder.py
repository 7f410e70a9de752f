"""What a LLaVA folder says of itself before any weight is read: its layout, its parts, its tokenizer.

Three kinds are known, and told apart by what stands in `config.json`:

    llava       LLaVA's own (`liuhaotian/llava-v1.5-7b`): the language model's keys with `mm_*` among them
    llava       the same with `<voco>` in its tokenizer: the VoCo-LLaMA authors' checkpoints
    llava_hf    `llava-hf/llava-1.5-7b-hf`: `text_config` and `vision_config`

A folder of adapters of peft (LLaVA's LoRA) stands for their base with them in it: what it lacks is read in the base.
"""

import copy
import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from voco_llama.choices import CONDITIONS, ORDERS, PROJECTORS, TEMPLATES, Condition, Order, Template, require_choice
from voco_llama.errors import CheckpointError, SettingsError, refused_as
from voco_llama.files import read_json
from voco_llama.hub import FINAL_FOLDER, is_hub_name, local_folder
from voco_llama.layout import SegmentShape
from voco_llama.tokens import (
    VOCO_TOKEN,
    TokenIds,
    add_special_tokens,
    check_as_stored,
    check_vocabulary,
    segment_affixes,
)
from voco_llama.vision_config import from_clip_config, num_patches, read_vision_config

CONFIG_FILE, ADAPTER_FILE = "config.json", "adapter_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
EXPORT_KEY = "voco_llama"
"""Of `config.json`: what our export adds to say how the model was trained (condition, num_voco, its prompts)."""

LANGUAGE_TYPES = {"llava": "llama", "llava_llama": "llama", "llava_mistral": "mistral", "llava_qwen": "qwen2"}
"""`model_type` of LLaVA's own layout -> that of its language model."""

KNOWN_TOWERS = {
    "openai/clip-vit-large-patch14-336": ("ViT-L-14-336-quickgelu", "openai"),
    "openai/clip-vit-large-patch14": ("ViT-L-14-quickgelu", "openai"),
}
"""What `mm_vision_tower` names on the hub -> the same tower's name and tag in open_clip."""

_OWN_KEYS = ("mm_", "image_", "tune_", "freeze_", "use_mm_proj", "tokenizer_", "unfreeze_", "s2", EXPORT_KEY)
_DROPPED = ("architectures", "model_type", "transformers_version", "_name_or_path", "auto_map", "quantization_config")


@dataclass(frozen=True, kw_only=True)
class LlavaFolder:
    """What a LLaVA's folder says, and what rows look like to the model of ours that it becomes.

    Attributes:
        path: The folder.
        base: The model that the folder's adapters are of; without adapters the folder itself.
        text_config: Of the language model, with the vocabulary of the stored weights.
        vision_config: Of the tower, in open_clip's form.
        vision_source: Where the tower's weights are if they are not among the folder's: name and `pretrained` as
            `read_vision_weights` takes them; None: nowhere else.
        trained_tower: Whether the tower was trained with the rest, so that no other one stands for it.
        vision_layer: Layer whose patch tokens are used.
        projector: `linear` or `mlp2x_gelu`.
        max_length: Longest row it was trained with, where it says so.
        tokenizer, tokens: With `<image>` and `<voco>`, and its ids.
        new_tokens: Those of the two that have no embedding worth keeping.
        shape, condition, order: Of a segment, visibility, and where an image stands in its prompts.
        template, system: How else its prompts are written.
    """

    path: Path
    base: Path
    text_config: PreTrainedConfig
    vision_config: dict[str, Any]
    vision_source: tuple[str, str | None] | None = None
    trained_tower: bool = False
    vision_layer: int
    projector: str
    max_length: int | None = None
    tokenizer: PreTrainedTokenizerBase
    tokens: TokenIds
    new_tokens: tuple[int, ...]
    shape: SegmentShape
    condition: Condition
    order: Order
    template: Template
    system: str | None


def is_llava(folder: str | Path) -> bool:
    """Whether a folder's `config.json`, or that of the base of its adapters, is a LLaVA's, in any layout.

    Raises:
        CheckpointError: It holds adapters of something that is not here.
    """
    config = read_config(_with(Path(folder), CONFIG_FILE))
    return "mm_vision_tower" in config or (config.get("model_type") == "llava" and "vision_config" in config)


def read_config(folder: str | Path) -> dict[str, Any]:
    """What a folder's `config.json` says; nothing where there is none that can be read."""
    try:
        return read_json(Path(folder) / CONFIG_FILE)
    except CheckpointError:
        return {}


def adapter_base(folder: Path) -> Path:
    """The folder of the model that the adapters of peft in a folder are of; the folder itself where it holds none.

    Raises:
        CheckpointError: The base is not here.
    """
    file = folder / ADAPTER_FILE
    if not file.is_file():
        return folder
    described = read_json(file, advice="get the adapters again")
    base, revision = described.get("base_model_name_or_path"), described.get("revision")
    advice = (
        f"put its folder where base_model_name_or_path in {ADAPTER_FILE} says, or merge the adapters into it (peft)"
    )
    if not isinstance(base, str) or not base:
        raise CheckpointError(f"{folder}: holds adapters that do not say of what: {advice}")
    for path in (folder / base, Path(base)):
        if path.is_dir():
            return path
    try:
        found = local_folder(base, revision=revision if is_hub_name(base) else None)
        if found.is_dir():
            return found
        raise CheckpointError(f"{base}: no such folder")
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: holds adapters of a model that is not here ({error}): {advice}") from error


def check_is_model(folder: Path) -> None:
    """Refuse a folder without a saved model, or with adapters alone of what is no LLaVA.

    Raises:
        CheckpointError: It says what the folder holds instead.
    """
    if (folder / ADAPTER_FILE).is_file() and not is_llava(folder):
        raise CheckpointError(
            f"{folder}: holds adapters of {adapter_base(folder)}, which is no LLaVA: merge them into it"
            " (merge_and_unload of peft), or name the folder of the whole model"
        )
    if not (_with(folder, CONFIG_FILE) / CONFIG_FILE).is_file():
        if (final := folder / FINAL_FOLDER / CONFIG_FILE).is_file():
            raise CheckpointError(f"{folder}: is the folder of a run, with its model below it: name {final.parent}")
        lacks = f"no {CONFIG_FILE}" if folder.exists() else "no such folder"
        raise CheckpointError(f"{folder}: holds no saved model ({lacks}): name a folder that training wrote")


def _with(folder: Path, *files: str) -> Path:
    """The folder, or the base of its adapters where it has none of these files."""
    return folder if any((folder / file).is_file() for file in files) else adapter_base(folder)


def read_llava_folder(
    folder: str | Path,
    vision_tower: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    num_voco: int | None = None,
    condition: Condition | None = None,
) -> LlavaFolder:
    """Read a LLaVA's `config.json` and tokenizer.

    Args:
        folder: The LLaVA.
        vision_tower: In place of what `mm_vision_tower` names: a folder, or open_clip's name of a tower of OpenAI.
        tokenizer, num_voco, condition: As in `VoCoLlama.from_llava`.

    Raises:
        CheckpointError: It is not there, no LLaVA, or one that this project cannot be; or there is no tokenizer, or its
            length and the table of embeddings disagree.
    """
    folder = Path(folder)
    base = adapter_base(folder)
    where = _with(folder, CONFIG_FILE)
    file = where / CONFIG_FILE
    config = read_json(file, advice="name a folder of LLaVA-1.5")
    if not is_llava(folder):
        raise CheckpointError(
            f"{file}: model_type {config.get('model_type')!r} without mm_vision_tower is no LLaVA-1.5: name a folder of"
            " one, or its language model as model.language.pretrained"
        )
    with refused_as(CheckpointError, file, "get it again"):
        if "vision_config" in config:
            parts = _read_hub_layout(where, config)
        else:
            parts = _read_own_layout(where, config, vision_tower)
    tokenizer = (
        load_tokenizer(_with(folder, *TOKENIZER_FILES), str(folder)) if tokenizer is None else copy.deepcopy(tokenizer)
    )
    vocabulary, num_rows = tokenizer.get_vocab(), parts["text_config"].vocab_size
    check_vocabulary(tokenizer, num_rows, str(folder))
    with refused_as(CheckpointError, f"{file}: its {EXPORT_KEY}", "export the model again"):
        export = config.get(EXPORT_KEY) or {}
        trained = export.get("condition") or ("voco" if VOCO_TOKEN in vocabulary else "full")
        condition = condition or trained
        order = export.get("order") or ("authors" if trained == "voco" else "llava")
        template, system = export.get("template", "vicuna_v1"), export.get("system")
        if num_voco is None:
            num_voco = operator.index(export.get("num_voco", 1 if condition == "voco" else 0))
        require_choice("condition", condition, CONDITIONS)
        require_choice("order", order, ORDERS)
        require_choice("template", template, TEMPLATES)
    known = {id for id in vocabulary.values() if id < num_rows}
    tokens = add_special_tokens(tokenizer)
    return LlavaFolder(
        path=folder,
        base=base,
        **parts,
        tokenizer=tokenizer,
        tokens=tokens,
        new_tokens=tuple(id for id in (tokens.image, tokens.voco) if id not in known),
        shape=SegmentShape(num_patches(parts["vision_config"]), num_voco, *segment_affixes(tokenizer, order)),
        condition=condition,
        order=order,
        template=template,
        system=system,
    )


def load_tokenizer(folder: Path, where: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a saved model, which messages call `where`.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    with refused_as(CheckpointError, f"{where}: its tokenizer", "put the files of the model's own into the folder"):
        # The empty configuration keeps transformers from reading the model's, which knows no tokenizer.
        tokenizer = AutoTokenizer.from_pretrained(folder, config=PreTrainedConfig(), trust_remote_code=False)
        tokenizer("a", add_special_tokens=False)  # some damage shows when it is used
        if tokenizer.is_fast:
            check_as_stored(tokenizer, folder)
        return tokenizer


def _read_hub_layout(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The fields of `LlavaFolder` that say what the parts are."""
    from transformers import LlavaConfig

    layers, strategy = config.get("vision_feature_layer", -2), config.get("vision_feature_select_strategy", "default")
    _require(isinstance(layers, int), folder, f"vision_feature_layer {layers}", "one layer's features")
    _require(strategy == "default", folder, f"vision_feature_select_strategy {strategy!r}", "patch tokens (default)")
    act, bias = config.get("projector_hidden_act", "gelu"), config.get("multimodal_projector_bias", True)
    _require(act == "gelu" and bias, folder, f"projector_hidden_act {act!r}, bias {bias}", "a GELU projector with bias")
    read = LlavaConfig.from_dict(config)
    kind = read.vision_config.model_type
    _require(kind == "clip_vision_model", folder, f"a vision tower of type {kind!r}", "CLIP")
    try:
        vision = from_clip_config(read.vision_config.to_dict(), str(folder / CONFIG_FILE))
    except SettingsError as error:
        raise CheckpointError(str(error)) from error
    return {
        "text_config": read.text_config,
        "vision_config": vision,
        "vision_layer": layers,
        "projector": "mlp2x_gelu",
    }


def _read_own_layout(folder: Path, config: dict[str, Any], vision_tower: str | None) -> dict[str, Any]:
    """The same of LLaVA's own layout."""
    kind, feature = config.get("model_type"), config.get("mm_vision_select_feature", "patch")
    _require(kind in LANGUAGE_TYPES, folder, f"model_type {kind!r}", f"one of {', '.join(LANGUAGE_TYPES)}")
    _require(feature == "patch", folder, f"mm_vision_select_feature {feature!r}", "patch tokens (patch)")
    aspect = config.get("image_aspect_ratio") or "pad"
    _require("anyres" not in aspect, folder, f"image_aspect_ratio {aspect!r} (LLaVA-1.6)", "one square image (pad)")
    _require(not config.get("mm_use_im_start_end"), folder, "mm_use_im_start_end", "images without marks around them")
    projector = config.get("mm_projector_type", "linear")
    _require(projector in PROJECTORS, folder, f"projector {projector!r}", " or ".join(PROJECTORS))
    text = {key: value for key, value in config.items() if not key.startswith(_OWN_KEYS) and key not in _DROPPED}
    tower = vision_tower or config["mm_vision_tower"]
    source = _tower(folder, tower)
    try:
        vision = read_vision_config(source[0])
    except SettingsError as error:
        raise CheckpointError(
            f"{folder}: its mm_vision_tower is {tower!r}, and no such tower is known ({error}): convert it once with"
            " `voco-llama export layout=voco vision_tower=...`"
        ) from error
    return {
        "text_config": AutoConfig.for_model(LANGUAGE_TYPES[kind], **text),
        "vision_config": vision,
        "vision_source": source,
        "trained_tower": vision_tower is None and bool(config.get("unfreeze_mm_vision_tower")),
        "vision_layer": operator.index(config.get("mm_vision_select_layer", -2)),
        "projector": projector,
        "max_length": config.get("tokenizer_model_max_length"),
    }


def _tower(folder: Path, tower: str) -> tuple[str, str | None]:
    """Name and `pretrained` of a tower: a known one, a folder (beside the weights, or any), or open_clip's name."""
    if tower in KNOWN_TOWERS:
        return KNOWN_TOWERS[tower]
    for path in (folder / tower, adapter_base(folder) / tower, Path(tower)):
        if path.is_dir():
            return str(path), None
    return tower, "openai"


def _require(holds: bool, folder: Path, found: str, needed: str) -> None:
    if not holds:
        raise CheckpointError(f"{folder / CONFIG_FILE}: has {found}, and only {needed} is supported: use LLaVA-1.5")
