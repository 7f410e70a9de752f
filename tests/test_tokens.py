"""The two added tokens: ids and embeddings."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.tiny import tiny_text_config, tiny_tokenizer
from voco_llama.choices import ORDERS
from voco_llama.errors import CheckpointError, SettingsError
from voco_llama.tokens import (
    IMAGE_TOKEN,
    VOCO_TOKEN,
    add_special_tokens,
    check_tokenizer,
    extend_embeddings,
    segment_affixes,
    token_ids,
)


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
