"""The page of `softlabels dedup`: pairs of images side by side."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import torch
from torch import Tensor

from softlabels.datasets import Images
from softlabels.errors import DataError
from softlabels.selecting.duplicates import Pair

_SIDE = 128
"""Pixels of the longer side of an image on the page."""

MOST_SHOWN = 500
"""Pairs on the page, of each table."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 62em; color: #222; background: #fff }
table { border-collapse: collapse; width: 100% } td, th { padding: .4em .8em; border-bottom: 1px solid #ddd;
text-align: left; vertical-align: top } img { width: 128px; image-rendering: auto; display: block }
img.small { image-rendering: pixelated } code { word-break: break-all }
"""


def page(
    title: str, lines: Sequence[str], pool: Images, held_out: Images, found: Sequence[Pair], others: Sequence[Pair]
) -> str:
    """An HTML page without links to anything: `lines`, the pairs that were `found`, and the `others`, not confirmed."""
    body = [f"<h1>{escape(title)}</h1>", *(f"<p>{escape(line)}</p>" for line in lines)]
    for heading, pairs in (("Duplicates", found), ("Candidates that were not confirmed: they stay", others)):
        if not pairs:
            continue
        body.append(f"<h2>{heading}</h2>")
        if len(pairs) > MOST_SHOWN:
            body.append(f"<p>{MOST_SHOWN:,} of {len(pairs):,}; the files beside this page have all of them.</p>")
        body.append("<table><tr><th>pool</th><th>held out</th><th>what they have in common</th></tr>")
        body += [_row(pair, pool, held_out) for pair in pairs[:MOST_SHOWN]]
        body.append("</table>")
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return f"<!doctype html>\n<html><head>{head}</head><body>\n" + "\n".join(body) + "\n</body></html>\n"


def in_words(pair: Pair) -> str:
    """What two images have in common."""
    if pair.how == "content":
        return "the same bytes"
    mirrored = ", one of them mirrored" if pair.mirrored else ""
    fit = "" if pair.matches is None else f"; {pair.matches} keypoints fit together"
    return f"hashes differ in {pair.distance} of 64 bits{mirrored}{fit}"


def _row(pair: Pair, pool: Images, held_out: Images) -> str:
    cells = [
        f"{_image(images, row)}<code>{escape(images.keys[row].as_py())}</code>"
        for images, row in ((pool, pair.pool), (held_out, pair.held_out))
    ]
    return f"<tr><td>{cells[0]}</td><td>{cells[1]}</td><td>{escape(in_words(pair))}</td></tr>"


def _image(images: Images, row: int) -> str:
    try:
        image = images.decode(row)
    except DataError:
        return ""
    small = ' class="small"' if max(image.shape[1:]) < _SIDE else ""
    return f'<img{small} alt="" src="data:image/jpeg;base64,{_jpeg(image)}">'


def _jpeg(image: Tensor) -> str:
    from PIL import Image

    scale = min(_SIDE / max(image.shape[1:]), 1.0)
    size = [max(1, round(side * scale)) for side in (image.shape[2], image.shape[1])]
    file = io.BytesIO()
    made = Image.fromarray(image.permute(1, 2, 0).contiguous().to(torch.uint8).numpy())
    made.resize((size[0], size[1])).save(file, "JPEG", quality=85)
    return base64.b64encode(file.getvalue()).decode("ascii")
