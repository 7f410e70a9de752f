"""Condition `full` without VoCo tokens is LLaVA: the logits of transformers' own implementation."""

import pytest
import torch
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

from tests.model.rows import asked, batch_of, random_images, two_step_logits
from tests.parity.convert import below, load_parts, vision_to_open_clip
from tests.tiny import IMAGE_SIZE, PATCH_SIZE, VISION_CONFIG, tiny_model, tiny_processor, tiny_text_config

TEXTS = ("<image>\nWhat is it?", "<image>\nIs it red, or is it\nblue?")


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(num_voco=0, condition="full", order="llava")


@pytest.fixture(scope="module")
def llava(processor):
    vision = VISION_CONFIG["vision_cfg"]
    vision_config = CLIPVisionConfig(
        hidden_size=vision["width"],
        intermediate_size=int(vision["width"] * vision["mlp_ratio"]),
        num_hidden_layers=vision["layers"],
        num_attention_heads=vision["width"] // vision["head_width"],
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_act="quick_gelu",
        projection_dim=VISION_CONFIG["embed_dim"],
        initializer_factor=10.0,  # else the features hardly depend on the image
    )
    config = LlavaConfig(
        vision_config=vision_config,
        text_config=tiny_text_config(vocab_size=len(processor.tokenizer)),
        image_token_id=processor.tokens.image,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def ours(processor, llava):
    weights = llava.state_dict()
    model = tiny_model(processor)
    tower = below(weights, "model.vision_tower.")
    tower = below(tower, "vision_model.") or tower  # the versions of transformers differ
    vision = vision_to_open_clip(tower, VISION_CONFIG["vision_cfg"]["layers"], VISION_CONFIG["embed_dim"])
    projector = tuple(below(weights, f"model.multi_modal_projector.linear_{place}.") for place in (1, 2))
    language = {f"model.{name}": tensor for name, tensor in below(weights, "model.language_model.").items()}
    load_parts(model, vision, projector, language | {"lm_head.weight": weights["lm_head.weight"]})
    return model


@pytest.fixture(scope="module")
def pixels(processor):
    return processor.pixels(random_images(2))


@torch.no_grad()
def test_patch_features(llava, ours, pixels):
    theirs = llava.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    torch.testing.assert_close(ours.vision(pixels), theirs, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_logits_of_a_batch_padded_left(processor, llava, ours, pixels):
    batch = batch_of(processor, [processor.lay_out(asked(text)) for text in TEXTS], "left")
    real = batch["document"] >= 0
    assert not real.all()
    their_logits = llava(input_ids=batch["input_ids"], attention_mask=real.long(), pixel_values=pixels).logits
    our_logits = ours(**batch, pixel_values=pixels, logits_mask=real).logits
    torch.testing.assert_close(our_logits, their_logits[real], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        two_step_logits(ours, batch, pixel_values=pixels), their_logits[:, -1], atol=1e-4, rtol=1e-4
    )


def test_generation(processor, llava, ours, pixels):
    batch = batch_of(processor, [processor.lay_out(asked(text)) for text in TEXTS], "left")
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    attended = (batch["document"] >= 0).long()
    theirs = llava.generate(input_ids=batch["input_ids"], attention_mask=attended, pixel_values=pixels, **options)
    mine = ours.generate(**batch, pixel_values=pixels, **options)
    assert torch.equal(mine, theirs[:, batch["input_ids"].shape[1] :])
