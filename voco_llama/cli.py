"""The command line: thin over importable functions.

    voco-llama train experiment=toy/voco_1 trainer.learning_rate=1e-5
    torchrun --nproc_per_node 8 -m voco_llama.cli train experiment=voco_1

A user's mistake ends in one line and status 2, an interrupt in status 130; anything else keeps its traceback. A command
that looks for problems ends in status 1 where it found some.
"""

import argparse
import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from voco_llama.errors import SettingsError, VoCoError, own_line

if TYPE_CHECKING:
    from voco_llama.sweep.records import Runner
    from voco_llama.sweep.settings import SweepSettings

logger = logging.getLogger("voco_llama")
T = TypeVar("T")


def _compose_flat(overrides: list[str], config_name: str, settings_class: type[T]) -> T:
    """Compose a dataclass whose keys stand at the top of its file, beside `paths`, which its values may refer to."""
    from voco_llama.composition import compose
    from voco_llama.settings import PathsSettings

    own = [
        (
            entry.name,
            entry.type,
            dataclasses.field(default=entry.default, default_factory=entry.default_factory, metadata=entry.metadata),
        )
        for entry in dataclasses.fields(settings_class)
    ]
    paths = ("paths", PathsSettings, dataclasses.field(default_factory=PathsSettings))
    composed = compose(overrides, config_name, dataclasses.make_dataclass(settings_class.__name__, [*own, paths]))
    return settings_class(**{name: getattr(composed, name) for name, _, _ in own})


def _train(overrides: list[str]) -> None:
    from voco_llama.composition import compose
    from voco_llama.training.checks import check_settings

    settings = compose(overrides)
    check_settings(settings, paths=not settings.dry_run)  # before the slow imports
    if settings.dry_run:
        from voco_llama.preflight.dry_run import dry_run
        from voco_llama.preflight.text import format_dry_run

        text = format_dry_run(dry_run(settings))
        if os.environ.get("RANK", "0") == "0":
            sys.stdout.write(text)
        return
    if settings.stage.name == "clip":
        from voco_llama.toyworld.train_clip import train_clip

        train_clip(settings)
        return
    from voco_llama.training.run import train

    train(settings)


def _doctor(overrides: list[str]) -> None:
    """The report goes to the output; errors in it end in status 2."""
    from voco_llama.composition import compose
    from voco_llama.preflight.doctor import doctor
    from voco_llama.preflight.finding import format_findings

    logger.setLevel(logging.WARNING)  # the report says it all
    findings = doctor(compose(overrides) if overrides else None)
    sys.stdout.write(format_findings(findings))
    errors = sum(finding.level == "error" for finding in findings)
    if errors:
        raise SettingsError(f"doctor: {errors} of {len(findings)} findings stand in the way: see the lines above")


def _teacher_settings(overrides: list[str]) -> Any:
    from voco_llama.composition import compose
    from voco_llama.settings import TeacherSettings

    return compose(overrides, "teacher", TeacherSettings)


def _teacher(overrides: list[str]) -> None:
    settings = _teacher_settings(overrides)
    from voco_llama.training.teachers.write_top_k import write_top_k

    write_top_k(settings)


def _toyworld_settings(overrides: list[str]) -> Any:
    from voco_llama.toyworld import ToyWorldSettings

    @dataclass(frozen=True)
    class ToyWorldCommand(ToyWorldSettings):
        root: Path = Path()

    return _compose_flat(overrides, "toyworld", ToyWorldCommand)


def _toyworld(overrides: list[str]) -> None:
    from voco_llama.toyworld import ToyWorldSettings, write_toyworld

    values = dataclasses.asdict(_toyworld_settings(overrides))
    root = values.pop("root")
    write_toyworld(ToyWorldSettings(**values), root)


def compose_evaluate(overrides: list[str]) -> Any:
    """Compose what `voco-llama evaluate` reads."""
    from voco_llama.evaluation.settings import EvaluateSettings

    return _compose_flat(overrides, "evaluate", EvaluateSettings)


def _evaluate(overrides: list[str]) -> None:
    from voco_llama.evaluation.run import evaluate_rows

    evaluate_rows(compose_evaluate(overrides))


def _evaluate_clips(overrides: list[str]) -> None:
    from voco_llama.evaluation.clips import EvaluateClipsSettings, evaluate_clips

    evaluate_clips(_compose_flat(overrides, "evaluate_clips", EvaluateClipsSettings))


def _data_prepare(overrides: list[str]) -> None:
    from voco_llama.data_tools.prepare.prepare import DataPrepareSettings, prepare

    report = prepare(_compose_flat(overrides, "data_prepare", DataPrepareSettings))
    sys.stdout.write(str(report))
    report.check()


def _data_check(overrides: list[str]) -> int:
    from voco_llama.composition import compose
    from voco_llama.data_tools.settings import DataCheckSettings

    settings = compose(overrides, "data_check", DataCheckSettings)
    from voco_llama.data_tools.check.check import check_data
    from voco_llama.data_tools.check.summary import check_summary, error_line

    findings = check_data(settings)
    sys.stdout.write(check_summary(findings))
    if findings.num_bad:
        sys.stderr.write(f"found: {error_line(findings)}\n")
    return int(findings.num_bad > 0)


def _data_stats(overrides: list[str]) -> None:
    from voco_llama.composition import compose
    from voco_llama.data_tools.settings import DataStatsSettings

    settings = compose(overrides, "data_stats", DataStatsSettings)
    from voco_llama.data_tools.stats.stats import count_data
    from voco_llama.data_tools.stats.table import stats_table

    sys.stdout.write(stats_table(count_data(settings)))


def _data_preview(overrides: list[str]) -> None:
    from voco_llama.composition import compose
    from voco_llama.data_tools.preview.settings import PreviewSettings, check_preview

    settings = compose(overrides, "data_preview", PreviewSettings)
    check_preview(settings)  # before the slow imports
    from voco_llama.data_tools.preview.preview import preview

    preview(settings)


def _report(overrides: list[str]) -> None:
    from voco_llama.report.report import ReportSettings, report

    sys.stdout.write(report(_compose_flat(overrides, "report", ReportSettings)))


def _ask(overrides: list[str]) -> None:
    from voco_llama.inference import AskSettings, ask

    settings = _compose_flat(overrides, "ask", AskSettings)
    for question, answer in zip(settings.questions, ask(settings), strict=True):
        sys.stdout.write(f"Q: {question}\nA: {answer}\n")


def _export(overrides: list[str]) -> None:
    from voco_llama.export import export
    from voco_llama.settings import ExportSettings

    export(_compose_flat(overrides, "export", ExportSettings))


def sweep_runners() -> "dict[str, Runner]":
    """The commands that a sweep may run."""
    from voco_llama.composition import compose
    from voco_llama.sweep.records import Runner

    return {
        "toyworld": Runner(_toyworld_settings, _toyworld),
        "train": Runner(compose, _train),
        "teacher": Runner(_teacher_settings, _teacher),
        "evaluate": Runner(compose_evaluate, _evaluate),
    }


def sweep_settings(overrides: list[str]) -> "SweepSettings":
    """Compose what `voco-llama sweep` reads."""
    from voco_llama.sweep.settings import SweepSettings

    return _compose_flat(overrides, "sweep", SweepSettings)


def _sweep(overrides: list[str]) -> None:
    from voco_llama.sweep.run import sweep

    sys.stdout.write(sweep(sweep_settings(overrides), overrides, sweep_runners()))


COMMANDS: dict[str, tuple[Callable[[list[str]], int | None], str]] = {
    "toyworld": (_toyworld, "write the synthetic world: training data, benchmarks, tiny configurations"),
    "data-prepare": (_data_prepare, "list the public data sets; verify, unpack and, if asked to, download one of them"),
    "data-check": (_data_check, "read every record, image and clip of a training's data, and report what is wrong"),
    "data-stats": (_data_stats, "count records, turns, tokens, image sizes and steps of a training's data"),
    "data-preview": (_data_preview, "draw samples of a training as the model will see them: a page, HTML and PNG"),
    "train": (_train, "train one stage: experiment=..., or groups and keys of your own"),
    "doctor": (_doctor, "check this machine, and what a training named by experiment=... needs of it; writes nothing"),
    "teacher": (_teacher, "write a teacher's top-k predictions for the data of a training to disk"),
    "evaluate": (
        _evaluate,
        "have lmms-eval ask and score benchmarks, for one row of the table or all rows of a suite",
    ),
    "evaluate-clips": (_evaluate_clips, "answer questions on clips, their frames in order and shuffled"),
    "sweep": (_sweep, "train and evaluate all rows of a table, over seeds; what is finished is skipped"),
    "report": (_report, "tables and plots over the results of evaluations and their seeds, beside the paper's numbers"),
    "export": (_export, "write a checkpoint of any layout in another: ours, LLaVA's own, llava-hf's"),
    "ask": (_ask, "compress one image or clip once and answer questions from its cache"),
}
"""Function and one line of help of each command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Without the program's name; those of the process by default.

    Returns:
        The exit status: 0, 1 where a check found errors, 2 for a user's mistake, 130 for an interrupt.
    """
    options = _parser().parse_args(_join_words(sys.argv[1:] if arguments is None else arguments))
    _set_up_logging()
    command, _ = COMMANDS[options.command]
    try:
        status = command(options.overrides) or 0
    except VoCoError as error:
        sys.stderr.write(f"error: {own_line(error)}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: the same command again goes on from what is finished and saved\n")
        return 130
    _leave_process_group()
    return status


def _leave_process_group() -> None:
    """Stop the threads of torch.distributed: one that still runs while Python ends aborts the process (SIGABRT)."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _join_words(arguments: Sequence[str]) -> list[str]:
    """A command of two words may be written with a blank: `data prepare` is `data-prepare`."""
    joined = "-".join(arguments[:2])
    return [joined, *arguments[2:]] if joined in COMMANDS else list(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="voco-llama",
        description="Compress an image into a few VoCo tokens, and answer from their cache.",
        epilog="Settings are Hydra overrides, group=choice and key=value; the files are those of configs/.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, (_, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("overrides", nargs="*", metavar="key=value", help="settings, as Hydra overrides")
    return parser


def _set_up_logging() -> None:
    """Our own progress from the first process; from the others, and from libraries, warnings."""
    if not sys.stderr.isatty():  # progress bars fill a log
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")
    import torch

    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it looked for one in vain
    logging.basicConfig(format="%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
