"""One training step as the authors' code takes it: what ours is compared with.

Padded rows, in which every conversation has its images encoded and computed anew; a dense additive mask over all pairs
of a row, which rules fused causal attention out; float32 logits at every position, padding and vision tokens included.
Tower, layers and head are the model's own, so that the ways differ, and nothing else does.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from voco_llama.model.voco_llama import VoCoLlama
from voco_llama.tokens import IGNORE_INDEX
from voco_llama.visibility import FACTS, TokenFacts, attention_mask


def authors_loss(model: VoCoLlama, rows: dict[str, Tensor], pixel_values: Tensor) -> Tensor:
    """The loss of a batch, a scalar.

    Args:
        model: In training.
        rows: Fields of `Row`, each `[rows, length]`.
        pixel_values: `[images of all rows, 3, height, width]`, in the order of the rows.
    """
    embeddings = model.embed(rows["input_ids"], pixel_values)
    facts = TokenFacts.of_batch({name: rows[name] for name in FACTS})
    mask = attention_mask("eager", facts, facts, "voco", embeddings.dtype)
    hidden_states = model.decoder(
        inputs_embeds=embeddings, attention_mask=mask, position_ids=facts.position, use_cache=False
    ).last_hidden_state
    logits = model.get_output_embeddings()(hidden_states).to(torch.float32)
    before, after = logits[:, :-1].flatten(0, 1), rows["labels"][:, 1:].flatten()
    return cross_entropy(before, after, ignore_index=IGNORE_INDEX)
