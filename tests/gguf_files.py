"""A tiny Llama as a GGUF file, written as llama.cpp's converter writes one."""

from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

from tests.tiny import tiny_tokenizer, unlike_its_start

CHAT_TEMPLATE = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}{% endfor %}"
HEADS, KV_HEADS = 4, 2
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def written_tokens() -> list[str]:
    """`<|endoftext|> <|im_start|> <|im_end|> <repo_name>`, every byte, and a few merges."""
    alphabet = tiny_tokenizer().get_vocab()
    of_bytes = [token for token in sorted(alphabet, key=alphabet.get) if not token.startswith("<")] + ["<"]
    return ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", *of_bytes, "ĠĠ", "ĊĊ", "Ġa", "ab"]


MERGES = ["Ġ Ġ", "Ċ Ċ", "Ġ a", "a b"]


def write_gguf(file: Path, tied: bool = True, **facts) -> LlamaForCausalLM:
    """Writes a random model; `facts` are metadata in place of its own (`.` written `__`). Returns the model."""
    import gguf

    tokens = written_tokens()
    config = LlamaConfig(
        vocab_size=len(tokens), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0}, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = unlike_its_start(LlamaForCausalLM(config)).eval()
    writer = gguf.GGUFWriter(file, facts.pop("general__architecture", "llama"))
    for add, value in (
        ("name", "tiny"), ("block_count", 2), ("context_length", 512), ("embedding_length", 32),
        ("feed_forward_length", 48), ("head_count", HEADS), ("head_count_kv", KV_HEADS), ("rope_freq_base", 1000.0),
        ("layer_norm_rms_eps", 1e-5), ("rope_dimension_count", 8), ("tokenizer_model", "gpt2"),
        ("tokenizer_pre", facts.pop("pre", "smollm")), ("token_list", tokens), ("token_merges", MERGES),
        ("token_types", [3] * 4 + [1] * (len(tokens) - 4)), ("bos_token_id", 1), ("eos_token_id", 2),
        ("unk_token_id", 0), ("pad_token_id", 2), ("add_bos_token", False), ("chat_template", CHAT_TEMPLATE),
    ):  # fmt: skip
        getattr(writer, f"add_{add}")(value)
    for key, value in facts.items():
        writer.add_string(key.replace("__", "."), value)
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        stem = name.removesuffix(".weight")
        part = stem.split(".", 3)[-1] if stem.startswith("model.layers.") else stem
        if (heads := {"self_attn.q_proj": HEADS, "self_attn.k_proj": KV_HEADS}.get(part)) is not None:
            tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        at = f"blk.{stem.split('.')[2]}." if part is not stem else ""
        writer.add_tensor(f"{at}{NAMES[part]}.weight", tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model
