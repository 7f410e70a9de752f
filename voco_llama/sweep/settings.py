"""The schema of `voco-llama sweep`: the values stand in `configs/sweep.yaml` and `configs/plan/`."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class RowSettings:
    """One training and the evaluations of its checkpoint.

    Attributes:
        train: Overrides of `voco-llama train`.
        checkpoint_of: In place of `train`: the row whose checkpoint is evaluated.
        evaluate: Name of a result -> overrides of `voco-llama evaluate`; empty: one result of the row's name. Before
            the first with a `quality`, `voco-llama fit-quality` is run, on the data of the row's training.
    """

    train: list[str] | None = None
    checkpoint_of: str | None = None
    evaluate: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class SweepSettings:
    """What to run. `${paths.runs}` in an override is that of the seed (in YAML: escaped by a backslash).

    Attributes:
        runs: Folder of the runs; `seed_<seed>` below it is the `paths.runs` of a seed.
        results: Folder of the results, in `seed_<seed>` below it.
        base: What must be there before any row trains, in order: each a command and its overrides.
        rows: Name of a row -> what it is.
        folder: Where the rows' runs lie below a seed's; each by its row's name.
        seeds: Each is another world (where there is one) and other training.
        base_seed: Whose world and base stages serve all seeds, which then differ by the training of their rows alone;
            null: each has its own.
        only: Rows or results to take, by name or glob; empty: all.
        skip: Rows or results to leave out.
        overrides: Appended to every row's training.
        trainings: Appended to every training, those of the base stages too.
        hub: That of every evaluation; None: the one in `evaluate.yaml`.
        suite: That of every evaluation; None: the one in `evaluate.yaml`.
        evaluate: Appended to every evaluation.
        train: Rows in place of the table's: overrides in Hydra's sweep grammar, a row for each combination.
        processes: How many rows run side by side. None: as many as there are CUDA devices, or 1; 0: in this process.
        launcher: Put before every training, such as `torchrun --nproc_per_node 8`; rows then run one after another.
        dry_run: Say what would run, and run nothing.
        job: Run this job alone, in this process: how the sweep calls itself.
    """

    runs: Path
    results: Path
    base: list[list[str]] = field(default_factory=list)
    rows: dict[str, RowSettings] = field(default_factory=dict)
    folder: str = ""
    seeds: list[int] = field(default_factory=lambda: [0])
    base_seed: int | None = None
    only: list[str] = field(default_factory=list)
    skip: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    trainings: list[str] = field(default_factory=list)
    hub: str | None = None
    suite: str | None = None
    evaluate: list[str] = field(default_factory=list)
    train: list[str] = field(default_factory=list)
    processes: int | None = None
    launcher: str | None = None
    dry_run: bool = False
    job: str | None = None
