"""What a `VoCoProcessor` is on disk: `voco_processor.json` beside its tokenizer, or what lies in a LLaVA's folder."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Self

from transformers import PreTrainedTokenizerBase
from transformers.utils import PushToHubMixin

from voco_llama.choices import CONDITIONS, Condition, require_choice
from voco_llama.configuration import VoCoLlamaConfig
from voco_llama.data.media.images import ImageTransform
from voco_llama.data.prompts import PromptStyle
from voco_llama.errors import CheckpointError, SettingsError, refused_as
from voco_llama.files import read_json
from voco_llama.hub import DESCRIPTIONS, local_folder
from voco_llama.llava_folder import check_is_model, is_llava, load_tokenizer, read_config, read_llava_folder
from voco_llama.provenance import fingerprint_data
from voco_llama.tokens import check_tokenizer

PROCESSOR_FILE = "voco_processor.json"
FORMAT_VERSION = 1
_DAMAGED = "the processor is damaged; save the model again"


class ProcessorFiles(PushToHubMixin):
    """How a processor is written and read; the fields are `VoCoProcessor`'s."""

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Write the tokenizer and `voco_processor.json`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder)
        described = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "tokenizer"}
        described |= {"image_transform": self.image_transform.to_dict(), "style": asdict(self.style)}
        described = {"format_version": FORMAT_VERSION, "vocabulary": _fingerprint(self.tokenizer)} | described
        (folder / PROCESSOR_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path, revision: str | None = None) -> Self:
        """Read what `save_pretrained` wrote; a LLaVA's folder is read by `from_llava`.

        A name `user/model` where no such folder is: a model of the hub, of which `revision` names a branch, a tag or a
        commit.

        Raises:
            CheckpointError: The folder holds no processor, a damaged one, one of another format version, or beside a
                model whose `config.json` says otherwise what a row looks like.
        """
        folder = local_folder(folder, DESCRIPTIONS, revision)
        file = folder / PROCESSOR_FILE
        if not file.is_file():
            check_is_model(folder)
            if is_llava(folder):
                return cls.from_llava(folder)
            if (kind := read_config(folder).get("model_type")) not in (None, VoCoLlamaConfig.model_type):
                raise CheckpointError(
                    f"{folder}: is a model of type {kind}, none of ours and no LLaVA: name a folder that training"
                    f" wrote; a language model to train is model.language.pretrained={folder}"
                )
        described = read_json(file, advice="it is no processor, or damaged; give the folder of a saved model")
        if described.pop("format_version", None) != FORMAT_VERSION:
            raise CheckpointError(f"{file}: is not of format version {FORMAT_VERSION}: save the model again")
        tokenizer, saved = load_tokenizer(folder, str(folder)), described.pop("vocabulary", None)
        if saved not in (None, _fingerprint(tokenizer)):  # None: saved before it was written
            raise CheckpointError(
                f"{folder}: its tokenizer has other tokens than the model was saved with: the files are of different"
                " models; put those of the model's own into the folder"
            )
        try:
            with refused_as(CheckpointError, file, _DAMAGED):
                processor = cls(
                    tokenizer=tokenizer,
                    image_transform=ImageTransform(**described.pop("image_transform")),
                    style=PromptStyle(**described.pop("style")),
                    **described,
                )
                processor._check()
        except SettingsError as error:  # of a value that may not be
            raise CheckpointError(f"{file}: {error}: {_DAMAGED}") from error
        if read_config(folder).get("model_type") == VoCoLlamaConfig.model_type:
            config = VoCoLlamaConfig.from_pretrained(folder)
            config.check_rows(processor.segment_shape(), processor.tokens, processor.condition, str(folder))
            if (side := processor.image_transform.image_size) != config.image_size:
                raise CheckpointError(
                    f"{folder}: model and processor disagree: images of {config.image_size} and {side} pixels a side:"
                    " the files are of different models"
                )
        return processor

    def _check(self) -> None:
        """Refuse values of a file that would only fail when they are used."""
        require_choice("condition", self.condition, CONDITIONS)
        least = {"num_vision": 0, "num_voco": 0, "num_frames": 1} | (
            {} if self.max_length is None else {"max_length": 1}
        )
        for name, smallest in least.items():
            value = getattr(self, name)
            if type(value) is not int or value < smallest:
                raise SettingsError(f"{name} is {value!r}: it should be a whole number of at least {smallest}")
        if not isinstance(self.style.system, str | None):
            raise SettingsError(f"system is {self.style.system!r}: it should be a text")
        self.segment_shape(), self.tokens
        self.check_style()

    @classmethod
    def from_llava(
        cls,
        folder: str | Path,
        tokenizer: PreTrainedTokenizerBase | None = None,
        vision_tower: str | None = None,
        num_voco: int | None = None,
        condition: Condition | None = None,
    ) -> Self:
        """The processor of a LLaVA's folder; arguments as those of `VoCoLlama.from_llava`.

        Raises:
            CheckpointError: The folder is no LLaVA, or its tokenizer is missing or of another model.
        """
        folder = local_folder(folder, DESCRIPTIONS)
        described = read_llava_folder(folder, vision_tower, tokenizer, num_voco, condition)
        check_tokenizer(described.tokenizer)
        processor = cls(
            tokenizer=described.tokenizer,
            image_transform=ImageTransform.beside(described.base, described.vision_config["vision_cfg"]["image_size"]),
            style=PromptStyle(described.template, described.order, described.system),
            num_vision=described.shape.num_vision,
            num_voco=described.shape.num_voco,
            condition=described.condition,
            max_length=described.max_length or cls.max_length,
        )
        try:
            processor._check()
        except SettingsError as error:
            raise CheckpointError(f"{folder}: {error}") from error
        return processor


def _fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of its tokens and their ids: as many of another model would be read as well, and be other words."""
    return fingerprint_data(sorted(tokenizer.get_vocab().items()))
