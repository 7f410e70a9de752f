"""MMBench with the prompt of LLaVA-1.5's `model_vqa_mmbench.py` (one round, English)."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

LETTERS = "ABCD"


def doc_to_text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, str]) -> str:
    """Hint, question and options, each on a line of its own, then the request for a letter.

    Options end at the first missing one.
    """
    options = itertools.takewhile(lambda letter: is_given(doc.get(letter)), LETTERS)
    lines = [doc["hint"]] if is_given(doc["hint"]) else []
    lines += [doc["question"], *(f"{letter}. {doc[letter]}" for letter in options)]
    return "\n".join(lines) + lmms_eval_specific_kwargs["post_prompt"]


def is_given(value: Any) -> bool:
    """A cell holds something: LLaVA takes None, NaN and the words `nan` and `none` for nothing."""
    if isinstance(value, float):
        return not math.isnan(value)
    return value is not None and str(value).lower() not in ("nan", "none")
