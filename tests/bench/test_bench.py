"""Benchmarks on a model of a few kilobytes: what they measure is the same work, and what they find is kept."""

import json
import os
import re
import statistics

import pytest
import torch

from scripts import gpu
from tests.tiny import unlike_its_start
from tests.training.conftest import one_thread
from voco_llama.bench import train
from voco_llama.bench.efficiency_page import implied_text, questions
from voco_llama.bench.measuring import alternate, in_own_process, ratios
from voco_llama.bench.run import bench
from voco_llama.bench.settings import LIGER, VARIANTS, WORKLOADS, BenchSettings, check_bench
from voco_llama.bench.shape import build_model, config_of
from voco_llama.bench.train import Batch, Stepper
from voco_llama.bench.train_page import page
from voco_llama.bench.workloads import KNOWN, draw, even
from voco_llama.cli import COMMANDS
from voco_llama.composition import compose
from voco_llama.errors import SettingsError
from voco_llama.model.flops import training_flops
from voco_llama.preflight.shapes import meta_model

__all__ = ["one_thread"]

TINY = ["shape=tiny", "device=cpu", "rounds=2", "peak_memory=false"]


def settings_of(tmp_path, *overrides: str) -> BenchSettings:
    settings = COMMANDS["bench"].compose([*TINY, f"output={tmp_path}", *overrides])
    check_bench(settings)
    return settings


@pytest.mark.parametrize(("shape", "experiment"), [("smollm2_135m", "small/voco_1"), ("7b", "voco_1")])
def test_shapes_are_those_of_the_models(tmp_path, shape, experiment):
    """By the FLOPs of a step, for which every size counts; at 7B the vocabulary is a padded one."""
    benched = config_of(settings_of(tmp_path, f"shape={shape}").shape)
    trained = meta_model(compose([f"experiment={experiment}"])).model.config
    found, expected = (training_flops(config, [100] * 2, [1] * 2, 2, 100) for config in (benched, trained))
    assert found == pytest.approx(expected, rel=0 if shape == "smollm2_135m" else 1e-3)


def test_all_ways_of_a_step_compute_one_loss_and_its_gradients(tmp_path):
    model = build_model(settings_of(tmp_path, "shape.num_voco=2"))
    batch, found = Batch.of(model, draw("video", 3, 0)), {}
    for variant in [name for name in VARIANTS if not name.endswith(LIGER)]:  # its kernels want a GPU
        loss = Stepper(model, variant, None).prepare(batch)()
        loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found[variant] = torch.cat([loss.detach()[None], gradients])
        model.zero_grad(set_to_none=True)
    for variant, values in found.items():
        torch.testing.assert_close(values, found["authors"], atol=1e-5, rtol=1e-4, msg=variant)


def test_only_what_is_shared_is_computed_once(tmp_path):
    model = build_model(settings_of(tmp_path))
    seen = []
    model.vision.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    batch = Batch.of(model, even(4, 16, frames=3))
    for variant in ("authors", "masked", "two_steps", "two_steps_shared"):
        Stepper(model, variant, None).prepare(batch)()
    assert seen == [12, 12, 12, 6]


def test_batches_are_drawn_as_they_are_said_to_be():
    assert tuple(KNOWN) == WORKLOADS
    drawn = {name: [draw(name, 32, seed) for seed in range(60)] for name in WORKLOADS}
    shared = {name: statistics.mean(32 / one.num_media for one in many) for name, many in drawn.items()}
    assert shared == pytest.approx({"mix665k": 1.9, "two_each": 2, "unshared": 1, "video": 6.9}, rel=0.1)
    texts = [text for one in drawn["mix665k"] for text in one.texts]
    assert statistics.mean(texts) == pytest.approx(205, rel=0.1)
    assert all(list(one.medium) == sorted(one.medium) for many in drawn.values() for one in many)


def test_rounds_take_turns_and_ratios_are_of_one_round():
    order = []
    works = {name: lambda number, name=name: lambda: order.append((number, name)) for name in "ab"}
    alternate(works, 2, torch.device("cpu"), "both")
    assert order == [(0, "a"), (0, "b"), (0, "a"), (0, "b"), (1, "b"), (1, "a")]
    base, other = {"seconds": [4.0, 9.0], "failed": None}, {"seconds": [2.0, 3.0], "failed": None}
    assert ratios(base, other) == {"median": 2.5, "least": 2.0, "most": 3.0}


def test_what_does_not_fit_is_said_and_the_rest_goes_on(tmp_path, monkeypatch):
    def refuse(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(train, "authors_loss", refuse)
    own = ["train.workloads=[two_each]", "train.lengths=[]", "train.frames=[]", "train.rows=2"]
    text = bench(settings_of(tmp_path, *own), None)
    assert re.search(r"\| authors +\| +out of memory \|", text)
    found = json.loads((tmp_path / "train.json").read_text())
    assert found["parts"]["workload/two_each"]["variants"]["masked"]["seconds"]
    assert "two_each: authors or two_steps_shared failed" in gpu.says_train(found)


def test_a_kill_leaves_the_parts_that_were_measured(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "even", killed)
    with pytest.raises(KeyboardInterrupt):
        bench(settings_of(tmp_path, "train.workloads=[two_each]", "train.rows=2", "rounds=1"), None)
    found = json.loads((tmp_path / "train.json").read_text())
    assert list(found["parts"]) == ["matrix_peak", "workload/two_each"]
    assert "two_each" in (tmp_path / "train.md").read_text()
    assert {"command", "git_commit", "hardware", "versions", "settings"} <= found.keys()
    assert page(found["parts"]).tables


@pytest.mark.parametrize(
    "overrides",
    [
        ["kind=efficiency", "efficiency.num_voco=[1,2]", "efficiency.text=12", "efficiency.new=3"],
        ["kind=answer", "answer.images=2", "answer.questions=3", "answer.text=12", "answer.new=2"],
        ["kind=loading", "loading.images=2", "loading.width=64", "loading.height=64", "rounds=1"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_a_kind_from_settings_to_files(tmp_path, overrides):
    settings = settings_of(tmp_path, *overrides)
    text = bench(settings, None)
    assert (tmp_path / f"{settings.kind}.md").read_text() == text
    found = json.loads((tmp_path / f"{settings.kind}.json").read_text())
    parts = found["parts"]
    if settings.kind in gpu.SAYS:
        assert "no cache" in gpu.SAYS[settings.kind](found)
    if settings.kind == "efficiency":
        for name, count in parts["counts"].items():
            assert count["kv_bytes"] == count["kv_bytes_computed"], name
        assert parts["counts"]["full_cache"]["kept"] == 4
    if settings.kind == "answer":
        assert all(parts["methods"][name]["a_second"]["median"] > 0 for name in ("no_cache", "full_cache", "voco"))


def test_a_full_cache_answers_as_the_image_read_anew(tmp_path):
    from voco_llama.bench.methods import Asking

    settings = settings_of(tmp_path)
    model = unlike_its_start(build_model(settings).eval(), 0.3)
    pixels = torch.randn(2, 3, 16, 16)
    answers = []
    for of in (lambda a: a.no_cache(pixels, 6), lambda a: a.full_cache(a.fill(pixels), [0, 1], 6)):
        torch.manual_seed(1)  # of the question's words
        answers.append(of(Asking(model, 9)).tolist())
    assert answers[0] == answers[1]
    assert answers[0][0] != answers[0][1]


def test_a_process_of_its_own_is_told_the_threads():
    assert in_own_process(divmod, 1) == (torch.get_num_threads(), 0)
    with pytest.raises(MemoryError, match="out of memory"):
        in_own_process(os._exit)


def test_when_compressing_pays():
    assert questions(10.0, 4.0, 12.0) == "3"  # 12 + 2 x 4 = 20 at two: no gain yet
    assert questions(10.0, 4.0, 11.0) == "2"
    assert questions(4.0, 4.0, 1.0) == "never"
    assert questions(None, 4.0, 1.0) == "–"


def test_the_text_that_the_papers_flops_imply():
    assert [implied_text(9.6e12, 0), implied_text(1.2e12, 576), implied_text(0.5e12, 1)] == [126, 91, 39]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rounds=0", "use 1 or more"),
        ("train.variants=[fastest]", "choose of authors"),
        ("train.workloads=[two_each,two_each]", "each once"),
        ("train.rows=-1", "above 0"),
        ("answer.asked.half=3", "give a number for"),
        ("shape.heads=3", "an even multiple"),
        ("loading.quality=96", "1 to 95"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path, override, said):
    with pytest.raises(SettingsError, match=said):
        settings_of(tmp_path, override)
