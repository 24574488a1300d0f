"""Contrast of the pack's texts with what is behind them, measured in the page."""

from __future__ import annotations

from playwright.sync_api import Page

MIN_CONTRAST = 4.5
"""Of WCAG 2.2, success criterion 1.4.3, at level AA."""
MEASURE = """(least) => {
  const pixel = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true })
  const read = (color) => {
    pixel.clearRect(0, 0, 1, 1)
    pixel.fillStyle = color
    pixel.fillRect(0, 0, 1, 1)
    return [...pixel.getImageData(0, 0, 1, 1).data].map((value) => value / 255)
  }
  const over = ([r, g, b, alpha], below) => [r, g, b].map((value, index) => alpha * value + (1 - alpha) * below[index])
  const luminance = (color) => {
    const [r, g, b] = color.map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
  }
  const chain = (element) => (element ? [element, ...chain(element.parentElement)] : [])
  const ground = (element) => {
    const colors = chain(element).map((part) => read(getComputedStyle(part).backgroundColor))
    const opaque = colors.findIndex((color) => color[3] === 1)
    // On the classic canvas, the node behind its elements is drawn and no element.
    const node = read(LiteGraph.NODE_DEFAULT_BGCOLOR)
    const layers = opaque < 0 ? colors : colors.slice(0, opaque + 1)
    return layers.reduceRight((below, color) => over(color, below), node)
  }
  const contrast = (element) => {
    const [r, g, b, alpha] = read(getComputedStyle(element).color)
    const opacity = chain(element).reduce((product, part) => product * getComputedStyle(part).opacity, alpha)
    const behind = ground(element)
    const [one, other] = [luminance(over([r, g, b, opacity], behind)), luminance(behind)]
    return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05)
  }
  const hasText = (element) =>
    ['INPUT', 'SELECT'].includes(element.tagName)
      ? element.value !== '' && !['checkbox', 'range', 'file'].includes(element.type)
      : [...element.childNodes].some((child) => child.nodeType === Node.TEXT_NODE && child.data.trim())
  const isShown = (element) => {
    const { width, height } = element.getBoundingClientRect()
    const isDrawn = width > 1 && height > 1 && element.checkVisibility({ visibilityProperty: true })
    return isDrawn && !element.matches('option')
  }
  const texts = [...document.querySelectorAll('.edit-trainer, .edit-trainer *')]
    .filter((element) => hasText(element) && isShown(element) && !element.closest(':disabled'))
  const measured = texts.map((element) => {
    const text = (element.value || element.textContent).trim().slice(0, 40)
    return [Number(contrast(element).toFixed(2)), text, element.tagName + '.' + element.className]
  })
  const drawn = [...document.querySelectorAll('.edit-trainer-chart')].filter(isShown).flatMap((chart) =>
    ['--et-muted', '--et-text'].map((name) => {
      const probe = document.createElement('span')
      probe.style.color = `var(${name})`
      chart.append(probe)
      const ratio = Number(contrast(probe).toFixed(2))
      probe.remove()
      return [ratio, name, 'chart']
    }))
  const all = [...measured, ...drawn]
  return { count: all.length, faint: all.filter(([ratio]) => ratio < least).sort(([one], [other]) => one - other) }
}"""


def check_contrast(page: Page, at_least: int) -> None:
    """Fail where a text of the pack on display is too faint, or where fewer texts than `at_least` are on display.

    Texts of disabled controls are exempt, as in WCAG.
    """
    found = page.evaluate(MEASURE, MIN_CONTRAST)
    assert not found["faint"], found["faint"]
    assert found["count"] >= at_least


def choose_palette(page: Page, palette: str) -> None:
    """Switch to the light or the dark palette, and wait until its colours are there."""
    page.evaluate("(name) => app.extensionManager.setting.set('Comfy.ColorPalette', name)", palette)
    page.wait_for_function(
        """(dark) => {
          const pixel = new OffscreenCanvas(1, 1).getContext('2d')
          pixel.fillStyle = getComputedStyle(document.body).getPropertyValue('--fg-color')
          return (pixel.fillStyle === '#ffffff') === dark
        }""",
        arg=palette == "dark",
    )
