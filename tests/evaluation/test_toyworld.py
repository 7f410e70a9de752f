"""The synthetic world's benchmarks through lmms-eval's own tasks: an oracle gets the full mark, a constant does not."""

import dataclasses
from types import SimpleNamespace

import pytest

from tests.evaluation.lmms import TinyHub, answering, right_answer
from voco_llama.evaluation.settings import read_suite
from voco_llama.evaluation.tasks import describe
from voco_llama.toyworld.settings import ToyWorldSettings
from voco_llama.toyworld.world import write_toyworld


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("toyworld") / "world"
    small = {"pretrain_images": 20, "instruct_images": 40, "val_images": 10, "text_rows": 20}
    small |= {"clips_train": 4, "clips_test": 4, "benchmark_images": 20, "benchmark_questions": 48}
    write_toyworld(dataclasses.replace(ToyWorldSettings(), **small), root)
    return TinyHub(root / "benchmarks", root / "home", SimpleNamespace(address=""))


def test_oracle_gets_the_full_mark_and_a_constant_does_not(hub, tmp_path):
    tasks = list(read_suite("toy").columns.values())
    loaded = hub.load(tasks)

    def described(model):
        results = hub.evaluate(model, list(loaded.values()), tmp_path)
        return {
            task: describe(
                task, {k.split(",")[0]: v for k, v in results["results"][task].items()}, results["samples"][task]
            )
            for task in tasks
        }

    for task, oracle in described(answering(right_answer)).items():
        assert oracle["value"] == oracle["full"], task
        assert (oracle["accuracy"], oracle["details"]["unreadable"]) == (1, 0), task
    for task, constant in described(answering(lambda document, task: "A" if "mmbench" in task else "yes")).items():
        assert constant["accuracy"] < 0.6, task
