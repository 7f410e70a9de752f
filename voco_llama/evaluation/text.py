"""`evaluate_text`: the loss of a language model on plain text, to say what a training has left of it.

Text is cut into windows, each `stride` tokens after the one before; of each the tokens are predicted that no earlier
window has predicted, so that every token but the first of a file is predicted once:

    tokens   0 1 2 3 4 5 6 7 8 9      window 6, stride 3
    first    . 1 1 1 1 1              1 = predicted, . = only read
    second         . . . 1 1 1
    third            . . . . . 1      the last one reaches back, to be as long as the others

After a training the softmax has two rows more than before it: the added tokens. So that the two can be compared, it is
over the tokens of the language model's own tokenizer: those two, and rows that pad the table, are left out.
"""

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from voco_llama.choices import DTYPES, require_choice
from voco_llama.config_files import EVAL_DIR
from voco_llama.configuration import VoCoLlamaConfig, max_positions
from voco_llama.errors import CheckpointError, DataError, SettingsError, refused_as, require
from voco_llama.evaluation.results import (
    BITS_PER_BYTE,
    NATS_PER_TOKEN,
    TEXT_KIND,
    TEXT_RATES,
    check_overwrites,
    check_row_name,
    part,
    result_file,
    write_result,
)
from voco_llama.evaluation.run import describe_run
from voco_llama.inference import Inference, checkpoint_fingerprint, find_device
from voco_llama.llava_folder import check_is_model, is_llava, load_tokenizer, read_config
from voco_llama.model.language import build_language_model
from voco_llama.provenance import fingerprint_files
from voco_llama.tokens import IMAGE_TOKEN, VOCO_TOKEN, check_tokenizer, check_vocabulary

logger = logging.getLogger(__name__)

TEXTS_DIR = EVAL_DIR / "texts"


@dataclass(frozen=True)
class EvaluateTextSettings:
    """What to evaluate.

    Attributes:
        checkpoint: Folder of a saved model of ours or a LLaVA, or of a language model of transformers.
        output: Folder of the result file, `<row>.text.json`.
        row: The row's name in the report.
        texts: Files of plain text; empty: those of `eval/texts`.
        window: Tokens that the model reads at a time.
        stride: Of a window after the first, the tokens that are predicted.
        device: None: the GPU if there is one.
        dtype: Of the weights; `auto`: as saved.
        seed: Of the training that made the checkpoint; it changes nothing here.
        overwrite: Write over a result of another checkpoint, other texts or windows.
    """

    checkpoint: Path
    output: Path
    row: str
    texts: list[Path] = field(default_factory=list)
    window: int = 512
    stride: int = 256
    device: str | None = None
    dtype: str = "auto"
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_row_name(self.row)
        require(self.window >= 2, f"window must be at least 2, not {self.window}: one token has nothing before it")
        require(1 <= self.stride < self.window, f"stride must be from 1 to {self.window - 1}, not {self.stride}")
        require_choice("dtype", self.dtype, ("auto", *DTYPES, "float64"))


class Window(NamedTuple):
    """Tokens `begin` to `end` are read, and those from `predicted` on predicted."""

    begin: int
    predicted: int
    end: int


def evaluate_text(settings: EvaluateTextSettings) -> Path:
    """Compute the loss on each text and on all together, and write the result.

    Returns:
        The result file. Beside it lies the loss of each window, one JSON line each.

    Raises:
        CheckpointError: The checkpoint cannot be loaded, or its loss is no number.
        DataError: A text cannot be read, or has fewer than two tokens.
        SettingsError: There is no text, a text is no file, the window is longer than the model can read, or a result
            of another evaluation is there.
    """
    started = time.monotonic()
    files = _files(settings.texts)
    texts = {file.stem: _read(file) for file in files}
    check_is_model(settings.checkpoint)
    facts = {
        "window": settings.window,
        "stride": settings.stride,
        "data_fingerprint": fingerprint_files(files),
        "checkpoint_fingerprint": checkpoint_fingerprint(settings.checkpoint),
    }
    if not settings.overwrite:
        there = result_file(settings.output, TEXT_KIND, settings.row)
        now = {**facts, "dtype": settings.dtype}
        check_overwrites(there, lambda old: ({k: (old | part(old, "settings")).get(k) for k in now}, now))
    model, tokenizer = load_language_model(settings.checkpoint, settings.device, settings.dtype)
    limit = max_positions(model.config)
    if limit is not None and settings.window > limit:
        raise SettingsError(f"window={settings.window}: the model was made for {limit} tokens: set window to that")
    measured, lines = {}, []
    for name, text in texts.items():
        measured[name], windows = measure(model, tokenizer, text, settings.window, settings.stride, name)
        lines += windows
        logger.info("%s: %.4f nats a token, %.4f bits a byte", name, *(measured[name][k] for k in TEXT_RATES))
    result = {
        **facts,
        **together(measured.values()),
        "texts": measured,
        "vocabulary": int(own_rows(model, tokenizer).sum()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "limit": None,
        **describe_run(settings, started),
    }
    return write_result(settings.output, TEXT_KIND, settings.row, result, lines)


SUMS = ("nats", "tokens", "bytes")


def together(measured: Any) -> dict[str, float]:
    """Sums over texts, and the rates that follow."""
    sums = {key: sum(one[key] for one in measured) for key in SUMS}
    return {**sums, **_rates(**sums)}


def _rates(nats: float, tokens: int, bytes: int) -> dict[str, float]:
    return {NATS_PER_TOKEN: nats / tokens, BITS_PER_BYTE: nats / math.log(2) / bytes}


def windows(length: int, window: int, stride: int) -> Iterator[Window]:
    """The windows over so many tokens, at least 2."""
    yield Window(0, 1, min(window, length))
    for predicted in range(window, length, stride):
        end = min(predicted + stride, length)
        yield Window(end - window, predicted, end)


@torch.inference_mode()
def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, window: int, stride: int, name: str = "text"
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The loss on a text: sums and rates, and a line for each window.

    Special tokens that the text spells out are text. `bytes` are those of the characters after the first token's.

    Raises:
        CheckpointError: A loss is no number.
        DataError: It has fewer than two tokens.
    """
    encoded = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
    )
    ids = torch.tensor(encoded["input_ids"], device=model.device)
    if len(ids) < 2:
        raise DataError(f"{name}: has {len(ids)} tokens: give a text of two or more")
    rows, lines = own_rows(model, tokenizer), []
    for begin, predicted, end in windows(len(ids), window, stride):
        kept = end - predicted
        logits = model(ids[None, begin:end], use_cache=False, logits_to_keep=kept + 1).logits[0, :-1]
        nats = cross_entropy(logits.double().masked_fill(~rows, -math.inf), ids[predicted:end], reduction="sum").item()
        if not math.isfinite(nats):
            raise CheckpointError(
                f"{name}: the loss from token {predicted} on is {nats}: the model's weights are damaged"
            )
        lines.append({"text": name, "first": predicted, "tokens": kept, "nats": nats})
    sums = {
        "nats": math.fsum(line["nats"] for line in lines),
        "tokens": len(ids) - 1,
        "bytes": len(text[encoded["offset_mapping"][0][1] :].encode()),
    }
    return {**sums, **_rates(**sums)}, lines


def own_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Which `[rows of the head]` are tokens of the tokenizer, the two that we add left out."""
    rows = torch.zeros(model.get_output_embeddings().weight.shape[0], dtype=torch.bool, device=model.device)
    ids = [id for token, id in tokenizer.get_vocab().items() if token not in (IMAGE_TOKEN, VOCO_TOKEN)]
    rows[ids] = True
    return rows


def load_language_model(
    folder: Path, device: str | None, dtype: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The language model of a saved model of ours or a LLaVA, or one by itself, and its tokenizer.

    Raises:
        CheckpointError: It cannot be loaded.
        SettingsError: There is no such device.
    """
    if read_config(folder).get("model_type") == VoCoLlamaConfig.model_type or is_llava(folder):
        inference = Inference.load(folder, device, dtype)
        return inference.model.language_model, inference.processor.tokenizer
    usable = find_device(device)
    with refused_as(CheckpointError, folder, "give a folder with config.json, weights and tokenizer"):
        model = build_language_model(str(folder), None, "sdpa", "auto" if dtype == "auto" else getattr(torch, dtype))
    tokenizer = load_tokenizer(folder, str(folder))
    check_tokenizer(tokenizer)
    check_vocabulary(tokenizer, model.get_input_embeddings().num_embeddings, str(folder))
    return model.to(usable).eval(), tokenizer


def _files(given: list[Path]) -> list[Path]:
    files = given or sorted(TEXTS_DIR.glob("*.txt"))
    for file in files:
        require(file.is_file(), f"texts: {file} is no file (from {Path.cwd()}): check its name")
    stems = [file.stem for file in files]
    require(len(set(stems)) == len(stems), f"texts: two are named alike ({', '.join(sorted(stems))}): rename one")
    return files


def _read(file: Path) -> str:
    with refused_as(DataError, file, "give a text file in UTF-8"):
        text = file.read_bytes().decode("utf-8")
        if not text.strip():
            raise ValueError("it is empty")
        if "\0" in text:
            raise ValueError("it holds bytes of 0, as no text does")
    return text
