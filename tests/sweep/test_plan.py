"""Settings become commands: every one of them, to the letter."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from voco_llama.cli import COMMANDS
from voco_llama.errors import SettingsError
from voco_llama.sweep.plan import expand
from voco_llama.sweep.settings import RowSettings


def names(plans):
    return [f"{job.name}: {', '.join(job.evaluations)}" for plan in plans for job in plan.jobs]


def test_the_commands_of_a_plan(settings):
    changed = replace(settings, seeds=[0, 7], overrides=["trainer.max_steps=3"], evaluate=["limit=2"])
    first, second = expand(changed)
    runs, results = Path("runs/seed_7"), Path("results/seed_7")
    assert [str(command) for command in second.base] == [
        f"voco-llama toyworld paths.runs={runs} seed=7",
        f"voco-llama train experiment=toy/clip paths.runs={runs} seed=7",
    ]
    upper, voco_4 = second.jobs
    assert (voco_4.name, voco_4.run_folder, voco_4.results) == ("seed_7/voco_4", runs / "toy/voco_4", results)
    assert voco_4.train.arguments == [
        "experiment=toy/voco_4",
        "trainer.max_steps=3",
        "output_dir=${paths.runs}/toy/voco_4",
        f"paths.runs={runs}",
        "seed=7",
    ]
    assert {name: command.arguments for name, command in voco_4.evaluations.items()} == {
        result: [
            f"row={result}",
            "checkpoint=${paths.runs}/toy/voco_4/final",
            *own,
            "limit=2",
            f"output={results}",
            f"paths.runs={runs}",
            "seed=7",
        ]
        for result, own in (("voco_4", []), ("voco_4_at_2", ["num_voco=2"]))
    }
    assert names([first, second]) == [
        "seed_0/upper: upper, lower",
        "seed_0/voco_4: voco_4, voco_4_at_2",
        "seed_7/upper: upper, lower",
        "seed_7/voco_4: voco_4, voco_4_at_2",
    ]
    assert upper.evaluations["lower"].arguments[:3] == [
        "row=lower",
        "checkpoint=${paths.runs}/toy/upper/final",
        "condition=voco",
    ]


def test_some_overrides_are_for_every_training(settings):
    changed = replace(settings, trainings=["trainer.max_steps=3"], overrides=["trainer.max_steps=4"])
    (plan,) = expand(changed)
    assert [str(command) for command in plan.base] == [
        "voco-llama toyworld paths.runs=runs/seed_0 seed=0",
        "voco-llama train experiment=toy/clip trainer.max_steps=3 paths.runs=runs/seed_0 seed=0",
    ]
    assert "trainer.max_steps=4" in plan.jobs[0].train.arguments  # a row's own go before
    assert "trainer.max_steps=3" in expand(replace(changed, overrides=[]))[0].jobs[0].train.arguments


def test_a_row_on_the_checkpoint_of_another_joins_its_job(settings):
    rows = {**settings.rows, "blind": RowSettings(checkpoint_of="upper", evaluate={"blind": ["condition=blind"]})}
    assert names(expand(replace(settings, rows=rows))) == [
        "seed_0/upper: upper, lower, blind",
        "seed_0/voco_4: voco_4, voco_4_at_2",
    ]
    assert names(expand(replace(settings, rows=rows, only=["blind"]))) == ["seed_0/upper: blind"]


def test_a_row_without_evaluations_has_one_of_its_name(settings):
    assert names(expand(replace(settings, rows={"a": RowSettings(train=[])}))) == ["seed_0/a: a"]


@pytest.mark.parametrize(
    ("only", "skip", "left"),
    [
        (["voco_*"], [], ["seed_0/voco_4: voco_4, voco_4_at_2"]),
        (["*_at_2"], [], ["seed_0/voco_4: voco_4_at_2"]),
        ([], ["upper"], ["seed_0/voco_4: voco_4, voco_4_at_2"]),
        ([], ["lower", "*_at_2"], ["seed_0/upper: upper", "seed_0/voco_4: voco_4"]),
        (["voco_4"], ["*_at_2"], ["seed_0/voco_4: voco_4"]),
    ],
)
def test_only_and_skip(settings, only, skip, left):
    assert names(expand(replace(settings, only=only, skip=skip))) == left


def test_what_is_said_later_is_said_alone(settings):
    changed = replace(settings, overrides=["trainer.max_steps=3", "+trainer.max_steps=4"], evaluate=["condition=blind"])
    upper = expand(changed)[0].jobs[0]
    assert [text for text in upper.train.arguments if "max_steps" in text] == ["+trainer.max_steps=4"]
    assert [text for text in upper.evaluations["lower"].arguments if "condition" in text] == ["condition=blind"]


@pytest.mark.parametrize("runs", ["/a/é, (1)", "a\\b", "1_000", "it's"])
def test_any_folder_can_be_named(settings, runs):
    (plan,) = expand(replace(settings, runs=Path(runs)))
    composed = COMMANDS["train"].compose(plan.jobs[0].train.arguments)
    assert composed.paths.runs == f"{runs}/seed_0"


def test_a_path_with_a_blank_is_quoted(settings):
    (plan,) = expand(replace(settings, runs=Path("/a/my runs")))
    assert plan.jobs[0].train.arguments[-2] == 'paths.runs="/a/my runs/seed_0"'


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": {}}, "the sweep has no rows: choose a plan"),
        ({"seeds": []}, r"seeds is \[\]"),
        ({"seeds": [1, 1]}, r"seeds is \[1, 1\]"),
        ({"only": ["voco_5"]}, "only: 'voco_5' names no row and no result; did you mean 'voco_4'"),
        ({"skip": ["*"]}, r"skip=\['\*'\] leave no row"),
        ({"rows": {"a/b": RowSettings(train=[])}}, "row 'a/b' names a file"),
        ({"rows": {"base": RowSettings(train=[])}}, "a row is named 'base'"),
        ({"rows": {"a": RowSettings()}}, "row a: set one of train and checkpoint_of"),
        ({"rows": {"a": RowSettings(train=[], checkpoint_of="b")}}, "row a: set one of"),
        ({"rows": {"a": RowSettings(checkpoint_of="b")}}, "row a: checkpoint_of=b is no row that trains"),
        (
            {"rows": {"a": RowSettings(train=[]), "b": RowSettings(train=[], evaluate={"a": []})}},
            "row b: a second result is named 'a'",
        ),
        ({"overrides": ["seed=3"]}, "'seed=3': the sweep decides seed"),
        ({"trainings": ["output_dir=x"]}, "'output_dir=x': the sweep decides output_dir"),
        ({"rows": {"a": RowSettings(train=["output_dir=x"])}}, "'output_dir=x': the sweep decides output_dir"),
        ({"evaluate": ["checkpoint=x"]}, "the sweep decides checkpoint"),
        ({"base": [["train", "seed=3"]]}, "the sweep decides seed"),
        ({"base": [[]]}, "base lists an empty stage"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, changes, message):
    with pytest.raises(SettingsError, match=message) as refused:
        expand(replace(settings, **changes))
    assert "\n" not in str(refused.value)


def test_seeds_may_share_the_base_stages_of_one(settings):
    """Its world, stages and benchmarks; only the rows are each seed's own, in folders of their own."""
    changed = replace(settings, seeds=[0, 7], base_seed=0)
    first, second = expand(changed)
    assert first.base == second.base == expand(replace(settings, seeds=[0]))[0].base
    assert (first.base_name, second.base_name, second.runs) == ("seed_0/base", "seed_0/base", Path("runs/seed_0"))
    assert first.jobs == expand(replace(settings, seeds=[0]))[0].jobs
    voco_4 = second.jobs[1]
    assert (voco_4.name, voco_4.run_folder) == ("seed_7/voco_4", Path("runs/seed_7/toy/voco_4"))
    assert voco_4.train.arguments == [
        "experiment=toy/voco_4",
        "paths.runs=runs/seed_0",
        "seed=7",
        "output_dir=runs/seed_7/toy/voco_4",
    ]
    assert voco_4.evaluations["voco_4"].arguments == [
        "row=voco_4",
        "checkpoint=runs/seed_7/toy/voco_4/final",
        "output=results/seed_7",
        "paths.runs=runs/seed_0",
        "seed=7",
    ]


@pytest.mark.slow
def test_a_language_model_is_converted_for_all_seeds_alike_and_no_data_is_said_of_a_seed(run, settings, tmp_path):
    base = [["convert-gguf", "output=${paths.data}/smollm2"], *settings.base]
    plans = expand(replace(settings, base=base, seeds=[0, 7]))
    assert [str(plan.base[0]) for plan in plans] == [
        f"voco-llama convert-gguf 'output=${{paths.data}}/smollm2' paths.runs=runs/seed_{seed}" for seed in (0, 7)
    ]
    made = run(base=base)
    assert made[:3] == ["convert-gguf", "toyworld", "train clip"]
    assert (tmp_path / "data" / "smollm2").is_dir()
    recorded = json.loads((tmp_path / "results" / "seed_0" / "base.sweep.json").read_text())["base"]
    assert recorded["convert-gguf data/smollm2"] == {"output": "data/smollm2", "source": None}
    assert run(base=base) == []
    with pytest.raises(SettingsError, match="other settings: source"):
        run(base=[[*base[0], "source=other.gguf"], *settings.base])
