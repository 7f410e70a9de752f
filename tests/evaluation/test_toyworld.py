"""The synthetic world's benchmarks are read and scored by the same code as the real ones."""

import dataclasses

import pytest

from voco_llama.data.toyworld.settings import ToyWorldSettings
from voco_llama.data.toyworld.world import write_toyworld
from voco_llama.evaluation.benchmarks import BENCHMARKS, read_benchmark
from voco_llama.evaluation.scoring import score


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("toyworld") / "world"
    small = {"pretrain_images": 20, "instruct_images": 40, "val_images": 10, "text_rows": 20}
    small |= {"clips_train": 4, "clips_test": 4, "benchmark_images": 20, "benchmark_questions": 48}
    write_toyworld(dataclasses.replace(ToyWorldSettings(), **small), root)
    return root


@pytest.mark.parametrize("name", BENCHMARKS)
def test_oracle_gets_the_full_mark_and_a_constant_does_not(world, name):
    requests = read_benchmark(world / "benchmarks", name)
    oracle = score(name, requests, [request.answers[0] for request in requests])
    assert oracle.value == oracle.full
    assert oracle.accuracy == 1
    constant = score(name, requests, [requests[0].answers[0]] * len(requests))
    assert constant.accuracy < 0.6
    assert len({request.image_key for request in requests}) <= 20
    assert requests[0].load_image().size == (32, 32)
