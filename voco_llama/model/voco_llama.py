"""`VoCoLlama`: vision tower, projector and a causal language model under the VoCo mask.

`forward` is one pass over laid-out rows (`voco_llama.layout`), for training: masked, which is the definition, or in two
steps, which computes the same and nothing twice. `compress` and `generate` are inference in two steps: images to a
`VoCoCache`, then text on top of it. The decoder's layers are called, never copied.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import ModelOutput

from voco_llama.choices import Condition
from voco_llama.configuration import VoCoLlamaConfig
from voco_llama.errors import CheckpointError
from voco_llama.layout import HostRows, next_tokens
from voco_llama.model.cache import fingerprint
from voco_llama.model.generation import VoCoGeneration
from voco_llama.model.language import check_language_config
from voco_llama.model.loading import LoadingMixin
from voco_llama.model.losses import Objective
from voco_llama.model.parts import VisionTower, build_compressor, build_projector
from voco_llama.model.passes import VoCoPasses
from voco_llama.model.reconstruction import ReconstructionDecoder
from voco_llama.tokens import IGNORE_INDEX
from voco_llama.visibility import FACTS, check_facts


@dataclass
class VoCoOutput(ModelOutput):
    """What one pass returns.

    Attributes:
        loss: Scalar, float32; None without labels.
        logits: `[kept, vocabulary]`: a row for each True of `logits_mask`, in row-major order.
        logits_mask: bool `[batch, length]`: the tokens whose next-token logits were computed.
        hidden_states: `[kept, hidden]`, what the head would read; only without loss and logits.
        loss_lm: Scalar without gradient, the cross entropy in the loss.
        loss_kl: The same of the KL divergence; only with an objective that has a teacher.
        loss_reconstruction: The same of the reconstruction; only with an objective, of a model that has its decoder.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    logits_mask: Tensor | None = None
    hidden_states: Tensor | None = None
    loss_lm: Tensor | None = None
    loss_kl: Tensor | None = None
    loss_reconstruction: Tensor | None = None


class VoCoLlama(LoadingMixin, VoCoGeneration, VoCoPasses, PreTrainedModel):
    """See the module. Build it with `from_pretrained`, `from_llava` or `from_parts`."""

    config_class = VoCoLlamaConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    _no_split_modules = (
        "VisionTower",
        "ResidualAttentionBlock",
        "Blip2QFormerLayer",
    )  # besides layers
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
        self.language_model = language_model or AutoModelForCausalLM.from_config(
            config.text_config, trust_remote_code=False
        )
        words = self.language_model.get_input_embeddings()
        words.padding_idx = None  # else a pad token that ends turns too (SmolLM2's) would not learn as what is read
        hidden_size = words.embedding_dim
        self.projector = build_projector(config.projector_type, self.vision.width, hidden_size)
        self.compressor: nn.Module | None = None
        self.voco_offsets: nn.Embedding | None = None
        self.reconstruction: ReconstructionDecoder | None = None
        self.add_compression()
        if config.reconstruction:
            self.add_reconstruction()
        check_language_config(self.language_model.config)
        self.end_answers_at()
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

    def add_reconstruction(self) -> None:
        """Build, with fresh weights, the decoder of the reconstruction in training; it is a part of the model then."""
        hidden_size = self.get_input_embeddings().embedding_dim
        self.reconstruction = ReconstructionDecoder(hidden_size, self.config.num_vision_tokens)
        self.config.reconstruction = True

    def remove_reconstruction(self) -> None:
        """Leave the decoder away, if there is one."""
        self.reconstruction, self.config.reconstruction = None, False

    def end_answers_at(self, *ids: int | Sequence[int] | None) -> None:
        """Have answers end at these tokens besides those at which they end already; the configuration keeps them.

        Raises:
            CheckpointError: One is no id.
        """
        text, generation = self.language_model.config, self.language_model.generation_config
        ends: list[int] = []
        for given in (*ids, self.config.eos_token_id, text.eos_token_id, generation.eos_token_id):
            ends += [given] if isinstance(given, int) else given or []
        if not all(isinstance(end, int) for end in ends):
            raise CheckpointError(f"eos_token_id is {ends}: give token ids")
        ends = list(dict.fromkeys(ends))
        self.config.eos_token_id = generation.eos_token_id = ends[0] if len(ends) == 1 else ends or None

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

    # ---- one forward pass

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        rows: HostRows | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        logits_mask: Tensor | None = None,
        condition: Condition | None = None,
        objective: Objective | None = None,
        with_logits: bool | None = None,
        media: Tensor | None = None,
        medium: Tensor | None = None,
        two_steps: bool = False,
        **row: Tensor,
    ) -> VoCoOutput:
        """One pass over laid-out rows, masked or in two steps; both compute the same.

        The language-model head runs only where its output is needed: where the next token has a label, or where
        `logits_mask` asks for it, or, with neither, on every text token.

        Args:
            input_ids: `[batch, length]`, from `voco_llama.layout`.
            rows: In place of `input_ids`, `labels`, `media`, `medium` and the rows' other fields.
            pixel_values: `[images, 3, height, width]`, the batch's images in row order, or as `media` names them.
            labels: `[batch, length]`, -100 where not trained; `labels[t]` is the id of token t, unshifted.
            num_items_in_batch: Trained tokens in the global batch (all processes and accumulation steps). The loss
                is the summed cross entropy divided by it; without it, by the trained tokens of this batch.
            logits_mask: bool `[batch, length]`: the tokens whose next-token logits are wanted.
            condition: Overrides the configuration's.
            objective: Makes the loss, chunk by chunk; None: plain cross entropy.
            with_logits: False: the head runs for the loss alone, which never holds all logits; without labels it does
                not run, and the hidden states that it would read are returned. None: False where a model in training is
                given labels and no `logits_mask`.
            media, medium: Which images each row looks at, where several look at the same (`HostRows`).
            two_steps: Compute each distinct image once and no padding (`voco_llama.model.two_steps`). Rows on the host
                keep it from waiting for a device.
            **row: The rows' other fields (`segment`, `voco`, `position`, `document`), as `input_ids`.

        Raises:
            TypeError: A field of the rows is missing, or an argument is unknown.
            ValueError: The images do not fill the rows' image tokens, or an objective is given
                without labels or with a `logits_mask`.
            SettingsError: The rows cannot be computed in two steps under this condition.
        """
        if rows is not None:
            row, media, medium = {**rows.fields}, rows.media, rows.medium
            input_ids, labels = row.pop("input_ids"), row.pop("labels", None)
        if objective is not None and (labels is None or logits_mask is not None):
            raise ValueError("an objective is about the trained tokens: pass labels and no logits_mask")
        if unknown := sorted(row.keys() - set(FACTS)):
            raise TypeError(f"forward knows no argument {', '.join(unknown)}")
        check_facts(row)
        targets = None if labels is None else next_tokens(labels)
        trained, asked_for_logits = None if targets is None else targets != IGNORE_INDEX, logits_mask is not None
        if logits_mask is None:
            logits_mask = (row["segment"] == 0) & (row["document"] >= 0) if trained is None else trained
        wanted = logits_mask | trained if asked_for_logits and trained is not None else logits_mask
        run = self._in_two_steps if two_steps else self._masked
        batch = HostRows({"input_ids": input_ids, **{name: row[name] for name in FACTS}}, media, medium)
        reconstructs = self.reconstruction is not None and objective is not None
        kept, segments = run(batch, pixel_values, condition or self.config.condition, wanted, reconstructs)

        def chosen(mask: Tensor) -> Tensor:
            return kept if mask is wanted else kept[mask[wanted].to(kept.device)]

        output, head = VoCoOutput(logits_mask=logits_mask), self.get_output_embeddings()
        if trained is not None:
            kept_targets = targets[trained].to(kept.device, non_blocking=True)
            reconstruction = self._reconstruction(batch, segments, labels, two_steps) if reconstructs else None
            losses = (objective or Objective())(head, chosen(trained), kept_targets, num_items_in_batch, reconstruction)
            output.loss, output.loss_lm, output.loss_kl, output.loss_reconstruction = losses
        if with_logits is None:
            with_logits = labels is None or asked_for_logits or not self.training
        if with_logits:
            output.logits = head(chosen(logits_mask))
        elif labels is None:
            output.hidden_states = kept
        return output

    # ---- what a cache must fit

    @property
    def inverse_frequency(self) -> Tensor:
        """`[head_dim / 2]`, float32: the rotary frequencies by which keys are moved."""
        return self.decoder.rotary_emb.inv_freq

    def fingerprint(self) -> str:
        """A hash of what a cache depends on (`voco_llama.model.cache.fingerprint`)."""
        return fingerprint(self)


AutoModel.register(VoCoLlamaConfig, VoCoLlama)
