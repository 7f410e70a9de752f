import pytest
from huggingface_hub import constants

from voco_llama.data_tools.processor import find_processor


@pytest.fixture
def chosen(settings, defects, images):
    return lambda **own: settings(("llava_json", defects, images), **own)


def test_the_processor_of_the_training(chosen, tmp_path):
    processor, said = find_processor(chosen())
    assert (processor.max_length, processor.style.system) == (128, "")
    assert said == f"measured by the tokenizer of {tmp_path / 'tokenizer'}, at most 128"


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        ({"model.tokenizer": "/no/such/folder"}, "model.tokenizer: /no/such/folder is neither a folder here nor in"),
        ({"model.tokenizer": "nobody/nothing"}, "model.tokenizer: nobody/nothing is neither"),
        ({"model.checkpoint": "no/such/run"}, "model.checkpoint: no/such/run is neither"),
        ({"model.tokenizer": None, "model.language.pretrained": None}, "model.tokenizer: None is neither"),
        ({"model.vision.name": "none.json"}, "model.vision.name: none.json cannot be read"),
    ],
)
def test_nothing_at_hand(chosen, own, reason, caplog):
    processor, said = find_processor(chosen(**own))
    assert processor is None
    assert said.startswith(f"not measured: {reason}")
    assert said.removeprefix("not measured: ") in caplog.text


def test_a_tokenizer_in_the_cache_of_the_hub_is_used(chosen, tmp_path, monkeypatch):
    repository = tmp_path / "cache" / "models--somebody--something"
    snapshot = repository / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    before = chosen()
    (tmp_path / "tokenizer").rename(snapshot)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("voco_llama.data_tools.processor.build_processor", lambda settings: settings.model.tokenizer)
    before.model.tokenizer = "somebody/something"
    assert find_processor(before)[0] == "somebody/something"
