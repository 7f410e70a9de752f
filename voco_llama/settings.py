"""The schema of every setting of a training: dataclasses, whose values stand in YAML below `configs/`.

`voco_llama.composition` makes settings of files and overrides; what contradicts what is decided in
`voco_llama.training.checks`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import MISSING

from voco_llama.choices import (
    ATTENTIONS,
    COMPRESSORS,
    CONDITIONS,
    DRAWS,
    DTYPES,
    GROUPINGS,
    LAYOUTS,
    OPTIMIZERS,
    ORDERS,
    PROJECTORS,
    SEGMENT_ATTENTIONS,
    STAGES,
    TEACHERS,
    TEMPLATES,
    VOCO_EMBEDDINGS,
)


def _choice(choices: Sequence[str], default: str = MISSING) -> Any:
    return field(default=default, metadata={"choices": choices})


@dataclass
class VisionSettings:
    """The image tower.

    Attributes:
        name: An open_clip architecture, a folder with `open_clip_config.json` (stage `clip` writes one; its weights
            are read too), or an open_clip model config (`.json`), whose weights are random.
        pretrained: open_clip tag or weights file for an architecture name; null for a folder or a `.json`. A file that
            is called as a tag is named by `./` before it.
        layer: Block whose output is used; -2 is the layer before the last.
    """

    name: str = MISSING
    pretrained: str | None = None
    layer: int = -2


@dataclass
class LanguageSettings:
    """The causal language model: trained weights (folder or hub name), or a configuration with random weights."""

    pretrained: str | None = None
    config: str | None = None


@dataclass
class LoraSettings:
    """Low-rank adapters on the language model, whose own weights then stay frozen; VoCo's embedding trains besides.

    Attributes:
        rank: Of the adapters; 0 = none, the weights themselves train.
        alpha: Their output is multiplied by alpha / rank.
        dropout: Before the adapters.
        targets: Names of the linear layers that get one.
    """

    rank: int = 0
    alpha: float = 16.0
    dropout: float = 0.0
    targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )


@dataclass
class ModelSettings:
    """What the model is made of. A checkpoint brings its own tower, projector, language model and tokenizer.

    Attributes:
        checkpoint: A folder to start from: a VoCoLlama of ours, LLaVA-1.5 in its own layout or llava-hf's, or a
            VoCo-LLaMA of the authors. `vision`, `language`, `projector` and `tokenizer` are then not read.
        projector_weights: Of a projector that was trained before: a file (LLaVA's `mm_projector.bin`), or a folder of
            a whole model; null starts with a fresh one.
        tokenizer: Folder or hub name; null takes that of `language.pretrained`, whose tokens it must have.
        attention: Implementation of attention. flash_attention_2 cannot express the mask: it trains in two steps only.
        dtype: Of the weights as loaded. Mixed precision is `trainer.bf16`.
    """

    checkpoint: str | None = None
    vision: VisionSettings = field(default_factory=VisionSettings)
    language: LanguageSettings = field(default_factory=LanguageSettings)
    projector: str = _choice(PROJECTORS, default="mlp2x_gelu")
    projector_weights: str | None = None
    tokenizer: str | None = None
    attention: str = _choice(ATTENTIONS, default="sdpa")
    dtype: str = _choice(DTYPES, default="float32")
    lora: LoraSettings = field(default_factory=LoraSettings)


@dataclass
class QFormerSettings:
    """Shape of the Q-Former; the default is BLIP-2's.

    Attributes:
        cross_attention_every: Every so many layers, from the first on, attend to the image.
    """

    layers: int = 12
    width: int = 768
    heads: int = 12
    cross_attention_every: int = 2


@dataclass
class CompressionSettings:
    """`voco`: text sees images through VoCo tokens only. `full`: it sees everything (the upper bound).

    Attributes:
        num_voco: VoCo tokens an image; 0 is for `full` only.
        num_voco_choices: Elastic training: of the `num_voco` tokens that are laid out, the first n are kept, n drawn
            from these numbers; null trains with `num_voco` always. One model then serves every n.
        draw: Elastic training draws n for each `row`, or once for a whole global `batch`.
        readings: Elastic training reads each row so many times a step: 1, through n drawn; 2, through the fewest and
            the most; 3 and more, besides through others drawn between. An image is compressed once for all readings,
            in two steps; the loss is their mean.
        segment_attention: Of the vision tokens of a segment among themselves: `causal` (the paper), `bidirectional`, or
            `independent`: none sees another.
        voco_embeddings: `shared`: one for all VoCo tokens (the paper). `distinct`: with an offset for each.
        compressor: What makes the VoCo tokens: the `language_model` (the method), or, outside it, `average_pool` or
            `q_former` (the paper's baselines).
    """

    condition: str = _choice(CONDITIONS)
    num_voco: int = MISSING
    num_voco_choices: list[int] | None = None
    draw: str = _choice(DRAWS, default="row")
    readings: int = 1
    segment_attention: str = _choice(SEGMENT_ATTENTIONS, default="causal")
    voco_embeddings: str = _choice(VOCO_EMBEDDINGS, default="shared")
    compressor: str = _choice(COMPRESSORS, default="language_model")
    q_former: QFormerSettings = field(default_factory=QFormerSettings)


@dataclass
class PromptSettings:
    """How conversations are written (`voco_llama.data.prompts`).

    Attributes:
        template: `vicuna_v1` (LLaVA-1.5); `chat`, the tokenizer's own chat template; `plain`, captions alone.
        order: `first`: images before the system prompt; `authors`: the same with BOS and newline inside the segment;
            `llava`: at the start of their turn; `inline`: where the `<image>` mark stands.
        system: System prompt; null keeps Vicuna's, or what a chat template writes by itself.
        chat_template: For template `chat`: a file with a Jinja template in place of the tokenizer's own.
    """

    template: str = _choice(TEMPLATES, default="vicuna_v1")
    order: str = _choice(ORDERS, default="first")
    system: str | None = field(default=None, metadata={"is_prose": True})
    chat_template: str | None = None


@dataclass
class SourceSettings:
    """One data set: a reader's format, its file, the folder of its images or clips.

    Attributes:
        media_folder: A folder, or a `.zip` or uncompressed `.tar`, which is read in place.
        archives: Folder at the beginning of file names -> the archive, or list of archives, to read in its place.
        weight: Times each record is seen an epoch; 0.5 takes every second one.
        limit: Read only so many records.
        options: What else the reader takes.
        published_records: Records that its publisher says it has; a dry run counts with it where the file is not here.
        assumed_characters: Of the text of a record, on average; likewise. null: rows are counted at full length.
    """

    format: str = MISSING
    file: str = MISSING
    media_folder: str | None = None
    archives: dict[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    limit: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    published_records: int | None = None
    assumed_characters: int | None = None


@dataclass
class DataSettings:
    """What is trained on.

    Attributes:
        max_length: Tokens a row may have; text is cut from its end.
        num_frames: Frames taken from a clip.
        skip_bad_records: Replace a record that cannot be used by the next one, and list it at the end.
        grouping: Rows of like length (`length`), or besides of like kind (`modality`), in one global batch.
        share_media: Records about the same image or clip come into one forward pass, at most so many of them, where the
            image is computed once; 1 = they come as they do. Divides `trainer.per_device_train_batch_size`.
        streaming: Read `hf_dataset` sources of Parquet files in place, a row group at a time: for sets too large for a
            copy of their own on disk, or on the hub.
        shuffle_buffer: Streaming shuffles row groups, and rows among so many; each process holds so many, and those
            of a row group besides.
        index_folder: Where it is kept what large files and archives were read through for, so that they open at once
            the next time; null = nowhere.
        keep_in_memory: Prepare each row once and keep it: for small data seen many times, without worker processes.
    """

    sources: list[SourceSettings] = MISSING
    max_length: int = 2048
    num_frames: int = 8
    skip_bad_records: bool = False
    grouping: str = _choice(GROUPINGS, default="none")
    share_media: int = 1
    streaming: bool = False
    shuffle_buffer: int = 1000
    index_folder: str | None = None
    keep_in_memory: bool = False


@dataclass
class StageSettings:
    """A training stage and the parts it trains: `vision`, `projector`, `language`."""

    name: str = _choice(STAGES)
    trains: list[str] = MISSING


@dataclass
class LossPoint:
    """Weights of the losses at one moment of training; `at` is the fraction of all steps that is done.

    Attributes:
        teacher_num_voco: From here to the next point the teacher reads each image through its first so many VoCo
            tokens, under condition `voco`, and not the whole of it: for a `teacher_checkpoint` that was trained so, and
            rows of as many (elastic ones). null: it sees the image.
    """

    at: float = MISSING
    lm: float = MISSING
    kl: float = MISSING
    reconstruction: float = 0.0
    teacher_num_voco: int | None = None


LOSSES = tuple(entry.name for entry in fields(LossPoint) if entry.name not in ("at", "teacher_num_voco"))
"""Names of the terms of the loss; `voco_llama.model.losses.Objective` has a weight of each name."""


@dataclass
class LossSettings:
    """What is minimized: the sum of these terms by their weights, on answer tokens, and on the images they are about.

    Attributes:
        lm: Cross entropy.
        kl: temperature^2 x KL(teacher || student).
        reconstruction: Of the image's vision tokens, as the language model leaves them, from the VoCo tokens that are
            read, by a small decoder that is dropped at the end (`voco_llama.model.reconstruction`); an image counts as
            much as the answers about it.
        reconstruction_layer: How many of the language model's layers VoCo tokens have been through when the image is
            told from them; null: all.
        reconstruction_learning_rate: Of that decoder, which starts from nothing, scheduled as `trainer.learning_rate`;
            null: that one.
        temperature: Both sides' logits are divided by it in the KL term.
        chunk_size: Tokens whose logits exist at the same time; smaller needs less memory.
        teacher: Reads the same rows under condition `full`. `checkpoint`: the model in `teacher_checkpoint`.
            `adapters_off`: the student without its LoRA. `top_k`: what `voco-llama teacher` wrote to `top_k_folder`.
            `most_voco`: no other model, and no condition `full`: of several `compression.readings`, the one through the
            most VoCo tokens teaches the others, at no cost. `kl` is a mean over these others, `lm` over all readings.
        own_answers: Part of the rows, drawn, whose last turn the student writes itself before each step: greedily,
            through the VoCo tokens that it is read through, of several readings those of one, drawn. Of a row with
            several answers one is drawn, and the row ends with it. The KL term counts these rows as all others; `lm`
            leaves them out, and is a mean over the others (`voco_llama.training.own_answers`).
        own_answer_tokens: Most tokens of such an answer; null: as many as the longest answer of the step.
        teacher_checkpoint: A VoCoLlama folder; it may be the one that the student starts from.
        schedule: Weights over training, linear between these points and constant before the first and after the last;
            in place of the weights here. A point may say besides how much the teacher reads (`teacher_num_voco`).
    """

    lm: float = 1.0
    kl: float = 0.0
    reconstruction: float = 0.0
    reconstruction_layer: int | None = None
    reconstruction_learning_rate: float | None = 1e-3
    temperature: float = 1.0
    chunk_size: int = 1024
    teacher: str = _choice(TEACHERS, default="none")
    own_answers: float = 0.0
    own_answer_tokens: int | None = None
    teacher_checkpoint: str | None = None
    top_k_folder: str | None = None
    schedule: list[LossPoint] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it is cross entropy and nothing else."""
        return self.schedule is None and all(getattr(self, name) == (name == "lm") for name in LOSSES)


@dataclass
class PathsSettings:
    """Roots that other settings refer to, relative to the working directory."""

    data: str = MISSING
    runs: str = MISSING
    toyworld: str = MISSING


@dataclass
class HardwareSettings:
    """What a training is planned for: dry run, doctor and `data stats` count with it; a training takes what is there.

    Attributes:
        num_processes: GPUs; under torchrun its number of processes goes before. null: 1.
        gpu_memory_gb: Of each, in 10^9 bytes; null: of the GPU that is here, if one is.
        scales: Where `num_processes` is set, a dry run sets these numbers of GPUs beside it.
        gpu_tflops: Of each, in 10^12 a second, for products of bf16 matrices: 312 of an A100, 989 of an H100.
        utilization: Part of it that a training is taken to reach.
        gpu_hour_price: Of one GPU for an hour, in any currency; null: a dry run states GPU hours and no cost.
        disk_gb_per_second: What the disk takes of checkpoints, from all processes together.
    """

    num_processes: int | None = None
    gpu_memory_gb: float | None = None
    scales: list[int] = field(default_factory=lambda: [8, 64, 512])
    gpu_tflops: float = 312.0
    utilization: float = 0.4
    gpu_hour_price: float | None = None
    disk_gb_per_second: float = 1.0


@dataclass
class TrainSettings:
    """Everything `voco-llama train` reads.

    Attributes:
        global_batch_size: Rows of an optimizer step, over all processes. Gradient accumulation follows from it and
            from `trainer.per_device_train_batch_size`; null: from `trainer.gradient_accumulation_steps`.
        trainer: Keys of `transformers.TrainingArguments`, `deepspeed` (a path or the configuration itself) included.
        two_steps: How a forward pass computes the loss: each segment once and then the text that reads it (true), or
            whole rows under a mask (false); the loss is the same. null: in two steps, but under condition `full` with
            text before an image, where it cannot be.
        optimizer: `trainer`: the one that `trainer.optim` names, AdamW by default. `muon`: for tiny models that learn
            from scratch (`voco_llama.training.optimizer`).
        projector_learning_rate: Of the projector (or compressor), scheduled as `trainer.learning_rate`; null: that one.
        resume: `auto` goes on from the last checkpoint in `output_dir`, `never` refuses a folder already in use, a
            path names a checkpoint.
        stall_limit: Seconds: where no step ends for so long, a training ends, in status 75; the first step and writing
            checkpoints are not counted. Less than `trainer.ddp_timeout`, or that ends it first; null: it stands on.
        dry_run: Count what the training would be, without weights, data, GPU or network, and write nothing.
    """

    model: ModelSettings = field(default_factory=ModelSettings)
    compression: CompressionSettings = field(default_factory=CompressionSettings)
    prompt: PromptSettings = field(default_factory=PromptSettings)
    data: DataSettings = field(default_factory=DataSettings)
    stage: StageSettings = field(default_factory=StageSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    trainer: dict[str, Any] = field(default_factory=dict)
    global_batch_size: int | None = None
    hardware: HardwareSettings = field(default_factory=HardwareSettings)
    two_steps: bool | None = None
    optimizer: str = _choice(OPTIMIZERS, default="trainer")
    projector_learning_rate: float | None = None
    paths: PathsSettings = field(default_factory=PathsSettings)
    seed: int = 0
    output_dir: str = MISSING
    resume: str = "auto"
    stall_limit: float | None = 1200.0
    dry_run: bool = False


@dataclass
class TeacherSettings(TrainSettings):
    """What `voco-llama teacher` reads: the settings of the training that its files are for, and these.

    `loss.teacher_checkpoint` names the teacher, `loss.top_k_folder` the output, `loss.temperature` the temperature.

    Attributes:
        k: Words kept for each trained token, the likeliest ones.
        records_per_file: A kill loses at most the file at hand.
    """

    k: int = MISSING
    records_per_file: int = MISSING


@dataclass
class FitQualitySettings(TrainSettings):
    """What `voco-llama fit-quality` reads: the settings of a training, of which it takes the data, and these.

    `model.checkpoint` names the checkpoint, which gets the head; experiment or settings are those of its own training.

    Attributes:
        rows: Rows that are read, drawn from the data; those that look at one image count.
        layer: The layer whose values the head reads, counted from the end if negative.
        steps: Of fitting.
    """

    rows: int = MISSING
    layer: int = MISSING
    steps: int = MISSING


@dataclass
class ExportSettings:
    """What `voco-llama export` reads.

    Attributes:
        checkpoint: A model of ours, a LLaVA-1.5 in its own layout or llava-hf's, or a VoCo-LLaMA of the authors.
        layout: `voco` (ours), `llava` (LLaVA's own, also the authors'), or `llava_hf`, which transformers reads.
        output: A new or empty folder.
        vision_tower: For a LLaVA whose `mm_vision_tower` is not here under that name: folder of the tower.
        num_voco: For a LLaVA, whose folder does not say it: VoCo tokens of a segment.
        dtype: Of the weights written; `auto`: as read.
    """

    checkpoint: str = MISSING
    layout: str = _choice(LAYOUTS)
    output: str = MISSING
    vision_tower: str | None = None
    num_voco: int | None = None
    dtype: str = _choice(("auto", *DTYPES), default="auto")
