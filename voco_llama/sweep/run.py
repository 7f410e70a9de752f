"""`sweep`: a table's rows over seeds, from settings to result files, each row once.

A row whose results are there is skipped, an interrupted training goes on, and settings that have changed since are
refused (`records`). A row that fails is reported, and the others go on.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

from voco_llama.errors import SettingsError, VoCoError
from voco_llama.files import locked
from voco_llama.sweep.checks import check_needs
from voco_llama.sweep.jobs import (
    JobProcess,
    devices,
    environment,
    launch,
    launcher_arguments,
    terminated_as_interrupted,
)
from voco_llama.sweep.plan import BASE, TRAIN, Command, SeedPlan, expand
from voco_llama.sweep.records import Records, Runner, result_file
from voco_llama.sweep.scheduler import Failure, Progress, Task, run_side_by_side
from voco_llama.sweep.settings import SweepSettings
from voco_llama.text import duration

logger = logging.getLogger(__name__)

LOCK_FILE = ".sweep.lock"
LOGS = "logs"


class RowsFailed(VoCoError):
    """Some rows failed; the text lists them."""


class Work:
    """What is left of one seed.

    Attributes:
        plan: All of the seed.
        pending: Row's job -> its evaluations that are not made; empty for a finished one.
        untrained: Jobs whose training is not finished either.
        base: Base stages to run.
    """

    def __init__(self, plan: SeedPlan, records: Records) -> None:
        records.check_base(plan)
        self.plan = plan
        self.pending = {job.name: records.pending(job) for job in plan.jobs}
        self.untrained = {job.name for job in plan.jobs if self.pending[job.name] and not records.is_trained(job)}
        self.base = records.pending_base(plan, bool(self.untrained)) if any(self.pending.values()) else []

    def needed(self) -> tuple[list[Command], list[Command]]:
        """The commands still to be run: stages and trainings, and evaluations."""
        trains = [job.train for job in self.plan.jobs if job.name in self.untrained]
        return [*self.base, *trains], [command for pending in self.pending.values() for command in pending.values()]

    def fits(self) -> list[Command]:
        """Those that give a checkpoint what chooses numbers of VoCo tokens, where evaluations lack it."""
        return [job.fit for job in self.plan.jobs if any(map(job.wants_head, self.pending[job.name].values()))]

    def in_the_way(self) -> list[str]:
        """Results that are there without a record."""
        return [
            result for job in self.plan.jobs for result in self.pending[job.name] if result_file(job, result).exists()
        ]

    def __str__(self) -> str:
        """As the dry run says it: what is finished, and the commands of what is not."""
        state = "to do" if self.base else "nothing to do"
        lines = [f"{self.plan.base_name}: {state}", *(f"    {command}" for command in self.base)]
        for job in self.plan.jobs:
            pending, trains = self.pending[job.name], job.name in self.untrained
            state = "finished" if not pending else "to do" if trains else "trained, evaluations to do"
            fits = [job.fit] if job.fit in self.fits() else []
            commands = [*([job.train] if trains else []), *fits, *pending.values()]
            lines += [f"{job.name}: {state}", *(f"    {command}" for command in commands)]
        return "\n".join([*lines, ""])

    def tasks(self) -> list[Task]:
        """The base stages, and the rows that are not finished."""
        base = [Task(self.plan.base_name, counts=False)] if self.base else []
        needs = self.plan.base_name if base else None
        return [*base, *(Task(job.name, needs) for job in self.plan.jobs if self.pending[job.name])]


def sweep(settings: SweepSettings, overrides: Sequence[str], runners: Mapping[str, Runner]) -> str:
    """Run what is not finished of a sweep; returns a summary to print.

    `overrides` are the settings as they were typed: each job is a process that gets them again.

    Raises:
        RowsFailed: Some rows failed; the others are done.
        SettingsError: The plan makes no sense, results of other settings are in the way, or another sweep is at work.
        VoCoError: What a training or an evaluation needs is not there.
    """
    records = Records(runners)
    if settings.job is not None:
        with terminated_as_interrupted():
            _run_job(settings.job, expand(settings), settings, records)
        return ""
    plans = expand(settings)
    if settings.dry_run:
        work = [Work(plan, records) for plan in plans]
        _log_costs(work, records)  # before anything is refused, so that they are heard where the data is not
        listed = "\n".join(map(str, work))
        try:
            _check(work, records)
        except VoCoError:
            logger.info("what is to be done, of which the first that cannot be is named below:\n%s", listed)
            raise
        return listed
    slots, pinned_to = _slots(settings)
    with ExitStack() as held:
        for folder in {settings.runs.resolve(), settings.results.resolve()}:
            held.enter_context(locked(folder / LOCK_FILE))
        held.enter_context(terminated_as_interrupted())
        work = [Work(plan, records) for plan in plans]
        _check(work, records)
        return _run_all(work, settings, overrides, records, slots, pinned_to)


def _log_costs(work: Sequence[Work], records: Records) -> None:
    from voco_llama.sweep.cost import cost_lines, costs_of  # slow to import: it brings all that trains

    for line in cost_lines(costs_of((command for one in work for command in one.needed()[0]), records)):
        logger.info("%s", line)


def _check(work: Sequence[Work], records: Records) -> None:
    """Look for what is needed of what is left of each seed, once where seeds are to run the same."""
    seen = []
    for one in work:
        stages, evaluations = one.needed()
        fits = one.fits()
        alike = [(command.name, command.overrides) for command in (*stages, *fits, *evaluations)], one.in_the_way()
        if alike not in seen:
            check_needs(stages, fits, evaluations, records)
            seen.append(alike)


def _slots(settings: SweepSettings) -> tuple[int, list[str]]:
    """How many jobs run side by side (0: here, in turn), and the devices that they take."""
    if settings.processes is not None and settings.processes < 0:
        raise SettingsError(f"processes is {settings.processes}: give 0 (in this process) or more")
    if settings.launcher is not None:
        launcher_arguments(settings.launcher)
        if settings.processes not in (None, 0, 1):
            raise SettingsError(
                f"processes is {settings.processes}, but a launcher gives every training all devices: set processes=1"
            )
        return (1 if settings.processes is None else settings.processes), []
    found = devices()
    return (max(1, len(found)) if settings.processes is None else settings.processes), found


def _run_all(
    work: Sequence[Work],
    settings: SweepSettings,
    overrides: Sequence[str],
    records: Records,
    slots: int,
    pinned_to: Sequence[str],
) -> str:
    for one in work:
        if any(one.pending.values()):
            records.write_base(one.plan)
    tasks = list(dict.fromkeys(task for one in work for task in one.tasks()))  # base stages that seeds share, once
    total = sum(len(one.plan.jobs) for one in work)
    finished = total - sum(task.counts for task in tasks)
    progress = Progress(total, finished, max(1, slots))
    with ThreadPoolExecutor(progress.slots) as waiting, ExitStack() as stopped:
        processes: list[JobProcess] = []
        stopped.callback(_stop, processes)  # before the pool waits for those that wait for them

        def start(task: Task, slot: int) -> Future[Failure | None]:
            seed, _, row = task.name.partition("/")
            log = settings.runs / seed / LOGS / f"{row}.log"
            processes.append(JobProcess(overrides, task.name, log, environment(slot, slots, pinned_to)))
            return waiting.submit(processes[-1].failure)

        def run_here(task: Task, slot: int) -> Future[Failure | None]:
            ended: Future[Failure | None] = Future()
            ended.set_result(_failure(task.name, [one.plan for one in work], settings, records))
            return ended

        failed = run_side_by_side(tasks, progress.slots, start if slots else run_here, progress)
    if failed:
        listed = "; ".join(f"{name} ({why})" for name, why in failed.items())
        raise RowsFailed(f"{len(failed)} of {len(tasks)} jobs failed: {listed}: the same command tries them again")
    took = duration(time.monotonic() - progress.begun)
    return f"{total} rows: {finished} were finished, {total - finished} made in {took}; results in {settings.results}\n"


def _stop(processes: Sequence[JobProcess]) -> None:
    for process in processes:
        process.stop()
    for process in processes:
        process.wait()


def _failure(name: str, plans: Sequence[SeedPlan], settings: SweepSettings, records: Records) -> Failure | None:
    """Run one job in this process; why it failed, if it did."""
    try:
        _run_job(name, plans, settings, records)
    except VoCoError as error:
        return str(error), str(error)
    except Exception as error:  # the other rows are no less wanted for it
        logger.exception("%s", name)
        why = f"{type(error).__name__}: {error}"
        return why, why
    return None


def _run_job(name: str, plans: Sequence[SeedPlan], settings: SweepSettings, records: Records) -> None:
    """Run what is not finished of one job in this process, and record each result.

    Raises:
        SettingsError: No job has this name.
    """
    for plan in plans:
        if name == plan.base_name:
            with locked(plan.runs / f".{BASE}.lock"):
                wanted = (Work(one, records).base for one in plans if one.base_name == name)
                for command in max(wanted, key=len):  # of seeds that share them, some may want no training any more
                    _run(command, records, settings.launcher)
            return
        for job in plan.jobs:
            if name == job.name:
                with locked(job.run_folder.with_name(f".{job.row}.lock")):
                    if not records.is_trained(job):
                        _run(job.train, records, settings.launcher)
                    for result, command in records.pending(job).items():
                        if job.wants_head(command):
                            _run(job.fit, records, None)
                        _run(command, records, None)
                        records.add(job, result)
                return
    raise SettingsError(f"job={name} names no row of this sweep, as seed_0/{BASE} or seed_0/<row> would")


def _run(command: Command, records: Records, launcher: str | None) -> None:
    logger.info("%s", command)
    if command.name == TRAIN and launcher is not None:
        launch([*launcher_arguments(launcher), "-m", "voco_llama.cli", command.name, *command.arguments])
    else:
        records.run(command)
