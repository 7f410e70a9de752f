"""The surroundings of lmms-eval."""

import os
from pathlib import Path

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


def test_what_was_there_before_is_put_back(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", "mine")
    monkeypatch.delenv("LMMS_CACHE_RUN_ID", raising=False)

    def now():
        return dict(os.environ), datasets.config.HF_DATASETS_CACHE, datasets.config.HF_HUB_OFFLINE, Path.cwd()

    before = now()
    with surroundings(Harness(tmp_path, tmp_path, tmp_path / "cache", None, tmp_path), "run"):
        assert os.environ["LMMS_CACHE_RUN_ID"] == "run"
        assert os.environ["HF_DATASETS_CACHE"] == datasets.config.HF_DATASETS_CACHE == str(tmp_path / "cache")
        assert Path.cwd() == tmp_path
    assert now() == before
