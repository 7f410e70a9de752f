"""Two processes under torchrun share an evaluation's questions, and give the result of one."""

import json
import os
import subprocess
import sys

import pytest

from tests.distributed.launch import ROOT
from tests.evaluation.hub import change_pope_image, write_hub
from tests.tiny import tiny_model, tiny_processor

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@pytest.fixture
def evaluate(tmp_path):
    """Evaluates on the tiny hub with so many processes; gives what ended, and the folder of results."""
    write_hub(tmp_path / "hub", tmp_path / "home")
    processor = tiny_processor(num_voco=2)
    tiny_model(processor).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")

    def evaluate(processes, *more):
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        folder = tmp_path / f"results_{processes}"
        settings = [
            "evaluate", "row=voco_2", f"checkpoint={tmp_path / 'model'}", f"hub={tmp_path / 'hub'}", "batch_size=2",
            f"output={folder}", f"datasets_cache={tmp_path / 'cache'}", "max_new_tokens=4", *more,
        ]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
        command = [sys.executable, *(launch if processes > 1 else []), "-m", "voco_llama.cli", *settings]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
        return done, folder

    evaluate.hub = tmp_path / "hub"
    return evaluate


def test_two_processes_give_the_result_of_one(evaluate):
    found = {}
    for processes in (1, 2):
        tasks = 'tasks=["gqa","pope","mmbench_en_dev_static","seedbench","scienceqa_img"]'
        done, folder = evaluate(processes, "keep_answers=true", tasks)
        assert done.returncode == 0, done.stderr[-4000:]
        result = json.loads((folder / "voco_2.benchmarks.json").read_text())
        lines = [json.loads(line) for line in (folder / result["answers_file"]).read_text().splitlines()]
        lines.sort(key=lambda line: (line["benchmark"], line["document"]))
        assert result["processes"] == processes
        assert not (folder / "voco_2.responses").exists()
        found[processes] = (result["benchmarks"], lines)
    assert found[2] == found[1]


def test_a_failure_in_one_process_ends_both_or_is_listed(evaluate):
    """Document 1 is the second process's."""
    change_pope_image(evaluate.hub, 1, lambda whole: whole[:50])
    done, folder = evaluate(2, 'tasks=["pope"]', "keep_answers=true")
    assert done.returncode != 0
    assert "pope document 1: cannot be answered (OSError" in done.stderr
    assert not list(folder.glob("*.json"))
    done, folder = evaluate(2, 'tasks=["pope"]', "keep_answers=true", "go_on=true")
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads((folder / "voco_2.benchmarks.json").read_text())
    assert [failure["id"] for failure in result["failures"]] == ["pope document 1"]
    assert result["benchmarks"]["pope"]["questions"] == 9
