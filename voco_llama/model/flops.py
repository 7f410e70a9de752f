"""FLOPs that the method needs, by arithmetic on a configuration: no model is built, nothing is run.

A multiplication with its addition is two FLOPs, and matrix products alone are counted, as is usual. Of the language
model, with hidden size h, inner size m, L layers, and q = heads x head size and kv = key-value heads x head size:

    a token in a layer      2 (h q + 2 h kv + q h + 3 h m)          projections, and the gated MLP
    a query and a key       4 q                                     its score, and its part of the sum of values
    causal attention of T   T^2 / 2 pairs of a query and a key      (each sees itself and what was before)
    the head                2 h vocabulary                          a token that is trained, or written
    a segment of S tokens   L - 1 layers over all of it, causally; in the last one, 4 h kv for each VoCo token: of it
                            only its keys and values are read
    text of T tokens        L layers; T^2 / 2 pairs and T for each cached token that it reads

                            with independent vision tokens, whose own value is all that they attend to, N S - N^2 / 2
                            pairs in place of S^2 / 2
    reconstruction          the last layer over all of each segment, and its decoder, once (and not for each reading
                            through another number of VoCo tokens, which is little)

The tower of width w over P patches and a class token: 2 x 3 x patch^2 w for each patch, and in each of the blocks that
run 2 (4 w^2 + 2 r w^2) a token and 4 w a pair, of which none is left out. The projector: its maps.

Only what the method needs enters: real tokens and no padding, each distinct image once, the head on trained tokens, no
layer run again by activation checkpointing. A backward pass costs a linear map as much as its forward for the gradient
of its weights, if they train, and as much for that of its input, if anything before it trains; attention twice its
forward. So utilization by these counts falls with waste, whoever makes it.

`causal=1` counts attention as `torch.utils.flop_counter.FlopCounterMode` does, all pairs of a square.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from voco_llama.configuration import Heads, VoCoLlamaConfig
from voco_llama.model.reconstruction import MLP, decoder_width
from voco_llama.vision_config import MLP_RATIO

HALF = 0.5
"""Part of a square of queries and keys that causal attention needs."""
NUM_CHANNELS = 3


@dataclass(frozen=True, kw_only=True)
class Work:
    """What training on some rows asks for, in tokens, and in pairs of a query and a key that it sees.

    Attributes:
        text: Text tokens.
        text_pairs: Text that sees text.
        read_pairs: Text that sees tokens of segments.
        segment_tokens, segment_pairs: Of the segments, each distinct one once.
        kept: Those of their tokens that text reads.
        trained: Tokens that the head runs for.
        images: Distinct ones.
    """

    text: float
    text_pairs: float
    read_pairs: float
    segment_tokens: float
    segment_pairs: float
    kept: float
    trained: float
    images: float


def training_flops(
    config: VoCoLlamaConfig,
    texts: Sequence[int],
    segments: Sequence[int],
    images: int,
    trained: int,
    trains: Collection[str] = ("projector", "language"),
    causal: float = HALF,
) -> int:
    """Forward and backward of one batch whose text reads the VoCo tokens or, under condition `full`, whole segments.

    Args:
        config: Of the model.
        texts: Text tokens of each row.
        segments: Images or frames that each row reads, which are taken to stand before its text.
        images: Distinct images of the batch.
        trained: Trained tokens of the batch.
        trains: As `stage.trains`: of `vision`, `projector`, `language`.
        causal: Part of a causal square that is counted.
    """
    shape = config.segment_shape()
    tokens = shape.num_compressed + shape.num_voco
    read = config.num_voco if config.condition == "voco" else tokens
    work = Work(
        text=sum(texts),
        text_pairs=causal * sum(text**2 for text in texts),
        read_pairs=sum(text * number * read for text, number in zip(texts, segments, strict=True)),
        segment_tokens=images * tokens,
        segment_pairs=images * _segment_square(config, config.num_voco, causal),
        kept=images * read,
        trained=trained,
        images=images,
    )
    return flops_of_work(config, work, trains)


def flops_of_work(config: VoCoLlamaConfig, work: Work, trains: Collection[str] = ("projector", "language")) -> int:
    """Forward and backward of some work; `trains` as of `training_flops`, of parts that train whole."""
    language = config.text_config
    layers = language.num_hidden_layers
    linear = layers * work.text * _a_token(language) + work.trained * _head(language)
    whole = layers if config.reconstruction else layers - 1
    linear += whole * work.segment_tokens * _a_token(language)
    linear += (layers - whole) * work.kept * _keys_and_values(language)
    pairs = whole * work.segment_pairs + layers * (work.read_pairs + work.text_pairs)
    flops = (2 + ("language" in trains)) * linear + 3 * pairs * _a_pair(language)
    if config.reconstruction:
        flops += 3 * work.images * decoder_flops(config)
    flops += work.images * (3 if "vision" in trains else 1) * tower_flops(config)
    first, rest = _projector(config)
    own = "projector" in trains
    return int(flops + work.images * ((1 + own + ("vision" in trains)) * first + (2 + own) * rest))


def compress_flops(config: VoCoLlamaConfig, images: int, num_voco: int | None = None, causal: float = HALF) -> int:
    """Images, each alone, to the keys and values of their VoCo tokens; `num_voco` None: the configuration's."""
    num_voco = config.num_voco if num_voco is None else num_voco
    pairs = _segment_pairs(config, num_voco, causal) * _a_pair(config.text_config)
    return int(images * (tower_flops(config) + sum(_projector(config)) + _segment_linear(config, num_voco) + pairs))


def answer_flops(config: VoCoLlamaConfig, text: int, new: int, cached: int, causal: float = HALF) -> int:
    """One answer of `new` tokens to a question of `text` tokens that reads `cached` tokens' keys and values.

    The image of a question without a cache is part of its text, after `tower_flops` and the projector
    (`image_flops`). The last token written is not read again.
    """
    language = config.text_config
    read = text + new - 1
    pairs = text * cached + causal * text**2 + sum(cached + text + past for past in range(1, new))
    in_layers = read * _a_token(language) + pairs * _a_pair(language)
    return int(language.num_hidden_layers * in_layers + new * _head(language))


def image_flops(config: VoCoLlamaConfig) -> int:
    """Tower and projector, of one image."""
    return int(tower_flops(config) + sum(_projector(config)))


def tower_flops(config: VoCoLlamaConfig) -> int:
    """The blocks of the tower up to the one whose output is used, of one image."""
    vision = config.vision_config["vision_cfg"]
    width, patches = vision["width"], config.num_vision_tokens
    tokens, blocks = patches + 1, vision["layers"] + 1 + config.vision_layer
    block = tokens * (8 + 4 * vision.get("mlp_ratio", MLP_RATIO)) * width**2 + 4 * width * tokens**2
    return int(patches * 2 * NUM_CHANNELS * vision["patch_size"] ** 2 * width + blocks * block)


def decoder_flops(config: VoCoLlamaConfig) -> int:
    """The decoder of the reconstruction, forward, of one reading of an image through all of its VoCo tokens."""
    hidden, num_vision, num_voco = config.text_config.hidden_size, config.num_vision_tokens, config.num_voco
    width = decoder_width(hidden)
    keys_and_values = num_voco * 2 * hidden * width
    a_query = width**2 + 2 * num_voco * width + 2 * MLP * width**2 + width * hidden
    return 2 * (keys_and_values + num_vision * a_query)


def _projector(config: VoCoLlamaConfig) -> tuple[int, int]:
    """Its first map, and the others, of one image."""
    width, hidden = config.vision_config["vision_cfg"]["width"], config.text_config.hidden_size
    second = 0 if config.projector_type == "linear" else hidden**2
    tokens = config.num_voco if config.compresses_outside else config.num_vision_tokens
    return 2 * tokens * width * hidden, 2 * tokens * second


def _segment_linear(config: VoCoLlamaConfig, num_voco: int) -> int:
    """Linear maps of all layers over one segment."""
    language, shape = config.text_config, config.segment_shape(num_voco)
    tokens = shape.num_compressed + num_voco
    last = num_voco * _keys_and_values(language)
    return (language.num_hidden_layers - 1) * tokens * _a_token(language) + last


def _segment_pairs(config: VoCoLlamaConfig, num_voco: int, causal: float) -> float:
    return (config.text_config.num_hidden_layers - 1) * _segment_square(config, num_voco, causal)


def _segment_square(config: VoCoLlamaConfig, num_voco: int, causal: float) -> float:
    """Pairs of a query and a key in one layer of a segment."""
    compressed = config.segment_shape(num_voco).num_compressed
    if config.segment_attention == "independent":
        return num_voco * (compressed + causal * num_voco)
    return causal * (compressed + num_voco) ** 2


def _a_token(language: Any) -> int:
    """Linear maps of one layer, one token."""
    hidden, heads = language.hidden_size, Heads.of(language)
    attention = 2 * (heads.query + heads.key_value) * heads.dimension
    return 2 * hidden * (attention + 3 * language.intermediate_size)


def _keys_and_values(language: Any) -> int:
    """Their maps, of one layer, one token."""
    heads = Heads.of(language)
    return 4 * language.hidden_size * heads.key_value * heads.dimension


def _a_pair(language: Any) -> int:
    """Attention of one layer, one query and one key."""
    heads = Heads.of(language)
    return 4 * heads.query * heads.dimension


def _head(language: Any) -> int:
    return 2 * language.hidden_size * language.vocab_size
