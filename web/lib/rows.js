// @ts-check
import { fetchJson, postJson, routeUrl } from "./server.js";

/**
 * Columns and images of a dataset whose rows are looked through.
 *
 * @typedef {{resource: string, imagesRoot: string, caption: string, controls: string[], target: string}} RowSource
 */

/**
 * A row. `own` is the parquet's caption where it is edited.
 *
 * @typedef {{row: number, caption: string, own?: string, left_out: boolean}} Row
 */

/**
 * What looks wrong in a row.
 *
 * @typedef {[row: number, codes: string[], values: Record<string, any>]} Found
 */

/**
 * Rows of a parquet and its edits: rows that are left out, and edited rows by column of captions.
 *
 * @typedef {object} EditsState
 * @property {number} rows
 * @property {string} version Changes when the parquet is written again.
 * @property {number[]} left_out
 * @property {number} left_out_rows
 * @property {Record<string, number[]>} captions
 * @property {boolean} editable
 * @property {string} fault Why the edits cannot be used.
 */

/**
 * A change of the edits; null in place of a caption is the parquet's own.
 *
 * @typedef {{leave_out?: number[], take_back?: number[], column?: string, captions?: Record<number, string | null>}
 *   | {discard: true}} RowChange
 */

/**
 * Reads some rows, in this order.
 *
 * @param {RowSource} source
 * @param {number[]} rows
 * @returns {Promise<Row[]>}
 */
export async function fetchRows({ resource, caption }, rows) {
  return (await fetchJson("/rows", { resource, caption_column: caption, rows: rows.join(",") })).items;
}

/**
 * Reads the edits of a parquet.
 *
 * @param {string} resource
 * @returns {Promise<EditsState>}
 */
export const fetchEdits = (resource) => fetchJson("/row_edits", { resource });

/**
 * Changes the edits of a parquet.
 *
 * @param {string} resource
 * @param {RowChange} change
 * @returns {Promise<EditsState>}
 */
export const changeEdits = (resource, change) => postJson("/row_edits", { resource }, JSON.stringify(change));

/**
 * Asks which rows look wrong, beyond the `from` that are known. The server searches while it is asked.
 *
 * @param {RowSource} source
 * @param {number} from
 * @returns {Promise<{checked: number, done: boolean, fault: string, found: Found[]}>}
 */
export function fetchWarnings({ resource, imagesRoot, caption, controls, target }, from) {
  const named = controls.map((name) => /** @type {[string, string]} */ (["control", name]));
  return fetchJson("/row_warnings", [
    ["resource", resource],
    ["images_root", imagesRoot],
    ["caption_column", caption],
    ...named,
    ["image_column", target],
    ["from", String(from)],
  ]);
}

/**
 * Asks why a picture of a row cannot be shown; empty if there is no reason.
 *
 * @param {string} url
 * @returns {Promise<string>}
 */
export async function fetchPictureFault(url) {
  const response = await fetch(url);
  return response.ok ? "" : ((await response.json()).error ?? "");
}

/**
 * URL of a small picture of a row.
 *
 * @param {RowSource} source
 * @param {string} version Of the parquet.
 * @param {number} row
 * @param {string} column
 * @param {number} pixels
 */
export function pictureUrl({ resource, imagesRoot, controls, target }, version, row, column, pixels) {
  const shown = [...controls, target].map((name) => /** @type {[string, string]} */ (["column", name]));
  return routeUrl("/row_picture", [
    ["resource", resource],
    ["images_root", imagesRoot],
    ...shown,
    ["row", String(row)],
    ["of", column],
    ["px", String(pixels)],
    ["version", version],
  ]);
}
