// @ts-check
import { el } from "../lib/dom.js";

/**
 * A message, and what a button beneath it does.
 *
 * @typedef {{level: "error" | "warning" | "info", text: string, action?: {label: string, press: () => unknown}}} Line
 */

/** List of messages that stand in a node. */
export class NoteList {
  /** Height that the node has been given for it. */
  #height = 0;
  /** @type {() => number} */
  #width;
  /** @type {(growth: number) => void} */
  #onResize;

  /**
   * @param {() => number} width Width that the node has for the list.
   * @param {(growth: number) => void} onResize Called when the height has changed, which the width decides.
   */
  constructor(width, onResize) {
    this.#width = width;
    this.#onResize = onResize;
    this.element = el("ul", { class: "edit-trainer edit-trainer-notes", role: "status", hidden: true });
    new ResizeObserver(() => {
      if (this.element.hidden || this.#isLaidOut()) this.#resize(this.element.offsetHeight);
    }).observe(this.element);
  }

  /** Height of the messages in the node's pixels; 0 without any. */
  get height() {
    if (this.element.hidden) return 0;
    return this.#isLaidOut() ? this.element.offsetHeight : this.#height;
  }

  /** @param {Line[]} lines */
  show(lines) {
    this.element.hidden = !lines.length;
    this.element.replaceChildren(...lines.map(item));
    if (!this.#isLaidOut()) this.#resize(lines.length ? this.#measure() : 0);
  }

  /** False where the list is not drawn, or does not have its width yet, and would be as high as its letters. */
  #isLaidOut() {
    return this.element.offsetWidth > this.#width() / 2;
  }

  /** @param {number} height */
  #resize(height) {
    const growth = height - this.#height;
    this.#height = height;
    if (growth) this.#onResize(growth);
  }

  /** Height of the list where it is not laid out, as in a node off the screen: that of a copy out of sight. */
  #measure() {
    const copy = /** @type {HTMLElement} */ (this.element.cloneNode(true));
    Object.assign(copy.style, { position: "fixed", visibility: "hidden", width: `${this.#width()}px` });
    document.body.append(copy);
    const height = copy.offsetHeight;
    copy.remove();
    return height;
  }
}

/** @param {Line} line */
function item({ level, text, action }) {
  if (!action) return el("li", { "data-level": level }, text);
  const props = { class: "edit-trainer-button", type: "button", on: { click: action.press } };
  return el("li", { "data-level": level }, text, el("button", props, action.label));
}
