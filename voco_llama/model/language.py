"""The language model: any causal language model of transformers with plain rotary attention."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging
from transformers.utils.peft_utils import find_adapter_config_file

from voco_llama.choices import ATTENTIONS, require_choice
from voco_llama.errors import CheckpointError, SettingsError, VoCoError, one_line, refused_as
from voco_llama.llava_folder import ADAPTER_FILE, is_llava, read_config
from voco_llama.model.weights import Weights, check_fit, check_loaded, check_not_quantized, read_weights, weights_file

LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


def build_language_model(
    pretrained: str | None, config: str | None, attention: str, dtype: torch.dtype | str
) -> PreTrainedModel:
    """A causal language model with its weights (`pretrained`), or a fresh one from a configuration folder.

    Raises:
        CheckpointError: The weights are missing, damaged, or not those of the configuration beside them.
        OSError: There is no such folder or name.
    """
    options = {"attn_implementation": attention, "dtype": dtype, "trust_remote_code": False}
    if pretrained is None:
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config, trust_remote_code=False), **options)
    if is_llava(pretrained):
        raise CheckpointError(f"model.language.pretrained: {pretrained} is a LLaVA: set model.checkpoint to it")
    _check_folder(pretrained)
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # our one line says what its table of names says
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            pretrained, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except UnpicklingError as error:
        raise CheckpointError(
            f"{pretrained}: a file of its weights holds more than tensors: get the safetensors"
        ) from error
    except (VoCoError, OSError):
        raise
    except Exception as error:  # of a damaged configuration or file, of any type
        raise CheckpointError(
            f"model.language.pretrained: {pretrained} cannot be loaded ({one_line(error)}): give a causal language"
            " model of transformers"
        ) from error
    finally:
        transformers_logging.set_verbosity(level)
    check_loaded(info, f"{pretrained}: the language model's weights", "get config.json and weights of the same model")
    check_not_quantized(model.config.to_dict(), {}, f"model.language.pretrained: {pretrained}")
    _check_tied(model, f"model.language.pretrained: {pretrained}")
    return model


def _check_folder(name: str) -> None:
    """Refuse what transformers would make another model of than lies there, before anything is built.

    Raises:
        CheckpointError: There are adapters, of which it would load the base, or put them on what lies beside them; or
            weights are absent, damaged, unsafe, quantized, or there twice.
    """
    if find_adapter_config_file(name) is not None:
        raise CheckpointError(
            f"model.language.pretrained: {name} holds adapters ({ADAPTER_FILE}), which would be put on a base that no"
            f" setting names: merge them into it (merge_and_unload of peft), or remove {ADAPTER_FILE} if the weights"
            " beside it are whole"
        )
    if Path(name).is_dir() and weights_file(Path(name)):
        check_not_quantized(read_config(name), read_weights(name), f"model.language.pretrained: {name}")


def _check_tied(model: PreTrainedModel, where: str) -> None:
    """Refuse weights with a head of their own under a configuration that ties it: it would be lost on the way.

    Raises:
        CheckpointError: They have one.
    """
    head = model.get_output_embeddings()
    if model.config.tie_word_embeddings and head is not None and head.weight is not model.get_input_embeddings().weight:
        raise CheckpointError(
            f"{where}: its config.json ties the head to the embeddings, and its weights have a head that differs: set"
            " tie_word_embeddings to false there, or get both again"
        )


def fill_language_model(
    config: PreTrainedConfig, weights: Weights, where: str, dtype: str | torch.dtype, attention: str
) -> PreTrainedModel:
    """A causal language model with weights under its own names.

    Args:
        config: Its configuration.
        weights: Tied weights may be left out.
        where: What messages call the weights.
        dtype: `auto`: that of the configuration, or else of the weights.
        attention: One of `voco_llama.choices.BACKENDS`.

    Raises:
        CheckpointError: Names or shapes do not fit; nothing is built then.
    """
    unusable = refused_as(CheckpointError, f"{where}: its config.json", "get it again")
    with unusable, torch.device("meta"):
        skeleton = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)  # from_config would shard it under ZeRO-3
    tied = (skeleton._tied_weights_keys or ()) if config.tie_word_embeddings else ()
    advice = "the config.json is another model's, or the files are damaged; get both again"
    check_fit(skeleton.state_dict(), weights, f"{where}: the language model's weights", advice, optional=tied)
    check_not_quantized(config.to_dict(), weights, where)
    if dtype == "auto":
        dtype = config.dtype or next(iter(weights.values())).dtype
    with refused_as(CheckpointError, f"{where}: its config.json and weights", "get both again"):
        model = type(skeleton).from_pretrained(
            None, config=config, state_dict=weights, dtype=dtype, attn_implementation=attention
        )
        _check_tied(model, where)
        return model


def check_language_config(config: Any) -> None:
    """Refuse configurations whose attention or logits are more than the decoder and the head that we call.

    Raises:
        SettingsError: What the model does that would be lost silently.
    """
    require_choice("attention backend", config._attn_implementation, ATTENTIONS)
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    if layer_types != {"full_attention"} or getattr(config, "sliding_window", None):
        raise SettingsError(
            "the language model uses sliding-window attention, which the VoCo mask does not express: set its"
            " sliding_window to null (and use_sliding_window to false) if the rows fit the window"
        )
    if getattr(config, "final_logit_softcapping", None) or getattr(config, "logit_scale", None):
        raise SettingsError("the language model scales or caps its logits, which would be lost: use another model")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise SettingsError(
            "the language model rotates only a part of each head, which moving caches does not know of: use a model"
            " with plain rotary positions (Llama, Qwen2, Qwen3, Mistral)"
        )
    if rope.get("rope_type") in LENGTH_DEPENDENT_ROPE:
        raise SettingsError(
            f"rope type {rope['rope_type']!r} changes with the length, so that caches could not be moved: use"
            " another rope type"
        )
