// @ts-check
import { el, oncePerFrame, setText, showDialog } from "../lib/dom.js";
import { count, counted, editLines, messageOf, t } from "../lib/text.js";
import { CODES, RowOrder, rowsByCode, visiblePlaces, worstFirst } from "./row_order.js";
import { RowStore } from "./row_store.js";
import { RowView } from "./row_view.js";

/** @typedef {import("../lib/rows.js").RowSource} RowSource */

/** Height of a row, as in the style sheet. */
const ROW_HEIGHT = 148;
/** Rows of one page: browsers limit the height of what scrolls to some 17 million pixels. */
const PAGE_ROWS = 100_000;
/** Pause in scrolling after which rows are read. */
const SCROLL_MS = 60;
/** Pause between two questions for rows that look wrong. */
const SEARCH_MS = 700;

/**
 * Opens a dialog with all rows of a dataset, in which rows are left out and captions edited.
 *
 * @param {RowSource} source
 * @param {() => void} onClose
 */
export async function openRows(source, onClose) {
  const store = new RowStore(source);
  await store.open();
  const browser = new RowBrowser(store, onClose);
  browser.show();
}

/** The dialog. Rows are drawn where they are seen, and read when scrolling rests. */
class RowBrowser {
  /** Views by place. @type {Map<number, RowView>} */
  #views = new Map();
  #order = new RowOrder(0);
  #page = 0;
  /** Row that was last left out or taken back. @type {number | null} */
  #last = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #reading;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #searching;
  #open = true;
  #frame = oncePerFrame(() => this.#draw());

  /**
   * @param {RowStore} store
   * @param {() => void} onClose
   */
  constructor(store, onClose) {
    this.store = store;
    const name = store.source.resource.split(/[\\/]/).pop() ?? "";
    this.status = el("p", { role: "status" });
    this.progress = el("p", { class: "edit-trainer-plan" });
    this.sort = el(
      "select",
      { "aria-label": t("sortRows"), on: { change: () => this.#arrange() } },
      ...["fileOrder", "worstFirst", "leftOutFirst"].map((value) => el("option", { value }, t(value))),
    );
    this.jump = el("input", { type: "number", min: 0, "aria-label": t("goToRow"), placeholder: t("goToRow") });
    this.jump.addEventListener("change", () => this.#goTo(this.jump.valueAsNumber));
    this.undo = button("undo", () => this.#edit(() => store.undo()));
    this.pages = el("div", { class: "edit-trainer-buttons", hidden: true });
    this.found = el("div", { class: "edit-trainer-found", hidden: true });
    this.space = el("div", { class: "edit-trainer-browse-space", role: "list" });
    this.list = el(
      "div",
      { class: "edit-trainer-browse-list", tabIndex: 0, on: { scroll: this.#frame } },
      this.space,
    );
    const title = el("h2", {}, t("rowsOf", { name }));
    const close = button("close", () => this.dialog.close());
    const tools = el("div", { class: "edit-trainer-tools" }, this.sort, this.jump, this.pages, this.undo);
    this.dialog = el(
      "dialog",
      { class: "edit-trainer edit-trainer-browse", "aria-label": t("rowsOf", { name }) },
      el("header", {}, title, this.status, close),
      tools,
      this.found,
      this.#notice(),
      this.list,
      this.progress,
    );
    this.dialog.style.setProperty("--et-pictures", String(store.source.controls.length + 1));
    this.dialog.addEventListener("close", () => {
      this.#close();
      onClose();
    });
    this.resizes = new ResizeObserver(this.#frame);
  }

  show() {
    showDialog(this.dialog);
    addEventListener("keydown", this.#onKey, true);
    this.resizes.observe(this.list);
    this.#arrange();
    this.#drawState();
    this.#search();
    this.list.focus();
  }

  #close() {
    this.#open = false;
    removeEventListener("keydown", this.#onKey, true);
    clearTimeout(this.#reading);
    clearTimeout(this.#searching);
    this.resizes.disconnect();
    for (const view of this.#views.values()) view.remove();
    this.dialog.remove();
  }

  /** Says why rows cannot be edited; edits that cannot be used can be discarded. */
  #notice() {
    const { editable, fault } = this.store.state ?? { editable: false, fault: "" };
    if (editable && !fault) return null;
    const discard = button("discardEdits", () =>
      this.#edit(async () => {
        await this.store.discard();
        notice.remove();
        for (const view of this.#views.values()) view.remove();
        this.#views.clear();
      }),
    );
    const text = el("p", { class: fault ? "edit-trainer-bad" : "" }, fault || t("notEditable"));
    const notice = el("div", { class: "edit-trainer-buttons" }, text, fault && editable ? discard : null);
    return notice;
  }

  /** Puts the rows into the chosen order and shows its first ones. */
  #arrange() {
    const { rows = 0, left_out = [] } = this.store.state ?? {};
    const first = { worstFirst: () => worstFirst(this.store.found.values()), leftOutFirst: () => left_out };
    const chosen = first[/** @type {keyof typeof first} */ (this.sort.value)]?.() ?? [];
    this.#order = new RowOrder(rows, chosen);
    this.#last = null;
    this.#turnTo(0);
  }

  /** True if rows that look wrong were found since they were put first, and nobody is busy with the rows. */
  #isOutdated() {
    if (this.sort.value !== "worstFirst" || this.#order.first.length === this.store.found.size) return false;
    return this.#page === 0 && this.list.scrollTop === 0 && !(document.activeElement instanceof HTMLTextAreaElement);
  }

  /** @param {number} page */
  #turnTo(page) {
    this.#page = page;
    for (const view of this.#views.values()) view.remove();
    this.#views.clear();
    const { rows } = this.#order;
    this.space.style.height = `${Math.min(PAGE_ROWS, rows - page * PAGE_ROWS) * ROW_HEIGHT}px`;
    this.list.scrollTop = 0;
    const pages = Math.ceil(rows / PAGE_ROWS);
    this.pages.hidden = pages < 2;
    const [earlier, later] = [button("earlier", () => this.#turnTo(page - 1)), button("later", () => this.#turnTo(page + 1))];
    [earlier.disabled, later.disabled] = [page === 0, page >= pages - 1];
    const span = { first: count(page * PAGE_ROWS + 1), last: count(Math.min(rows, (page + 1) * PAGE_ROWS)) };
    this.pages.replaceChildren(earlier, el("span", {}, t("placesOf", { ...span, rows: count(rows) })), later);
    this.#frame();
  }

  /** @param {number} row */
  #goTo(row) {
    if (!(row >= 0 && row < this.#order.rows)) return;
    const place = this.#order.placeOf(Math.floor(row));
    const page = Math.floor(place / PAGE_ROWS);
    if (page !== this.#page) this.#turnTo(page);
    this.list.scrollTop = (place - page * PAGE_ROWS) * ROW_HEIGHT;
  }

  #draw() {
    if (!this.#open) return;
    if (this.#isOutdated()) this.#arrange();
    const start = this.#page * PAGE_ROWS;
    const rows = Math.min(PAGE_ROWS, this.#order.rows - start);
    const { scrollTop, clientHeight } = this.list;
    const [first, end] = visiblePlaces(scrollTop, clientHeight, ROW_HEIGHT, rows).map((place) => place + start);
    for (const [place, view] of this.#views) {
      if (place >= first && place < end) continue;
      view.remove();
      this.#views.delete(place);
    }
    for (let place = first; place < end; place++) {
      if (this.#views.has(place)) continue;
      const view = new RowView(this.#order.at(place), this.store, {
        leaveOut: (row, leftOut, toLast) => this.#leaveOut(row, leftOut, toLast),
        setCaption: (row, text) => this.#edit(() => this.store.setCaption(row, text)),
      });
      view.element.style.top = `${(place - start) * ROW_HEIGHT}px`;
      this.#views.set(place, view);
      this.space.append(view.element);
    }
    clearTimeout(this.#reading);
    this.#reading = setTimeout(() => this.#read(), SCROLL_MS);
  }

  #drawState() {
    const { rows = 0, left_out, left_out_rows = 0, captions = {}, editable, fault } = this.store.state ?? {};
    const edited = captions[this.store.source.caption] ?? [];
    setText(this.status, [counted("row", rows), ...editLines(left_out_rows, edited.length)].join(" · "));
    this.undo.disabled = !this.store.canUndo;
    const { checked, done } = this.store;
    setText(this.progress, done ? "" : t("looking", { n: count(checked), rows: count(rows) }));
    this.progress.hidden = done;
    const byCode = rowsByCode(this.store.found.values(), left_out, edited);
    const chips = CODES.filter((code) => byCode.get(code)?.length).map((code) => {
      const wrong = byCode.get(code) ?? [];
      const chip = button(`found_${code}`, () => this.#edit(() => this.store.leaveOut(wrong, true)), { n: count(wrong.length) });
      chip.title = t("leaveTheseOut");
      chip.disabled = !editable || Boolean(fault);
      return chip;
    });
    this.found.hidden = !chips.length;
    this.found.replaceChildren(...chips);
  }

  /** Reads the rows that are seen. */
  async #read() {
    const rows = [...this.#views.values()].map(({ row }) => row);
    await this.#attempt(() => this.store.read(rows));
    for (const view of this.#views.values()) view.update();
  }

  /** Asks for rows that look wrong as long as the search goes on. */
  async #search() {
    let found = false;
    await this.#attempt(async () => (found = await this.store.search()));
    if (!this.#open) return;
    if (found) this.#frame();
    for (const view of this.#views.values()) view.update();
    this.#drawState();
    if (!this.store.done) this.#searching = setTimeout(() => this.#search(), SEARCH_MS);
  }

  /**
   * @param {number} row
   * @param {boolean} leftOut
   * @param {boolean} toLast
   */
  #leaveOut(row, leftOut, toLast) {
    const places = [row, toLast && this.#last !== null ? this.#last : row].map((shown) => this.#order.placeOf(shown));
    const [from, to] = [Math.min(...places), Math.max(...places)];
    this.#last = row;
    const rows = Array.from({ length: to - from + 1 }, (_, index) => this.#order.at(from + index));
    this.#edit(() => this.store.leaveOut(rows, leftOut));
  }

  /** @param {() => Promise<unknown>} change */
  async #edit(change) {
    await this.#attempt(change);
    this.#drawState();
    await this.#read();
  }

  /** @param {() => Promise<unknown>} action */
  async #attempt(action) {
    try {
      await action();
      this.status.classList.remove("edit-trainer-bad");
    } catch (error) {
      this.status.classList.add("edit-trainer-bad");
      setText(this.status, messageOf(error));
    }
  }

  /**
   * Undoes the last edit of a row, in place of the graph's last change.
   *
   * @param {KeyboardEvent} event
   */
  #onKey = (event) => {
    const { key, ctrlKey, metaKey, target } = event;
    if (!/^[zy]$/i.test(key) || !(ctrlKey || metaKey) || target instanceof HTMLTextAreaElement) return;
    event.preventDefault();
    event.stopPropagation();
    // Older pages undo the graph's last change all the same: they have seen the event, and read its key in the next frame.
    Object.defineProperty(event, "key", { value: "" });
    if (key === "z" && !this.undo.disabled) this.undo.click();
  };
}

/**
 * @param {string} label
 * @param {() => void} press
 * @param {Record<string, unknown>} [values]
 */
function button(label, press, values) {
  return el("button", { class: "edit-trainer-button", type: "button", on: { click: press } }, t(label, values));
}
