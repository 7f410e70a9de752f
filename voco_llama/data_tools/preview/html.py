"""A preview as one HTML file: pictures inside it, no scripts, nothing from the net, all text of the data escaped."""

import base64
import html
import io
from collections.abc import Iterator, Sequence

from PIL import Image

from voco_llama.data_tools.preview.sample import KINDS, Failure, Sample, printable

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""A browser then runs and loads nothing, whatever a caption holds."""

STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2em; max-width: 1500px; color: #222; }
h1 { font-size: 1.3em; } h2 { font-size: 1.05em; margin: 0 0 .3em; overflow-wrap: anywhere; }
section { border-top: 1px solid #bbb; padding: 1em 0; }
ul { margin: .2em 0 .8em; padding-left: 1.2em; }
.columns { display: flex; gap: 1.5em; align-items: flex-start; flex-wrap: wrap; }
.pictures { display: grid; grid-template-columns: repeat(2, 170px); gap: 4px; }
.pictures img { width: 170px; } .pictures img:only-child { width: 344px; grid-column: span 2; }
img { image-rendering: pixelated; border: 1px solid #ccc; }
.mask img { width: 344px; } figure { margin: 0; } figcaption { width: 344px; font-size: 12px; color: #555; }
.tokens { flex: 1; min-width: 400px; font: 13px/1.9 ui-monospace, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.token { border-radius: 3px; padding: 2px 0; box-shadow: inset -1px 0 rgba(0, 0, 0, .13); }
.legend .token { padding: 2px 8px; margin-right: .6em; box-shadow: none; }
.error { color: #a00; overflow-wrap: anywhere; }
"""


def write_html(title: str, notes: Sequence[str], samples: Sequence[Sample | Failure]) -> str:
    """The page.

    Args:
        title: Of the page.
        notes: What holds for all samples, one line each.
        samples: In order.
    """
    colors = "\n".join(f".{kind.name} {{ background: rgb{kind.color}; }}" for kind in KINDS)
    legend = "".join(f'<span class="token {kind.name}">{escaped(kind.label)}</span>' for kind in KINDS)
    parts = [
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escaped(title)}</title>',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        f"<style>{STYLE}{colors}</style></head><body>",
        f"<h1>{escaped(title)}</h1>{_list(notes)}",
        f'<p class="legend">{legend} Hover over a token for its id and vectors.</p>',
        *(
            f"<section><h2>{number}. {escaped(sample.title)}</h2>{''.join(_section(sample))}</section>"
            for number, sample in enumerate(samples, start=1)
        ),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Text of anybody as HTML text or as the value of an attribute in quotes."""
    return html.escape(printable(text), quote=True)


def _section(sample: Sample | Failure) -> Iterator[str]:
    if isinstance(sample, Failure):
        yield f'<p class="error">{escaped(sample.error)}</p>'
        return
    yield f'{_list(sample.summary)}<div class="columns">'
    if sample.pictures:
        pictures = (_picture(picture, "after preprocessing") for picture in sample.pictures)
        yield f'<div class="pictures">{"".join(pictures)}</div>'
    note = escaped(sample.mask_note)
    yield f'<figure class="mask">{_picture(sample.mask, "mask")}<figcaption>{note}</figcaption></figure>'
    tokens = "".join(
        f'<span class="token {entry.kind.name}" data-count="{entry.count}" title="{escaped(entry.facts)}">'
        f"{escaped(entry.text).replace(chr(10), '↵' + chr(10))}</span>"
        for entry in sample.entries
    )
    yield f'<div class="tokens">{tokens}</div></div>'


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escaped(line)}</li>' for line in lines)}</ul>"


def _picture(picture: Image.Image, alt: str) -> str:
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return f'<img alt="{alt}" src="data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}">'
