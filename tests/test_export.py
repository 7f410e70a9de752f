"""Models of ours in LLaVA's layouts: transformers reads them, and so do we again."""

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from tests.model.rows import answered, asked, batch_of, random_images
from tests.tiny import tiny_model, tiny_processor, tiny_text_config, unlike_its_start
from voco_llama import VoCoLlama, VoCoProcessor, cli
from voco_llama.model.weights import read_weights

TEXTS = ("<image>\nWhat is it?", "<image>\nIs it red, or is it\nblue?")


def saved(folder, condition: str = "voco", order: str = "authors", num_voco: int = 2, **options):
    """A random model of ours and its processor, on disk."""
    processor = tiny_processor(num_voco, condition, order)
    if "compressor" in options:
        processor = replace(processor, num_vision=0)
    model = unlike_its_start(tiny_model(processor, **options))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def export(*overrides: str) -> int:
    return cli.main(["export", *overrides])


@torch.no_grad()
def logits(model, batch, pixels):
    return model(**batch, pixel_values=pixels).logits


@pytest.mark.parametrize("layout", ["llava", "llava_hf"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_there_and_back(tmp_path, layout, tied):
    model, processor = saved(tmp_path / "ours", text_config=tiny_text_config(tie_word_embeddings=tied))
    assert export(f"checkpoint={tmp_path}/ours", f"layout={layout}", f"output={tmp_path}/there") == 0
    assert export(f"checkpoint={tmp_path}/there", "layout=voco", f"output={tmp_path}/back") == 0
    rows = [processor.lay_out(answered(text)) for text in (*TEXTS, "Why?")]
    batch, pixels = batch_of(processor, rows), processor.pixels(random_images(2))
    for folder in ("there", "back"):
        again, read = VoCoLlama.from_pretrained(tmp_path / folder), VoCoProcessor.from_pretrained(tmp_path / folder)
        assert torch.equal(logits(again, batch, pixels), logits(model, batch, pixels))
        assert (read.condition, read.num_voco, read.style.order) == ("voco", 2, "authors")
        assert read.segment_shape() == again.config.segment_shape() == processor.segment_shape()
        assert read.tokens == processor.tokens
        mine, theirs = again.language_model.state_dict(), model.language_model.state_dict()
        assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items())
        head, table = again.get_output_embeddings().weight, again.get_input_embeddings().weight
        assert (head is table) is tied


@pytest.mark.parametrize("layout", ["voco", "llava", "llava_hf"])
def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch, layout):
    saved(tmp_path / "ours")
    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(f"checkpoint={tmp_path}/ours", f"layout={layout}", f"output={tmp_path}/there")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


@pytest.mark.parametrize("layout", ["voco", "llava", "llava_hf"])
def test_a_disk_that_is_full_is_one_line(tmp_path, monkeypatch, capsys, layout):
    saved(tmp_path / "ours")

    def no_room(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: File too large (os error 27)")

    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", no_room)
    assert export(f"checkpoint={tmp_path}/ours", f"layout={layout}", f"output={tmp_path}/there") == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line == f"error: {tmp_path}/there cannot be written (File too large): make room, or name another output"
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


@torch.no_grad()
def test_transformers_reads_the_export(tmp_path):
    model, processor = saved(tmp_path / "ours", condition="full", order="llava", num_voco=0)
    assert export(f"checkpoint={tmp_path}/ours", "layout=llava_hf", f"output={tmp_path}/hf") == 0
    theirs, info = LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    images = random_images(2)
    batch = batch_of(processor, [processor.lay_out(asked(text)) for text in TEXTS], "left")
    pixels, real = processor.pixels(images), batch["document"] >= 0
    expected = theirs(input_ids=batch["input_ids"], attention_mask=real.long(), pixel_values=pixels).logits[real]
    mine = model(**batch, pixel_values=pixels, logits_mask=real).logits
    torch.testing.assert_close(mine, expected, atol=1e-4, rtol=1e-4)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    said = theirs.generate(input_ids=batch["input_ids"], attention_mask=real.long(), pixel_values=pixels, **options)
    assert torch.equal(model.generate(**batch, pixel_values=pixels, **options), said[:, real.shape[1] :])

    their_processor = LlavaProcessor.from_pretrained(tmp_path / "hf")
    read = their_processor(images=images, text=["<image>ab", "<image>c"], padding=True, return_tensors="pt")
    assert int((read["input_ids"] == processor.tokens.image).sum()) == 2 * processor.num_vision
    torch.testing.assert_close(read["pixel_values"], pixels, atol=2 / 255 / 0.26, rtol=0)


def test_the_own_layout_has_llavas_names(tmp_path):
    saved(tmp_path / "ours", condition="full", order="llava")
    assert export(f"checkpoint={tmp_path}/ours", "layout=llava", f"output={tmp_path}/own", "dtype=bfloat16") == 0
    weights = read_weights(tmp_path / "own")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    tower = "model.vision_tower.vision_tower.vision_model."
    assert {
        "model.mm_projector.0.weight",
        "model.mm_projector.2.bias",
        "model.layers.0.self_attn.q_proj.weight",
        "lm_head.weight",
        f"{tower}embeddings.class_embedding",
        f"{tower}encoder.layers.1.self_attn.k_proj.bias",
        f"{tower}pre_layrnorm.weight",
    } <= weights.keys()
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    assert (config["model_type"], config["mm_vision_tower"]) == ("llava_llama", "vision_tower")
    assert f"{tower}pre_layrnorm.weight".removeprefix("model.vision_tower.vision_tower.") in load_file(
        tmp_path / "own" / "vision_tower" / "model.safetensors"
    )


@pytest.mark.parametrize(
    ("options", "layout", "complaint"),
    [
        ({"segment_attention": "bidirectional"}, "llava", "no place for segment_attention bidirectional"),
        ({"voco_embeddings": "distinct"}, "llava_hf", "no place for .*distinct embeddings: only layout=voco"),
        ({"compressor": "average_pool"}, "llava", r"no place for a compressor .*\(average_pool\): only layout=voco"),
        ({}, "voco num_voco=3", "num_voco is for the folder of a LLaVA"),
        ({}, "voco used", "is in use: name a new or empty folder"),
        ({}, "onnx", "layout is 'onnx': choose one of voco, llava, llava_hf"),
    ],
)
def test_what_cannot_be_written_is_one_line(tmp_path, capsys, options, layout, complaint):
    saved(tmp_path / "ours", **options)
    layout, *more = layout.split()
    output = tmp_path / ("ours" if more == ["used"] else "there")
    more = [word for word in more if word != "used"]
    assert export(f"checkpoint={tmp_path}/ours", f"layout={layout}", f"output={output}", *more) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith("error: ")
    assert re.search(complaint, line), line
    assert not (tmp_path / "there").exists() or not any((tmp_path / "there").iterdir())


@pytest.mark.parametrize("layout", ["voco", "llava", "llava_hf"])
def test_an_export_ends_where_the_model_does(tmp_path, layout):
    """What was taught is the tokenizer's end, 2; the language model's own configuration names another."""
    saved(tmp_path / "ours", text_config=tiny_text_config(eos_token_id=7))
    assert export(f"checkpoint={tmp_path}/ours", f"layout={layout}", f"output={tmp_path}/there") == 0
    again = VoCoLlama.from_pretrained(tmp_path / "there")
    assert again.language_model.generation_config.eos_token_id == [2, 7]
    if layout == "llava_hf":
        theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path / "there")
        assert theirs.generation_config.eos_token_id == [2, 7]
    elif layout == "llava":
        assert json.loads((tmp_path / "there" / "config.json").read_text())["eos_token_id"] == [2, 7]
