"""Two processes under torchrun share an evaluation's questions, and give the result of one."""

import json
import os
import subprocess
import sys

import pytest

from tests.distributed.launch import ROOT
from tests.evaluation.hub import write_hub
from tests.tiny import tiny_model, tiny_processor

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def test_two_processes_give_the_result_of_one(tmp_path):
    write_hub(tmp_path / "hub", tmp_path / "home")
    processor = tiny_processor(num_voco=2)
    tiny_model(processor).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    found = {}
    for processes in (1, 2):
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        settings = [
            "evaluate", "row=voco_2", f"checkpoint={tmp_path / 'model'}", f"hub={tmp_path / 'hub'}", "batch_size=2",
            f"output={tmp_path / str(processes)}", f"datasets_cache={tmp_path / 'cache'}", "max_new_tokens=4",
            "keep_answers=true", 'tasks=["gqa","pope","mmbench_en_dev_static","seedbench","scienceqa_img"]',
        ]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
        command = [sys.executable, *(launch if processes > 1 else []), "-m", "voco_llama.cli", *settings]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr[-4000:]
        folder = tmp_path / str(processes)
        result = json.loads((folder / "voco_2.benchmarks.json").read_text())
        lines = [json.loads(line) for line in (folder / result["answers_file"]).read_text().splitlines()]
        lines.sort(key=lambda line: (line["benchmark"], line["document"]))
        assert result["processes"] == processes
        assert not (folder / "voco_2.responses").exists()
        found[processes] = (result["benchmarks"], lines)
    assert found[2] == found[1]
