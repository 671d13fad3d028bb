"""Bar charts as pictures, with Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

COLORS = ((66, 106, 168), (221, 132, 82), (128, 128, 128), (85, 148, 94), (150, 90, 150))
LINE = 22  # pixels of a bar with its gap


def bar_chart(
    rows: Sequence[str], series: dict[str, Sequence[float | None]], title: str, *,
    single: Sequence[Sequence[float]] = (), highest: float | None = None, width: int = 900,
) -> Image.Image:  # fmt: skip
    """Horizontal bars: for every row one bar a series, with its number; None leaves the bar out.

    Values from 0 on; `highest` is the value of the whole width, by default the largest there is. `single`: for every row the
    values that its bar of the first series is the mean of, drawn as ticks across it.
    """
    font = ImageFont.load_default(14)
    label = max(int(font.getlength(row)) for row in rows) + 24
    block = LINE * len(series) + 8
    image = Image.new("RGB", (width, 60 + 24 * len(series) + block * len(rows)), "white")
    draw = ImageDraw.Draw(image)
    draw.text((12, 10), title, "black", ImageFont.load_default(18))
    known = [value for values in (*series.values(), *single) for value in values if value is not None]
    scale = (width - label - 80) / max(highest or max(known, default=0.0), 1e-9)
    y = 42
    for i, name in enumerate(series):
        draw.rectangle((label, y + 3, label + 14, y + 17), COLORS[i % len(COLORS)])
        draw.text((label + 22, y), name, "black", font)
        y += 24
    for r, row in enumerate(rows):
        draw.text((label - 12 - font.getlength(row), y + (block - 24) / 2), row, "black", font)
        for i, values in enumerate(series.values()):
            if values[r] is not None:
                top, end = y + i * LINE, label + max(1.0, values[r] * scale)
                draw.rectangle((label, top + 2, end, top + LINE - 4), COLORS[i % len(COLORS)])
                ticks = [label + value * scale for value in single[r]] if single and i == 0 else []
                for x in ticks:
                    draw.line((x, top, x, top + LINE - 2), "black", 2)
                draw.text((max(end, *ticks, 0) + 6, top), f"{values[r]:.1f}", (90, 90, 90), font)
        y += block
    return image
