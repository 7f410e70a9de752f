"""The command line: thin over importable functions.

    voco-llama train experiment=toy/voco_1 trainer.learning_rate=1e-5
    torchrun --nproc_per_node 8 -m voco_llama.cli train experiment=voco_1
    voco-llama train --config-dir FOLDER experiment=mine    # FOLDER/experiment/mine.yaml; or experiment=./mine.yaml

Each command is a function here, of its settings: what is slow to import it imports by itself, so that other commands
and mistakes do without. A user's mistake ends in one line and status 2, a signal in 128 and its number; anything else
keeps its traceback. A command that looks for problems ends in status 1 where it found some.
"""

import dataclasses
import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pkgutil import resolve_name
from typing import Any

from voco_llama.command_line import parse
from voco_llama.config_files import using_folder
from voco_llama.credentials import check_no_credentials
from voco_llama.errors import SettingsError, VoCoError, one_line, own_line
from voco_llama.files import NO_ROOM, NOT_ALLOWED

logger = logging.getLogger("voco_llama")

NO_PLACE = (*NO_ROOM, *NOT_ALLOWED, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
"""What the system says of a place, named by a setting, that cannot be written or read: no bug of ours."""


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        run: Gets the settings (and, if it asks for them, the overrides). A text that it returns is printed, a number is
            the exit status.
        schema: `module:name` of the settings' dataclass.
        config: File of `configs/` that holds the settings' values.
        words: The setting that words without `=` are for, a list of text; such a command only reads and computes
            nothing, and starts at once.
    """

    run: Callable[..., str | int | None]
    schema: str
    config: str
    wants_overrides: bool = False
    words: str | None = None

    @property
    def help(self) -> str:
        return self.run.__doc__.partition("\n")[0].rstrip(".")

    def compose(self, overrides: list[str]) -> Any:
        """The command's settings, of overrides that may be meant for other commands too, as a sweep's are.

        A dataclass that is no training's has its keys at the top of its file, beside `paths`, which its values may
        refer to.
        """
        from voco_llama.composition import compose
        from voco_llama.settings import TrainSettings

        schema = resolve_name(self.schema)
        if issubclass(schema, TrainSettings):
            return compose(overrides, self.config, schema)
        composed = compose(overrides, self.config, _beside_paths(schema))
        return schema(**{entry.name: getattr(composed, entry.name) for entry in dataclasses.fields(schema)})

    def typed(self, overrides: list[str]) -> int:
        """Run it with what somebody typed for it alone; returns the exit status."""
        return self._run(self.compose_typed(overrides), overrides)

    def compose_typed(self, overrides: list[str]) -> Any:
        """The settings of what somebody typed, where a list is given once and nothing that is not read."""
        check_no_credentials(override.partition("=")[::2] for override in overrides)  # no message is to show them
        if self.words is not None and overrides and not any("=" in word for word in overrides):
            return resolve_name(self.schema)(**{self.words: overrides})

        from voco_llama.overrides import check_lists_given_once
        from voco_llama.settings import TrainSettings

        check_lists_given_once(overrides, resolve_name(self.schema))
        settings = self.compose(overrides)
        if isinstance(settings, TrainSettings):
            from voco_llama.training.given import check_given

            check_given(overrides, settings)
        return settings

    def __call__(self, overrides: list[str]) -> int:
        """Run it; returns the exit status."""
        return self._run(self.compose(overrides), overrides)

    def _run(self, settings: Any, overrides: list[str]) -> int:
        if self.words is None:
            from voco_llama.sharding import expect_no_accelerator

            expect_no_accelerator()
        made = self.run(settings, overrides) if self.wants_overrides else self.run(settings)
        if isinstance(made, str):
            sys.stdout.write(made)
        return made if isinstance(made, int) else 0


@cache
def _beside_paths(schema: type) -> type:
    """A schema with `paths` beside its own settings."""
    from voco_llama.settings import PathsSettings

    copied = ("default", "default_factory", "metadata")
    own = [
        (entry.name, entry.type, dataclasses.field(**{key: getattr(entry, key) for key in copied}))
        for entry in dataclasses.fields(schema)
    ]
    paths = ("paths", PathsSettings, dataclasses.field(default_factory=PathsSettings))
    return dataclasses.make_dataclass(schema.__name__, [*own, paths])


COMMANDS: dict[str, Command] = {}


def _command(schema: str, config: str | None = None, **more: Any) -> Callable[[Callable], Callable]:
    """Makes a function a command of its name, `-` for `_`, whose settings stand in `configs/<name>.yaml`."""

    def register(run: Callable) -> Callable:
        COMMANDS[run.__name__.replace("_", "-")] = Command(run, schema, config or run.__name__, **more)
        return run

    return register


@_command("voco_llama.toyworld.settings:ToyWorldCommand")
def toyworld(settings: Any) -> None:
    """Write the synthetic world: training data, benchmarks, tiny configurations."""
    from voco_llama.toyworld import ToyWorldSettings, write_toyworld

    values = dataclasses.asdict(settings)
    root = values.pop("root")
    write_toyworld(ToyWorldSettings(**values), root)


@_command("voco_llama.data_tools.settings:DataPrepareSettings")
def data_prepare(settings: Any) -> None:
    """List the public data sets; verify one, and say what is missing and how to fetch and read it."""
    from voco_llama.data_tools.prepare import prepare

    reports = prepare(settings)
    sys.stdout.write("\n".join(map(str, reports)))
    if settings.set is not None:
        reports[0].check()


@_command("voco_llama.data_tools.settings:DataCheckSettings", wants_overrides=True)
def data_check(settings: Any, overrides: list[str]) -> int:
    """Read every record, image and clip of a training's data, and report what is wrong."""
    from voco_llama.data_tools.check import check_data, check_summary, error_line

    findings = check_data(settings, overrides)
    sys.stdout.write(check_summary(findings))
    if findings.num_bad:
        sys.stderr.write(f"found: {error_line(findings)}\n")
    return int(findings.num_bad > 0)


@_command("voco_llama.data_tools.settings:DataStatsSettings", wants_overrides=True)
def data_stats(settings: Any, overrides: list[str]) -> str:
    """Count records, turns, tokens, image sizes and steps of a training's data."""
    from voco_llama.data_tools.stats import count_data, stats_table

    return stats_table(count_data(settings, overrides))


@_command("voco_llama.data_tools.settings:PreviewSettings", wants_overrides=True)
def data_preview(settings: Any, overrides: list[str]) -> None:
    """Draw samples of a training as the model will see them: an HTML page."""
    from voco_llama.data_tools.settings import check_preview

    check_preview(settings)  # before the slow imports
    from voco_llama.data_tools.preview import preview

    preview(settings, overrides)


@_command("voco_llama.settings:TrainSettings")
def train(settings: Any) -> str | None:
    """Train one stage: experiment=..., or groups and keys of your own."""
    from voco_llama.training.checks import check_settings

    check_settings(settings, paths=not settings.dry_run)  # before the slow imports
    if settings.dry_run:
        from voco_llama.preflight.dry_run import dry_run, format_dry_run

        text = format_dry_run(dry_run(settings))
        return text if os.environ.get("RANK", "0") == "0" else None
    if settings.stage.name == "clip":
        from voco_llama.toyworld.train_clip import train_clip

        train_clip(settings)
    else:
        from voco_llama.training.run import train

        train(settings)
    return None


@_command("voco_llama.training.status:StatusSettings", words="runs")
def status(settings: Any) -> str:
    """Say how far runs are, how they go and how they ended: status FOLDER ..."""
    from voco_llama.training.status import status

    return status(settings)


@_command("voco_llama.settings:TrainSettings", config="train", wants_overrides=True)
def doctor(settings: Any, overrides: list[str]) -> None:
    """Check this machine, and what a training named by experiment=... needs of it; writes nothing.

    The report goes to the output; errors in it end in status 2.
    """
    from voco_llama.preflight.doctor import doctor
    from voco_llama.preflight.finding import format_findings

    logger.setLevel(logging.WARNING)  # the report says it all
    findings = doctor(settings if overrides else None)
    sys.stdout.write(format_findings(findings))
    errors = sum(finding.level == "error" for finding in findings)
    if errors:
        raise SettingsError(f"doctor: {errors} of {len(findings)} findings stand in the way: see the lines above")


@_command("voco_llama.settings:TeacherSettings")
def teacher(settings: Any) -> None:
    """Write a teacher's top-k predictions for the data of a training to disk."""
    from voco_llama.training.teachers.write_top_k import write_top_k

    write_top_k(settings)


@_command("voco_llama.settings:FitQualitySettings")
def fit_quality(settings: Any) -> None:
    """Fit to a checkpoint what chooses by the image how many VoCo tokens are kept (quality=...)."""
    from voco_llama.fit_quality import fit_quality

    fit_quality(settings)


@_command("voco_llama.evaluation.settings:EvaluateSettings")
def evaluate(settings: Any) -> None:
    """Have lmms-eval ask and score benchmarks, for one row of the table or all rows of a suite."""
    from voco_llama.evaluation.run import evaluate_rows

    evaluate_rows(settings)


@_command("voco_llama.evaluation.clips:EvaluateClipsSettings")
def evaluate_clips(settings: Any) -> None:
    """Answer questions on clips, their frames in order and shuffled."""
    from voco_llama.evaluation.clips import evaluate_clips

    evaluate_clips(settings)


@_command("voco_llama.evaluation.text:EvaluateTextSettings")
def evaluate_text(settings: Any) -> None:
    """Compute a language model's loss on plain text, before a training or after it."""
    from voco_llama.evaluation.text import evaluate_text

    evaluate_text(settings)


@_command("voco_llama.sweep.settings:SweepSettings", wants_overrides=True)
def sweep(settings: Any, overrides: list[str]) -> str:
    """Train and evaluate all rows of a table, over seeds; what is finished is skipped."""
    from voco_llama.sweep.run import sweep

    return sweep(settings, overrides, sweep_runners())


def sweep_runners() -> dict[str, Command]:
    """The commands that a sweep may run."""
    return {
        name: COMMANDS[name] for name in ("toyworld", "convert-gguf", "train", "teacher", "fit-quality", "evaluate")
    }


@_command("voco_llama.report.report:ReportSettings")
def report(settings: Any) -> str:
    """Tables and plots over the results of evaluations and their seeds, beside the paper's numbers."""
    from voco_llama.report.report import report

    return report(settings)


@_command("voco_llama.settings:ExportSettings")
def export(settings: Any) -> None:
    """Write a checkpoint of any layout in another: ours, LLaVA's own, llava-hf's."""
    from voco_llama.export import export

    export(settings)


@_command("voco_llama.convert_gguf:ConvertGgufSettings")
def convert_gguf(settings: Any) -> None:
    """Write the language model of a GGUF file as a folder of transformers; SmolLM2-135M of the extra [real]."""
    from voco_llama.convert_gguf import convert_gguf

    convert_gguf(settings)


@_command("voco_llama.asking:AskSettings")
def ask(settings: Any) -> str:
    """Answer questions on images, a clip, or text alone: compressed once and read from a cache, or seen whole."""
    from voco_llama.asking import ask

    answers = zip(settings.questions, ask(settings), strict=True)
    return "".join(f"Q: {question}\nA: {answer}\n" for question, answer in answers)


@_command("voco_llama.bench.settings:BenchSettings")
def bench(settings: Any) -> str:
    """Measure how fast training, compressing, answering and loading are."""
    from voco_llama.bench.settings import check_bench

    check_bench(settings)  # before the slow imports
    from voco_llama.bench.run import bench

    return bench(settings, COMMANDS["evaluate"].compose)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command with these arguments, by default those of the process.

    Returns:
        The exit status: 0, 1 where a check found errors, 2 for a user's mistake, 130 for an interrupt, 143 for SIGTERM,
            138 for SIGUSR1.
    """
    _set_up_logging()
    try:
        words = parse(list(sys.argv[1:] if arguments is None else arguments), COMMANDS)
        with using_folder(words.folder):
            status = COMMANDS[words.command].typed(words.overrides)
    except VoCoError as error:
        sys.stderr.write(f"error: {own_line(error)}\n")
        return error.status
    except OSError as error:
        if error.errno not in NO_PLACE:
            raise
        sys.stderr.write(f"error: {one_line(error)}: check the path, and that there is room and permission\n")
        return 2
    except KeyboardInterrupt as error:
        line = str(error) or "interrupted: the same command again goes on from what is finished and saved"
        if os.environ.get("RANK", "0") == "0":
            sys.stderr.write(f"{line}\n")
        if getattr(error, "together", False):
            _leave_process_group()
        return getattr(error, "status", 130)
    _leave_process_group()
    return status


def _leave_process_group() -> None:
    """Stop the threads of torch.distributed: one that still runs while Python ends aborts the process (SIGABRT)."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _set_up_logging() -> None:
    """Our own progress from the first process; from the others, and from libraries, warnings.

    Everything of ours is logged: a training keeps a file of it for each process.
    """
    if not sys.stderr.isatty():  # progress bars fill a log
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")
    logging.basicConfig(format="%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    logger.setLevel(logging.INFO)
    if os.environ.get("RANK", "0") != "0":
        for handler in logging.getLogger().handlers:
            handler.setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
