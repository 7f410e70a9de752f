"""Liger's kernels: put into the language model if asked for, without its losses; refused where they cannot run."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from tests.tiny import tiny_model, tiny_processor
from voco_llama.errors import SettingsError
from voco_llama.training import liger
from voco_llama.training.checks import check_settings
from voco_llama.training.liger import use_liger


@pytest.fixture
def applied(monkeypatch):
    """What a stub of the package was asked for."""
    calls = []
    stub = ModuleType("liger_kernel.transformers.monkey_patch")
    stub.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": None}
    stub._apply_liger_kernel_to_instance = lambda **kwargs: calls.append(kwargs)
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, stub.__name__, stub)
    return calls


def test_kernels_go_into_the_language_model_and_the_trainer_does_nothing(applied):
    model = tiny_model(tiny_processor())
    arguments = SimpleNamespace(use_liger_kernel=True, liger_kernel_config={"rope": False})
    use_liger(model, arguments)
    off = {"cross_entropy": False, "fused_linear_cross_entropy": False}
    assert applied == [{"model": model.language_model, "rope": False, **off}]
    assert arguments.use_liger_kernel is False
    use_liger(model, arguments)
    assert len(applied) == 1


def test_a_language_model_without_kernels_is_refused(applied):
    model = tiny_model(tiny_processor())
    model.language_model.config.model_type = "unknown"
    with pytest.raises(SettingsError, match="liger-kernel has no kernels for a language model of type unknown: set it"):
        use_liger(model, SimpleNamespace(use_liger_kernel=True, liger_kernel_config=None))
    assert applied == []


def asking(stage: str = "voco", **trainer) -> SimpleNamespace:
    return SimpleNamespace(stage=SimpleNamespace(name=stage), trainer={"use_liger_kernel": True} | trainer)


def test_settings_that_make_no_sense(settings_for):
    with pytest.raises(SettingsError, match="is for language models: stage clip has none"):
        liger.check_liger(asking("clip"))
    fused = "trainer.liger_kernel_config={fused_linear_cross_entropy: true}"
    with pytest.raises(SettingsError, match="has fused_linear_cross_entropy: leave it out, the losses are ours"):
        check_settings(settings_for("toy/voco_1", "trainer.use_liger_kernel=true", fused), paths=False)
    liger.check_liger(asking(liger_kernel_config={"rope": False, "cross_entropy": False}))


@pytest.mark.parametrize(("package", "gpu", "on_cpu", "fits"), [(1, 1, 0, 1), (0, 1, 0, 0), (1, 0, 0, 0), (1, 1, 1, 0)])
def test_package_and_gpu_have_to_be_here(monkeypatch, package, gpu, on_cpu, fits):
    monkeypatch.setattr(liger, "is_liger_kernel_available", lambda: bool(package))
    monkeypatch.setattr(liger.torch.cuda, "is_available", lambda: bool(gpu))
    liger.check_liger_is_here(asking(use_liger_kernel=False))
    if fits:
        liger.check_liger_is_here(asking())
        return
    with pytest.raises(SettingsError, match="trainer.use_liger_kernel needs the package liger-kernel and a GPU"):
        liger.check_liger_is_here(asking(use_cpu=bool(on_cpu)))


def test_a_training_here_is_refused_at_its_start(settings_for):
    with pytest.raises(SettingsError, match="trainer.use_liger_kernel needs the package"):
        check_settings(settings_for("toy/voco_1", "trainer.use_liger_kernel=true"))
