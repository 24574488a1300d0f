"""Contact sheet of the demo: held-out images before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

COLUMNS = ("control", "before", "after", "target")

_CELL, _GAP, _MARGIN, _HEAD = 192, 12, 32, 112

_PAPER, _INK, _FAINT, _ACCENT = "#ffffff", "#1b1f24", "#667079", "#0a6b3d"


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Results of one base model and one edit."""

    title: str
    """Name of the base model."""
    caption: str
    """One line: the edit and its scores."""
    rows: Sequence[tuple[Image.Image, Image.Image, Image.Image, Image.Image]]
    """Images in the order of COLUMNS."""


def draw_contact_sheet(panels: Sequence[Panel]) -> Image.Image:
    """Draw the panels next to each other, their images enlarged without smoothing."""
    width = len(COLUMNS) * (_CELL + _GAP) - _GAP
    height = _HEAD + max(len(panel.rows) for panel in panels) * (_CELL + _GAP) - _GAP
    sheet = Image.new("RGB", (_MARGIN + len(panels) * (width + _MARGIN), height + 2 * _MARGIN), _PAPER)
    for index, panel in enumerate(panels):
        _draw_panel(sheet, panel, _MARGIN + index * (width + _MARGIN), _MARGIN)
    return sheet


def _draw_panel(sheet: Image.Image, panel: Panel, left: int, top: int) -> None:
    pen = ImageDraw.Draw(sheet)
    pen.text((left, top - 4), panel.title, _INK, ImageFont.load_default(30))
    pen.text((left, top + 36), panel.caption, _FAINT, ImageFont.load_default(20))
    for column, name in enumerate(COLUMNS):
        x = left + column * (_CELL + _GAP)
        color = _ACCENT if name == "after" else _INK
        pen.text((x + _CELL // 2, top + 90), name, color, ImageFont.load_default(24), anchor="mm")
        for row, pictures in enumerate(panel.rows):
            y = top + _HEAD + row * (_CELL + _GAP)
            sheet.paste(pictures[column].convert("RGB").resize((_CELL, _CELL), Image.Resampling.NEAREST), (x, y))
            pen.rectangle((x - 1, y - 1, x + _CELL, y + _CELL), outline="#d5dade")
