"""`VoCoLlama`: vision tower, projector and a causal language model under the VoCo mask.

Two forwards. `forward` is one masked pass over laid-out rows (`voco_llama.layout`), for training. `compress` and
`generate` are inference in two steps: images to a `VoCoCache`, then text on top of it. The decoder's layers are
called, never copied; the mask reaches them ready-made.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME, ModelOutput

from voco_llama.choices import Condition
from voco_llama.configuration import VoCoLlamaConfig
from voco_llama.errors import CheckpointError, VoCoError
from voco_llama.hub import local_folder
from voco_llama.layout import voco_index
from voco_llama.llava_folder import is_llava
from voco_llama.model.compression import compress
from voco_llama.model.external import build_compressor
from voco_llama.model.fingerprint import fingerprint
from voco_llama.model.generation import generate
from voco_llama.model.language import check_language_config
from voco_llama.model.losses import Objective, language_model_loss
from voco_llama.model.projector import build_projector
from voco_llama.model.vision import VisionTower
from voco_llama.sharding import weights_are_divided
from voco_llama.tokens import IGNORE_INDEX
from voco_llama.visibility import BlockMask, TokenFacts, attention_mask, check_backend


@dataclass
class VoCoOutput(ModelOutput):
    """What one masked pass returns.

    Attributes:
        loss: Scalar, float32; None without labels.
        logits: `[kept, vocabulary]`: a row for each True of `logits_mask`, in row-major order.
        logits_mask: bool `[batch, length]`: the tokens whose next-token logits were computed.
        hidden_states: `[kept, hidden]`, what the head would read; only without logits.
        loss_lm: Scalar without gradient, the cross entropy in the loss; only with an objective.
        loss_kl: The same of the KL divergence; only with an objective that has a teacher.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    logits_mask: Tensor | None = None
    hidden_states: Tensor | None = None
    loss_lm: Tensor | None = None
    loss_kl: Tensor | None = None


class VoCoLlama(PreTrainedModel):
    """See the module. Build it with `voco_llama.model.checkpoints.build_model` or `from_pretrained`."""

    config_class = VoCoLlamaConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(
        self,
        config: VoCoLlamaConfig,
        language_model: PreTrainedModel | None = None,
        vision: VisionTower | None = None,
    ) -> None:
        super().__init__(config)
        self.vision = vision or VisionTower(config.vision_config, config.vision_layer)
        self.language_model = language_model or AutoModelForCausalLM.from_config(config.text_config)
        hidden_size = self.language_model.get_input_embeddings().embedding_dim
        self.projector = build_projector(config.projector_type, self.vision.width, hidden_size)
        self.compressor: nn.Module | None = None
        self.voco_offsets: nn.Embedding | None = None
        self.add_compression()
        check_language_config(self.language_model.config)
        if language_model is not None:  # its weights are what they should be: post_init must not touch them
            for module in language_model.modules():
                module._is_hf_initialized = True
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: tower, projector and language model initialize themselves when they are built."""

    def add_compression(self) -> None:
        """Build, with fresh weights, what the configuration's way of compressing needs beside the language model.

        That is an external compressor, and the offsets of distinct VoCo embeddings, which start at zero.
        """
        config, width = self.config, self.vision.width
        self.compressor = build_compressor(config.compressor, config.num_voco, width, config.q_former)
        self.voco_offsets = None
        if config.voco_embeddings == "distinct":
            self.voco_offsets = nn.Embedding(config.num_voco, self.get_input_embeddings().embedding_dim)
            self.voco_offsets._is_hf_initialized = True
            nn.init.zeros_(self.voco_offsets.weight)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> "VoCoLlama":
        """Load what `save_pretrained` wrote; keyword arguments as in transformers (`dtype`, `attn_implementation`).

        A LLaVA's folder is read by `from_llava`. A name `user/model` where no such folder is: a model of the hub.

        Raises:
            CheckpointError: The folder holds no `VoCoLlama`, or its weights are not this model's: a tensor is
                missing, unexpected, or of another shape.
        """
        folder = local_folder(folder)
        if folder.exists() and not (folder / CONFIG_NAME).is_file():
            raise CheckpointError(f"{folder}: has no {CONFIG_NAME}: give a folder that save_pretrained wrote")
        if kwargs.get("attn_implementation") is not None:
            check_backend(kwargs["attn_implementation"])
        if is_llava(folder):
            return cls.from_llava(folder, **kwargs)
        try:
            model, info = super().from_pretrained(folder, output_loading_info=True, **kwargs)
        except VoCoError:
            raise
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, StrictDataclassError) as error:
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}"
            raise CheckpointError(f"{folder}: cannot be loaded ({reason}): give the folder of a saved model") from error
        wrong = sorted([*info["missing_keys"], *info["unexpected_keys"], *map(str, info["mismatched_keys"])])
        if wrong:
            raise CheckpointError(
                f"{folder}: its weights are not this model's: {len(wrong)} tensors are missing, unexpected or of"
                f" another shape, first {', '.join(wrong[:3])}: the folder is damaged or its config.json was edited"
            )
        return model

    @classmethod
    def from_llava(
        cls,
        folder: str | Path,
        tokenizer: PreTrainedTokenizerBase | None = None,
        vision_tower: str | None = None,
        num_voco: int | None = None,
        condition: Condition | None = None,
        dtype: str | torch.dtype = "auto",
        attn_implementation: str = "sdpa",
    ) -> "VoCoLlama":
        """LLaVA-1.5, in its own layout or llava-hf's, or a VoCo-LLaMA of the authors.

        The processor that goes with it is `VoCoProcessor.from_llava` of the same folder and `num_voco`.

        Args:
            folder: With `config.json`, weights and tokenizer.
            tokenizer: In place of the folder's, as it was trained with; left as it is.
            vision_tower: In place of the tower that the folder names, if that is neither a known one nor a folder.
            num_voco: VoCo tokens of a segment; None: 1 where the folder is of condition `voco`, else 0.
            condition: None: `voco` where the tokenizer has `<voco>` (the authors' checkpoints), else `full`.
            dtype: Of the weights; `auto`: as stored.
            attn_implementation: One of `voco_llama.choices.BACKENDS`.

        Raises:
            CheckpointError: The folder is no such model, is damaged, or is one that ours cannot be.
        """
        from voco_llama.model.llava import load_llava

        return load_llava(
            local_folder(folder), tokenizer, vision_tower, num_voco, condition, dtype, attn_implementation
        )

    # ---- the language model's parts

    @property
    def decoder(self) -> nn.Module:
        """The language model without its head."""
        return self.language_model.get_decoder()

    @property
    def attention_backend(self) -> str:
        """Name of the attention implementation, one of `voco_llama.choices.BACKENDS`."""
        return self.language_model.config._attn_implementation

    def get_input_embeddings(self) -> nn.Module:
        """The language model's token embeddings."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token embeddings."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's head."""
        self.language_model.set_output_embeddings(value)

    # ---- one masked pass

    def forward(
        self,
        input_ids: Tensor,
        segment: Tensor,
        voco: Tensor,
        position: Tensor,
        document: Tensor,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        logits_mask: Tensor | None = None,
        condition: Condition | None = None,
        objective: Objective | None = None,
        with_logits: bool = True,
    ) -> VoCoOutput:
        """One masked pass over laid-out rows.

        The language-model head runs only where its output is needed: where the next token has a label, or where
        `logits_mask` asks for it, or, with neither, on every text token.

        Args:
            input_ids, segment, voco, position, document: `[batch, length]`, from `voco_llama.layout`.
            pixel_values: `[images, 3, height, width]`, the batch's images in row order.
            labels: `[batch, length]`, -100 where not trained; `labels[t]` is the id of token t, unshifted.
            num_items_in_batch: Trained tokens in the global batch (all processes and accumulation steps). The loss
                is the summed cross entropy divided by it; without it, by the trained tokens of this batch.
            logits_mask: bool `[batch, length]`: the tokens whose next-token logits are wanted.
            condition: Overrides the configuration's.
            objective: Makes the loss instead, from the trained tokens' hidden states, and leaves no logits.
            with_logits: False: return the hidden states that the head would read, and do not run it.

        Raises:
            ValueError: The images do not fill the rows' image tokens, or an objective is given
                without labels or with a `logits_mask`.
        """
        if objective is not None and (labels is None or logits_mask is not None):
            raise ValueError("an objective is about the trained tokens: pass labels and no logits_mask")
        facts = TokenFacts.of_rows(segment, voco, document)
        embeddings = self.embed(input_ids, pixel_values)
        mask = self.mask(facts, facts, condition or self.config.condition, embeddings.dtype)
        hidden_states = self.decoder(
            inputs_embeds=embeddings, attention_mask=mask, position_ids=position, use_cache=False
        ).last_hidden_state
        targets = None
        if labels is not None:
            targets = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
        if logits_mask is None:
            logits_mask = (targets != IGNORE_INDEX) if targets is not None else (segment == 0) & (document >= 0)
        kept = hidden_states[logits_mask]
        if not with_logits:
            return VoCoOutput(logits_mask=logits_mask, hidden_states=kept)
        head = self.get_output_embeddings()
        if objective is not None:
            losses = objective(head, kept, targets[logits_mask], num_items_in_batch)
            return VoCoOutput(loss=losses.total, logits_mask=logits_mask, loss_lm=losses.lm, loss_kl=losses.kl)
        logits = head(kept)
        loss = None
        if targets is not None:
            loss = language_model_loss(logits, targets[logits_mask], num_items_in_batch)
        return VoCoOutput(loss=loss, logits=logits, logits_mask=logits_mask)

    def mask(self, query: TokenFacts, key: TokenFacts, condition: Condition, dtype: torch.dtype) -> Tensor | BlockMask:
        """The mask for this model's attention backend and segment attention (`visibility.attention_mask`)."""
        return attention_mask(self.attention_backend, query, key, condition, dtype, self.config.segment_attention)

    def embed(self, input_ids: Tensor, pixel_values: Tensor | None = None) -> Tensor:
        """Token embeddings with the projected patch features in the places of the image tokens.

        An external compressor's tokens take the places of the VoCo tokens instead. In training, and always under
        ZeRO-3, the vision tower and the projector run even if no row has an image (on a blank one, whose features
        enter with weight 0): every process must touch the same parameters in the same order, or ZeRO-3 and DDP wait
        for each other forever.

        Args:
            input_ids: `[batch, length]`.
            pixel_values: `[images, 3, height, width]`, in the row-major order of their tokens.

        Returns:
            `[batch, length, hidden]`.
        """
        embeddings = self.get_input_embeddings()(input_ids)
        if self.voco_offsets is not None:
            index = voco_index(input_ids == self.config.voco_token_id)
            offsets = self.voco_offsets(index.clamp(min=0)).to(embeddings.dtype)
            embeddings = embeddings + offsets * (index >= 0)[..., None]
        outside = self.config.compresses_outside
        is_image = input_ids == (self.config.voco_token_id if outside else self.config.image_token_id)
        num_images = 0 if pixel_values is None else pixel_values.shape[0]
        self._check_counts(int(is_image.sum()), num_images)
        if num_images == 0 and not (self.training or weights_are_divided()):
            return embeddings
        if num_images == 0:
            size = self.config.image_size
            pixel_values = torch.zeros(1, 3, size, size, device=embeddings.device, dtype=embeddings.dtype)
        features = self.vision(pixel_values)
        if self.compressor is not None:
            features = self.compressor(features)
        features = self.projector(features).to(embeddings.dtype)
        if num_images == 0:
            return embeddings + 0.0 * features.sum()
        return embeddings.masked_scatter(is_image[..., None], features)

    def _check_counts(self, num_image_tokens: int, num_images: int) -> None:
        config = self.config
        per_image = config.num_voco if config.compresses_outside else config.num_vision_tokens
        expected = num_images * per_image
        if num_image_tokens != expected:
            raise ValueError(
                f"the rows have {num_image_tokens} image tokens, but {num_images} images of {per_image} tokens fill"
                f" {expected}: pass the images the rows were laid out for"
            )

    # ---- two steps: compress, then read

    compress = compress
    generate = generate

    def cache_shape(self) -> tuple[int, int, int, int, int]:
        """Shape of the keys of a cache of one entry: layers, 1, key-value heads, N, head dimension."""
        text = self.language_model.config
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return text.num_hidden_layers, 1, text.num_key_value_heads, self.config.num_voco, head_dim

    @property
    def inverse_frequency(self) -> Tensor:
        """`[head_dim / 2]`, float32: the rotary frequencies by which keys are moved."""
        return self.decoder.rotary_emb.inv_freq

    def fingerprint(self) -> str:
        """A hash of what a cache depends on (`voco_llama.model.fingerprint`)."""
        return fingerprint(self)
