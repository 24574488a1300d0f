"""Contact sheet of the demo: held-out images before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_CELL, _GAP, _MARGIN, _HEAD = 192, 12, 32, 112

_PAPER, _INK, _FAINT, _ACCENT = "#ffffff", "#1b1f24", "#667079", "#0a6b3d"


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Results of one base model and one edit."""

    title: str
    """Name of the base model."""
    caption: str
    """One line: the edit and its scores."""
    columns: Sequence[str]
    """Headings of the images in a row; `after` is emphasized."""
    rows: Sequence[Sequence[Image.Image]]

    @property
    def width(self) -> int:
        """Width on the sheet in pixels."""
        return len(self.columns) * (_CELL + _GAP) - _GAP


def draw_contact_sheet(panels: Sequence[Panel]) -> Image.Image:
    """Draw the panels next to each other, their images enlarged without smoothing."""
    width = sum(panel.width + _MARGIN for panel in panels)
    height = _HEAD + max(len(panel.rows) for panel in panels) * (_CELL + _GAP) - _GAP
    sheet = Image.new("RGB", (_MARGIN + width, height + 2 * _MARGIN), _PAPER)
    left = _MARGIN
    for panel in panels:
        _draw_panel(sheet, panel, left, _MARGIN)
        left += panel.width + _MARGIN
    return sheet


def _draw_panel(sheet: Image.Image, panel: Panel, left: int, top: int) -> None:
    pen = ImageDraw.Draw(sheet)
    pen.text((left, top - 4), panel.title, _INK, ImageFont.load_default(30))
    pen.text((left, top + 36), panel.caption, _FAINT, ImageFont.load_default(20))
    for column, name in enumerate(panel.columns):
        x = left + column * (_CELL + _GAP)
        color = _ACCENT if name == "after" else _INK
        pen.text((x + _CELL // 2, top + 90), name, color, ImageFont.load_default(24), anchor="mm")
        for row, pictures in enumerate(panel.rows):
            y = top + _HEAD + row * (_CELL + _GAP)
            sheet.paste(pictures[column].convert("RGB").resize((_CELL, _CELL), Image.Resampling.NEAREST), (x, y))
            pen.rectangle((x - 1, y - 1, x + _CELL, y + _CELL), outline="#d5dade")
