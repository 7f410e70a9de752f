"""Models on the Hugging Face hub: what `push_to_hub` uploads is a folder that can be read; names stand for folders."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers.utils.hub as transformers_hub
from huggingface_hub import ModelCard

from tests.model.rows import answered, batch_of, random_images
from tests.parity.llava_files import tiny_llava, write_hub
from tests.tiny import tiny_model, tiny_processor
from voco_llama import VoCoLlama, VoCoProcessor, hub
from voco_llama.errors import CheckpointError

NAME = "somebody/voco-tiny"


class Hub:
    """What transformers asks of `HfApi` to upload, and `snapshot_download`, over a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked_for: list[str] = []
        self.revisions: list[str | None] = []

    def create_repo(self, name, **_):
        (self.root / name).mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(repo_id=name)

    def create_commit(self, repo_id, operations, **_):
        for operation in operations:
            file = self.root / repo_id / operation.path_in_repo
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(operation.path_or_fileobj, file)

    def download(self, name, allow_patterns, revision):
        self.revisions.append(revision)
        if not (self.root / name).is_dir():
            raise FileNotFoundError("the hub cannot be reached\nand more")
        files = [file for file in (self.root / name).iterdir() if any(file.match(p) for p in allow_patterns)]
        self.asked_for += sorted(file.name for file in files)
        return str(self.root / name)


@pytest.fixture
def online(tmp_path, monkeypatch):
    online = Hub(tmp_path / "hub")
    monkeypatch.setattr(transformers_hub, "hf_api", lambda: online)
    card = ModelCard("---\nlibrary_name: transformers\n---\nA model.")
    monkeypatch.setattr(transformers_hub, "create_and_tag_model_card", lambda *_, **__: card)
    monkeypatch.setattr(hub, "snapshot_download", online.download)
    return online


def logits(model, processor):
    batch = batch_of(processor, [processor.lay_out(answered("<image>\nWhat?"))])
    with torch.no_grad():
        return model(**batch, pixel_values=processor.pixels(random_images(1))).logits


def test_what_is_pushed_is_read_by_its_name(online):
    processor = tiny_processor(num_voco=3)
    model = tiny_model(processor).eval()
    model.push_to_hub(NAME, max_shard_size="20KB")
    processor.push_to_hub(NAME)
    names = {file.name for file in (online.root / NAME).iterdir()}
    assert {"config.json", "model.safetensors.index.json", "voco_processor.json", "tokenizer.json"} <= names
    assert sum(name.endswith(".safetensors") for name in names) > 2

    read = VoCoProcessor.from_pretrained(NAME)
    assert not any(name.endswith(".safetensors") for name in online.asked_for)
    again = VoCoLlama.from_pretrained(NAME).eval()
    assert any(name.endswith(".safetensors") for name in online.asked_for)
    assert read.num_voco == 3
    assert read.style == processor.style
    torch.testing.assert_close(logits(again, read), logits(model, processor), atol=0, rtol=0)


def test_a_llava_is_read_by_its_name(online):
    write_hub(tiny_llava(), online.root / NAME, "new")
    assert VoCoProcessor.from_pretrained(NAME).condition == "full"
    assert VoCoLlama.from_pretrained(NAME).config.condition == "full"


@pytest.mark.parametrize("read", [VoCoLlama.from_pretrained, VoCoProcessor.from_pretrained])
def test_a_name_that_is_neither_here_nor_there(online, read):
    message = r"^somebody/voco-tiny: no such folder, and the hub .* \(the hub cannot be .* more\): name a folder"
    with pytest.raises(CheckpointError, match=message):
        read(NAME)


def test_a_folder_is_never_asked_for(online, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    processor = tiny_processor()
    processor.save_pretrained("somebody/voco-tiny")
    assert VoCoProcessor.from_pretrained("somebody/voco-tiny").num_voco == processor.num_voco
    with pytest.raises(CheckpointError, match=r"holds no saved model \(no such folder\)"):
        VoCoProcessor.from_pretrained(tmp_path / "missing")
    assert not online.asked_for


@pytest.mark.parametrize("read", [VoCoLlama.from_pretrained, VoCoProcessor.from_pretrained])
def test_a_revision_is_asked_for_and_never_left_out(online, tmp_path, read):
    processor = tiny_processor()
    for folder in (online.root / NAME, tmp_path / "here"):
        tiny_model(processor).save_pretrained(folder)
        processor.save_pretrained(folder)
    read(NAME)
    read(NAME, revision="v1")
    assert online.revisions == [None, "v1"]
    with pytest.raises(CheckpointError, match="here: is a folder, and revision=v1 is one of a hub's model: leave it"):
        read(tmp_path / "here", revision="v1")
