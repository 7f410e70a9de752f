"""The surroundings of lmms-eval."""

import os

import datasets
import pytest

from voco_llama.evaluation.harness import Harness, surroundings


@pytest.mark.parametrize("cores", [1, 2])
def test_no_more_processes_than_cores_are_forked(tmp_path, monkeypatch, cores):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    rows = datasets.Dataset.from_list([{"number": number} for number in range(12)])
    before = datasets.Dataset.map
    with surroundings(Harness(None, tmp_path, tmp_path, None, tmp_path), "run"):
        mapped = rows.map(lambda row: {"process": os.getpid()}, num_proc=8)
    assert len(set(mapped["process"])) == cores
    assert mapped["number"] == rows["number"]
    assert datasets.Dataset.map is before
