"""The two tokens added to a vocabulary, `<image>` and `<voco>`, and the ids the project uses.

`<voco>` is one vocabulary row, whatever the number of VoCo tokens a segment has. `<image>` only marks the places
that projected vision features fill; its own embedding is never read. Both are added once, here, and their ids
are resolved once, here.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from voco_llama.choices import Order
from voco_llama.errors import CheckpointError, SettingsError
from voco_llama.sharding import whole

IMAGE_TOKEN = "<image>"
VOCO_TOKEN = "<voco>"
IGNORE_INDEX = -100
"""Label of a token that is not trained on; the value PyTorch's cross entropy ignores."""

MAX_SPARE_ROWS = 1024
"""Rows that a table of embeddings may have beyond its tokenizer: tables are padded to round sizes (Qwen2's by 418)."""


@dataclass(frozen=True)
class AddedTokens:
    """Ids of the two added tokens, all that a segment is made of."""

    image: int
    voco: int


@dataclass(frozen=True)
class TokenIds(AddedTokens):
    """Ids in one tokenizer. `bos` is None for a tokenizer without one (Qwen)."""

    bos: int | None
    eos: int
    pad: int


def token_ids(tokenizer: PreTrainedTokenizerBase) -> TokenIds:
    """Resolve the ids of a tokenizer that already has both tokens.

    Raises:
        CheckpointError: The tokenizer lacks `<image>`, `<voco>` or an end-of-sequence token.
    """
    vocabulary = tokenizer.get_vocab()
    for token in (IMAGE_TOKEN, VOCO_TOKEN):
        if token not in vocabulary:
            raise CheckpointError(
                f"the tokenizer has no {token} token: add it with voco_llama.tokens.add_special_tokens"
            )
    if tokenizer.eos_token_id is None:
        raise CheckpointError("the tokenizer has no end-of-sequence token: set tokenizer.eos_token")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return TokenIds(
        vocabulary[IMAGE_TOKEN], vocabulary[VOCO_TOKEN], tokenizer.bos_token_id, tokenizer.eos_token_id, pad
    )


def add_special_tokens(tokenizer: PreTrainedTokenizerBase) -> TokenIds:
    """Add `<image>` and `<voco>` to the tokenizer if they are not there, and resolve all ids."""
    missing = [token for token in (IMAGE_TOKEN, VOCO_TOKEN) if token not in tokenizer.get_vocab()]
    if missing:
        tokenizer.add_special_tokens({"extra_special_tokens": missing}, replace_extra_special_tokens=False)
    return token_ids(tokenizer)


def segment_affixes(tokenizer: PreTrainedTokenizerBase, order: Order) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids before the vision tokens of a segment, and those between them and its VoCo tokens.

    Order `authors` has BOS and a newline inside the segment, others nothing.
    """
    if order != "authors":
        return (), ()
    newline = tokenizer("\n", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,), tuple(newline)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that cannot say where a token stands in its text.

    Raises:
        SettingsError: It is a slow tokenizer.
    """
    if not tokenizer.is_fast:
        raise SettingsError(f"{type(tokenizer).__name__} is a slow tokenizer: use the fast one of the same model")


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, num_rows: int, where: str) -> None:
    """Refuse a tokenizer, with or without tokens of ours, that is not the language model's.

    Args:
        num_rows: Of the table of embeddings.
        where: What messages call the two.

    Raises:
        CheckpointError: Tokens have no row, or more rows have no token than padding explains.
    """
    ids = (index for token, index in tokenizer.get_vocab().items() if token not in (IMAGE_TOKEN, VOCO_TOKEN))
    vocab_size = max(ids) + 1
    if not 0 <= num_rows - vocab_size <= MAX_SPARE_ROWS:
        raise CheckpointError(
            f"{where}: the tokenizer has {vocab_size} tokens and the language model {num_rows} embeddings: they are not"
            " of the same model; give the tokenizer that it was trained with"
        )


@torch.no_grad()
def extend_embeddings(
    language_model: PreTrainedModel, ids: AddedTokens, vocab_size: int, new_tokens: Collection[int] | None = None
) -> None:
    """Make room for the added tokens and set their rows to the mean of all other rows.

    A language model whose table is already larger than its vocabulary (Qwen pads it) keeps its size. Tied output
    embeddings follow by themselves; untied ones get the mean of their own rows.

    Args:
        language_model: Changed in place.
        ids, vocab_size: Of the added tokens, and length of the tokenizer with them.
        new_tokens: Those of the two that have no row worth keeping; None: both. A checkpoint that already knows
            `<voco>` keeps its row.
    """
    new_tokens = (ids.image, ids.voco) if new_tokens is None else tuple(new_tokens)
    if language_model.get_input_embeddings().num_embeddings < vocab_size:  # ZeRO-3 leaves the weight itself empty
        language_model.resize_token_embeddings(vocab_size, mean_resizing=False)
    tables = [language_model.get_input_embeddings().weight]
    head = language_model.get_output_embeddings()
    if head is not None and head.weight is not tables[0]:
        tables.append(head.weight)
    for table in tables:
        with whole(table, changed=True) as is_writer:
            if is_writer and new_tokens:
                known = torch.arange(table.shape[0], device=table.device) < vocab_size
                known[list(new_tokens)] = False
                table[list(new_tokens)] = table[known].float().mean(dim=0).to(table.dtype)
