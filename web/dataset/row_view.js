// @ts-check
import { el } from "../lib/dom.js";
import { fetchPictureFault, pictureUrl } from "../lib/rows.js";
import { count, t } from "../lib/text.js";

/**
 * @typedef {import("../lib/rows.js").Row} Row
 * @typedef {import("../lib/rows.js").Found} Found
 */

/**
 * What a row does when it is edited.
 *
 * @typedef {object} RowActions
 * @property {(row: number, leftOut: boolean, toLast: boolean) => void} leaveOut `toLast`: with all rows between this one
 *   and the last one clicked.
 * @property {(row: number, text: string | null) => void} setCaption
 */

/** Pixels on a side of the pictures that are asked for: twice those on the screen. */
const PICTURE_PIXELS = 256;

/** One row of the list: whether it is used, its pictures, its caption, and what looks wrong. */
export class RowView {
  /** Caption as it is kept. */
  #caption = "";

  /**
   * @param {number} row
   * @param {import("./row_store.js").RowStore} store
   * @param {RowActions} actions
   */
  constructor(row, store, actions) {
    this.row = row;
    this.store = store;
    this.actions = actions;
    const editable = Boolean(store.state?.editable) && !store.state?.fault;
    const use = el("input", { type: "checkbox", checked: true, disabled: !editable, "aria-label": t("useRow") });
    use.addEventListener("click", (event) => actions.leaveOut(row, !use.checked, event.shiftKey));
    this.use = use;
    const number = el("label", { class: "edit-trainer-use", title: t("useRow") }, use, count(row));
    const { source, state } = store;
    const url = (/** @type {string} */ column) => pictureUrl(source, state?.version ?? "", row, column, PICTURE_PIXELS);
    this.pictures = [...source.controls.map((name) => picture(name, url(name))), target(source, url)];
    this.text = el("textarea", {
      readOnly: !editable,
      spellcheck: false,
      "aria-label": t("captionOf", { row: count(row) }),
      on: { change: () => this.commit(), keydown: (event) => this.#onKey(event) },
    });
    this.own = el(
      "button",
      { class: "edit-trainer-button", type: "button", hidden: true, on: { click: () => actions.setCaption(row, null) } },
      t("ownCaption"),
    );
    this.warnings = el("p", { class: "edit-trainer-row-warnings", hidden: true });
    const foot = el("footer", {}, this.warnings, this.own);
    const words = el("div", { class: "edit-trainer-words" }, this.text, foot);
    this.element = el("div", { class: "edit-trainer-browse-row", role: "listitem" }, number, ...this.pictures, words);
    this.update();
  }

  /** Shows what the store knows of the row. */
  update() {
    const item = this.store.get(this.row);
    const found = this.store.found.get(this.row);
    this.element.toggleAttribute("data-waiting", !item);
    this.warnings.textContent = found ? warningText(found, item?.own !== undefined) : "";
    this.warnings.hidden = !this.warnings.textContent;
    this.warnings.title = this.warnings.textContent;
    if (!item) return;
    this.use.checked = !item.left_out;
    this.element.toggleAttribute("data-left-out", item.left_out);
    this.element.toggleAttribute("data-edited", item.own !== undefined);
    this.own.hidden = item.own === undefined || this.text.readOnly;
    this.own.title = item.own ?? "";
    if (document.activeElement !== this.text || this.text.value === this.#caption) this.text.value = item.caption;
    this.#caption = item.caption;
  }

  /** Keeps a caption that was edited. */
  commit() {
    if (!this.text.readOnly && this.store.get(this.row) && this.text.value !== this.#caption) {
      this.#caption = this.text.value;
      this.actions.setCaption(this.row, this.text.value === this.store.get(this.row)?.own ? null : this.text.value);
    }
  }

  /** Removes the row from the page, and stops what is being read for it. */
  remove() {
    this.commit();
    for (const image of this.element.querySelectorAll("img")) image.removeAttribute("src");
    this.element.remove();
  }

  /** @param {KeyboardEvent} event */
  #onKey(event) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.text.blur();
    if (event.key !== "Escape" || this.text.value === this.#caption) return;
    event.preventDefault(); // The first one takes back what was typed, the next one closes the dialog.
    this.text.value = this.#caption;
  }
}

/**
 * @param {string} name
 * @param {string} src
 * @param {...HTMLElement} over
 */
function picture(name, src, ...over) {
  const image = el("img", { alt: name, title: name, draggable: false, decoding: "async", src });
  image.addEventListener("error", async () => {
    figure.toggleAttribute("data-missing", true);
    const fault = await fetchPictureFault(src).catch(() => "");
    if (fault) figure.dataset.label = figure.title = fault;
  });
  const figure = el("figure", { "data-label": t("noPicture") }, image, ...over);
  return figure;
}

/**
 * The target, on which |target - control| is shown while the pointer or the focus is there.
 *
 * @param {import("../lib/rows.js").RowSource} source
 * @param {(column: string) => string} url
 */
function target({ controls, target: name }, url) {
  const over = el("img", { class: "edit-trainer-over", alt: "", draggable: false, decoding: "async" });
  const label = el("figcaption", {}, t("difference"));
  const figure = picture(name, url(name), over, label);
  figure.tabIndex = 0;
  figure.setAttribute("aria-label", t("differenceOf"));
  const show = () => {
    if (!over.getAttribute("src")) over.src = url(controls[0]);
  };
  over.addEventListener("error", () => over.removeAttribute("src"));
  figure.addEventListener("pointerenter", show);
  figure.addEventListener("focus", show);
  return figure;
}

/**
 * @param {Found} found
 * @param {boolean} edited The caption is no longer the one that was found.
 */
function warningText([, codes, values], edited) {
  const sizes = [values.control, values.target].map((size) => (size ? size.join(" × ") : ""));
  const shown = { ...values, control: sizes[0], target: sizes[1] };
  const left = codes.filter((code) => code !== "emptyCaption" || !edited);
  return left.map((code) => t(`row_${code}`, shown)).join(" · ");
}
