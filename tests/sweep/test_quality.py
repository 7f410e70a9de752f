"""A row whose images choose their numbers of tokens gets its head between training and evaluation, once."""

import shutil
from dataclasses import replace
from pathlib import Path

from voco_llama.model.quality import QUALITY_FILE
from voco_llama.sweep.plan import expand
from voco_llama.sweep.run import sweep
from voco_llama.sweep.settings import RowSettings

ADAPTIVE = {"voco_4": [], "loose": ["quality=0.2"], "close": ["quality=0.02"]}
HEAD = Path("runs/seed_0/toy/voco_4/final") / QUALITY_FILE


def rows(settings, **evaluate):
    return {"voco_4": RowSettings(train=settings.rows["voco_4"].train, evaluate=evaluate)}


def test_a_head_is_fitted_once_before_the_first_that_wants_it(run, settings):
    assert run(rows=rows(settings, **ADAPTIVE)) == [
        "toyworld", "train clip", "train voco_4", "evaluate voco_4", "fit-quality", "evaluate loose", "evaluate close",
    ]  # fmt: skip
    assert run(rows=rows(settings, **ADAPTIVE)) == []
    more = rows(settings, **ADAPTIVE, closer=["quality=0.01"])
    assert run(rows=more) == ["evaluate closer"]
    shutil.rmtree(HEAD.parent)
    assert run(rows={**more, "voco_4": replace(more["voco_4"], evaluate=ADAPTIVE | {"last": ["quality=0"]})}) == [
        "fit-quality", "evaluate last",
    ]  # fmt: skip


def test_the_head_is_fitted_on_the_data_of_the_rows_training(settings):
    changed = replace(settings, rows=rows(settings, **ADAPTIVE), overrides=["trainer.max_steps=3"])
    ((job,),) = (plan.jobs for plan in expand(changed))
    assert job.fit.arguments == [
        "experiment=toy/voco_4",
        "trainer.max_steps=3",
        "output_dir=${paths.runs}/toy/voco_4",
        "model.checkpoint=${paths.runs}/toy/voco_4/final",
        "paths.runs=runs/seed_0",
        "seed=0",
    ]
    assert [job.wants_head(evaluation) for evaluation in job.evaluations.values()] == [False, True, True]


def test_the_dry_run_says_so(fake, settings):
    adaptive = replace(settings, rows=rows(settings, **ADAPTIVE), dry_run=True)
    said = sweep(adaptive, [], fake.runners)
    assert said.count("voco-llama fit-quality ") == 1
    assert said.index("voco-llama train experiment=toy/voco_4") < said.index("fit-quality") < said.index("row=loose")
    assert "fit-quality" not in sweep(replace(settings, dry_run=True), [], fake.runners)
