"""Masks drawn as pictures, and the rows they are masks of.

A picture has one line a query and one column a key, 1 = may attend. The letters of a row:

    V  vision token      C  VoCo token      t  text token      .  padding
"""

import torch
from torch import Tensor

from voco_llama.layout import Row, SegmentMark, SegmentShape, TextSpan, lay_out
from voco_llama.tokens import TokenIds

TOKENS = TokenIds(image=90, voco=91, bos=1, eos=2, pad=0)
IMAGE = SegmentMark()


def text(length: int, trained: bool = False) -> TextSpan:
    """Text whose ids are 10, 11, ..."""
    return TextSpan(tuple(range(10, 10 + length)), (trained,) * length)


def row(*parts: SegmentMark | TextSpan, vision: int = 2, voco: int = 1, condition: str = "voco") -> Row:
    return lay_out(parts, TOKENS, SegmentShape(vision, voco), condition)


def picture(drawn: str) -> Tensor:
    """`[queries, keys]` bool from lines of 0 and 1; the letters around them are for the reader."""
    lines = ["".join(character for character in line if character in "01") for line in drawn.splitlines()]
    return torch.tensor([[character == "1" for character in line] for line in lines if line])


ONE_IMAGE = """
      V V C t t
    V 1 0 0 0 0
    V 1 1 0 0 0
    C 1 1 1 0 0
    t 0 0 1 1 0
    t 0 0 1 1 1
"""

TWO_VOCO = """
      V V C C t t
    V 1 0 0 0 0 0
    V 1 1 0 0 0 0
    C 1 1 1 0 0 0
    C 1 1 1 1 0 0
    t 0 0 1 1 1 0
    t 0 0 1 1 1 1
"""

FOUR_VOCO = """
      V V C C C C t
    V 1 0 0 0 0 0 0
    V 1 1 0 0 0 0 0
    C 1 1 1 0 0 0 0
    C 1 1 1 1 0 0 0
    C 1 1 1 1 1 0 0
    C 1 1 1 1 1 1 0
    t 0 0 1 1 1 1 1
"""

TWO_IMAGES = """
      V V C V V C t
    V 1 0 0 0 0 0 0
    V 1 1 0 0 0 0 0
    C 1 1 1 0 0 0 0
    V 0 0 0 1 0 0 0
    V 0 0 0 1 1 0 0
    C 0 0 0 1 1 1 0
    t 0 0 1 0 0 1 1
"""

IMAGE_INSIDE = """
      t t V V C t
    t 1 0 0 0 0 0
    t 1 1 0 0 0 0
    V 0 0 1 0 0 0
    V 0 0 1 1 0 0
    C 0 0 1 1 1 0
    t 1 1 0 0 1 1
"""

TEXT_ONLY = """
      t t t
    t 1 0 0
    t 1 1 0
    t 1 1 1
"""

THREE_FRAMES = """
      V C V C V C t t
    V 1 0 0 0 0 0 0 0
    C 1 1 0 0 0 0 0 0
    V 0 0 1 0 0 0 0 0
    C 0 0 1 1 0 0 0 0
    V 0 0 0 0 1 0 0 0
    C 0 0 0 0 1 1 0 0
    t 0 1 0 1 0 1 1 0
    t 0 1 0 1 0 1 1 1
"""

TWO_DOCUMENTS = """
      V V C t t t V V C t
    V 1 0 0 0 0 0 0 0 0 0
    V 1 1 0 0 0 0 0 0 0 0
    C 1 1 1 0 0 0 0 0 0 0
    t 0 0 1 1 0 0 0 0 0 0
    t 0 0 1 1 1 0 0 0 0 0
    t 0 0 0 0 0 1 0 0 0 0
    V 0 0 0 0 0 0 1 0 0 0
    V 0 0 0 0 0 0 1 1 0 0
    C 0 0 0 0 0 0 1 1 1 0
    t 0 0 0 0 0 1 0 0 1 1
"""

PADDED_LEFT = """
      . . t t t
    . 0 0 0 0 0
    . 0 0 0 0 0
    t 0 0 1 0 0
    t 0 0 1 1 0
    t 0 0 1 1 1
"""

PADDED_RIGHT = """
      t t t . .
    t 1 0 0 0 0
    t 1 1 0 0 0
    t 1 1 1 0 0
    . 0 0 0 0 0
    . 0 0 0 0 0
"""

FULL = """
      V V C t t
    V 1 0 0 0 0
    V 1 1 0 0 0
    C 1 1 1 0 0
    t 1 1 1 1 0
    t 1 1 1 1 1
"""

TWO_IMAGES_BOTH_WAYS = """
      t V V C C V V C C t
    t 1 0 0 0 0 0 0 0 0 0
    V 0 1 1 0 0 0 0 0 0 0
    V 0 1 1 0 0 0 0 0 0 0
    C 0 1 1 1 0 0 0 0 0 0
    C 0 1 1 1 1 0 0 0 0 0
    V 0 0 0 0 0 1 1 0 0 0
    V 0 0 0 0 0 1 1 0 0 0
    C 0 0 0 0 0 1 1 1 0 0
    C 0 0 0 0 0 1 1 1 1 0
    t 1 0 0 1 1 0 0 1 1 1
"""

FULL_BOTH_WAYS = """
      t V V C t
    t 1 0 0 0 0
    V 1 1 1 0 0
    V 1 1 1 0 0
    C 1 1 1 1 0
    t 1 1 1 1 1
"""

TWO_DOCUMENTS_BOTH_WAYS = """
      V V C V V C t .
    V 1 1 0 0 0 0 0 0
    V 1 1 0 0 0 0 0 0
    C 1 1 1 0 0 0 0 0
    V 0 0 0 1 1 0 0 0
    V 0 0 0 1 1 0 0 0
    C 0 0 0 1 1 1 0 0
    t 0 0 0 0 0 1 1 0
    . 0 0 0 0 0 0 0 0
"""

TWO_IMAGES_INDEPENDENT = """
      t V V C C V V C C t
    t 1 0 0 0 0 0 0 0 0 0
    V 0 1 0 0 0 0 0 0 0 0
    V 0 0 1 0 0 0 0 0 0 0
    C 0 1 1 1 0 0 0 0 0 0
    C 0 1 1 1 1 0 0 0 0 0
    V 0 0 0 0 0 1 0 0 0 0
    V 0 0 0 0 0 0 1 0 0 0
    C 0 0 0 0 0 1 1 1 0 0
    C 0 0 0 0 0 1 1 1 1 0
    t 1 0 0 1 1 0 0 1 1 1
"""

FULL_INDEPENDENT = """
      t V V C t
    t 1 0 0 0 0
    V 1 1 0 0 0
    V 1 0 1 0 0
    C 1 1 1 1 0
    t 1 1 1 1 1
"""

TWO_DOCUMENTS_INDEPENDENT = """
      V V C V V C t .
    V 1 0 0 0 0 0 0 0
    V 0 1 0 0 0 0 0 0
    C 1 1 1 0 0 0 0 0
    V 0 0 0 1 0 0 0 0
    V 0 0 0 0 1 0 0 0
    C 0 0 0 1 1 1 0 0
    t 0 0 0 0 0 1 1 0
    . 0 0 0 0 0 0 0 0
"""
