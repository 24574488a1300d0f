// @ts-check
import { el } from "../lib/dom.js";

/** @typedef {{level: "error" | "warning", text: string}} Line */

/** List of messages that stand in a node. */
export class NoteList {
  #height = 0;

  /** @param {(growth: number) => void} onResize Called when the height has changed, which the node's width decides. */
  constructor(onResize) {
    this.element = el("ul", { class: "edit-trainer edit-trainer-notes", role: "status", hidden: true });
    new ResizeObserver(() => {
      // An element that is not drawn, as in a node off the screen, has no height.
      if (!this.element.hidden && !this.height) return;
      const growth = this.height - this.#height;
      this.#height += growth;
      if (growth) onResize(growth);
    }).observe(this.element);
  }

  /** Height of the messages in the node's pixels; 0 without any. */
  get height() {
    return this.element.offsetHeight;
  }

  /** @param {Line[]} lines */
  show(lines) {
    this.element.hidden = !lines.length;
    this.element.replaceChildren(...lines.map(({ level, text }) => el("li", { "data-level": level }, text)));
  }
}
