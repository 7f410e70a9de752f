"""The authors' checkpoints in our model: their masks, logits, loss and what they say."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tests.model.rows import one_pass_logits, two_step_logits
from voco_llama import VoCoLlama, VoCoProcessor
from voco_llama.layout import SegmentMark, SegmentShape, TextSpan, lay_out, pad_rows
from voco_llama.tokens import IGNORE_INDEX, TokenIds
from voco_llama.visibility import TokenFacts, dense_mask

DATA = Path(__file__).parent / "data"
MASKS = load_file(DATA / "masks.safetensors")
NO_WEIGHTS = ("embedded_ids", "embedded", "input_ids", "attention_mask", "labels", "pixel_values", "loss", "logits")
VOCO, NEWLINE = 32000, 13


@pytest.mark.parametrize("name", MASKS)
def test_masks(name):
    prefix, vision, voco, text = map(int, name.split("_")[1:])
    tokens = TokenIds(image=90, voco=91, bos=1, eos=2, pad=0)
    shape = SegmentShape(vision, voco, prefix=(tokens.bos,) * prefix)
    row = lay_out([SegmentMark(), TextSpan((10,) * text, (False,) * text)], tokens, shape, "voco")
    facts = TokenFacts.of_batch({name: values[None] for name, values in vars(row).items()})
    assert torch.equal(dense_mask(facts, facts, "voco")[0], MASKS[name])


@pytest.fixture(scope="module")
def theirs():
    return load_file(DATA / "authors.safetensors")


def their_tokenizer() -> PreTrainedTokenizerFast:
    """A word for each id of their vocabulary; what the words are matters to nobody but newline and `<voco>`."""
    words = [f"word{index}" for index in range(VOCO)]
    words[:3], words[NEWLINE] = ["<unk>", "<s>", "</s>"], "\n"
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )
    tokenizer.add_special_tokens({"extra_special_tokens": ["<voco>"]})
    return tokenizer


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    """Their checkpoint as they publish one: LLaVA's layout, the tower named by its folder."""
    folder = tmp_path_factory.mktemp("authors") / "ckpt"
    their_tokenizer().save_pretrained(folder)
    (folder / "clip").mkdir()
    shutil.copy(DATA / "authors_config.json", folder / "config.json")
    shutil.copy(DATA / "authors_clip_config.json", folder / "clip" / "config.json")
    table = torch.zeros(VOCO + 1, 16)
    table[theirs["embedded_ids"]] = theirs["embedded"]
    weights = {name: tensor for name, tensor in theirs.items() if name not in (*NO_WEIGHTS, "greedy")}
    save_file(weights | {"model.embed_tokens.weight": table}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def ours(folder):
    return VoCoLlama.from_llava(folder, num_voco=2)


@pytest.fixture(scope="module")
def rows(theirs, ours):
    """Their two rows, text and labels as they are, the segment as our model lays it out."""
    rows = []
    for ids, labels, kept in zip(theirs["input_ids"], theirs["labels"], theirs["attention_mask"], strict=True):
        ids, labels = ids[kept].tolist(), labels[kept].tolist()
        assert ids[:5] == [1, -200, NEWLINE, VOCO, VOCO]
        trained = tuple(label != IGNORE_INDEX for label in labels[5:])
        rows.append([SegmentMark(), TextSpan(tuple(ids[5:]), trained)])
    return rows


def laid_out(rows, shape):
    batch = pad_rows([lay_out(row, TOKENS, shape, "voco") for row in rows], TOKENS, "left")
    return batch, batch.pop("labels")


TOKENS = TokenIds(image=VOCO + 1, voco=VOCO, bos=1, eos=2, pad=0)


def test_what_the_folder_says_of_itself(folder, theirs, ours):
    processor = VoCoProcessor.from_llava(folder, num_voco=2)
    assert processor.tokens == TOKENS
    assert (processor.condition, processor.style.order, processor.max_length) == ("voco", "authors", 512)
    assert processor.segment_shape() == ours.config.segment_shape() == SegmentShape(16, 2, (1,), (NEWLINE,))
    assert (ours.config.condition, ours.config.image_token_id, ours.config.voco_token_id) == ("voco", VOCO + 1, VOCO)
    table = ours.get_input_embeddings().weight
    assert torch.equal(table[VOCO], theirs["embedded"][-1])  # trained: it keeps its row


def test_logits_of_every_token(theirs, ours, rows):
    batch, _ = laid_out(rows, ours.config.segment_shape())
    real = batch["document"] >= 0
    with torch.no_grad():
        logits = ours(**batch, pixel_values=theirs["pixel_values"], logits_mask=real).logits
    torch.testing.assert_close(logits[:, :256], theirs["logits"][real], atol=1e-5, rtol=1e-5)


def test_loss(theirs, ours, rows):
    batch, labels = laid_out(rows, ours.config.segment_shape())
    with torch.no_grad():
        loss = ours(**batch, pixel_values=theirs["pixel_values"], labels=labels).loss
    torch.testing.assert_close(loss, theirs["loss"][0], atol=1e-5, rtol=1e-5)


def test_logits_after_compression(theirs, ours, rows):
    shape = ours.config.segment_shape()
    (whole, _), (cached, _) = (laid_out(rows, its_shape) for its_shape in (shape, shape.cached))
    read = two_step_logits(ours, cached, cache=ours.compress(theirs["pixel_values"]))
    torch.testing.assert_close(read[:, :256], theirs["logits"][:, -1], atol=1e-5, rtol=1e-5)
    expected = one_pass_logits(ours, whole, pixel_values=theirs["pixel_values"])
    torch.testing.assert_close(read, expected, atol=1e-5, rtol=1e-5)


def test_greedy_continuations(theirs, ours, rows):
    batch, _ = laid_out(rows, ours.config.segment_shape())
    steps = theirs["greedy"].shape[1]
    said = ours.generate(
        **batch, pixel_values=theirs["pixel_values"], max_new_tokens=steps, min_new_tokens=steps, do_sample=False
    )
    assert torch.equal(said, theirs["greedy"])
