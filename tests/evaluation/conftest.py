"""The five benchmarks on disk, and a cache folder of datasets that goes away with the tests."""

import pytest


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path_factory, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "datasets_cache"))


@pytest.fixture(scope="session")
def benchmarks_root(tmp_path_factory):
    from tests.evaluation.files import write_benchmarks

    root = tmp_path_factory.mktemp("benchmarks")
    write_benchmarks(root)
    return root
