"""Low-rank adapters on the language model, by peft.

The adapters go into the language model's own layers, so that `VoCoLlama` works as before. Of the language model they
and VoCo's embedding train: that one row is kept beside the table (peft's trainable tokens), which stays frozen.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from voco_llama.errors import SettingsError
from voco_llama.model.voco_llama import VoCoLlama
from voco_llama.settings import LoraSettings

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTERS_FOLDER = "adapters"
"""Below a saved model: what was trained, alone, as peft reads it."""


def add_adapters(model: VoCoLlama, settings: LoraSettings) -> "PeftModel":
    """Put adapters into the language model of `model`; they start as the identity. peft's handle of them is returned.

    Raises:
        SettingsError: There is no layer of a name in `targets`.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
        trainable_token_indices=[model.config.voco_token_id],
    )
    known = {name.rpartition(".")[2] for name, _ in model.language_model.named_modules()}
    unknown = sorted(set(settings.targets) - known)
    if unknown:
        raise SettingsError(
            f"model.lora.targets: the language model has no layer {', '.join(unknown)}: choose from"
            f" {', '.join(sorted(name for name in known if name.endswith('proj')))}"
        )
    with warnings.catch_warnings():
        # peft's own call
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*is_gradient_checkpointing. is deprecated")
        return get_peft_model(model.language_model, config)


def trained_by(adapters: "PeftModel | None") -> list[nn.Parameter] | None:
    """What of the language model trains: the adapters and VoCo's embedding; None if there are no adapters."""
    return None if adapters is None else [p for p in adapters.parameters() if p.requires_grad]


def save_and_merge(adapters: "PeftModel", folder: Path | None) -> None:
    """At the end of training: write the adapters alone, and make them part of the language model's weights.

    `folder` is that of the model that will be saved; None in processes that write nothing.
    """
    if folder is not None:
        adapters.save_pretrained(folder / ADAPTERS_FOLDER, save_embedding_layers=False)  # the row is among them
    adapters.merge_and_unload()
