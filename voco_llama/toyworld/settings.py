"""Every knob of the synthetic world: its seed, its difficulty, the sizes of what is written, the tiny models.

The defaults are a world that a language model of about 1.5M parameters learns from scratch in minutes on two cores.
The settings are plain values, so that a YAML file can fill them and the manifest can record them.
"""

from dataclasses import dataclass
from pathlib import Path

from voco_llama.errors import require

COLOR_NAMES = ("red", "green", "blue", "yellow", "purple", "cyan", "orange", "white")
SHAPE_NAMES = ("circle", "square", "triangle", "cross", "star", "diamond")
NUMBERS = (
    "pretrain_images", "instruct_images", "val_images", "text_rows", "clips_train", "clips_test", "benchmark_images",
    "benchmark_questions",
)  # fmt: skip
SIZE_NAMES = {1: ("plain",), 2: ("small", "large"), 3: ("small", "medium", "large")}
SIZES_OF_MODELS = (
    "vision_width", "vision_layers", "vision_heads", "clip_text_width", "clip_text_layers", "clip_embedding",
    "language_width", "language_mlp", "language_layers", "language_heads", "max_positions",
)  # fmt: skip


@dataclass(frozen=True)
class ToyWorldSettings:
    """The synthetic world, from the seed of its scenes to the width of its tiny models.

    Attributes:
        seed: Everything random follows from it; the same settings write the same scenes, questions and pixels.
        grid: Scenes have `grid` x `grid` cells, each empty or holding one shape.
        image_size: Side of an image and of a frame, pixels.
        colors: The first so many of `COLOR_NAMES`.
        shapes: The first so many of `SHAPE_NAMES`.
        sizes: 1 (size is no attribute), 2 (small, large) or 3 (small, medium, large).
        empty: Probability that a cell is empty.
        pretrain_empty: The same for the captioned images of pre-training: with few things in a picture, what tells
            two of them apart is where a thing is as often as what it is.
        skew: Each color, and each shape, is rarer than the one before it by this fraction, so that some objects are
            popular (POPE asks for those).
        companion: Probability that a shape copies the color or the form of another shape of its scene, so that
            some objects co-occur more than others and counts above one are not rare.
        noise: Standard deviation of the pixel noise, in 0..255.
        jitter: Largest shift of a shape from the middle of its cell, as a fraction of the cell.
        supersample: Images are drawn this many times larger, then averaged down.
        pretrain_images: Images with a caption.
        instruct_images: Training images with `turns` questions each.
        val_images: The same, for validation.
        turns: Question turns an image; its caption is asked for after them.
        choice_turns: How many of them are multiple choice.
        text_only_share: Text-only rows among the instruct rows, as a fraction of the image rows.
        text_rows: Text-only rows of the language pre-training file.
        clips_train: Clips to train on; even, since every clip comes with its time-reversed twin.
        clips_test: Clips to test on; even.
        clip_frames: Frames a clip, at least 2.
        clip_rate: Frames a second.
        benchmark_images: Test images of each benchmark.
        benchmark_questions: Questions of each benchmark, about.
        vocabulary: Largest size of the tokenizer's vocabulary.
        patch_size: Side of a patch of the vision tower, pixels.
        clip_embedding: Width of the contrastive space; `clip_text_*` are those of its text tower.
        language_width: Hidden size of the language model.
        language_mlp: Inner size of its feed-forward layers.
        max_positions: Its `max_position_embeddings`.
    """

    seed: int = 0
    grid: int = 2
    image_size: int = 32
    colors: int = 4
    shapes: int = 4
    sizes: int = 1
    empty: float = 0.25
    pretrain_empty: float = 0.55
    skew: float = 0.1
    companion: float = 0.3
    noise: float = 6.0
    jitter: float = 0.06
    supersample: int = 4

    pretrain_images: int = 12000
    instruct_images: int = 16000
    val_images: int = 200
    turns: int = 4
    choice_turns: int = 1
    text_only_share: float = 0.1
    text_rows: int = 4000
    clips_train: int = 2400
    clips_test: int = 200
    clip_frames: int = 4
    clip_rate: int = 2
    benchmark_images: int = 160
    benchmark_questions: int = 450

    vocabulary: int = 1024
    patch_size: int = 8
    vision_width: int = 96
    vision_layers: int = 4
    vision_heads: int = 4
    clip_text_width: int = 64
    clip_text_layers: int = 3
    clip_embedding: int = 64
    language_width: int = 128
    language_mlp: int = 352
    language_layers: int = 4
    language_heads: int = 4
    max_positions: int = 2048

    def __post_init__(self) -> None:
        """Raises a `SettingsError` that names the first value that does not fit."""
        ranges = {
            "grid": (2, 6), "colors": (2, len(COLOR_NAMES)), "shapes": (2, len(SHAPE_NAMES)), "sizes": (1, 3),
            "companion": (0, 1), "jitter": (0, 0.1), "supersample": (1, 16),
        }  # fmt: skip
        least = (
            dict.fromkeys(NUMBERS, 0)
            | dict.fromkeys(SIZES_OF_MODELS, 1)
            | {"noise": 0, "text_only_share": 0, "clip_frames": 2, "clip_rate": 1}
        )
        fits = {
            **{
                f"{key} (use {low} to {high})": low <= getattr(self, key) <= high for key, (low, high) in ranges.items()
            },
            **{f"{key} (use {low} or more)": getattr(self, key) >= low for key, low in least.items()},
            **{
                f"{key} (use 0 <= {key} < 1)": 0 <= getattr(self, key) < 1
                for key in ("empty", "pretrain_empty", "skew")
            },
            "image_size (use at least 8 pixels a cell, even)": (
                self.image_size >= 8 * self.grid and self.image_size % 2 == 0
            ),
            f"patch_size (use a divisor of image_size={self.image_size})": (
                self.patch_size > 0 and self.image_size % self.patch_size == 0
            ),
            f"choice_turns (use 0 to turns={self.turns})": 0 <= self.choice_turns <= self.turns,
            "turns (use 1 to 12, so many different questions has the barest scene)": 1 <= self.turns <= 12,
            "clips_train (use even numbers)": self.clips_train % 2 == 0,
            "clips_test (use even numbers)": self.clips_test % 2 == 0,
            "vocabulary (use 320 or more: 256 bytes, special tokens, merges)": self.vocabulary >= 320,
            f"vision_width (use a multiple of vision_heads={self.vision_heads})": (
                self.vision_heads > 0 and self.vision_width % self.vision_heads == 0
            ),
            f"language_width (use an even multiple of language_heads={self.language_heads})": (
                self.language_heads > 0 and self.language_width % (2 * self.language_heads) == 0
            ),
        }
        for complaint, holds in fits.items():
            key, _, remedy = complaint.partition(" ")
            require(holds, f"toy world: {key}={getattr(self, key)} {remedy}")

    @property
    def color_names(self) -> tuple[str, ...]:
        return COLOR_NAMES[: self.colors]

    @property
    def shape_names(self) -> tuple[str, ...]:
        return SHAPE_NAMES[: self.shapes]

    @property
    def size_names(self) -> tuple[str, ...]:
        """The sizes of this world; one that is never said where size is no attribute."""
        return SIZE_NAMES[self.sizes]


@dataclass(frozen=True)
class ToyWorldCommand(ToyWorldSettings):
    """What `voco-llama toyworld` reads: the world, and where it goes.

    Attributes:
        root: The folder to write it to.
    """

    root: Path = Path()
