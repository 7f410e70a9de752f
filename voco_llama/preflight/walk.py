"""One forward pass of a model on the meta device: which tensors there are, without their contents.

`VoCoLlama.forward` itself counts image tokens and picks trained ones, which takes contents; so its parts are called
here in its order, with the counts taken from a row laid out on the CPU.
"""

import torch
from torch import Tensor

from voco_llama.layout import SegmentMark, TextSpan, lay_out
from voco_llama.model.losses import Objective
from voco_llama.model.voco_llama import VoCoLlama
from voco_llama.tokens import IGNORE_INDEX
from voco_llama.visibility import TokenFacts


def walk(model: VoCoLlama, rows: int, segments: int, text: int, objective: Objective) -> dict[str, tuple[int, ...]]:
    """The shapes of a training pass whose text is all trained.

    Args:
        model: On the meta device.
        rows: Of the batch.
        segments: Of each row.
        text: Tokens of text in each row.
        objective: What is minimized; without a teacher.

    Returns:
        Name -> shape, in the order in which they come up.
    """
    config = model.config
    text_id = 0
    spans = [*[SegmentMark()] * segments, TextSpan((text_id,) * text, (True,) * text)]
    row = lay_out(spans, config.added_tokens, config.segment_shape(), config.condition)
    batch = row.repeated(rows)
    trained = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
    meta = {name: values.to("meta") for name, values in batch.items()}
    with torch.no_grad():
        shapes, embeddings = _embed(model, meta["input_ids"], rows * segments)
        facts = TokenFacts.of_batch(meta)
        mask = model.mask(facts, facts, config.condition, embeddings.dtype)
        hidden_states = model.decoder(
            inputs_embeds=embeddings, attention_mask=mask, position_ids=facts.position, use_cache=False
        ).last_hidden_state
        kept = hidden_states.flatten(0, 1)[:trained]
        targets = meta["labels"].flatten()[:trained]
        shapes |= {"mask": mask.shape, "hidden states": hidden_states.shape, "trained tokens": kept.shape}
        head = model.get_output_embeddings()
        logits = head(kept[: objective.chunk_size])
        shapes |= {"logits of a chunk": logits.shape, "loss": objective(head, kept, targets, trained).total.shape}
    return {name: tuple(shape) for name, shape in shapes.items()}


def _embed(model: VoCoLlama, input_ids: Tensor, images: int) -> tuple[dict[str, torch.Size], Tensor]:
    """Shapes of what images become, and the embeddings of the row with them."""
    embeddings = model.get_input_embeddings()(input_ids)
    shapes = {"token ids": input_ids.shape}
    if images:
        size = model.config.image_size
        pixel_values = torch.empty(images, 3, size, size, device="meta", dtype=embeddings.dtype)
        features = model.vision(pixel_values)
        shapes |= {"images": pixel_values.shape, "patch features": features.shape}
        if model.compressor is not None:
            features = model.compressor(features)
            shapes["compressed"] = features.shape
        features = model.projector(features).to(embeddings.dtype)
        shapes["projected"] = features.shape
        outside = model.config.compresses_outside
        places = input_ids == (model.config.voco_token_id if outside else model.config.image_token_id)
        embeddings = embeddings.masked_scatter(places[..., None], features)
    return shapes | {"embeddings": embeddings.shape}, embeddings
