"""What a sweep is going to need, looked for before anything is trained: what its commands would refuse in their turn.

What a stage still to be run makes is not there yet, and is left to the command that reads it.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from voco_llama.convert_gguf import check_convert_gguf
from voco_llama.errors import VoCoError, require
from voco_llama.evaluation.results import BENCHMARKS_KIND, result_file
from voco_llama.evaluation.run import check_data_sets
from voco_llama.evaluation.settings import EvaluateSettings, check_overwritten
from voco_llama.evaluation.tasks import judge_of
from voco_llama.llava_folder import check_is_model
from voco_llama.sweep.plan import TRAIN, Command
from voco_llama.sweep.records import MADE, Records
from voco_llama.training.checks import check_settings
from voco_llama.training.given import check_model_given
from voco_llama.training.inputs import check_inputs

CONVERT = "convert-gguf"
TEACHER = "teacher"
"""The command that makes `loss.top_k_folder`."""


def check_needs(
    stages: Sequence[Command], fits: Iterable[Command], evaluations: Iterable[Command], records: Records
) -> None:
    """Refuse commands that would be refused once it is their turn.

    Args:
        stages: All that trains or makes data and is still to be run, in order.
        fits: Those that give a checkpoint what chooses numbers of VoCo tokens.
        evaluations: Those still to be made.
        records: They compose commands.

    Raises:
        VoCoError: Of the type and with the words of the command, whose line stands before them.
    """
    coming: list[Path] = []
    seen: set[tuple] = set()
    for command in stages:
        settings = records.compose(command)
        with _of(command):
            if command.name == TRAIN:
                check_model_given(command.overrides, settings)
                check_settings(settings, paths=False)
                check_inputs(settings, coming=coming)
            elif command.name == CONVERT:
                check_convert_gguf(settings)
        made = [getattr(settings, key, None) for key in MADE]
        made += [settings.loss.top_k_folder] if command.name == TEACHER else []
        coming += [Path(place).absolute() for place in made if place is not None]
    for command in fits:
        from voco_llama.fit_quality import check_fit_quality  # slow to import: it brings the model

        with _of(command):
            check_fit_quality(records.compose(command), paths=False)
    for command in evaluations:
        with _of(command):
            _check_evaluation(records.compose(command), coming, seen)


@contextmanager
def _of(command: Command) -> Iterator[None]:
    try:
        yield
    except VoCoError as error:
        raise type(error)(f"{command}: {error}") from error


def _check_evaluation(settings: EvaluateSettings, coming: Sequence[Path], seen: set[tuple]) -> None:
    tasks = tuple(settings.columns().columns.values())
    judge_of(tasks, os.environ)
    if not _is_coming(settings.checkpoint, coming):
        check_is_model(settings.checkpoint)
        check_overwritten(settings)
    elif (there := result_file(settings.output, BENCHMARKS_KIND, settings.row)).exists():
        require(settings.overwrite, f"{there} is of a checkpoint before the one to be trained: remove it")
    if settings.hub is None or not _is_coming(settings.hub, coming):
        require(
            settings.hub is None or settings.hub.is_dir(),
            f"hub={settings.hub} is no folder: name that of the data sets",
        )
        if (key := (settings.hub, tasks)) not in seen:
            check_data_sets(settings)
            seen.add(key)


def _is_coming(place: Path, coming: Sequence[Path]) -> bool:
    return any(place.absolute().is_relative_to(folder) for folder in coming)
