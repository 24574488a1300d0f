// @ts-check
import { changeEdits, fetchEdits, fetchRows, fetchWarnings } from "../lib/rows.js";

/**
 * @typedef {import("../lib/rows.js").Row} Row
 * @typedef {import("../lib/rows.js").RowSource} RowSource
 * @typedef {import("../lib/rows.js").RowChange} RowChange
 * @typedef {import("../lib/rows.js").Found} Found
 */

/** Rows that are kept; a judgement: a few hundred screens. */
const MAX_KEPT = 5000;
/** Rows that the server gives at once. */
const MAX_ROWS = 200;

/** Rows of a dataset as far as they were read, its edits, and what looks wrong in it. */
export class RowStore {
  /** @type {import("../lib/rows.js").EditsState | null} */
  state = null;
  /** Rows that look wrong. @type {Map<number, Found>} */
  found = new Map();
  /** Rows that were searched for what looks wrong. */
  checked = 0;
  /** True once all were. */
  done = false;
  /** @type {Map<number, Row>} */
  #rows = new Map();
  /** Changes that undo the last ones, the newest last. @type {RowChange[]} */
  #undo = [];

  /** @param {RowSource} source */
  constructor(source) {
    this.source = source;
  }

  /** Reads the number of rows and the edits. */
  async open() {
    this.state = await fetchEdits(this.source.resource);
  }

  get canUndo() {
    return this.#undo.length > 0;
  }

  /**
   * A row that was read.
   *
   * @param {number} row
   */
  get(row) {
    return this.#rows.get(row);
  }

  /**
   * Reads those of some rows that are not known yet.
   *
   * @param {number[]} rows
   */
  async read(rows) {
    const missing = rows.filter((row) => !this.#rows.has(row)).slice(0, MAX_ROWS);
    if (!missing.length) return;
    for (const item of await fetchRows(this.source, missing)) {
      this.#rows.delete(item.row);
      this.#rows.set(item.row, item);
    }
    for (const row of this.#rows.keys()) {
      if (this.#rows.size <= MAX_KEPT) break;
      this.#rows.delete(row);
    }
  }

  /** Asks for more rows that look wrong. Returns whether any came. */
  async search() {
    const { checked, done, found, fault } = await fetchWarnings(this.source, this.found.size);
    for (const entry of found) this.found.set(entry[0], entry);
    [this.checked, this.done] = [checked, done];
    if (fault) throw new Error(fault);
    return found.length > 0;
  }

  /**
   * Leaves rows out, or takes them back.
   *
   * @param {number[]} rows
   * @param {boolean} leftOut
   */
  async leaveOut(rows, leftOut) {
    const before = new Set(this.state?.left_out);
    const changed = rows.filter((row) => before.has(row) !== leftOut);
    if (!changed.length) return;
    const change = leftOut ? { leave_out: changed } : { take_back: changed };
    await this.#change(change, leftOut ? { take_back: changed } : { leave_out: changed });
  }

  /**
   * Edits a caption; null gives it the parquet's own.
   *
   * @param {number} row
   * @param {string | null} text
   */
  async setCaption(row, text) {
    const item = this.#rows.get(row);
    const before = item?.own === undefined ? null : item.caption;
    const column = this.source.caption;
    await this.#change({ column, captions: { [row]: text } }, { column, captions: { [row]: before } });
  }

  /** Takes back the last change. */
  async undo() {
    const change = this.#undo.pop();
    if (change) await this.#change(change, null);
  }

  /** Deletes all edits. */
  async discard() {
    this.#undo = [];
    await this.#change({ discard: true }, null);
  }

  /**
   * @param {RowChange} change
   * @param {RowChange | null} inverse
   */
  async #change(change, inverse) {
    if (!("discard" in change)) this.#mark(change); // at once: a tick that waits for the server would jump back
    try {
      this.state = await changeEdits(this.source.resource, change);
    } catch (error) {
      this.#rows.clear();
      throw error;
    }
    if (inverse) this.#undo.push(inverse);
    if ("discard" in change) this.#rows.clear();
    else for (const row of Object.keys(change.captions ?? {})) this.#rows.delete(Number(row)); // They are read again.
  }

  /** @param {Exclude<RowChange, {discard: true}>} change */
  #mark({ leave_out = [], take_back = [] }) {
    for (const [rows, leftOut] of /** @type {[number[], boolean][]} */ ([[leave_out, true], [take_back, false]])) {
      for (const row of rows) {
        const item = this.#rows.get(row);
        if (item) item.left_out = leftOut;
      }
    }
  }
}
