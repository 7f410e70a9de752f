"""Towers from Hugging Face's CLIP and from open_clip's files: the same features, and the activation that they need."""

import json
import re
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel

from tests.tiny import VISION_CONFIG, unlike_its_start
from voco_llama.configuration import VoCoLlamaConfig
from voco_llama.errors import CheckpointError, SettingsError
from voco_llama.model.layouts import clip_to_open_clip, open_clip_to_clip
from voco_llama.model.vision_weights import load_vision_tower, read_vision_weights
from voco_llama.vision_config import from_clip_config, read_normalization, read_vision_config, to_clip_config

SHAPE = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=28)
SHAPE |= dict(patch_size=7, projection_dim=16, initializer_factor=3.0)  # else features hardly depend on the image


def clip(hidden_act: str = "quick_gelu") -> CLIPVisionModel:
    torch.manual_seed(0)
    return unlike_its_start(CLIPVisionModel(CLIPVisionConfig(**SHAPE, hidden_act=hidden_act))).eval()


def tower_from(name, pretrained=None):
    config = VoCoLlamaConfig(vision_config=read_vision_config(str(name)), vision_layer=-2)
    return load_vision_tower(config, read_vision_weights(str(name), pretrained)).eval()


@torch.no_grad()
def assert_same_features(tower, model):
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    theirs = model(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    assert theirs.std() > 0.1
    torch.testing.assert_close(tower(pixels), theirs, atol=1e-5, rtol=1e-5)


def folder_of(model, folder, prefix: str = "vision_model.", **extra):
    """A folder with the names that the hub has, whichever version of transformers writes it."""
    model.config.save_pretrained(folder)
    weights = {prefix + name.removeprefix("vision_model."): t.contiguous() for name, t in model.state_dict().items()}
    save_file(weights | extra, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


# ---- parity


@pytest.mark.parametrize("prefix", ["vision_model.", ""], ids=["as on the hub", "newer names"])
@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
def test_features_are_those_of_hugging_face(tmp_path, hidden_act, prefix):
    model = clip(hidden_act)
    tower = tower_from(folder_of(model, tmp_path, prefix))
    assert_same_features(tower, model)


def test_a_folder_that_transformers_wrote(tmp_path):
    model = clip()
    model.save_pretrained(tmp_path)
    assert_same_features(tower_from(tmp_path), model)


def test_a_whole_clip_in_a_bin_file_with_its_old_buffers(tmp_path):
    """As `openai/clip-vit-large-patch14-336` is on the hub: text tower, projections, position ids."""
    torch.manual_seed(0)
    text = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=40)
    config = CLIPConfig(vision_config=SHAPE, text_config=text | {"projection_dim": 16}, projection_dim=16)
    whole = unlike_its_start(CLIPModel(config)).eval()
    config.save_pretrained(tmp_path)
    ids = {f"{part}_model.embeddings.position_ids": torch.arange(17)[None] for part in ("vision", "text")}
    torch.save(whole.state_dict() | ids, tmp_path / "pytorch_model.bin")
    tower = tower_from(tmp_path)
    assert_same_features(tower, whole.vision_model)
    assert torch.equal(tower.visual.proj, whole.visual_projection.weight.T)


def test_the_folder_as_weights_of_a_named_architecture(tmp_path):
    """`model.vision.name` may say the shape, and the weights come from a folder or a file."""
    folder = tmp_path / "hf"
    folder.mkdir()
    folder_of(clip(), folder)
    (tmp_path / "shape.json").write_text(json.dumps(read_vision_config(str(folder))))
    for pretrained in (folder, folder / "model.safetensors"):
        assert_same_features(tower_from(tmp_path / "shape.json", str(pretrained)), clip())


def test_names_and_shapes_there_and_back():
    weights = {name.removeprefix("vision_model."): tensor for name, tensor in clip().state_dict().items()}
    back = open_clip_to_clip(clip_to_open_clip(weights, 16, "here"))
    assert back.keys() == weights.keys() - {"embeddings.position_ids"}
    assert all(torch.equal(tensor, weights[name]) for name, tensor in back.items())
    config = from_clip_config(CLIPVisionConfig(**SHAPE).to_dict(), "here")
    assert (
        CLIPVisionConfig(**to_clip_config(config)).to_dict()
        == CLIPVisionConfig(**{name: value for name, value in SHAPE.items() if name != "initializer_factor"}).to_dict()
    )


def test_the_published_towers_shape():
    """`openai/clip-vit-large-patch14-336` and open_clip's architecture of the same tower."""
    published = {
        "model_type": "clip",
        "projection_dim": 768,
        "vision_config": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "image_size": 336,
            "patch_size": 14,
            "projection_dim": 768,
        },
    }
    ours = read_vision_config("ViT-L-14-336-quickgelu")
    assert to_clip_config(from_clip_config(published, "here")) == to_clip_config(ours)
    assert (ours["embed_dim"], ours["quick_gelu"]) == (768, True)


# ---- open_clip's own files


@pytest.fixture
def architecture(tmp_path):
    """The file of a tiny open_clip architecture, by name of its activation."""

    def make(quick_gelu: bool) -> str:
        file = tmp_path / f"arch_{quick_gelu}.json"
        file.write_text(json.dumps(VISION_CONFIG | {"quick_gelu": quick_gelu}))
        return str(file)

    return make


@pytest.fixture
def visual(architecture):
    return {f"visual.{k}": v for k, v in tower_without_weights(architecture(True)).visual.state_dict().items()}


def tower_without_weights(name):
    torch.manual_seed(0)
    return load_vision_tower(VoCoLlamaConfig(vision_config=read_vision_config(name)), None)


def test_a_bare_file_says_nothing_of_its_activation(architecture, visual, tmp_path, caplog):
    torch.save({"state_dict": visual}, tmp_path / "bare.pt")
    read = read_vision_weights(architecture(False), str(tmp_path / "bare.pt"))
    assert all(torch.equal(read[name.removeprefix("visual.")], tensor) for name, tensor in visual.items())
    assert "does not say what its activation is" in caplog.text


class Named(torch.nn.Module):
    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()
        self.class_embedding = torch.nn.Parameter(tensor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.class_embedding


def save_torchscript(visual, file) -> None:
    holder = torch.nn.Sequential()
    holder.add_module("visual", Named(visual["visual.class_embedding"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(holder).save(file)


def test_torchscript_is_read_without_a_warning(architecture, visual, tmp_path):
    save_torchscript(visual, tmp_path / "openai.pt")
    read = read_vision_weights(architecture(True), str(tmp_path / "openai.pt"))
    assert torch.equal(read["class_embedding"], visual["visual.class_embedding"])


@pytest.mark.parametrize("kind", ["a file of OpenAI's", "TorchScript", "a configuration beside it", "a tag"])
def test_quick_gelu_weights_are_refused_by_a_gelu_tower(architecture, visual, tmp_path, kind):
    (tmp_path / "weights").mkdir()
    name, pretrained = architecture(False), str(tmp_path / "weights" / "w.pt")
    if kind == "a file of OpenAI's":
        torch.save(visual | {"input_resolution": torch.tensor(16)}, pretrained)
    elif kind == "TorchScript":
        save_torchscript(visual, pretrained)
    elif kind == "a configuration beside it":
        torch.save(visual, pretrained)
        (tmp_path / "weights" / "open_clip_config.json").write_text(json.dumps({"model_cfg": VISION_CONFIG}))
    else:
        name, pretrained = "ViT-L-14-336", "openai"
    with pytest.raises(CheckpointError, match="trained with quick-GELU and .* computes GELU: choose .*-quickgelu"):
        read_vision_weights(name, pretrained)


def test_gelu_weights_are_refused_by_a_quick_gelu_tower(architecture, visual, tmp_path):
    folder = folder_of(clip("gelu"), tmp_path)
    with pytest.raises(CheckpointError, match="trained with GELU and .* computes quick-GELU"):
        read_vision_weights(architecture(True), str(folder))


# ---- bad input


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"hidden_act": "silu"}, "hidden_act 'silu' is not one of quick_gelu, gelu"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps 1e-06"),
        ({"num_channels": 4}, "4 channels"),
        ({"model_type": "siglip_vision_model"}, "describes no vision tower"),
    ],
)
def test_towers_that_open_clip_cannot_be_are_refused(tmp_path, changes, complaint):
    config = CLIPVisionConfig(**SHAPE).to_dict() | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SettingsError, match=complaint):
        read_vision_config(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda w: w.pop("vision_model.encoder.layers.1.self_attn.k_proj.weight"), "needs q, k and v and has q, v"),
        (lambda w: w.pop("vision_model.post_layernorm.bias"), "1 missing (ln_post.bias)"),
        (lambda w: w.update({"vision_model.head.weight": torch.zeros(1)}), "1 unexpected (head.weight)"),
        (lambda w: w.update({"vision_model.pre_layrnorm.bias": torch.zeros(3)}), "ln_pre.bias [3] instead of [32]"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, change, complaint):
    folder = folder_of(clip(), tmp_path)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=re.escape(complaint)):
        tower_from(folder)


def test_weights_of_something_else_are_named(architecture, tmp_path):
    save_file({"model.layers.0.mlp.up_proj.weight": torch.zeros(1)}, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="the names look like a causal language model of transformers"):
        read_vision_weights(architecture(True), str(tmp_path / "m.safetensors"))


# ---- names that could be another tower's


@pytest.mark.parametrize("name", ["hf-hub:laion/CLIP-ViT-B-32", "local-dir:tower"])
def test_what_open_clip_would_fetch_by_itself_is_refused(name):
    with pytest.raises(SettingsError, match=f"model.vision.name: {name}: download the tower"):
        read_vision_config(name)


def test_a_tag_is_no_folder_that_has_its_name(tmp_path, monkeypatch):
    """As `hf download --local-dir openai/clip-vit-large-patch14-336` leaves one; with `./` it is the folder."""
    monkeypatch.chdir(tmp_path)
    folder_of(clip("quick_gelu"), tmp_path / "openai")
    read = []
    monkeypatch.setattr("voco_llama.model.vision_weights._read_tag", lambda *asked: read.append(asked[:2]) or {})
    assert read_vision_weights("ViT-B-32-quickgelu", "openai") == {}
    assert read == [("ViT-B-32-quickgelu", "openai")]
    assert "conv1.weight" in read_vision_weights("ViT-B-32-quickgelu", "./openai")


@pytest.mark.parametrize(
    ("name", "pretrained", "mean"),
    [
        ("ViT-L-14-336-quickgelu", "openai", 0.48145466),
        ("ViT-L-14", "laion2b_s32b_b82k", 0.5),
        ("tiny.json", None, None),
        ("tower", None, 0.25),
        ("ViT-B-32", "tower", 0.25),
        ("hf_tower", None, 0.125),
    ],
)
def test_colors_are_normalized_as_the_tower_was_trained(name, pretrained, mean, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, file, told in (
        ("tower", "open_clip_config.json", {"preprocess_cfg": {"mean": [0.25] * 3, "std": [0.5] * 3}}),
        ("hf_tower", "preprocessor_config.json", {"image_mean": [0.125] * 3, "image_std": [0.5] * 3}),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text(json.dumps(told))
    found = read_normalization(name, pretrained)
    assert (found and found[0][0]) == mean
