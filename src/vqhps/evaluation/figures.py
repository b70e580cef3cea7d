"""Pictures of a tokenizer, as its paper shows them: what it gets wrong, and what each token governs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vqhps.body.model import canonical
from vqhps.runtime.export_mesh import write_png, y_up
from vqhps.runtime.render import render_row
from vqhps.tokenizer.mesh_vqvae import MeshVQVAE

_RAMP = np.array([[0.80, 0.83, 0.88], [0.99, 0.80, 0.35], [0.90, 0.30, 0.15], [0.42, 0.02, 0.22]])  # none to most
_ROW_PX, _LABEL_PX, _LEGEND_PX = 420, 40, 70
_CASES = 2  # best, median and worst bodies, each
_COLUMNS = 6  # tokens in a row of the grid, and rows


@torch.no_grad()
def draw_figures(
    model: MeshVQVAE,
    coarse: Float[Tensor, "N Vc 3"],
    full: Float[Tensor, "N V 3"],
    pve_mm: Float[Tensor, "N"],
    folder: Path,
) -> None:
    """Write `errors.png` and `tokens.png`.

    Args:
        model: the tokenizer, in eval mode.
        coarse: canonical coarse vertices of some bodies, metres.
        full: the same bodies on the full mesh, minus their vertex mean.
        pve_mm: error of each.
        folder: made if needed.

    Raises:
        VqhpsError: the folder cannot be written to.
    """
    order = pve_mm.argsort()
    cases = min(_CASES, len(order) // 3 or 1)
    middle = len(order) // 2 - cases // 2
    chosen = torch.cat([order[:cases], order[middle : middle + cases], order[-cases:]])
    write_png(folder / "errors.png", _errors(model, coarse[chosen], full[chosen]))
    write_png(folder / "tokens.png", _tokens(model, model.encode(coarse[order[len(order) // 2]][None])))


def _errors(
    model: MeshVQVAE, coarse: Float[Tensor, "N Vc 3"], full: Float[Tensor, "N V 3"]
) -> UInt8[np.ndarray, "H W 3"]:
    """Rebuilt bodies from the front and from the side, best first, coloured by the error of each vertex."""
    rebuilt = canonical(model.upsample(model.decode(model.encode(coarse))))
    error = 1000 * (rebuilt - full).norm(dim=-1).numpy()
    most = float(np.ceil(np.quantile(error, 0.99)))
    faces, bodies = model.mesh.get_buffer("faces").numpy(), list(y_up(rebuilt.numpy()))
    colors = [_color(e / most) for e in error]
    side = [np.stack([b[:, 2], b[:, 1], -b[:, 0]], 1) for b in bodies]
    cases = len(bodies) // 3
    names = [name for name in ("best", "median", "worst") for _ in range(cases)]
    labels = [f"{name}: {e.mean():.1f} mm" for name, e in zip(names, error, strict=True)]
    rows = [_labelled(render_row(view, faces, colors, _ROW_PX), text)
            for view, text in ((bodies, labels), (side, [""] * len(bodies)))]  # fmt: skip
    return _stacked(rows, f"error of each vertex: 0 to {most:.0f} mm and more (mean above each body)")


def _tokens(model: MeshVQVAE, indices: Int[Tensor, "1 T"]) -> UInt8[np.ndarray, "H W 3"]:
    """The median body with one token at a time varied over all its codes, coloured by how far that moves a vertex."""
    count = min(model.num_tokens, _COLUMNS * _COLUMNS)
    tokens = np.linspace(0, model.num_tokens - 1, count).astype(int)
    base = model.upsample(model.decode(indices))
    moved = []
    for token in tokens:
        varied = indices.repeat(model.num_codes, 1)
        varied[:, token] = torch.arange(model.num_codes)
        parts = [(model.upsample(model.decode(part)) - base).norm(dim=-1) for part in varied.split(64)]
        moved.append(1000 * torch.cat(parts).square().mean(0).sqrt().numpy())
    faces, body = model.mesh.get_buffer("faces").numpy(), y_up(canonical(base)[0].numpy())
    rows = []
    for start in range(0, count, _COLUMNS):
        part = moved[start : start + _COLUMNS]
        labels = [f"token {t}: {m.max():.0f} mm" for t, m in zip(tokens[start : start + _COLUMNS], part, strict=True)]
        colors = [_color(m / m.max().clip(1e-6)) for m in part]
        rows.append(_labelled(render_row([body] * len(part), faces, colors, _ROW_PX), labels))
    return _stacked(rows, "root mean square movement over all codes of one token: 0 to the maximum above each body")


def _color(share: Float[np.ndarray, "P"]) -> Float[np.ndarray, "P 3"]:
    """Colours in [0, 1] of numbers, cut off at 0 and 1."""
    stops = np.linspace(0, 1, len(_RAMP))
    return np.stack([np.interp(share, stops, channel) for channel in _RAMP.T], -1)


def _labelled(row: UInt8[np.ndarray, "h W 3"], labels: Sequence[str]) -> UInt8[np.ndarray, "H W 3"]:
    """A row of panels with a line of text above each."""
    picture = Image.fromarray(np.pad(row, ((_LABEL_PX, 0), (0, 0), (0, 0)), constant_values=255))
    draw, width = ImageDraw.Draw(picture), row.shape[1] / len(labels)
    for number, label in enumerate(labels):
        place = ((number + 0.5) * width, _LABEL_PX / 2)
        draw.text(place, label, "black", ImageFont.load_default(24), anchor="mm")
    return np.asarray(picture)


def _stacked(rows: Sequence[UInt8[np.ndarray, "h w 3"]], title: str) -> UInt8[np.ndarray, "H W 3"]:
    """Rows of panels below each other, and a legend of the colours."""
    width = max(max(row.shape[1] for row in rows), 1250)
    padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    legend = np.full((_LEGEND_PX, width, 3), 255, np.uint8)
    legend[20:50, 20:320] = (255 * _color(np.linspace(0, 1, 300))).astype(np.uint8)
    picture = Image.fromarray(np.concatenate([legend, *padded]))
    ImageDraw.Draw(picture).text((340, 35), title, "black", ImageFont.load_default(24), anchor="lm")
    return np.asarray(picture)
