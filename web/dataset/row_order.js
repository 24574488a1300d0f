// @ts-check

/** @typedef {import("../lib/rows.js").Found} Found */

/** Kinds of warnings about a row, the worst first. */
export const CODES = ["unreadable", "same", "swapped", "near", "shape", "emptyCaption"];

/** Order in which the rows of a file are shown: some chosen rows first, then all others as in the file. */
export class RowOrder {
  /** @type {number[]} */
  #sorted;

  /**
   * @param {number} rows Rows of the file.
   * @param {number[]} [first] Rows that come first, in this order; each once.
   */
  constructor(rows, first = []) {
    this.rows = rows;
    this.first = first;
    this.#sorted = [...first].sort((a, b) => a - b);
  }

  /**
   * Row of the file that is shown at a place.
   *
   * @param {number} place From 0 to `rows` - 1.
   */
  at(place) {
    if (place < this.first.length) return this.first[place];
    const other = place - this.first.length;
    // The number of chosen rows before the wanted one: row = other + number.
    let [low, high] = [0, this.#sorted.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#sorted[middle] - middle <= other) low = middle + 1;
      else high = middle;
    }
    return other + low;
  }

  /**
   * Place at which a row is shown.
   *
   * @param {number} row
   */
  placeOf(row) {
    const chosen = this.first.indexOf(row);
    if (chosen >= 0) return chosen;
    let [low, high] = [0, this.#sorted.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#sorted[middle] < row) low = middle + 1;
      else high = middle;
    }
    return this.first.length + row - low;
  }
}

/**
 * Rows that look wrong, the worst first: by kind of warning, then by how little the pictures differ, then by row.
 *
 * @param {Iterable<Found>} found
 */
export function worstFirst(found) {
  const rank = (/** @type {Found} */ [, codes]) => Math.min(...codes.map((code) => CODES.indexOf(code)));
  const levels = (/** @type {Found} */ [, , values]) => values.levels ?? 0;
  return [...found]
    .map((entry) => ({ row: entry[0], rank: rank(entry), levels: levels(entry) }))
    .sort((a, b) => a.rank - b.rank || a.levels - b.levels || a.row - b.row)
    .map(({ row }) => row);
}

/**
 * Rows by kind of warning, without those that are left out and those whose empty caption was edited.
 *
 * @param {Iterable<Found>} found
 * @param {Iterable<number>} [leftOut]
 * @param {Iterable<number>} [edited]
 * @returns {Map<string, number[]>}
 */
export function rowsByCode(found, leftOut = [], edited = []) {
  const [without, written] = [new Set(leftOut), new Set(edited)];
  /** @type {Map<string, number[]>} */
  const rows = new Map(CODES.map((code) => [code, []]));
  for (const [row, codes] of found) {
    if (without.has(row)) continue;
    for (const code of codes) if (code !== "emptyCaption" || !written.has(row)) rows.get(code)?.push(row);
  }
  return rows;
}

/**
 * Places that a list with rows of one height shows, and some beyond its edges.
 *
 * @param {number} top Scroll position in pixels.
 * @param {number} height Height of the view.
 * @param {number} rowHeight
 * @param {number} rows
 * @param {number} [beyond]
 * @returns {[first: number, end: number]}
 */
export function visiblePlaces(top, height, rowHeight, rows, beyond = 3) {
  const first = Math.floor(top / rowHeight) - beyond;
  const end = Math.ceil((top + height) / rowHeight) + beyond;
  return [Math.min(Math.max(first, 0), rows), Math.min(Math.max(end, 0), rows)];
}
