"""Every command as a user would type it, small, and what came of it.

`LINES` has one for each of `cli.COMMANDS`: a new command without one fails the tests of the rules.
"""

import contextlib
import io
import json
import shutil
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.data.chat.families import TEMPLATES
from tests.gguf_files import write_gguf
from tests.training.conftest import WORLD
from voco_llama import cli
from voco_llama.toyworld import write_toyworld

STEPS = 2


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: None where an exception came out.
        error: The lines of stderr that are errors.
        escaped: The last line of the traceback of what came out, and where it was raised.
    """

    status: int | None
    error: list[str] = field(default_factory=list)
    out: str = ""
    escaped: str = ""

    @property
    def is_refused(self) -> bool:
        """A user's mistake, told in one line."""
        return self.status == 2 and len(self.error) == 1


def seen(arguments: Sequence[str]) -> Ended:
    """Runs a command in this process, as the command line would."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.main(list(arguments))
    except KeyboardInterrupt:
        raise
    except SystemExit as left:
        status = left.code
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = next((f for f in reversed(frames) if "voco_llama" in Path(f.filename).parts), frames[-1])
        what = " ".join(str(error).split())[:160]
        where = f"{Path(ours.filename).name}:{ours.lineno} {ours.name}"
        return Ended(None, escaped=f"{type(error).__name__}: {what} ({where})")
    lines = err.getvalue().splitlines()
    return Ended(status, [line for line in lines if line.startswith("error: ")] + stray(lines), out.getvalue())


def stray(lines: Sequence[str]) -> list[str]:
    """Lines behind an error line: its text was more than one line."""
    places = [place for place, line in enumerate(lines) if line.startswith("error: ")]
    return list(lines[places[-1] + 1 :]) if places else []


@dataclass(frozen=True)
class Place:
    """What commands read.

    Attributes:
        root: Folder of all of it.
        checkpoint: A saved model.
    """

    root: Path

    @property
    def world(self) -> Path:
        return self.root / "toyworld"

    @property
    def checkpoint(self) -> Path:
        return self.root / "checkpoint"

    @property
    def results(self) -> Path:
        return self.root / "results"

    @property
    def source(self) -> str:
        """As `data.sources` has it."""
        folder = self.world / "instruct"
        return f"{{format: llava_json, file: {folder}/train.json, media_folder: {folder}/images}}"

    def data(self) -> list[str]:
        """The settings of a training that has its data here."""
        return [
            f"paths.toyworld={self.world}",
            f"data.sources=[{self.source}]",
            f"model.vision.name={self.world}/clip/tiny_clip.json",
            "prompt=no_system",
            "compression=voco_2",
        ]

    def training(self) -> list[str]:
        """A training of two steps, with a checkpoint after each."""
        return [
            *self.data(),
            "trainer=cpu",
            f"trainer.max_steps={STEPS}",
            "trainer.per_device_train_batch_size=4",
            "trainer.logging_steps=1",
            "trainer.save_steps=1",
            "trainer.save_total_limit=null",
            "trainer.report_to=none",
            "data.keep_in_memory=true",
        ]

    def evaluation(self) -> list[str]:
        """A benchmark of a few questions."""
        return [
            f"checkpoint={self.checkpoint}",
            f"runs={self.root}",
            f"hub={self.world}/benchmarks",
            "tasks=[pope]",
            "batch_size=8",
            "max_new_tokens=2",
            "device=cpu",
        ]


def make_place(root: Path) -> Place:
    """Writes the world, trains a model on it, and lays out the questions of a public data set."""
    place = Place(root)
    write_toyworld(WORLD, place.world)
    shutil.copy(TEMPLATES / "vicuna.jinja", root)
    ended = seen(["train", *place.training(), *outputs(root / "first")])
    assert ended.status == 0, ended
    shutil.copytree(root / "first" / "run" / "final", place.checkpoint)
    shutil.copytree(place.world / "clips" / "videos", root / "videos")
    clips = sorted(file.name for file in (root / "videos").iterdir())
    (root / "videos" / clips[0]).rename(root / "videos" / "video7010.mp4")
    asked = {"id": 0, "video_id": 7010, "question": "what is shown?", "answer": "a dog", "category_id": 3}
    (root / "test_qa.json").write_text(json.dumps([asked]), encoding="utf-8")
    write_gguf(root / "model.gguf")
    (root / "text.txt").write_text("What color is it? It is red, and the square beside it is blue.\n", encoding="utf-8")
    said = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    (root / "history.json").write_text(json.dumps(said), encoding="utf-8")
    image = next((place.world / "instruct" / "images").iterdir())
    shutil.copy(image, root / f"image{image.suffix}")
    return place


def outputs(out: Path) -> list[str]:
    """Where a training writes."""
    return [f"paths.runs={out}", f"output_dir={out}/run"]


def listed(values: Sequence[str]) -> str:
    """A list of texts as Hydra reads it; `${...}` is left to the command that gets it."""
    return "[" + ",".join(json.dumps(value).replace("${", r"\${") for value in values) + "]"


def _toyworld(place: Place, out: Path) -> list[str]:
    sizes = ("pretrain_images", "instruct_images", "val_images", "text_rows", "benchmark_images", "benchmark_questions")
    sizes += ("clips_train", "clips_test", "turns", "choice_turns", "vision_width", "vision_layers", "vision_heads")
    return [f"root={out}/toyworld", *(f"{name}={getattr(WORLD, name)}" for name in sizes)]


def _data_prepare(place: Place, out: Path) -> list[str]:
    asked = [f"annotations={place.root}/test_qa.json", f"videos={place.root}/videos"]
    return ["set=msrvtt_qa", f"folder={out}/data", f"hub={out}/hub", *asked]


def _data_check(place: Place, out: Path) -> list[str]:
    return [*place.data(), *outputs(out), f"report={out}/check.json", f"cleaned={out}/cleaned", "workers=0"]


def _data_stats(place: Place, out: Path) -> list[str]:
    return [*place.data(), *outputs(out), f"output={out}/stats.json", "workers=0"]


def _data_preview(place: Place, out: Path) -> list[str]:
    return [*place.data(), f"paths.runs={out}", f"output={out}/preview", "samples=2"]


def _train(place: Place, out: Path) -> list[str]:
    return [*place.training(), *outputs(out)]


def _teacher(place: Place, out: Path) -> list[str]:
    own = [f"loss.teacher_checkpoint={place.checkpoint}", f"loss.top_k_folder={out}/top_k", "k=3"]
    training = [text for text in place.training() if not text.startswith("model.vision")]
    return [*training, *outputs(out), f"model.checkpoint={place.checkpoint}", *own, "records_per_file=16"]


def _fit_quality(place: Place, out: Path) -> list[str]:
    """On a copy, for the checkpoint is what it writes to."""
    shutil.copytree(place.checkpoint, out / "checkpoint", dirs_exist_ok=True)
    training = [text for text in place.training() if not text.startswith("model.vision")]
    return [*training, *outputs(out), f"model.checkpoint={out}/checkpoint", "rows=40", "steps=2"]


def _evaluate(place: Place, out: Path) -> list[str]:
    return [*place.evaluation(), "row=voco_2", f"output={out}/results", f"datasets_cache={out}/datasets_cache"]


def _evaluate_clips(place: Place, out: Path) -> list[str]:
    clips = [f"questions={place.world}/clips/test.json", f"videos={place.world}/clips/videos", "num_frames=2"]
    return [f"checkpoint={place.checkpoint}", *clips, f"output={out}/results", "row=video", "max_new_tokens=2"]


def _evaluate_text(place: Place, out: Path) -> list[str]:
    asked = [f"texts=[{place.root}/text.txt]", "window=32", "stride=16", "device=cpu"]
    return [f"checkpoint={place.checkpoint}", *asked, f"output={out}/results", "row=text"]


def _sweep(place: Place, out: Path) -> list[str]:
    return [
        f"runs={out}/runs",
        f"results={out}/results",
        f"++rows={{voco_2:{{train:{listed(place.training())}}}}}",
        f"hub={place.world}/benchmarks",
        "evaluate=['tasks=[\"pope\"]','batch_size=8','max_new_tokens=2','device=cpu']",
        "processes=0",
    ]


def _report(place: Place, out: Path) -> list[str]:
    return [f"results={place.results}", f"output={out}/report"]


def _export(place: Place, out: Path) -> list[str]:
    return [f"checkpoint={place.checkpoint}", "layout=voco", f"output={out}/exported"]


def _convert_gguf(place: Place, out: Path) -> list[str]:
    return [f"source={place.root}/model.gguf", f"output={out}/language"]


def _ask(place: Place, out: Path) -> list[str]:
    image = next(place.root.glob("image.*"))
    return [f"checkpoint={place.checkpoint}", f"image={image}", "questions=['What?']", "max_new_tokens=2", "device=cpu"]


def _status(place: Place, out: Path) -> list[str]:
    return [f"runs=[{place.root}/first/run]"]


def _bench(place: Place, out: Path) -> list[str]:
    steps = ["train.workloads=[two_each]", "train.lengths=[]", "train.frames=[]", "train.rows=2"]
    return ["shape=tiny", *steps, "rounds=1", "device=cpu", "peak_memory=false", f"output={out}/bench"]


LINES: dict[str, Callable[[Place, Path], list[str]]] = {
    "toyworld": _toyworld,
    "data-prepare": _data_prepare,
    "data-check": _data_check,
    "data-stats": _data_stats,
    "data-preview": _data_preview,
    "train": _train,
    "status": _status,
    "doctor": _train,
    "teacher": _teacher,
    "fit-quality": _fit_quality,
    "evaluate": _evaluate,
    "evaluate-clips": _evaluate_clips,
    "evaluate-text": _evaluate_text,
    "sweep": _sweep,
    "report": _report,
    "export": _export,
    "convert-gguf": _convert_gguf,
    "ask": _ask,
    "bench": _bench,
}
"""Of each command its arguments, for what it reads and a folder for what it writes."""

SLOW = ("evaluate", "sweep", "report")
"""Commands that need lmms-eval, whose import takes many seconds, or its results."""


def replaced(line: Sequence[str], key: str, value: str) -> list[str]:
    """Arguments with another value for a setting."""
    return [text for text in line if text.lstrip("+").partition("=")[0] != key] + [f"{key}={value}"]
