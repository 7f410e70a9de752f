"""Passwords and tokens have no place in settings: these are saved with a run, logged, and shown in messages.

So a setting that holds one is refused before anything is read or written, and what refuses it names the setting alone.
Libraries find them in the environment (`HF_TOKEN`, `WANDB_API_KEY`) or in `~/.netrc`, which nothing of ours reads out.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from voco_llama.errors import SettingsError

_KEYS = re.compile(r"(^|[._])(token|password|passwd|secret|(api|access|account)_key|auth|credentials?)$", re.IGNORECASE)
"""Settings, and entries of `options`, that are for one."""
_VARIABLES = re.compile(r"(TOKEN|PASSWORD|PASSWD|SECRET|_KEY|CREDENTIALS?)$", re.IGNORECASE)
"""Of the environment, whose values are."""
_FEWEST = 12
"""Characters of a value of the environment that is looked for: shorter ones are words."""
_SHAPES = re.compile(
    "|".join(
        (
            r"://[^/?#\s]*@",  # a user, with a password or without, in a URL
            r"[?&][^=&\s]*(token|key|sig|signature|password|secret)=[^&\s]+",  # and in its query
            r"\b(hf_\w{20,}|sk-[\w-]{20,}|xox[abp]-[\w-]{10,})",  # Hugging Face, OpenAI, Slack
            r"\b(gh[oprsu]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,})",  # GitHub, GitLab
            r"\bA[KS]IA[0-9A-Z]{16}",  # AWS
            r"\beyJ[\w-]{10,}\.[\w-]{10,}\.",  # a JSON web token
            r"\bBearer\s+(?=\S*\d)[\w.~+/=-]{12,}",  # a header; with a digit, since text may speak of bearers
            r"-----BEGIN [A-Z ]*PRIVATE KEY",  # PEM
        )
    ),
    re.IGNORECASE,
)


def check_no_credentials(settings: Iterable[tuple[str, object]]) -> None:
    """Refuse settings, by their keys, that hold a password or a token.

    Raises:
        SettingsError: The first; its value is not in the message.
    """
    named = [value for name, value in os.environ.items() if _VARIABLES.search(name)]
    known = [value for value in named if len(value) >= _FEWEST and not Path(value).exists()]
    for key, value in settings:
        text = str(value)
        holds = _SHAPES.search(text) or any(each in text for each in known)
        if holds or (_KEYS.search(key) and text.lower() not in ("", "none", "null")):
            raise SettingsError(
                f"{key} holds what looks like a password or a token, and settings are saved and shown: take it out, and"
                " give it in the environment (HF_TOKEN, WANDB_API_KEY) or in ~/.netrc"
            )
