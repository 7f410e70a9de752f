"""What all tests share: no network, no experiment tracker, no progress bars in the output; several processes for all.

The variables are set before any test module is imported, since the libraries read them on import.
"""

import gc
import logging
import os
from pathlib import Path
from typing import Any

import pytest

DISTRIBUTED = "tests/distributed/"
MOST_PROCESSES = 4
"""Of a run of all tests: each needs 1 GB."""

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
    TOKENIZERS_PARALLELISM="false",
    WANDB_MODE="offline",
    MPLBACKEND="Agg",
    OMP_NUM_THREADS="1",
)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Divide all tests among processes, file by file; what is named (a file, a folder) runs here, as `-n 0` has it."""
    is_all = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not hasattr(config, "workerinput")
    if is_all and not config.option.usepdb and getattr(config.option, "numprocesses", 0) is None:
        config.option.numprocesses = min(os.cpu_count() or 1, MOST_PROCESSES)
        config.option.dist = "loadfile"
        config.option.loadscopereorder = False


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """File by file, but those of `distributed/`, whose tests start several processes each, one after the other."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "distributed" if nodeid.startswith(DISTRIBUTED) else super()._split_scope(nodeid)

    return Scheduling(config, log) if config.option.dist == "loadfile" else None


def pytest_collection_finish() -> None:
    """What was imported stays: the collections that libraries ask for need not look through it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def log_level() -> None:
    """Commands set how much is logged, each in a process of its own; here the next test is one too."""
    logging.getLogger("voco_llama").setLevel(logging.NOTSET)


@pytest.fixture
def arrow_cache(monkeypatch, tmp_path_factory) -> Path:
    """Where `datasets` puts its Arrow copies in this test."""
    folder = tmp_path_factory.mktemp("arrow")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder)
    return folder
