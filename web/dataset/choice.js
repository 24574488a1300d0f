// @ts-check
import { el, shieldFromGraph } from "../lib/dom.js";
import { callBefore } from "../graph/nodes.js";
import { menuPosition } from "./menu_position.js";

/**
 * An entry of the menu. `fits` false dims it.
 *
 * @typedef {{value: string, note?: string, fits?: boolean}} Option
 */

/**
 * What the widget adds to ComfyUI's. `onChoice` is called with each value; `committed` is false while it is being typed.
 *
 * @typedef {object} ChoiceParts
 * @property {(source: () => Promise<Option[]>) => void} [setOptions] Sets where the menu's options come from.
 * @property {(label: string) => void} [setLabel]
 * @property {(value: string, committed: boolean) => void} [onChoice]
 */

/** @typedef {ComfyWidget & ChoiceParts} ChoiceWidget */

/** Height of ComfyUI's own rows on the classic canvas. */
const HEIGHT = 20;
const MIN_MENU_WIDTH = 160;
let lastId = 0;

/**
 * Creates a text widget with a menu of suggestions; any other value can be typed. Its value is a string, so that a
 * workflow is saved as with ComfyUI's own text widget.
 *
 * @param {ComfyNode} node
 * @param {string} name
 * @param {[type: string, options?: {default?: string, tooltip?: string}]} spec
 */
export function choiceWidget(node, name, [, options = {}]) {
  const box = new ChoiceBox(name, options.default ?? "", options.tooltip);
  /** @type {ChoiceWidget} */
  const widget = node.addDOMWidget(name, "edit-trainer-choice", box.element, {
    hideOnZoom: false,
    margin: 0,
    getValue: () => box.input.value,
    setValue: (value) => {
      const text = String(value ?? "");
      if (text !== box.input.value) box.input.value = text;
    },
  });
  widget.computeSize = (width) => [width ?? 0, HEIGHT];
  widget.computeLayoutSize = undefined;
  widget.setOptions = (source) => (box.source = source);
  widget.setLabel = (label) => (box.caption.textContent = label);
  box.onChoice = (value, committed) => {
    widget.value = value;
    widget.onChoice?.(value, committed);
  };
  callBefore(widget, "onRemove", () => box.close());
  return { widget };
}

/** Text field with a pop-up menu, with the keys and roles of an ARIA combobox. */
class ChoiceBox {
  /** @type {() => Promise<Option[]>} */
  source = async () => [];
  /** @type {(value: string, committed: boolean) => void} */
  onChoice = () => {};
  /** @type {Option[]} */
  #options = [];
  /** Index of the highlighted option, or -1. */
  #active = -1;
  #id = `edit-trainer-menu-${++lastId}`;

  /**
   * @param {string} label
   * @param {string} value
   * @param {string} [tooltip]
   */
  constructor(label, value, tooltip) {
    const input = el("input", {
      type: "text",
      value,
      role: "combobox",
      spellcheck: false,
      autocomplete: "off",
      title: tooltip,
      "aria-controls": this.#id,
      "aria-expanded": "false",
      on: {
        input: () => this.#choose(input.value, false),
        keydown: (event) => this.#onKey(event),
        focus: () => input.select(),
        blur: () => this.close(),
      },
    });
    this.input = input;
    const arrow = el("button", { type: "button", tabIndex: -1, "aria-hidden": "true", textContent: "▼" });
    // A click would come too late: the input would have lost focus, and the menu closed.
    arrow.addEventListener("mousedown", (event) => {
      event.preventDefault();
      input.focus();
      if (this.#isOpen) this.close();
      else this.#open();
    });
    this.caption = el("span", {}, label);
    this.menu = el("div", {
      class: "edit-trainer edit-trainer-menu",
      id: this.#id,
      role: "listbox",
      popover: "manual",
    });
    const field = el("label", {}, this.caption, input);
    this.element = el("div", { class: "edit-trainer edit-trainer-choice" }, field, arrow, this.menu);
    shieldFromGraph(this.element);
  }

  close() {
    if (!this.#isOpen) return;
    this.menu.hidePopover();
    this.input.setAttribute("aria-expanded", "false");
    removeEventListener("wheel", this.#onWheel, { capture: true });
  }

  get #isOpen() {
    return this.menu.matches(":popover-open");
  }

  async #open() {
    this.#options = await this.source().catch(() => []);
    if (!this.#options.length || document.activeElement !== this.input) return;
    this.#fill();
    this.menu.showPopover();
    const field = this.element.getBoundingClientRect();
    this.menu.style.minWidth = `${Math.max(field.width, MIN_MENU_WIDTH)}px`;
    const size = { width: this.menu.offsetWidth, height: this.menu.offsetHeight };
    const { left, top } = menuPosition(field, size, { width: innerWidth, height: innerHeight });
    this.menu.style.left = `${left}px`;
    this.menu.style.top = `${top}px`;
    this.input.setAttribute("aria-expanded", "true");
    addEventListener("wheel", this.#onWheel, { capture: true, passive: true });
  }

  /**
   * Closes the menu when something else is scrolled, which would move its field away from it.
   *
   * @param {WheelEvent} event
   */
  #onWheel = (event) => {
    if (!(event.target instanceof Node && this.menu.contains(event.target))) this.close();
  };

  /**
   * @param {string} value
   * @param {boolean} committed
   */
  #choose(value, committed) {
    this.onChoice(value, committed);
    if (committed) this.close();
    else if (this.#isOpen) this.#fill();
  }

  #fill() {
    this.#active = this.#options.findIndex(({ value }) => value === this.input.value);
    this.menu.replaceChildren(...this.#options.map((option, index) => this.#row(option, index)));
  }

  /**
   * @param {Option} option
   * @param {number} index
   */
  #row({ value, note = "", fits = true }, index) {
    const props = {
      class: `edit-trainer-option${fits ? "" : " edit-trainer-unfit"}`,
      id: `${this.#id}-${index}`,
      role: "option",
      "aria-selected": String(index === this.#active),
    };
    const row = el("div", props, el("span", {}, value), el("small", {}, note));
    row.addEventListener("mousedown", (event) => {
      event.preventDefault();
      this.#choose(value, true);
    });
    return row;
  }

  /** @param {1 | -1} offset */
  #move(offset) {
    this.#active = (this.#active + offset + this.#options.length) % this.#options.length;
    [...this.menu.children].forEach((row, index) => row.setAttribute("aria-selected", String(index === this.#active)));
    this.menu.children[this.#active]?.scrollIntoView({ block: "nearest" });
    this.input.setAttribute("aria-activedescendant", `${this.#id}-${this.#active}`);
  }

  /** @param {KeyboardEvent} event */
  #onKey(event) {
    event.stopPropagation();
    const open = this.#isOpen;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (open) this.#move(event.key === "ArrowDown" ? 1 : -1);
      else this.#open();
    } else if (event.key === "Enter") {
      event.preventDefault();
      this.#choose(open && this.#active >= 0 ? this.#options[this.#active].value : this.input.value, true);
    } else if (event.key === "Escape" && open) {
      event.preventDefault();
      this.close();
    }
  }
}
