"""A hub of all tasks' data, and a cache folder of datasets that goes away with the tests."""

import pytest


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path_factory, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "datasets_cache"))


@pytest.fixture(scope="session")
def tiny_hub(tmp_path_factory):
    from tests.evaluation.hub import write_hub
    from tests.evaluation.lmms import Judge, TinyHub, full_marks, serve

    root = tmp_path_factory.mktemp("lmms")
    write_hub(root / "hub", root / "home")
    with serve(Judge(full_marks)) as judge:
        yield TinyHub(root / "hub", root / "home", judge)


@pytest.fixture(scope="session")
def loaded_tasks(tiny_hub):
    """Every task by its name, as lmms-eval loads it."""
    from tests.evaluation.lmms import JUDGED, UNJUDGED

    return tiny_hub.load([*UNJUDGED, *JUDGED])
