"""Colours of the pack's links and texts in the dark and the light palette."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page

from ..comfyui.server import Server
from .helpers import choose_renderer

LINK_COLORS = """() => {
  const types = ['DATASET', 'MODEL', 'PARAMS', 'SAMPLES', 'SETTINGS', 'RUN'].map((type) => `EDIT_${type}`)
  const root = getComputedStyle(document.documentElement)
  return [...new Set(types.flatMap((type) => [
    LGraphCanvas.link_type_colors[type],
    app.canvas.default_connection_color_byType[type],
    root.getPropertyValue(`--color-datatype-${type}`),
  ]))]
}"""
CONTRAST = """() => {
  const element = document.createElement('div')
  element.className = 'edit-trainer edit-trainer-panel'
  element.append(Object.assign(document.createElement('p'), { className: 'edit-trainer-message edit-trainer-bad' }))
  document.body.append(element)
  const pixel = new OffscreenCanvas(1, 1).getContext('2d')
  const luminance = (color) => {
    pixel.fillStyle = color
    pixel.fillRect(0, 0, 1, 1)
    const linear = [...pixel.getImageData(0, 0, 1, 1).data].slice(0, 3).map((value) => value / 255)
      .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
  }
  const text = luminance(getComputedStyle(element.firstChild).color)
  const ground = luminance(getComputedStyle(element).backgroundColor)
  element.remove()
  return (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05)
}"""
"""Contrast of an error on the panel, as WCAG defines it."""


@pytest.mark.parametrize("renderer", ["classic", "vue"])
def test_links_have_one_color_and_errors_are_readable_in_every_palette(
    page: Page, server: Server, renderer: str
) -> None:
    choose_renderer(page, renderer)
    for palette in ("light", "dark"):
        page.evaluate("(name) => app.extensionManager.setting.set('Comfy.ColorPalette', name)", palette)
        page.wait_for_timeout(1500)
        colors = page.evaluate(LINK_COLORS)
        assert len(colors) == 1 and colors[0].startswith("#"), colors
        assert page.evaluate(CONTRAST) >= 4.5
