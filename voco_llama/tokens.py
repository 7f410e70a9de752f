"""The two tokens added to a vocabulary, `<image>` and `<voco>`, and the ids the project uses.

`<voco>` is one vocabulary row, whatever the number of VoCo tokens a segment has. `<image>` only marks the places
that projected vision features fill; its own embedding is never read. Both are added once, here, and their ids
are resolved once, here.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import cached_file

from voco_llama.choices import Order
from voco_llama.errors import CheckpointError, SettingsError, refused_as
from voco_llama.hub import is_hub_name
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


def check_as_stored(tokenizer: PreTrainedTokenizerBase, name: str | Path) -> None:
    """Refuse a tokenizer that reads text otherwise than its own `tokenizer.json`, which its model was trained with.

    transformers builds some tokenizers anew of their vocabulary, as `tokenizer_class` in tokenizer_config.json says,
    whatever the file holds.

    Args:
        tokenizer: Read from there.
        name: A folder, or a model of the hub.

    Raises:
        CheckpointError: It says what to do.
    """
    if type(tokenizer) is PreTrainedTokenizerFast:  # takes the file as it is
        return
    stored = _stored_tokenizer(name)
    if stored is None:
        return
    stored.no_truncation()
    stored.no_padding()
    for text in _PROBES:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if ids != stored.encode(text, add_special_tokens=False).ids:
            raise CheckpointError(
                f"{name}: transformers' {type(tokenizer).__name__} reads {text!r} otherwise than its tokenizer.json: "
                'write "tokenizer_class": "PreTrainedTokenizerFast" into tokenizer_config.json'
            )


def _stored_tokenizer(name: str | Path) -> Tokenizer | None:
    """What the `tokenizer.json` of a folder, or of a model of the hub, holds; None: there is none, or none is here."""
    if not Path(name).is_dir() and not is_hub_name(name):
        return None
    kinds = ("gated_repo", "missing_entries", "connection_errors")
    quietly = dict.fromkeys((f"_raise_exceptions_for_{kind}" for kind in kinds), False)
    file = cached_file(name, "tokenizer.json", **quietly)
    return None if file is None else Tokenizer.from_file(file)


_PROBES = ("USER: What is in the image?", "Two  blanks, 2024\n\tand a tab", "Éa naïve café – 東京 🙂")
"""Texts that tell one kind of tokenizer from another; none spells out a special token."""


def check_same_tokens(tokenizer: PreTrainedTokenizerBase, language: str, where: str) -> None:
    """Refuse a tokenizer whose ids are other tokens than in the `tokenizer.json` beside the language model's weights.

    Tokens that were added to the one or the other are left out: they may be renamed. Merges are not compared.

    Args:
        tokenizer: The one named.
        language: Folder, or name on the hub, of the language model.
        where: What messages call the tokenizer.

    Raises:
        CheckpointError: It names a token.
    """
    with refused_as(CheckpointError, f"model.language: {language}: its tokenizer.json", "get it again"):
        stored = _stored_tokenizer(language)
    if stored is None:
        return
    theirs = stored.get_vocab(with_added_tokens=False)
    ours = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    differ = sorted((index, token) for token, index in theirs.items() if ours.get(token) != index)
    if differ:
        index, token = differ[0]
        raise CheckpointError(
            f"{where}: {len(differ)} tokens have other ids than in the tokenizer of {language}, first {token!r}"
            f" ({ours.get(token)} instead of {index}): it is another model's; leave model.tokenizer out"
        )


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
