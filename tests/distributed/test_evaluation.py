"""Two processes under torchrun share an evaluation's questions, and give the result of one."""

import json

import pytest

from tests.distributed.launch import launch, torchrun
from tests.evaluation.hub import change_pope_image, write_hub
from tests.tiny import tiny_model, tiny_processor

ON_CPU = {"ACCELERATE_USE_CPU": "true"}
pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@pytest.fixture
def hub(tmp_path):
    write_hub(tmp_path / "hub", tmp_path / "home")
    return tmp_path / "hub"


@pytest.fixture
def command_for(hub, tmp_path):
    """The command that evaluates on the tiny hub, and the folder of its results."""
    processor = tiny_processor(num_voco=2)
    tiny_model(processor).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")

    def make(name, *more):
        return [
            "evaluate", "row=voco_2", f"checkpoint={tmp_path / 'model'}", f"hub={hub}", "batch_size=2",
            f"output={tmp_path / name}", f"datasets_cache={tmp_path / 'cache'}", "max_new_tokens=4",
            "keep_answers=true", *more,
        ], tmp_path / name  # fmt: skip

    return make


def test_two_processes_give_the_result_of_one(command_for):
    found = {}
    for processes in (1, 2):
        tasks = 'tasks=["gqa","pope","mme","mmbench_en_dev_static","seedbench","scienceqa_img"]'
        command, folder = command_for(f"by_{processes}", tasks)
        launch(processes, command, **ON_CPU).check()
        result = json.loads((folder / "voco_2.benchmarks.json").read_text())
        lines = [json.loads(line) for line in (folder / result["answers_file"]).read_text().splitlines()]
        lines.sort(key=lambda line: (line["benchmark"], line["document"]))
        assert result["processes"] == processes
        assert not (folder / "voco_2.responses").exists()
        found[processes] = (result["benchmarks"], lines)
    assert found[2] == found[1]


def test_a_failure_in_one_process_ends_both_or_is_listed(command_for, hub):
    """Document 1 is the second process's."""
    change_pope_image(hub, 1, lambda whole: whole[:50])
    command, folder = command_for("failing", 'tasks=["pope"]')
    done = torchrun(2, command, **ON_CPU)
    assert done.returncode != 0
    assert "pope document 1: cannot be answered (OSError" in done.stderr
    assert not list(folder.glob("*.json"))
    launch(2, [*command, "go_on=true"], **ON_CPU).check()
    result = json.loads((folder / "voco_2.benchmarks.json").read_text())
    assert [failure["id"] for failure in result["failures"]] == ["pope document 1"]
    assert result["benchmarks"]["pope"]["questions"] == 9
