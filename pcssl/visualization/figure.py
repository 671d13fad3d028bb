"""Pictures for a paper or a README: scenes in rows, modes in columns, small titles, legends below."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont

from pcssl.visualization.colors import HEAT, Legend, Scale, Swatches
from pcssl.visualization.render import render_points
from pcssl.visualization.state import ViewState, split_mode

INK, FAINT = (40, 40, 40), (200, 200, 200)
LETTERS = 56  # letter heights in the width: at 800 pixels text is 14 high
LINE, LINES = 1.5, 3  # of a legend: letter heights, and how many may stand below one column


def draw_figure(
    state: ViewState,
    modes: Sequence[str],
    *,
    views: Sequence[str] = ("oblique",),
    width: int = 1600,
    columns: int = 4,
    point_size: float | None = None,
) -> Image.Image:
    """A column for every mode, a row for every scene and view. width: of the picture in pixels.

    columns: more modes than that go on below. point_size: metres, by default what closes the surfaces.
    Rooms are opened, see `render_points`.
    """
    columns = min(columns, len(modes))
    font = ImageFont.load_default(max(10, round(width / LETTERS / (1 if columns < 4 else 1.25))))
    gap = round(font.size * 0.7)
    cell = (width - gap * (columns - 1)) // columns
    bands = []
    for some in (modes[i : i + columns] for i in range(0, len(modes), columns)):
        colors = [state.colors(mode) for mode in some]
        rows = []
        for i in range(len(state.subjects)):
            for view in views:
                row = [_render(state, i, mode, c[i].numpy(), view, cell, point_size) for mode, c in zip(some, colors)]
                rows.append(_trimmed(row, cell))
        bands.append(_band(rows, list(map(title, some)), [state.legend(mode) for mode in some], width, gap, font))
    sheet = Image.new("RGB", (width, sum(band.height for band in bands)), "white")
    for i, band in enumerate(bands):
        sheet.paste(band, (0, sum(before.height for before in bands[:i])))
    return sheet


TITLES = {
    "pca": "features", "clusters": "k-means clusters",
    "views0": "first view", "views1": "second view", "student": "student's view",
}  # fmt: skip


def title(mode: str) -> str:
    """A mode as a heading."""
    name, level = split_mode(mode)
    if name == "targets":
        return f"targets, level {level}"
    return TITLES.get(mode, mode)


def legend_image(legend: Legend, width: int, font: ImageFont.FreeTypeFont) -> Image.Image:
    """A legend on white, as many lines as it needs in this width."""
    if isinstance(legend, Scale):
        return _scale_image(legend, width, font)
    return _swatch_image(legend or Swatches(()), width, font)


def _render(state: ViewState, i: int, mode: str, colors: np.ndarray, view: str, cell: int, point_size: float | None) -> Image.Image:
    scene = state.subjects[i].scene
    marked = mode == "similarity" and state.query.scene == i
    return render_points(
        scene.coord, colors, view=view, size=(cell, cell), normal=scene.normal, point_size=point_size,
        mark=scene.coord[state.query.row].numpy() if marked else None,
    )  # fmt: skip


def _trimmed(row: list[Image.Image], width: int) -> list[Image.Image]:
    """The pictures of one scene without the white above and below that all of them have."""
    white = Image.new("RGB", row[0].size, "white")
    boxes = [ImageChops.difference(image, white).getbbox() or (0, 0, *image.size) for image in row]
    top, bottom = min(box[1] for box in boxes), max(box[3] for box in boxes)
    return [image.crop((0, max(0, top - width // 100), width, min(image.height, bottom + width // 100))) for image in row]


def _spans(legends: Sequence[Legend]) -> list[tuple[int, int, Legend]]:
    """(first column, columns, legend): neighbours that show classes, as labels and predictions do, share theirs."""
    spans: list[tuple[int, int, Legend]] = []
    for column, legend in enumerate(legends):
        if spans and isinstance(legend, Swatches) and isinstance(spans[-1][2], Swatches):
            first, count, before = spans[-1]
            if set(before.entries) & set(legend.entries) and len(legend.entries) > 3:
                spans[-1] = (first, count + 1, Swatches(tuple(dict.fromkeys(before.entries + legend.entries))))
                continue
        spans.append((column, 1, legend))
    return spans


def _band(rows: list[list[Image.Image]], heads: list[str], legends: list[Legend], width: int, gap: int, font) -> Image.Image:
    """Heads, rows of pictures, legends: each in the middle below its columns, a long one below across all."""
    cell = rows[0][0].width
    below, long = [], []
    for first, count, legend in _spans(legends):
        wide = count * (cell + gap) - gap
        image = legend_image(legend, wide, font)
        if image.height > LINES * LINE * font.size:
            long.append(legend_image(legend, width, font))
        else:
            below.append((first * (cell + gap) + (wide - image.width) // 2, image))
    top = round(font.size * 1.7)
    places = [*((x, 0, image) for x, image in below)]
    foot = max((image.height for _, image in below), default=0)
    for image in long:
        places.append(((width - image.width) // 2, foot, image))
        foot += image.height
    height = top + sum(row[0].height + gap for row in rows) + foot + (gap if foot > 1 else 0)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, head in enumerate(heads):
        draw.text((column * (cell + gap) + cell // 2, top // 2), head, INK, font, anchor="mm")
    y = top
    for row in rows:
        for column, image in enumerate(row):
            sheet.paste(image, (column * (cell + gap), y))
        y += row[0].height + gap
    for x, down, image in places:
        sheet.paste(image, (x, y + down))
    return sheet


def _swatch_image(legend: Swatches, width: int, font: ImageFont.FreeTypeFont) -> Image.Image:
    side, line = round(font.size * 0.8), round(font.size * LINE)
    places, x, y, widest = [], 0, 0, 0
    for name, color in legend.entries:
        needed = side * 1.5 + font.getlength(name)
        if x and x + needed > width:
            x, y = 0, y + line
        places.append((x, y, name, color))
        widest = max(widest, x + needed)
        x += needed + font.size
    image = Image.new("RGB", (max(1, min(width, round(widest) + 1)), y + line if places else 1), "white")
    draw = ImageDraw.Draw(image)
    for x, y, name, color in places:
        draw.rectangle((x, y + (line - side) // 2, x + side, y + (line + side) // 2), color)
        draw.text((x + side * 1.5, y + line // 2), name, INK, font, anchor="lm")
    return image


def _scale_image(legend: Scale, width: int, font: ImageFont.FreeTypeFont) -> Image.Image:
    """low [ bar ] high, with its name."""
    texts = [f"{legend.name}  {legend.low:.1f}", f"{legend.high:.1f}"]
    wide = [round(font.getlength(text)) for text in texts]
    bar, line = max(font.size * 2, min(round(font.size * 10), width - sum(wide) - font.size)), round(font.size * LINE)
    image = Image.new("RGB", (sum(wide) + round(font.size) + int(bar), line), "white")
    draw = ImageDraw.Draw(image)
    left = wide[0] + round(font.size / 2)
    table = np.array(HEAT, float)
    for x in range(int(bar)):
        place = x / max(1, bar - 1) * (len(table) - 1)
        color = tuple(round(np.interp(place, np.arange(len(table)), table[:, i])) for i in range(3))
        draw.line((left + x, line * 0.25, left + x, line * 0.75), color)
    draw.rectangle((left, line * 0.25, left + bar - 1, line * 0.75), outline=FAINT)
    draw.text((0, line // 2), texts[0], INK, font, anchor="lm")
    draw.text((left + bar + font.size / 2, line // 2), texts[1], INK, font, anchor="lm")
    return image
