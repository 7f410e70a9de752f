"""Teachers: what the KL term compares the student with. All but `most_voco` read the rows with the image visible.

    checkpoint    a frozen model of ours; its weights are divided over the processes where the student's are
    adapters_off  the student itself without its LoRA adapters
    most_voco     the student itself, in the step's reading through the most VoCo tokens, which teaches the others
    top_k         files that `voco-llama teacher` wrote (`voco_llama.training.teachers.top_k`)

A teacher reads the student's own batch: the same text, images and order of rows, under condition `full` and with
contiguous positions. It may have been trained with fewer VoCo tokens than the rows have, so it is shown no more than
that. VoCo tokens are never trained on, so the i-th trained token of the teacher's rows is the i-th of the student's,
through however many of them it reads.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import TrainingArguments

from voco_llama.choices import Condition
from voco_llama.configuration import VoCoLlamaConfig
from voco_llama.data.processor import VoCoProcessor
from voco_llama.errors import CheckpointError, SettingsError
from voco_llama.layout import HostRows, next_tokens, truncate_voco
from voco_llama.model.losses import OwnReadings, TeacherStates, TeacherTokens, TeacherTopK
from voco_llama.model.voco_llama import VoCoLlama
from voco_llama.packing import cannot_pack
from voco_llama.settings import TrainSettings
from voco_llama.sharding import place_frozen, sharding_of, weights_are_divided, whole_head
from voco_llama.tokens import IGNORE_INDEX

if TYPE_CHECKING:
    from peft import PeftModel

TOP_K_ENTRIES = ("teacher_ids", "teacher_log_probs")
"""Of a batch whose rows bring a teacher's words: `[tokens, k]`, int32 and float32."""


class Teacher(ABC):
    """See the module."""

    batch_entries: ClassVar[tuple[str, ...]] = ()
    """What its batches hold for it alone."""

    def prepare(self, accelerator: Accelerator, arguments: TrainingArguments) -> None:
        """Go to the device, divided as the student is; every process calls it once, before training."""
        self.accelerator = accelerator

    @abstractmethod
    def read(self, student: VoCoLlama, batch: dict[str, Tensor], num_voco: int | None = None) -> TeacherTokens:
        """What it predicts for the trained tokens of a batch, without gradient.

        Args:
            student: Unwrapped.
            batch: As the student reads it.
            num_voco: A checkpoint reads the images through so many VoCo tokens; None: the teacher sees them.
        """


class CheckpointTeacher(Teacher):
    """A model beside the student; it is put into evaluation mode, and none of its parameters takes a gradient."""

    def __init__(self, model: VoCoLlama, pad_token_id: int) -> None:
        self.model = model.requires_grad_(False).eval()
        self.num_voco = model.config.num_voco
        self.pad_token_id = pad_token_id
        self.head: Any = model.get_output_embeddings()

    def prepare(self, accelerator: Accelerator, arguments: TrainingArguments) -> None:
        super().prepare(accelerator, arguments)
        with suppress(SettingsError):  # now, and not at its first batch: ZeRO-3 would take it for a part of every pass
            self.model.check_two_steps()
        self.model = place_frozen(self.model, accelerator, arguments)
        self.head = whole_head(self.head)  # it runs once a chunk, in the backward pass too

    @torch.no_grad()
    def read(self, student: VoCoLlama, batch: dict[str, Tensor], num_voco: int | None = None) -> TeacherStates:
        with self.accelerator.autocast():
            if num_voco is None:
                hidden_states = read_uncompressed(self.model, batch, self.num_voco, self.pad_token_id)
            else:
                fields = truncate_voco(HostRows.of_batch(batch).fields, num_voco, self.pad_token_id)
                hidden_states = _states(self.model, batch, fields, "voco")
        return TeacherStates(hidden_states, self.head)


class AdaptersOffTeacher(Teacher):
    """The student without its adapters: the model that training started from, at no memory of its own.

    Adapters and VoCo's embedding, which peft keeps beside the table of embeddings, are all that differs between the
    two: the checks refuse what else would move the teacher while the student learns (a projector that trains, offsets
    of distinct VoCo embeddings). `num_voco` are the tokens that the model was trained with before.
    """

    def __init__(self, adapters: "PeftModel", num_voco: int, pad_token_id: int) -> None:
        self.adapters = adapters
        self.num_voco = num_voco
        self.pad_token_id = pad_token_id

    @torch.no_grad()
    def read(self, student: VoCoLlama, batch: dict[str, Tensor], num_voco: int | None = None) -> TeacherStates:
        from peft.utils import AuxiliaryTrainingWrapper

        was_training = student.training
        student.eval()
        with self.adapters.disable_adapter(), self.accelerator.autocast():
            hidden_states = read_uncompressed(student, batch, self.num_voco, self.pad_token_id)
        student.train(was_training)
        head = student.get_output_embeddings()
        if isinstance(head, AuxiliaryTrainingWrapper):  # tied to the embeddings, among which VoCo's trains
            head = head.original_module
        return TeacherStates(hidden_states, head)


class MostVocoTeacher(Teacher):
    """The student, where it reads through the most VoCo tokens: it reads nothing for that, its states are there."""

    def read(self, student: VoCoLlama, batch: dict[str, Tensor], num_voco: int | None = None) -> OwnReadings:
        return OwnReadings(int((next_tokens(HostRows.of_batch(batch).fields["labels"]) != IGNORE_INDEX).sum()))


class TopKTeacher(Teacher):
    """A teacher that spoke before: each row of the batch brings its words."""

    batch_entries = TOP_K_ENTRIES

    def read(self, student: VoCoLlama, batch: dict[str, Tensor], num_voco: int | None = None) -> TeacherTopK:
        ids, log_probs = (batch[name] for name in TOP_K_ENTRIES)
        return TeacherTopK(ids.long(), log_probs)


def read_uncompressed(model: Any, batch: dict[str, Tensor], num_voco: int, pad_token_id: int) -> Tensor:
    """Last hidden states where the next token is trained, from one pass under condition `full`.

    Args:
        model: A `VoCoLlama`, wrapped or not.
        batch: As the student reads it: fields of rows, or `rows` for a pass in two steps.
        num_voco: VoCo tokens a segment that the model was trained with; the rows lose what they have beyond.
        pad_token_id: Of the rows.

    Returns:
        `[trained tokens, hidden]`, in row-major order.
    """
    fields = truncate_voco(HostRows.of_batch(batch).fields, num_voco, pad_token_id)
    return _states(model, batch, fields | {"position": contiguous_positions(fields["document"])}, "full")


def _states(model: Any, batch: dict[str, Tensor], fields: dict[str, Tensor], condition: Condition) -> Tensor:
    """Last hidden states where the next token is trained, of other fields of a batch's rows."""
    fields = {**fields}
    trained = next_tokens(fields.pop("labels")) != IGNORE_INDEX
    # Of divided weights every process must ask for the same ones in the same order, whatever its rows are like.
    in_two_steps = "rows" in batch and not weights_are_divided(model) and cannot_pack(fields, condition) is None
    return model(
        rows=replace(HostRows.of_batch(batch), fields=fields),
        pixel_values=batch.get("pixel_values"),
        logits_mask=trained,
        condition=condition,
        with_logits=False,
        two_steps=in_two_steps,
    ).hidden_states


def contiguous_positions(document: Tensor) -> Tensor:
    """Positions under `full`: each token's place in its document, int64 `[batch, length]`; 0 for padding.

    Documents `[0 0 0 1 1 -1]` are numbered `[0 1 2 0 1 0]`.
    """
    place = torch.arange(document.shape[1], device=document.device).expand_as(document)
    starts = document.diff(dim=1, prepend=document[:, :1] - 1) != 0
    start = place.masked_fill(~starts, 0).cummax(dim=1).values
    return (place - start).masked_fill(document < 0, 0)


def check_teacher(folder: str, processor: VoCoProcessor, num_voco: Sequence[int] = ()) -> VoCoLlamaConfig:
    """The configuration of the teacher in a folder, if it can read the rows of the student's processor.

    Args:
        folder: Of a saved model.
        processor: The student's.
        num_voco: Numbers of VoCo tokens that it is to read images through (`teacher_budgets`).

    Raises:
        CheckpointError: It has another tokenizer, sees images otherwise, or sees none itself; or it has not learned to
            read so many VoCo tokens.
    """
    theirs = VoCoProcessor.from_pretrained(folder)
    try:
        config = VoCoLlamaConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"teacher {folder}: its config.json cannot be read: give a folder of ours") from error
    if theirs.tokenizer.get_vocab() != processor.tokenizer.get_vocab():
        raise CheckpointError(
            f"teacher {folder} has another tokenizer ({len(theirs.tokenizer)} tokens, the student"
            f" {len(processor.tokenizer)}): its predictions are about other tokens; choose a teacher of the same one"
        )
    if config.compresses_outside:
        raise CheckpointError(
            f"teacher {folder} reads images through its {config.compressor} alone: choose one whose language model"
            " sees them"
        )
    if num_voco and (config.condition != "voco" or config.num_voco < max(num_voco)):
        has = f"condition voco and {config.num_voco} VoCo tokens" if config.condition == "voco" else "condition full"
        raise CheckpointError(
            f"teacher {folder} was trained with {has}, and a teacher_num_voco of loss.schedule is {max(num_voco)}:"
            " choose one that was trained with condition voco and as many, or null, to let it see the image"
        )
    if (theirs.image_transform, config.num_vision_tokens) != (processor.image_transform, processor.num_vision):
        raise CheckpointError(
            f"teacher {folder} makes {config.num_vision_tokens} vision tokens of an image of"
            f" {theirs.image_transform.image_size} pixels, the student {processor.num_vision} of"
            f" {processor.image_transform.image_size} (or normalizes otherwise): choose a teacher with the same tower"
        )
    return config


def load_teacher(settings: TrainSettings, vocab_size: int | None = None) -> VoCoLlama:
    """The model that `loss.teacher_checkpoint` names, with the student's attention, and dtype unless it is yet cast.

    `vocab_size` are the rows of the student's table of words; None does not compare them.

    Raises:
        CheckpointError: It cannot be loaded, or its table has another size.
    """
    folder = settings.loss.teacher_checkpoint
    theirs = VoCoLlamaConfig.from_pretrained(folder).text_config.vocab_size
    if vocab_size is not None and theirs != vocab_size:
        raise CheckpointError(
            f"teacher {folder} predicts {theirs} words, the student {vocab_size}: choose a teacher of the same language"
            " model"
        )
    dtype = "auto" if sharding_of(settings.trainer).casts else getattr(torch, settings.model.dtype)
    return VoCoLlama.from_pretrained(folder, dtype=dtype, attn_implementation=settings.model.attention)


def build_teacher(
    settings: TrainSettings, student: VoCoLlama, processor: VoCoProcessor, adapters: "PeftModel | None"
) -> Teacher | None:
    """The teacher that `loss.teacher` names; None if it names none. Processor and adapters are the student's.

    Raises:
        CheckpointError: The teacher cannot be loaded or does not fit the student.
    """
    kind, pad = settings.loss.teacher, processor.tokens.pad
    if kind == "checkpoint":
        return CheckpointTeacher(load_teacher(settings, student.config.text_config.vocab_size), pad)
    if kind == "adapters_off":
        return AdaptersOffTeacher(adapters, _trained_num_voco(settings, processor), pad)
    return {"none": lambda: None, "most_voco": MostVocoTeacher, "top_k": TopKTeacher}[kind]()


def _trained_num_voco(settings: TrainSettings, processor: VoCoProcessor) -> int:
    """VoCo tokens that the student was trained with before this run; a model of separate parts knows none yet.

    Raises:
        CheckpointError: It was trained with another segment attention, which its base cannot do without.
    """
    if settings.model.checkpoint is None:
        return processor.num_voco
    before, now = VoCoLlamaConfig.from_pretrained(settings.model.checkpoint), settings.compression.segment_attention
    if before.segment_attention != now:
        raise CheckpointError(
            f"loss.teacher=adapters_off: {settings.model.checkpoint} was trained with segment_attention"
            f" {before.segment_attention}, the student has {now}, and they share one: use loss.teacher=checkpoint"
        )
    return before.num_voco
