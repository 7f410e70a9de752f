"""Language models of the kinds that are used, from the files that they come in; what does not fit is refused."""

import json
import re
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MistralConfig, Qwen2Config, Qwen3Config

from tests.model.rows import answered, batch_of, one_pass_logits, random_images, two_step_logits
from tests.parity.llava_files import tiny_llava, write_hub
from tests.tiny import VISION_CONFIG, tiny_model, tiny_processor, tiny_text_config, tiny_tokenizer
from voco_llama import VoCoLlama
from voco_llama.errors import CheckpointError, SettingsError
from voco_llama.model.language import build_language_model
from voco_llama.model.weights import read_weights
from voco_llama.tokens import MAX_SPARE_ROWS, check_vocabulary

SHAPE = dict(vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
SHAPE |= dict(num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.3)
CONFIGS = {
    "llama": lambda: tiny_text_config(),
    "qwen2": lambda: Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=8),
    "mistral": lambda: MistralConfig(**SHAPE, sliding_window=None),
}


def written(folder, kind: str, files: str = "shards"):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind]()).eval()
    model.save_pretrained(folder, max_shard_size="20KB" if files == "shards" else "1GB")
    if files == "bin":
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    return model


def load(folder):
    return build_language_model(str(folder), None, "sdpa", torch.float32)


@pytest.mark.parametrize("files", ["shards", "bin"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_folder_is_read_whatever_its_files(tmp_path, kind, files):
    model = written(tmp_path, kind, files)
    read = load(tmp_path)
    assert read.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in read.state_dict().items())


@pytest.mark.parametrize("kind", CONFIGS)
def test_it_compresses_and_reads(tmp_path, kind):
    """The central equality, with each kind of language model from its files; then saved and loaded as one of ours."""
    written(tmp_path / "language", kind)
    processor = tiny_processor(num_voco=2)
    model = VoCoLlama.from_parts(
        load(tmp_path / "language"),
        VISION_CONFIG,
        None,
        processor.tokens,
        len(processor.tokenizer),
        processor.segment_shape(),
    ).eval()
    rows = [processor.lay_out(answered(text)) for text in ("<image>\nWhat?", "<image>\nIs it\nblue?")]
    batch, pixels = batch_of(processor, rows), processor.pixels(random_images(2))
    expected = one_pass_logits(model, batch, pixel_values=pixels)
    torch.testing.assert_close(two_step_logits(model, batch, pixel_values=pixels), expected, atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path / "ours")
    again = VoCoLlama.from_pretrained(tmp_path / "ours")
    assert torch.equal(one_pass_logits(again, batch, pixel_values=pixels), expected)


def edit(folder, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda w: w.pop("model.norm.weight"), "1 tensors differ: 1 missing \\(model.norm.weight\\)"),
        (lambda w: w.update(stray=torch.zeros(1)), "1 unexpected \\(stray\\)"),
        (lambda w: w.update({"model.norm.weight": torch.zeros(7)}), "model.norm.weight \\[7\\] instead of \\[32\\]"),
    ],
)
def test_weights_of_another_model_are_refused(tmp_path, caplog, change, complaint):
    written(tmp_path, "llama", "one")
    edit(tmp_path, change)
    with pytest.raises(CheckpointError) as refused:
        load(tmp_path)
    assert re.search(complaint, str(refused.value)), str(refused.value)
    assert "\n" not in str(refused.value)
    assert "LOAD REPORT" not in caplog.text


def test_other_folders_are_refused(tmp_path):
    write_hub(tiny_llava(), tmp_path / "llava", "old")
    with pytest.raises(CheckpointError, match="is a LLaVA: set model.checkpoint to it"):
        load(tmp_path / "llava")
    written(tmp_path, "llama")
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(CheckpointError, match="1 of the .* files that it names are not there"):
        load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "no_such"}))
    with pytest.raises(CheckpointError):
        load(tmp_path)


def test_sliding_windows_are_refused_with_the_setting(tmp_path):
    processor = tiny_processor(num_voco=2)
    language_model = AutoModelForCausalLM.from_config(MistralConfig(**SHAPE, sliding_window=4))
    with pytest.raises(SettingsError, match="sliding_window to null"):
        VoCoLlama.from_parts(language_model, VISION_CONFIG, None, processor.tokens, 261, processor.segment_shape())


def test_a_tokenizer_of_another_model_is_refused():
    tokenizer = tiny_tokenizer()
    size = len(tokenizer)
    for rows in (size, size + 3, size + MAX_SPARE_ROWS):
        check_vocabulary(tokenizer, rows, "here")
    for rows in (size - 1, size + MAX_SPARE_ROWS + 1):
        with pytest.raises(CheckpointError, match=f"here: the tokenizer has {size} tokens .* {rows} embeddings"):
            check_vocabulary(tokenizer, rows, "here")
    check_vocabulary(tiny_processor().tokenizer, size, "here")  # with tokens of ours, which are not counted


@pytest.mark.parametrize("two_steps", [False, True])
def test_a_pad_token_that_ends_turns_learns_as_any_other_and_padding_teaches_nothing(two_steps):
    """SmolLM2 pads with the token that ends its turns; torch's `padding_idx` would leave out what is learned of it."""
    processor = tiny_processor(2)
    weights, of = tiny_model(processor).state_dict(), {}
    for pad in (0, processor.tokens.eos):
        model = tiny_model(processor, text_config=tiny_text_config(pad_token_id=pad)).train()
        model.load_state_dict(weights)
        rows = [processor.lay_out([*answered("<image>\nWhat is it?"), *answered("Why?")])]
        rows += [processor.lay_out(answered("A row that is shorter."))]
        batch = batch_of(processor, rows, labels=True)
        model(**batch, pixel_values=processor.pixels(random_images(1)), two_steps=two_steps).loss.backward()
        of[pad] = model.get_input_embeddings().weight.grad
    assert of[0][processor.tokens.eos].abs().max() > 0
    assert of[0][0].abs().max() == 0
    torch.testing.assert_close(of[processor.tokens.eos], of[0], rtol=0, atol=0)


# ---- folders of which transformers would make another model


def adapters_of(folder, base) -> None:
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(base)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*is_gradient_checkpointing. is deprecated")
        get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)


def test_adapters_are_not_put_on_a_base_that_no_setting_names(tmp_path):
    """Neither on the base that they name, nor on a whole model that lies beside them."""
    written(tmp_path / "base", "llama", "one")
    adapters_of(tmp_path / "adapters", tmp_path / "base")
    written(tmp_path / "both", "llama", "one")
    for file in (tmp_path / "adapters").iterdir():
        shutil.copy(file, tmp_path / "both")
    for name in ("adapters", "both"):
        with pytest.raises(CheckpointError, match=f"{name} holds adapters .*which would be put on a base that no"):
            load(tmp_path / name)


def test_two_sets_of_weights_are_refused(tmp_path):
    """transformers would take the one file, and what reads an index the shards."""
    written(tmp_path, "llama", "shards")
    written(tmp_path / "other", "llama", "one")
    shutil.copy(tmp_path / "other" / "model.safetensors", tmp_path)
    with pytest.raises(CheckpointError, match="holds model.safetensors and beside it model.safetensors.index"):
        load(tmp_path)


def test_a_head_of_its_own_is_not_lost_to_a_configuration_that_ties_it(tmp_path):
    written(tmp_path, "llama", "one")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(CheckpointError, match="ties the head to the embeddings, and its weights have a head"):
        load(tmp_path)
    edit(tmp_path, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))
    assert load(tmp_path).lm_head.weight is not None
    edit(tmp_path, lambda w: w.pop("lm_head.weight"))
    assert torch.equal((model := load(tmp_path)).lm_head.weight, model.model.embed_tokens.weight)


@pytest.mark.parametrize("kind", ["int8", "float8_e4m3fn", "said"])
def test_quantized_weights_are_refused(tmp_path, kind):
    written(tmp_path, "llama", "one")
    if kind == "said":
        config = json.loads((tmp_path / "config.json").read_text())
        said = {"quantization_config": {"quant_method": "unheard_of", "bits": 4}}
        (tmp_path / "config.json").write_text(json.dumps(config | said))
    else:
        name, dtype = "model.layers.0.mlp.up_proj.weight", getattr(torch, kind)
        edit(tmp_path, lambda w: w.update({name: w[name].to(dtype)}))
    why = "config.json says unheard_of" if kind == "said" else f"up_proj.weight is torch.{kind}"
    with pytest.raises(CheckpointError, match=f"its weights are quantized .*{why}.: get them as they were before"):
        load(tmp_path)


def test_safetensors_go_before_bin_files_for_all_readers(tmp_path):
    model = written(tmp_path, "llama", "one")
    torch.save({name: torch.zeros_like(t) for name, t in model.state_dict().items()}, tmp_path / "pytorch_model.bin")
    read = read_weights(tmp_path)
    for name, tensor in load(tmp_path).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
        assert torch.equal(tensor, read[name])
