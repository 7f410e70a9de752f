"""The two added tokens: ids and embeddings."""

import json

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.data.test_processor import llama_like_tokenizer
from tests.tiny import tiny_text_config, tiny_tokenizer
from voco_llama.choices import ORDERS
from voco_llama.errors import CheckpointError, SettingsError
from voco_llama.llava_folder import load_tokenizer as saved_tokenizer
from voco_llama.tokens import (
    IMAGE_TOKEN,
    VOCO_TOKEN,
    add_special_tokens,
    check_as_stored,
    check_same_tokens,
    check_tokenizer,
    extend_embeddings,
    segment_affixes,
    token_ids,
)
from voco_llama.training.build import load_tokenizer


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


def language_model(**kwargs):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_text_config(1, **kwargs))


def test_tokens_are_added_once_behind_the_vocabulary(tokenizer):
    size = len(tokenizer)
    ids = add_special_tokens(tokenizer)
    assert (ids.image, ids.voco, ids.bos, ids.eos, ids.pad) == (size, size + 1, 1, 2, 0)
    assert add_special_tokens(tokenizer) == token_ids(tokenizer) == ids
    assert len(tokenizer) == size + 2
    assert tokenizer.convert_tokens_to_ids([IMAGE_TOKEN, VOCO_TOKEN]) == [ids.image, ids.voco]


def test_added_tokens_leave_the_tokenizers_own_special_tokens(tokenizer):
    tokenizer.add_special_tokens({"extra_special_tokens": ["<other>"]})
    add_special_tokens(tokenizer)
    assert {"<other>", IMAGE_TOKEN, VOCO_TOKEN} <= set(tokenizer.all_special_tokens)


def test_a_tokenizer_without_bos_or_pad_falls_back_to_eos(tokenizer):
    tokenizer.bos_token = tokenizer.pad_token = None
    ids = add_special_tokens(tokenizer)
    assert (ids.bos, ids.pad) == (None, ids.eos)


def test_a_tokenizer_that_lacks_a_token_is_refused(tokenizer):
    with pytest.raises(CheckpointError, match="no <image> token: add it with"):
        token_ids(tokenizer)
    add_special_tokens(tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(CheckpointError, match="no end-of-sequence token"):
        token_ids(tokenizer)


@pytest.mark.parametrize("tied", [False, True])
def test_added_rows_are_the_mean_of_the_others(tokenizer, tied):
    ids = add_special_tokens(tokenizer)
    model = language_model(tie_word_embeddings=tied)
    old = [table.weight.detach().clone() for table in (model.get_input_embeddings(), model.get_output_embeddings())]
    extend_embeddings(model, ids, len(tokenizer))
    new = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    assert (new[0] is new[1]) is tied
    assert model.config.vocab_size == len(tokenizer)
    for before, after in zip(old, new, strict=True):
        assert torch.equal(after[: len(before)], before)
        for row in (ids.image, ids.voco):
            torch.testing.assert_close(after[row], before.mean(dim=0))


def test_a_table_larger_than_the_vocabulary_keeps_its_size(tokenizer):
    """Qwen pads its table; the padding rows are not part of the mean."""
    ids = add_special_tokens(tokenizer)
    model = language_model(vocab_size=320)
    before = model.get_input_embeddings().weight.detach().clone()
    extend_embeddings(model, ids, len(tokenizer))
    after = model.get_input_embeddings().weight
    assert after.shape[0] == model.config.vocab_size == 320
    torch.testing.assert_close(after[ids.voco], before[: ids.image].mean(dim=0))
    assert torch.equal(after[ids.voco + 1 :], before[ids.voco + 1 :])


def test_a_slow_tokenizer_is_refused(tokenizer):
    check_tokenizer(tokenizer)

    class Slow:
        is_fast = False

    with pytest.raises(SettingsError, match="Slow is a slow tokenizer"):
        check_tokenizer(Slow())


def test_the_authors_order_alone_has_tokens_inside_a_segment_beside_vision_and_voco(tokenizer):
    newline = tuple(tokenizer("\n", add_special_tokens=False)["input_ids"])
    assert {segment_affixes(tokenizer, order) for order in ORDERS if order != "authors"} == {((), ())}
    assert segment_affixes(tokenizer, "authors") == ((1,), newline)
    tokenizer.bos_token = None
    assert segment_affixes(tokenizer, "authors") == ((), newline)


# ---- another tokenizer than the one that is named


def stored(tokenizer, folder, tokenizer_class):
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": tokenizer_class}))
    return folder


@pytest.mark.parametrize("tokenizer_class", ["Qwen2Tokenizer", "GemmaTokenizer", "GPT2Tokenizer"])
def test_a_tokenizer_that_transformers_builds_anew_is_that_of_its_file(tokenizer_class, tmp_path):
    """Its class decides how text is cut, whatever tokenizer.json says."""
    folder = stored(llama_like_tokenizer(), tmp_path, tokenizer_class)
    for load in (load_tokenizer, lambda name: saved_tokenizer(folder, name)):
        with pytest.raises(CheckpointError, match=f"{tokenizer_class} reads 'USER.*otherwise than its tokenizer.json"):
            load(str(folder))


@pytest.mark.parametrize("tokenizer_class", ["PreTrainedTokenizerFast", "LlamaTokenizerFast", "UnheardOf"])
def test_one_that_reads_as_its_file_does_passes(tokenizer_class, tmp_path):
    for kind in (llama_like_tokenizer, tiny_tokenizer):
        folder = stored(kind(), tmp_path / kind.__name__, tokenizer_class)
        assert len(load_tokenizer(str(folder))) == len(saved_tokenizer(folder, "here"))


def test_a_file_that_cuts_texts_short_is_compared_whole(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(4)
    check_as_stored(load_tokenizer(str(stored(tokenizer, tmp_path, "GPT2Tokenizer"))), tmp_path)


def test_tokens_of_another_model_of_the_same_size_are_refused(tokenizer, tmp_path):
    """Merely added ones may differ, and a language model without a tokenizer beside it says nothing."""
    tokenizer.save_pretrained(tmp_path / "language")
    other = tiny_tokenizer()
    other.add_special_tokens({"extra_special_tokens": ["<other>"]})
    check_same_tokens(other, str(tmp_path / "language"), "here")
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    words = described["model"]["vocab"]
    words["A"], words["B"] = words["B"], words["A"]
    swapped = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(described)))
    check_same_tokens(swapped, str(tmp_path), "here")
    with pytest.raises(CheckpointError, match="here: 2 tokens have other ids .*language, first 'A' .36 instead of 35"):
        check_same_tokens(swapped, str(tmp_path / "language"), "here")
