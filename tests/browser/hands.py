"""Building a graph in the real page as a person does: by mouse and keyboard. Scripts only look where things are."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from typing import Literal

from playwright.sync_api import Locator, Page, TimeoutError

from .helpers import wait_until

Place = tuple[float, float]
"""A point of the window, in CSS pixels."""

NEAR = 20
"""Pixels from its place at which a node is left alone."""
NODES = "() => app.canvas.graph.nodes.map((node) => String(node.id))"
FOLLOWS = "(id) => Boolean(app.canvas.graph.getNodeById(id).flags?.ghost)"
"""Whether a node that was just added follows the mouse until a click."""
PLACE = """([id, kind, name]) => {
  const node = app.canvas.graph.getNodeById(id)
  const { scale, offset } = app.canvas.ds
  const canvas = app.canvas.canvas.getBoundingClientRect()
  const seen = ([x, y]) => [(x + offset[0]) * scale + canvas.left, (y + offset[1]) * scale + canvas.top]
  const slotOf = (slots) => slots.findIndex((slot) => slot.name === name)
  if (kind === 'title') return seen([node.pos[0] + 90, node.pos[1] - 15])
  if (kind === 'input') return seen(node.getInputPos(slotOf(node.inputs)))
  if (kind === 'output') return seen(node.getOutputPos(slotOf(node.outputs)))
  const fields = 'input:not([type=file]), textarea, [role=combobox]'
  const fieldIn = (part) => (part.matches(fields) ? part : part.querySelector(fields) ?? part.querySelector('button'))
  const drawn = document.querySelector(`[data-node-id="${id}"]`)
  const parts = [...(drawn?.querySelectorAll('*') ?? [])]
  let part = parts.find((part) => part.ariaLabel === name || (!part.children.length && part.innerText?.trim() === name))
  while (part && part !== drawn && !fieldIn(part)) part = part.parentElement
  const widget = node.widgets.find((widget) => widget.name === name)
  const element = part && part !== drawn ? fieldIn(part) : widget.element && (fieldIn(widget.element) ?? widget.element)
  if (!element?.isConnected) return seen([node.pos[0] + node.size[0] * 0.5, node.pos[1] + widget.y + 10])
  const { left, top, width, height } = element.getBoundingClientRect()
  return [left + width / 2, top + height / 2]
}"""
"""Where a node's title, one of its slots, or the field of one of its widgets lies in the window."""


class Hands:
    """Mouse and keyboard of a person at the page."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def add(self, words: str, place: Place) -> str:
        """Add the node that the search finds first, with its title at an empty place of the canvas. Returns its id."""
        wait_until(lambda: self._double_click(place), 20)
        return self._search(words, place)

    def add_linked(self, node: str, kind: Literal["input", "output"], slot: str, words: str, place: Place) -> str:
        """Drop a wire of a node's slot at an empty place and add the node that the search finds first, which is then
        connected. Returns its id."""
        self._drag(self._place(node, kind, slot), place)
        menu = self.page.locator(".litecontextmenu").get_by_text("Search", exact=True)
        wait_until(lambda: menu.count() or self._box().count(), 10)
        if menu.count():
            menu.click()
        return self._search(words, place)

    def connect(self, source: str, output: str, target: str, name: str) -> None:
        """Drag a wire from an output to an input."""
        self._drag(self._place(source, "output", output), self._place(target, "input", name))

    def type_text(self, node: str, name: str, text: str) -> None:
        """Type a value into a node's text or number field."""
        self.page.mouse.click(*self._place(node, "widget", name))
        wait_until(lambda: self._focused() in ("INPUT", "TEXTAREA"), 10)
        self.page.keyboard.press("ControlOrMeta+a")
        self.page.keyboard.type(text)
        if self._focused() == "INPUT":
            self.page.keyboard.press("Enter")
        self.page.wait_for_timeout(200)

    def choose(self, node: str, name: str, option: str) -> None:
        """Choose an option of a node's menu."""
        self.page.mouse.click(*self._place(node, "widget", name))
        self.page.wait_for_timeout(500)
        if self._focused() == "INPUT":
            self.page.keyboard.press("ArrowDown")  # opens the menu of a field that can be typed into as well
        self.page.get_by_text(option, exact=True).last.click()

    def run(self) -> None:
        """Press Run."""
        self.page.get_by_test_id("queue-button").click()

    def _box(self) -> Locator:
        return self.page.locator("[role=dialog] input, .comfy-vue-node-search-box input")

    def _double_click(self, place: Place) -> bool:
        """Double-click an empty place, and tell whether the search opens; a page that is still busy misses it."""
        self.page.mouse.dblclick(*place)
        with suppress(TimeoutError):
            self._box().first.wait_for(timeout=3000)
        return self._box().count() > 0

    def _search(self, words: str, place: Place) -> str:
        before = self.page.evaluate(NODES)
        self._box().first.wait_for()
        self.page.keyboard.type(words, delay=20)
        found = self.page.get_by_text(re.compile(words, re.IGNORECASE)).filter(visible=True).first
        found.wait_for()
        self.page.wait_for_timeout(500)
        self.page.keyboard.press("Enter")
        node = wait_until(lambda: next((node for node in self.page.evaluate(NODES) if node not in before), None), 15)
        self.page.wait_for_timeout(500)
        self.page.mouse.move(*place)
        if self.page.evaluate(FOLLOWS, node):
            self.page.mouse.click(*place)
        self.page.wait_for_timeout(500)
        title = self._place(node, "title", "")
        if math.dist(title, place) > NEAR:  # Two clicks at one point would rename the node.
            self._drag(title, place)
        self.page.wait_for_timeout(200)
        return node

    def _focused(self) -> str:
        return self.page.evaluate("() => document.activeElement.tagName")

    def _place(self, node: str, kind: str, name: str) -> Place:
        return tuple(self.page.evaluate(PLACE, [node, kind, name]))

    def _drag(self, start: Place, end: Place) -> None:
        self.page.mouse.move(*start)
        self.page.mouse.down()
        self.page.mouse.move((start[0] + end[0]) / 2, (start[1] + end[1]) / 2, steps=6)
        self.page.mouse.move(*end, steps=6)
        self.page.wait_for_timeout(100)
        self.page.mouse.up()
