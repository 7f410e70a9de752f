"""The two ways of one forward pass: whole rows under a mask, and packed tokens in two steps."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from voco_llama.choices import Condition
from voco_llama.layout import HostRows, voco_index
from voco_llama.model.reconstruction import Readings, SegmentStates
from voco_llama.model.two_steps import KeptKeys, check_decoder, keeping_attention, run_layers
from voco_llama.packing import Packing, images_in_order, images_of_rows, pack, segment_numbers, shown_segments
from voco_llama.sharding import weights_are_divided
from voco_llama.visibility import BlockMask, TokenFacts, attention_mask

LENGTHS_ON_GPU = 64
"""Rows of attention have lengths that are multiples of it there."""


class VoCoPasses:
    """What `VoCoLlama` computes of rows, from their ids and images to last hidden states."""

    _runs_layer_by_layer = False
    """Whether `check_two_steps` has found so."""

    def _masked(
        self, rows: HostRows, pixel_values: Tensor | None, condition: Condition, wanted: Tensor, with_segments: bool
    ) -> tuple[Tensor, SegmentStates | None]:
        """From whole rows under a mask.

        Returns:
            Last hidden states of the wanted tokens, `[wanted, hidden]`; and, if they are asked for, those of the
            segments, each as often as it is shown.
        """
        order = None if rows.media is None else images_in_order(rows.fields, rows.media, rows.medium)
        fields = {name: values.to(self.device) for name, values in rows.fields.items()}
        facts = TokenFacts.of_batch(fields)
        embeddings = self.embed(fields["input_ids"], pixel_values, order)
        mask = self.mask(facts, facts, condition, embeddings.dtype)
        with self._told_from(with_segments) as below:
            hidden_states = self.decoder(
                inputs_embeds=embeddings, attention_mask=mask, position_ids=facts.position, use_cache=False
            ).last_hidden_state
        segments = None
        if with_segments:
            index, num_voco = voco_index(fields["voco"], fields["segment"]), self._most_voco(fields)
            numbers = segment_numbers(fields)
            voco = hidden_states.new_zeros(int(numbers.max()) + 1, num_voco, hidden_states.shape[-1])
            told = below[0] if below else hidden_states
            voco = voco.index_put((numbers[index >= 0], index[index >= 0]), told[index >= 0])
            vision = hidden_states[fields["input_ids"] == self.config.image_token_id]
            segments = SegmentStates(vision.unflatten(0, (-1, self.config.num_vision_tokens)), voco)
        return hidden_states[wanted.to(self.device)], segments

    def _in_two_steps(
        self, rows: HostRows, pixel_values: Tensor | None, condition: Condition, wanted: Tensor, with_segments: bool
    ) -> tuple[Tensor, SegmentStates | None]:
        """The same, from every distinct segment once and text without padding."""
        fields = {name: values.cpu() for name, values in rows.fields.items()}
        images = images_of_rows(fields, *(None if m is None else m.cpu() for m in (rows.media, rows.medium)))
        shown, num_images = images[images >= 0].unique(), 0 if pixel_values is None else len(pixel_values)
        if not torch.equal(shown, torch.arange(num_images)):
            raise ValueError(
                f"the rows show {len(shown)} images and {num_images} are given: pass the images the rows were laid out"
                " for"
            )
        shape = self.config.segment_shape(self._most_voco(fields))
        multiple = LENGTHS_ON_GPU if self.device.type == "cuda" else 1
        tokens = self.config.added_tokens
        packing = pack(
            fields, condition, shape, tokens, images, wanted.cpu(), multiple=multiple, segments_too=with_segments
        )
        packing = packing.to(self.device)
        with self._told_from(with_segments) as below:
            hidden_states = self.run_packed(packing, pixel_values)
        if not with_segments:
            return hidden_states, None
        number = packing.num_segment_tokens
        hidden_states, inside = hidden_states.tensor_split([len(hidden_states) - number])
        vision = inside[packing.image_places].unflatten(0, (-1, self.config.num_vision_tokens))
        told = below[0][0, :number] if below else inside
        voco = told.unflatten(0, (packing.num_segments, packing.segment_length))[:, packing.voco_places]
        return hidden_states, SegmentStates(vision, voco)

    @contextmanager
    def _told_from(self, with_segments: bool) -> Iterator[list[Tensor]]:
        """The states that enter the layer from below which the image is told; nothing if it is told from the last ones.

        They are taken where they enter, for they are outside of what checkpointing computes again.
        """
        found: list[Tensor] = []
        if not with_segments or self.reconstruction.layer is None:
            yield found
            return

        def take(_: nn.Module, args: tuple[Any, ...]) -> None:
            found[:] = args[:1]  # those of the last call: before it `check_decoder` may have run the layers

        handle = self.decoder.layers[self.reconstruction.layer].register_forward_pre_hook(take)
        try:
            yield found
        finally:
            handle.remove()

    def _most_voco(self, fields: Mapping[str, Tensor]) -> int:
        """VoCo tokens that a segment has: as many as the model was trained with, or, if there are more, as the rows."""
        return max(self.config.num_voco, int(voco_index(fields["voco"], fields["segment"]).max()) + 1)

    def _reconstruction(self, rows: HostRows, states: SegmentStates, labels: Tensor, by_image: bool) -> Tensor:
        """The reconstruction's loss, summed over what is trained; a float32 scalar.

        The decoder runs even where no row shows an image, on a blank one that counts for nothing: every process must
        touch the same parameters (see `_image_features`).
        """
        fields = rows.fields
        shown = shown_segments(fields, images_of_rows(fields, rows.media, rows.medium))
        readings = Readings.of(shown, labels, by_image).to(self.device)
        if not len(readings.segment):
            states = SegmentStates.blank(self.config.num_vision_tokens, states.voco)
            readings = Readings(*torch.tensor([[0], [1], [0]], device=self.device))
            readings = readings._replace(weight=readings.weight.float())
        return self.reconstruction(states, readings)

    def run_packed(self, packing: Packing, pixel_values: Tensor | None, kept: KeptKeys | None = None) -> Tensor:
        """The language model without its head over packed tokens.

        Args:
            packing: On the model's device.
            pixel_values: `[images, 3, height, width]`.
            kept: Where each layer's keys and values of VoCo tokens are put.

        Returns:
            The last hidden states of `packing.outputs`, `[wanted, hidden]`.

        Raises:
            SettingsError: The language model cannot be run layer by layer.
        """
        self.check_two_steps()
        embeddings = self._embed_words(packing.input_ids, packing.voco)
        features = self._image_features(pixel_values, embeddings)
        if pixel_values is not None and len(pixel_values):
            features = features[packing.image_order].flatten(0, 1)
            embeddings = embeddings.index_copy(0, packing.image_places, features)
        elif features is not None:
            embeddings = embeddings + 0.0 * features.sum()
        return run_layers(self.decoder, embeddings, packing, self.config.segment_attention, kept)

    def check_two_steps(self) -> None:
        """Refuse a language model whose layers cannot be run one by one (`two_steps.check_decoder`), once."""
        if not self._runs_layer_by_layer:
            check_decoder(self.decoder)
            self._runs_layer_by_layer = True

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        super()._set_gradient_checkpointing(*args, **kwargs)
        config = self.language_model.config
        for module in self.language_model.modules():
            if (checkpoint := getattr(module, "_gradient_checkpointing_func", None)) is not None:
                module._gradient_checkpointing_func = keeping_attention(config, checkpoint)

    def mask(self, query: TokenFacts, key: TokenFacts, condition: Condition, dtype: torch.dtype) -> Tensor | BlockMask:
        """The mask for this model's attention backend and segment attention (`visibility.attention_mask`)."""
        return attention_mask(self.attention_backend, query, key, condition, dtype, self.config.segment_attention)

    def embed(self, input_ids: Tensor, pixel_values: Tensor | None = None, order: Tensor | None = None) -> Tensor:
        """Token embeddings with the projected patch features in the places of the image tokens.

        An external compressor's tokens take the places of the VoCo tokens instead.

        Args:
            input_ids: `[batch, length]`.
            pixel_values: `[images, 3, height, width]`, in the row-major order of their tokens.
            order: `[images shown]`: which image fills the next of these places; None: each the next one.

        Returns:
            `[batch, length, hidden]`.

        Raises:
            ValueError: The images do not fill the rows' image tokens.
        """
        embeddings = self._embed_words(input_ids, voco_index(input_ids == self.config.voco_token_id))
        outside = self.config.compresses_outside
        is_image = input_ids == (self.config.voco_token_id if outside else self.config.image_token_id)
        num_images = 0 if pixel_values is None else pixel_values.shape[0]
        num_shown = num_images if order is None else len(order)
        per_image = self.config.num_voco if outside else self.config.num_vision_tokens
        if (num_image_tokens := int(is_image.sum())) != num_shown * per_image:
            raise ValueError(
                f"the rows have {num_image_tokens} image tokens, but {num_shown} images of {per_image} tokens fill"
                f" {num_shown * per_image}: pass the images the rows were laid out for"
            )
        features = self._image_features(pixel_values, embeddings)
        if num_images == 0:
            return embeddings if features is None else embeddings + 0.0 * features.sum()
        return embeddings.masked_scatter(is_image[..., None], features if order is None else features[order])

    def _embed_words(self, input_ids: Tensor, index: Tensor) -> Tensor:
        """Embeddings of tokens of any shape; `index` says which of its segment's VoCo tokens each is, -1: none."""
        embeddings = self.get_input_embeddings()(input_ids)
        if self.voco_offsets is None:
            return embeddings
        offsets = self.voco_offsets(index.clamp(min=0)).to(embeddings.dtype)
        return embeddings + offsets * (index >= 0)[..., None]

    def _image_features(self, pixel_values: Tensor | None, embeddings: Tensor) -> Tensor | None:
        """What the language model is given of images, `[images, tokens, hidden]`, in the dtype of the embeddings.

        In training, and always where weights are divided, tower and projector run even without an image, on a blank
        one (whose features are to enter with weight 0): every process must touch the same parameters in the same order,
        or ZeRO-3, FSDP and DDP wait for each other forever. Else None without an image.
        """
        if pixel_values is None or not len(pixel_values):
            if not (self.training or weights_are_divided(self)):
                return None
            size = self.config.image_size
            pixel_values = torch.zeros(1, 3, size, size, device=embeddings.device, dtype=embeddings.dtype)
        features = self.vision(pixel_values)
        if self.compressor is not None:
            features = self.compressor(features)
        return self.projector(features).to(embeddings.dtype)
