"""Adapters of peft on a LLaVA, as LLaVA's own LoRA training writes them, made part of the weights of their base.

    adapter_config.json         what they are, and of which base
    adapter_model.safetensors   base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight, ...; or .bin
    non_lora_trainables.bin     base_model.model.model.mm_projector.0.weight, ...: what was trained besides, whole
    config.json                 of the LLaVA that base and adapters are together

Names may be those of any layout that `voco_llama.model.layouts` knows. As in LLaVA's `load_pretrained_model`, the whole
tensors replace those of the base, and the adapters are merged into what is then the language model.
"""

import re
import warnings
from pathlib import Path

from transformers import PreTrainedModel

from voco_llama.errors import CheckpointError, refused_as
from voco_llama.llava_folder import ADAPTER_FILE
from voco_llama.model.layouts import place_in_llava
from voco_llama.model.weights import Weights, check_fit, read_file

ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
WHOLE_FILE = "non_lora_trainables.bin"

_PREFIX = "base_model.model."
_ADAPTED = re.compile(r"(.+)\.lora_\w+(\.weight)?")
"""A tensor of an adapter, and the module that it adapts."""
_CHANGED_BASE = ("pissa", "olora")
"""Initializations that peft repeats when it reads adapters: it takes out of the base what they begin with."""
_UNKNOWN_BASE = ("corda", "loftq", "lora_ga")
"""Those that it cannot repeat without the data or the quantization of then."""
_ADVICE = "get the adapters again"


def read_adapters(folder: Path) -> tuple[Weights, Weights]:
    """The adapters in a folder, by names below the language model, and the tensors that replace those of the base.

    Raises:
        CheckpointError: Their file is missing or damaged, or they are of another part than the language model.
    """
    file = next((folder / name for name in ADAPTER_WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"{folder}: has an {ADAPTER_FILE} and no {ADAPTER_WEIGHTS[0]}: {_ADVICE}")
    adapters, whole = {}, {}
    for name, tensor in read_file(file).items():
        name = name.removeprefix(_PREFIX)
        if _ADAPTED.fullmatch(name):
            part, name = place_in_llava(name)
            if part != "language":
                raise CheckpointError(
                    f"{file}: adapts the {part} too ({name}), and only adapters of the language model can be merged"
                    " here: merge them with the code that trained them"
                )
            adapters[name] = tensor
        else:
            whole[name] = tensor
    if (folder / WHOLE_FILE).is_file():
        whole |= {name.removeprefix(_PREFIX): tensor for name, tensor in read_file(folder / WHOLE_FILE).items()}
    return adapters, whole


def merge_adapters(language_model: PreTrainedModel, adapters: Weights, folder: Path) -> PreTrainedModel:
    """Make adapters part of the weights of the language model that they are of; it is changed and given back.

    Raises:
        CheckpointError: They are no LoRA, or do not fit the language model.
    """
    from peft import LoraConfig, PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    file = folder / ADAPTER_FILE
    with refused_as(CheckpointError, file, _ADVICE):
        config = PeftConfig.from_pretrained(folder)
        if not isinstance(config, LoraConfig):
            raise CheckpointError(f"{file}: adapters of kind {config.peft_type}, and only LoRA can be merged here")
        config.target_modules = {_ADAPTED.fullmatch(name)[1] for name in adapters}  # as named in this layout
        config.exclude_modules = config.modules_to_save = config.layers_to_transform = None
        for patterns in (config.alpha_pattern, config.rank_pattern):
            named = {place_in_llava(name)[1]: value for name, value in patterns.items()}
            patterns.clear()
            patterns.update(named)
        config.bias = "none"
        initialized = str(config.init_lora_weights).lower()
        if initialized.startswith(_UNKNOWN_BASE):
            raise CheckpointError(
                f"{file}: init_lora_weights={initialized} changed the base in a way not known here: convert them"
                " to plain LoRA first (peft's path_initial_model_for_weight_conversion)"
            )
        if not initialized.startswith(_CHANGED_BASE):
            config.init_lora_weights = True
        config.base_model_name_or_path = None  # peft would warn that the model here was not loaded by that name
    with warnings.catch_warnings(), refused_as(CheckpointError, folder, "the adapters are of another language model"):
        # peft's own call
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*is_gradient_checkpointing. is deprecated")
        adapted = get_peft_model(language_model, config)
        named = {f"{_PREFIX}{name}": tensor for name, tensor in adapters.items()}
        expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        check_fit(expected, named, f"{folder}: its adapters", _ADVICE)
        set_peft_model_state_dict(adapted, named)
        return adapted.merge_and_unload()
