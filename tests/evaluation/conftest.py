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


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A tiny model that looks at clips too."""
    from tests.evaluation.runs import save
    from tests.tiny import tiny_processor

    return save(tmp_path_factory.mktemp("checkpoint"), tiny_processor(num_voco=2, num_frames=3))


@pytest.fixture
def settings_for(checkpoint, tiny_hub, tmp_path, tmp_path_factory, monkeypatch):
    """Settings of an evaluation of the tiny model on the tiny hub, whose clips are in HF_HOME."""
    from voco_llama.evaluation.settings import EvaluateSettings

    monkeypatch.setenv("HF_HOME", str(tiny_hub.home))

    def make(**changes):
        plain = {
            "checkpoint": checkpoint, "runs": tmp_path, "hub": tiny_hub.hub, "output": tmp_path, "row": "voco_2",
            "condition": "voco", "batch_size": 4, "max_new_tokens": 4, "device": "cpu",
            "datasets_cache": tmp_path_factory.getbasetemp() / "evaluate_cache",
        }  # fmt: skip
        return EvaluateSettings(**plain | changes)

    return make
