import { el, keepFromGraph } from "../lib/dom.js";

const HEIGHT = 26;
const MARGIN = 3;
let ids = 0;

/**
 * A text widget with a menu: any value can be typed, the menu only offers some. `widget.offers(async () => [{value, note,
 * fits}])` says which. Its value is a plain string, as that of the text widget it stands for.
 */
export function choiceWidget(node, name, [, options = {}]) {
  const id = `edit-trainer-menu-${++ids}`;
  let offers = async () => [];
  let shown = [];
  let at = -1;

  const input = el("input", {
    type: "text",
    value: options.default ?? "",
    role: "combobox",
    spellcheck: false,
    autocomplete: "off",
    title: options.tooltip,
    "aria-controls": id,
    "aria-expanded": "false",
    on: { input: () => commit(input.value, false), keydown: key, focus: () => input.select(), blur: () => close() },
  });
  const arrow = el("button", { type: "button", tabIndex: -1, "aria-hidden": "true", textContent: "▼" });
  // Not click: the input would lose its focus first, and the menu close.
  arrow.addEventListener("mousedown", (event) => {
    event.preventDefault();
    input.focus();
    if (menu.matches(":popover-open")) close();
    else open();
  });
  const caption = el("span", {}, name);
  const menu = el("div", { class: "edit-trainer edit-trainer-menu", id, role: "listbox", popover: "manual" });
  const element = el("div", { class: "edit-trainer edit-trainer-choice" }, el("label", {}, caption, input), arrow, menu);
  keepFromGraph(element);

  const widget = node.addDOMWidget(name, "edit-trainer-choice", element, {
    hideOnZoom: false,
    margin: MARGIN,
    getValue: () => input.value,
    setValue: (value) => {
      const text = String(value ?? "");
      if (text !== input.value) input.value = text;
    },
  });
  widget.computeSize = (width) => [width ?? 0, HEIGHT + 2 * MARGIN];
  widget.computeLayoutSize = undefined;
  widget.offers = (function_) => (offers = function_);
  widget.named = (label) => (caption.textContent = label);
  const removed = widget.onRemove;
  widget.onRemove = function () {
    close();
    return removed?.call(this);
  };

  function commit(value, done) {
    widget.value = value;
    widget.onChoice?.(value, done);
    if (done) close();
    else if (menu.matches(":popover-open")) fill();
  }

  async function open() {
    shown = await offers().catch(() => []);
    if (!shown.length || document.activeElement !== input) return;
    fill();
    menu.showPopover();
    const box = element.getBoundingClientRect();
    const below = innerHeight - box.bottom - 8;
    menu.style.minWidth = `${Math.max(box.width, 160)}px`;
    menu.style.left = `${Math.max(4, Math.min(box.left, innerWidth - menu.offsetWidth - 4))}px`;
    menu.style.top = `${below > Math.min(menu.offsetHeight, 200) ? box.bottom + 2 : Math.max(4, box.top - menu.offsetHeight - 2)}px`;
    input.setAttribute("aria-expanded", "true");
    addEventListener("wheel", away, { capture: true, passive: true });
  }

  function away(event) {
    if (!menu.contains(event.target)) close();
  }

  function close() {
    if (!menu.matches(":popover-open")) return;
    menu.hidePopover();
    input.setAttribute("aria-expanded", "false");
    removeEventListener("wheel", away, { capture: true });
  }

  function fill() {
    at = shown.findIndex(({ value }) => value === input.value);
    menu.replaceChildren(
      ...shown.map(({ value, note, fits = true }, index) =>
        el(
          "div",
          {
            class: `edit-trainer-option${fits ? "" : " edit-trainer-unfit"}`,
            id: `${id}-${index}`,
            role: "option",
            "aria-selected": String(index === at),
            on: { mousedown: (event) => (event.preventDefault(), commit(value, true)) },
          },
          el("span", {}, value),
          el("small", {}, note ?? ""),
        ),
      ),
    );
  }

  function move(way) {
    at = (at + way + shown.length) % shown.length;
    [...menu.children].forEach((option, index) => option.setAttribute("aria-selected", String(index === at)));
    menu.children[at]?.scrollIntoView({ block: "nearest" });
    input.setAttribute("aria-activedescendant", `${id}-${at}`);
  }

  function key(event) {
    event.stopPropagation();
    const opened = menu.matches(":popover-open");
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (opened) move(event.key === "ArrowDown" ? 1 : -1);
      else open();
    } else if (event.key === "Enter") {
      event.preventDefault();
      if (opened && at >= 0) commit(shown[at].value, true);
      else commit(input.value, true);
    } else if (event.key === "Escape" && opened) {
      event.preventDefault();
      close();
    }
  }

  return { widget };
}
