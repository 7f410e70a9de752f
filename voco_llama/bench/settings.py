"""The schema of `voco-llama bench`: which benchmark, of which shape, and what each of them measures."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from voco_llama.errors import require

KINDS = ("train", "efficiency", "answer", "loading", "startup", "evaluate")
WAYS = ("authors", "masked", "two_steps", "two_steps_shared")
CHECKPOINTING = "_checkpointing"
LIGER = "_liger"
VARIANTS = tuple(f"{way}{how}{kernels}" for way in WAYS for how in ("", CHECKPOINTING) for kernels in ("", LIGER))
WORKLOADS = ("mix665k", "two_each", "unshared", "video")
METHODS = ("no_cache", "full_cache", "voco")
BENCH_DTYPES = ("auto", "float32", "bfloat16")


@dataclass
class ShapeSettings:
    """Sizes of a model with random weights.

    Attributes:
        hidden, layers, heads, inner, vocabulary: Of the language model, a Llama; `inner` is its MLP's.
        key_value_heads: null: as many as `heads`.
        image_size, patch_size, tower_width, tower_layers: Of the vision tower.
        num_voco: VoCo tokens of a segment in `train` and `answer`.
    """

    hidden: int
    layers: int
    heads: int
    inner: int
    vocabulary: int
    image_size: int
    patch_size: int
    tower_width: int
    tower_layers: int
    key_value_heads: int | None = None
    num_voco: int = 1


@dataclass
class TrainBench:
    """Training steps: forward and backward, and with `optimizer` an update of the weights.

    Attributes:
        workloads: What batches are like (`voco_llama.bench.workloads`).
        variants: `authors`; ours `masked` (one pass over padded rows), in `two_steps` with every row's images its own,
            and `two_steps_shared`, each distinct image once. With `_checkpointing` at the end: of activations; with
            `_liger` after that: with Liger's kernels (a GPU and their package). The first one is what the others are
            compared with.
        rows: Of a batch.
        optimizer: Update the weights by AdamW in each step.
        lengths: Text tokens of rows at which time and memory are measured, for the curves; empty: none.
        frames: Frames a clip, likewise.
        curve_rows: Of a batch at these points; two rows look at each image or clip.
        curve_text: Text tokens of the rows in the curve over frames.
    """

    workloads: list[str] = field(default_factory=lambda: list(WORKLOADS))
    variants: list[str] = field(default_factory=lambda: list(WAYS))
    rows: int = 8
    optimizer: bool = False
    lengths: list[int] = field(default_factory=lambda: [64, 128, 256, 512, 1024])
    frames: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    curve_rows: int = 4
    curve_text: int = 128


@dataclass
class EfficiencyBench:
    """The paper's Table 7: what a question costs without a cache, from a full one, from a VoCo cache.

    Attributes:
        batches: Questions, each with its own image, that are answered at a time.
        text: Tokens of a question, the prompt around it included.
        new: Tokens of an answer.
        num_voco: Numbers of VoCo tokens.
        budget_gb: Keys and values that may exist at a time where questions a second are measured, in 10^9 bytes; null:
            a fifth of a GPU's memory, 0.25 on a CPU.
        most_rows: Questions of a batch there, whatever would fit.
    """

    batches: list[int] = field(default_factory=lambda: [1])
    text: int = 60
    new: int = 16
    num_voco: list[int] = field(default_factory=lambda: [1, 2, 4, 16])
    budget_gb: float | None = None
    most_rows: int = 256


@dataclass
class AnswerBench:
    """Many questions on each of many images.

    Attributes:
        images, questions: So many, and questions on each image.
        asked: Of the questions on an image, so many are really asked, by method; the rest is counted as long.
        text, new: Tokens of a question and of its answer.
        budget_gb: As in `efficiency`: it gives each method its batch.
        most_rows: Questions of a batch, whatever would fit.
    """

    images: int = 100
    questions: int = 100
    asked: dict[str, int] = field(default_factory=lambda: {"no_cache": 2, "full_cache": 10, "voco": 100})
    text: int = 60
    new: int = 16
    budget_gb: float | None = None
    most_rows: int = 256


@dataclass
class LoadingBench:
    """How fast training's data path delivers batches with 0, 1 and 2 workers: synthetic JPEGs of a camera's size.

    Attributes:
        images, width, height, quality: Of the JPEGs.
        batch: Rows of a batch.
    """

    images: int = 320
    width: int = 640
    height: int = 480
    quality: int = 90
    batch: int = 16


@dataclass
class StartupBench:
    """How long a data set of mix665k's size takes to open, the first time and then, and what its workers hold.

    Attributes:
        records: Conversations of the LLaVA file.
        members: Images of the zip, a few bytes each.
        workers, reads: So many `DataLoader` workers read so many records each.
        scratch: Where file and zip are made, and found by a second call; null: a temporary folder.
    """

    records: int = 665_000
    members: int = 600_000
    workers: int = 2
    reads: int = 4_000
    scratch: Path | None = None


@dataclass
class BenchSettings:
    """What to measure. Files named after the kind go into `output`: JSON, written with each part, a table, a plot.

    Attributes:
        output: Folder of the results.
        shape: Of the model, with random weights.
        kind: `train`: training steps; `efficiency`: the paper's Table 7; `answer`: many questions an image; `loading`:
            images by worker processes; `startup`: opening a data set; `evaluate`: a suite with and without reuse.
        rounds: Variants take turns in so many; ratios are of one round, given as median and extremes.
        evaluate: For `kind=evaluate`: overrides of `voco-llama evaluate`.
        device: null: the GPU if there is one.
        dtype: `auto`: bfloat16 on a GPU, float32 on a CPU.
        peak_memory: On a CPU, measure it too, each variant in a process of its own.
        seed: Of weights, images and lengths.
    """

    output: Path
    shape: ShapeSettings
    kind: str = field(default="train", metadata={"choices": KINDS})
    rounds: int = 5
    train: TrainBench = field(default_factory=TrainBench)
    efficiency: EfficiencyBench = field(default_factory=EfficiencyBench)
    answer: AnswerBench = field(default_factory=AnswerBench)
    loading: LoadingBench = field(default_factory=LoadingBench)
    startup: StartupBench = field(default_factory=StartupBench)
    evaluate: list[str] = field(default_factory=list)
    device: str | None = None
    dtype: str = field(default="auto", metadata={"choices": BENCH_DTYPES})
    peak_memory: bool = True
    seed: int = 0


def check_bench(settings: BenchSettings) -> None:
    """Refuse what cannot be measured, before anything slow.

    Raises:
        SettingsError: The first setting that does not fit, and what to give.
    """
    require(settings.rounds >= 1, f"rounds={settings.rounds}: use 1 or more")
    _check_shape(settings.shape)
    for part in ("train", "efficiency", "answer", "loading", "startup"):
        for name, value in vars(getattr(settings, part)).items():
            _check_numbers(f"{part}.{name}", value)
    train, answer = settings.train, settings.answer
    for key, named, known in (("workloads", train.workloads, WORKLOADS), ("variants", train.variants, VARIANTS)):
        for name in named:
            require(name in known, f"train.{key} has {name!r}: choose of {', '.join(known)}")
        require(len(set(named)) == len(named), f"train.{key}={named}: name each once")
    require(bool(train.variants), "train.variants is empty: name at least one")
    for name in ("batches", "num_voco"):
        require(bool(getattr(settings.efficiency, name)), f"efficiency.{name} is empty: name at least one")
    vision = (settings.shape.image_size // settings.shape.patch_size) ** 2
    require(
        settings.kind != "efficiency" or max(settings.efficiency.num_voco) <= vision,
        f"efficiency.num_voco={settings.efficiency.num_voco}: an image of this shape has {vision} vision tokens, use at"
        " most as many",
    )
    require(set(answer.asked) == set(METHODS), f"answer.asked={answer.asked}: give a number for {', '.join(METHODS)}")
    require(settings.loading.width >= 32 and settings.loading.height >= 32, "loading.width and .height: use 32 or more")
    require(settings.loading.quality <= 95, f"loading.quality={settings.loading.quality}: use 1 to 95")


def _check_shape(shape: ShapeSettings) -> None:
    for name, value in vars(shape).items():
        _check_numbers(f"shape.{name}", value)
    require(
        shape.hidden % (2 * shape.heads) == 0,
        f"shape.hidden={shape.hidden}: use an even multiple of shape.heads={shape.heads}",
    )
    kv_heads = shape.key_value_heads or shape.heads
    require(shape.heads % kv_heads == 0, f"shape.key_value_heads={kv_heads}: use a divisor of shape.heads")
    require(shape.tower_layers >= 2, f"shape.tower_layers={shape.tower_layers}: use 2 or more")
    require(shape.patch_size <= shape.image_size, f"shape.patch_size={shape.patch_size}: use at most shape.image_size")
    require(shape.vocabulary > 8, f"shape.vocabulary={shape.vocabulary}: use more than 8")


def _check_numbers(key: str, value: Any) -> None:
    """Every number of a benchmark is a size or a count."""
    for number in value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]:
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        require(not is_number or number > 0, f"{key}={value}: use numbers above 0")
