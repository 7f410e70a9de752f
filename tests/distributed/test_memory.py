"""What a process holds, when all is built, of a model that is frozen but for its projector: its piece where weights are
divided, and never gradients, moments or float32 copies of what does not train.
"""

import json

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.distributed.launch import launch
from tests.tiny import tiny_text_config
from voco_llama.configuration import VoCoLlamaConfig
from voco_llama.data.processor import VoCoProcessor
from voco_llama.model.voco_llama import VoCoLlama

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

WHOLE, PIECE = (0.98, 1.1), (0.45, 0.65)
"""Bytes that a process holds, in those of the model in 16 bits, from and to; a layer is 1/16 of it."""
HELD = {"gpu_bf16": WHOLE, "zero1": WHOLE, "zero2": WHOLE, "zero3": PIECE, "fsdp2": PIECE}
LENT = {"zero3": ["trainer.deepspeed.zero_optimization.stage3_param_persistence_threshold=0"]}


@pytest.fixture(scope="module")
def large(start, tmp_path_factory):
    """A folder with a model in bf16 that is mostly layers, and the number of its parameters."""
    folder, processor = tmp_path_factory.mktemp("large"), VoCoProcessor.from_pretrained(start)
    config = VoCoLlamaConfig.from_pretrained(start)
    words = config.text_config.vocab_size
    text = tiny_text_config(16, vocab_size=words, hidden_size=64, intermediate_size=192)
    model = VoCoLlama.from_parts(
        LlamaForCausalLM(text), config.vision_config, None, processor.tokens, words, processor.segment_shape()
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("group", HELD)
def test_what_is_frozen_is_held_once_or_in_pieces(overrides, large, group):
    start, count = large
    settings, folder = overrides(f"held_{group}", 2, f"trainer={group}", "stage=align", "compression=full", start=start)
    settings += [
        "trainer.per_device_train_batch_size=1",
        "trainer.bf16=true",
        "model.dtype=bfloat16",
        "trainer.max_steps=1",
        *LENT.get(group, []),
    ]
    launch(2, ["train", *settings], COUNT_BYTES="1").check()
    least, most = HELD[group]
    for rank in range(2):
        held = json.loads((folder / f"bytes_{rank}.json").read_text())
        assert least < held / (2 * count) < most
