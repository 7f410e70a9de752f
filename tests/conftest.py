"""What all tests share: no network, no experiment tracker, no progress bars in the output.

The variables are set before any test module is imported, since the libraries read them on import.
"""

import gc
import os
from pathlib import Path

import pytest

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
    TOKENIZERS_PARALLELISM="false",
    WANDB_MODE="offline",
    MPLBACKEND="Agg",
)


def pytest_collection_finish() -> None:
    """What was imported stays: the collections that libraries ask for need not look through it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def arrow_cache(monkeypatch, tmp_path_factory) -> Path:
    """Where `datasets` puts its Arrow copies in this test."""
    folder = tmp_path_factory.mktemp("arrow")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder)
    return folder
