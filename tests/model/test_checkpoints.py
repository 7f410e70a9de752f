"""Models built from parts, saved and loaded; folders that do not fit are refused."""

import json
import logging
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from tests.model.rows import answered, batch_of, random_images
from tests.tiny import VISION_CONFIG, tiny_model, tiny_processor, tiny_text_config
from voco_llama import VoCoLlama, VoCoLlamaConfig
from voco_llama.data.processor import VoCoProcessor
from voco_llama.errors import CheckpointError, SettingsError
from voco_llama.layout import SegmentShape
from voco_llama.model.parts import VisionTower, build_projector
from voco_llama.model.vision_weights import load_vision_tower, read_vision_weights
from voco_llama.vision_config import read_vision_config


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(order="authors")


@pytest.fixture(scope="module")
def batch(processor):
    rows = [processor.lay_out(answered(text)) for text in ("<image>\nWhat?", "Why?")]
    return batch_of(processor, rows, labels=True) | {"pixel_values": processor.pixels(random_images(1))}


@pytest.fixture(scope="module")
def saved(processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model(processor).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy that a test may damage."""
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def edit_config(folder, **changes) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    for path, value in changes.items():
        *parents, name = path.split("__")
        target = config
        for parent in parents:
            target = target[parent]
        target[name] = value
    file.write_text(json.dumps(config))


@torch.no_grad()
def outputs(model, batch):
    out = model(**batch)
    return out.loss, out.logits


# ---- round trips


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_saved_and_loaded_it_computes_the_same(processor, batch, tmp_path, tied):
    model = tiny_model(processor, text_config=tiny_text_config(tie_word_embeddings=tied))
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    assert (head.weight is table.weight) is tied
    model.save_pretrained(tmp_path)
    assert ("language_model.lm_head.weight" in load_file(tmp_path / "model.safetensors")) is not tied
    loaded = VoCoLlama.from_pretrained(tmp_path)
    assert (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight) is tied
    assert loaded.get_input_embeddings().weight.shape[0] == loaded.config.text_config.vocab_size == 261
    assert all(map(torch.equal, outputs(loaded, batch), outputs(model, batch)))
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert loaded.fingerprint() == model.fingerprint()
    assert not loaded.training


def test_transformers_auto_classes_know_it(processor, batch, saved):
    assert isinstance(AutoConfig.from_pretrained(saved), VoCoLlamaConfig)
    loaded = AutoModel.from_pretrained(saved, attn_implementation="eager")
    assert isinstance(loaded, VoCoLlama)
    assert loaded.attention_backend == "eager"
    assert loaded.fingerprint() == tiny_model(processor).fingerprint()
    torch.testing.assert_close(loaded(**batch).loss, tiny_model(processor)(**batch).loss)


def test_tied_embeddings_stay_tied_in_training(processor, batch, tmp_path):
    tiny_model(processor, text_config=tiny_text_config(tie_word_embeddings=True)).save_pretrained(tmp_path)
    loaded = VoCoLlama.from_pretrained(tmp_path).train()
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    loaded(**batch).loss.backward()
    optimizer.step()
    assert torch.equal(loaded.get_output_embeddings().weight, loaded.get_input_embeddings().weight)


def test_loading_says_nothing_alarming(saved, caplog):
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        VoCoLlama.from_pretrained(saved)
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_the_configuration_survives(saved, processor):
    config = VoCoLlamaConfig.from_pretrained(saved)
    assert config.vision_config == VISION_CONFIG
    assert config.segment_shape() == processor.segment_shape()
    assert (config.segment_prefix_ids, len(config.segment_infix_ids)) == ([processor.tokens.bos], 1)
    assert (config.image_token_id, config.voco_token_id) == (processor.tokens.image, processor.tokens.voco)
    assert (config.condition, config.num_voco, config.vision_layer) == ("voco", 2, -2)
    assert config.text_config.model_type == "llama"
    assert config.segment_shape(7).num_voco == 7


def test_bfloat16(saved, batch, processor):
    model = VoCoLlama.from_pretrained(saved, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.inverse_frequency.dtype == torch.float32
    loss, logits = outputs(model, batch)
    reference, reference_logits = outputs(tiny_model(processor), batch)
    assert logits.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    torch.testing.assert_close(logits.float(), reference_logits, atol=0.3, rtol=0.1)
    assert abs(loss - reference) < 0.1
    cache = model.compress(batch["pixel_values"])
    assert cache.keys.dtype == torch.bfloat16
    ids = model.generate(**processor("<image>\nWhat?"), cache=cache, max_new_tokens=3, do_sample=False)
    assert ids.shape[0] == 1


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_backend_is_chosen_on_loading(saved, batch, processor, attention):
    model = VoCoLlama.from_pretrained(saved, attn_implementation=attention)
    assert model.attention_backend == attention
    for mine, reference in zip(outputs(model, batch), outputs(tiny_model(processor), batch), strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-5, rtol=1e-5)


def test_flash_attention_is_refused_on_loading(saved):
    with pytest.raises(SettingsError, match="'flash_attention_2' cannot express the VoCo mask.* eager, sdpa, flex"):
        VoCoLlama.from_pretrained(saved, attn_implementation="flash_attention_2")


def test_a_loaded_model_says_the_same_and_knows_when_to_stop(saved, processor):
    model, loaded = tiny_model(processor), VoCoLlama.from_pretrained(saved)
    assert loaded.language_model.generation_config.eos_token_id == processor.tokens.eos
    questions = processor(["<image>\nWhat?", "Why?"], images=random_images(1))
    said, expected = (m.generate(**questions, max_new_tokens=8, do_sample=False) for m in (loaded, model))
    assert torch.equal(said, expected)


def test_a_model_can_be_saved_again(saved, tmp_path, batch):
    VoCoLlama.from_pretrained(saved).save_pretrained(tmp_path)
    again = VoCoLlama.from_pretrained(tmp_path)
    assert all(map(torch.equal, outputs(again, batch), outputs(VoCoLlama.from_pretrained(saved), batch)))
    assert again.fingerprint() == VoCoLlama.from_pretrained(saved).fingerprint()


# ---- damaged folders


def refused(folder, **kwargs) -> str:
    with pytest.raises((CheckpointError, SettingsError)) as error:
        VoCoLlama.from_pretrained(folder, **kwargs)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000
    return str(error.value)


def damage_weights(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


NORM = "language_model.model.norm.weight"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t.pop("projector.0.weight"), r"1 tensors differ: 1 missing \(projector.0.weight\)"),
        (lambda t: t.pop("language_model.lm_head.weight"), r"1 missing \(language_model.lm_head.weight\)"),
        (lambda t: t.pop("vision.visual.conv1.weight"), r"1 missing \(vision.visual.conv1.weight\)"),
        (lambda t: t.update(stray=torch.zeros(1)), r"1 tensors differ: 1 unexpected \(stray\)"),
        (lambda t: t.update({NORM: torch.zeros(7)}), "cannot be read|another shape"),
    ],
    ids=["no projector", "no head", "no vision", "stray", "another shape"],
)
def test_weights_of_another_model_are_refused(folder, change, complaint):
    damage_weights(folder, change)
    text = refused(folder)
    assert str(folder) in text
    assert re.search(complaint, text), text


@pytest.mark.parametrize(
    "changes",
    [
        {"text_config__hidden_size": 64},
        {"text_config__vocab_size": 300},
        {"text_config__num_hidden_layers": 3},
        {"text_config__num_hidden_layers": 1},
        {"text_config__tie_word_embeddings": "perhaps"},
        {"text_config__model_type": "no_such_model"},
        {"text_config__sliding_window": 4},
        {"vision_config__vision_cfg__width": 32},
        {"vision_config__vision_cfg__image_size": 32},
        {"vision_config": {}},
        {"vision_layer": -9},
        {"projector_type": "linear"},
        {"projector_type": "qformer"},
        {"condition": "half"},
    ],
    ids=str,
)
def test_an_edited_configuration_is_refused(folder, changes):
    edit_config(folder, **changes)
    refused(folder)


def test_a_folder_that_is_no_model_is_refused(folder, tmp_path_factory):
    assert "holds no saved model (no config.json)" in refused(tmp_path_factory.mktemp("empty"))
    assert "holds no saved model" in refused(folder / "gone")
    run = tmp_path_factory.mktemp("run")
    (run / "final").symlink_to(folder)
    assert refused(run) == f"{run}: is the folder of a run, with its model below it: name {run / 'final'}"
    with pytest.raises(CheckpointError, match="with its model below it: name .*final$"):
        VoCoProcessor.from_pretrained(run)
    (folder / "config.json").write_text("{")
    assert str(folder) in refused(folder)


def test_missing_or_truncated_weights_are_refused(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "cannot be read" in refused(folder)
    weights.unlink()
    assert "cannot be read" in refused(folder)


def test_an_index_that_leads_out_of_the_folder_is_refused(processor, tmp_path):
    """transformers follows it, to the weights of another model."""
    for seed, name in enumerate(("one", "other")):
        tiny_model(processor, seed=seed).save_pretrained(tmp_path / name, max_shard_size="40KB")
    index = tmp_path / "one" / "model.safetensors.index.json"
    described = json.loads(index.read_text())
    described["weight_map"] = {name: f"../other/{file}" for name, file in described["weight_map"].items()}
    index.write_text(json.dumps(described))
    assert "names ../other/model-00001-of-" in refused(tmp_path / "one")


# ---- parts


def test_the_vision_tower_gives_the_patches_of_the_chosen_layer():
    torch.manual_seed(0)
    pixels = torch.randn(2, 3, 16, 16)
    last, before = (VisionTower(VISION_CONFIG, layer) for layer in (-1, -2))
    before.load_state_dict(last.state_dict())
    with torch.no_grad():
        assert last(pixels).shape == before(pixels).shape == (2, 4, 16)
        assert not torch.allclose(last(pixels), before(pixels))
        block = last.visual.transformer.resblocks[-1]
        seen = []
        hook = block.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        last(pixels)
        hook.remove()
    torch.testing.assert_close(seen[0][:, 1:], before(pixels))
    for layer in (0, -3):
        with pytest.raises(SettingsError, match=f"vision layer {layer} does not exist in a tower of 2 layers"):
            VisionTower(VISION_CONFIG, layer)


@pytest.mark.parametrize(("projector_type", "parameters"), [("linear", 2), ("mlp2x_gelu", 4)])
def test_projectors(projector_type, parameters):
    projector = build_projector(projector_type, 16, 32)
    assert projector(torch.zeros(2, 5, 16)).shape == (2, 5, 32)
    assert len(list(projector.parameters())) == parameters


def test_a_linear_projector_model(processor, batch, tmp_path):
    model = tiny_model(processor)
    config = VoCoLlamaConfig.from_dict(model.config.to_dict() | {"projector_type": "linear"})
    torch.manual_seed(0)
    linear = VoCoLlama(config).eval()
    linear.save_pretrained(tmp_path)
    loaded = VoCoLlama.from_pretrained(tmp_path)
    assert isinstance(loaded.projector, torch.nn.Linear)
    assert all(map(torch.equal, outputs(loaded, batch), outputs(linear, batch)))


def test_building_keeps_the_weights_of_the_parts(processor):
    source = tiny_model(processor)
    tower = {name: tensor + 1 for name, tensor in source.vision.visual.state_dict().items()}
    language_model = tiny_model(processor, seed=3).language_model
    kept = {name: tensor.clone() for name, tensor in language_model.state_dict().items()}
    segment = processor.segment_shape()
    built = VoCoLlama.from_parts(language_model, VISION_CONFIG, tower, processor.tokens, 261, segment, condition="full")
    assert all(torch.equal(tensor, tower[name]) for name, tensor in built.vision.visual.state_dict().items())
    new = built.language_model.state_dict()
    added = [processor.tokens.image, processor.tokens.voco]
    for name, tensor in kept.items():
        rows = torch.ones(len(tensor), dtype=torch.bool)
        if len(tensor) == 261:
            rows[added] = False
        assert torch.equal(new[name][rows], tensor[rows]), name
    assert built.config.condition == "full"
    with pytest.raises(CheckpointError, match="the rows have 9 vision tokens an image and the model 4"):
        VoCoLlama.from_parts(language_model, VISION_CONFIG, None, processor.tokens, 261, SegmentShape(9, 1))


def test_vision_weights_that_do_not_fit_are_refused(processor):
    config = tiny_model(processor).config
    good = load_vision_tower(config, None).visual.state_dict()
    for change in (
        lambda w: w.pop("class_embedding"),
        lambda w: w.update(stray=torch.zeros(1)),
        lambda w: w.update(class_embedding=torch.zeros(3)),
    ):
        weights = dict(good)
        change(weights)
        with pytest.raises(
            CheckpointError, match="the vision weights do not fit: 1 tensors differ: 1 .*(class_emb|stray)"
        ):
            load_vision_tower(config, weights)


def test_vision_parts_are_read_from_a_folder(processor, tmp_path):
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": VISION_CONFIG}))
    assert read_vision_config(str(tmp_path)) == VISION_CONFIG
    (tmp_path / "bare.json").write_text(json.dumps(VISION_CONFIG))
    assert read_vision_config(str(tmp_path / "bare.json")) == VISION_CONFIG
    visual = tiny_model(processor).vision.visual.state_dict()
    whole = {f"visual.{name}": tensor for name, tensor in visual.items()} | {"logit_scale": torch.ones(1)}
    save_file(whole, tmp_path / "open_clip_model.safetensors")
    read = read_vision_weights(str(tmp_path), None)
    assert read.keys() == visual.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in visual.items())


def test_vision_parts_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="open_clip has no model 'ViT-XXL'"):
        read_vision_config("ViT-XXL")
    with pytest.raises(SettingsError, match=r"gone.json: cannot be read \(.+\): .* as model.vision.name"):
        read_vision_config(str(tmp_path / "gone.json"))
    with pytest.raises(SettingsError, match="no weights are given for"):
        read_vision_weights(str(tmp_path), None)
    with pytest.raises(SettingsError, match="'nobody' is neither a file nor a tag of ViT-B-32: its tags are .*openai"):
        read_vision_weights("ViT-B-32", "nobody")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(VISION_CONFIG))
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"bad.safetensors: cannot be read"):
        read_vision_weights(str(tmp_path), str(tmp_path / "bad.safetensors"))
    save_file({"text.x": torch.zeros(1)}, tmp_path / "text.safetensors")
    with pytest.raises(CheckpointError, match="holds no open_clip vision transformer"):
        read_vision_weights(str(tmp_path), str(tmp_path / "text.safetensors"))
