// @ts-check

/** @typedef {import("../lib/server.js").ParquetColumns} ParquetColumns */

/** Column fields of a dataset node, and the kind of column that each needs. */
export const COLUMN_FIELDS = {
  caption_column: "text",
  control_image_column: "image",
  control_image_column_2: "image",
  control_image_column_3: "image",
  image_column: "image",
  mask_column: "image",
};

/**
 * Lists the columns for a field's menu: those of the kind it needs first, and among equals in the file's order.
 *
 * @param {ParquetColumns | null} file
 * @param {string} kind
 */
export function columnOptions(file, kind) {
  if (!file) return [];
  return Object.entries(file.columns)
    .map(([value, note]) => ({ value, note, fits: [kind, "either"].includes(file.kinds[value]) }))
    .sort((a, b) => Number(b.fits) - Number(a.fits));
}

/**
 * Finds the fields whose value is not a column of the file. An empty field is not among them.
 *
 * @param {ParquetColumns | null} file
 * @param {Record<string, string>} values Columns by field.
 */
export function missingFields(file, values) {
  return Object.keys(values).filter((field) => file && values[field] && !(values[field] in file.columns));
}

/**
 * Guesses columns for the empty fields. A field that nothing is known about stays empty.
 *
 * @param {ParquetColumns} file
 * @param {Record<string, string>} values Columns by field.
 * @returns {Record<string, string>}
 */
export function guessEmptyFields(file, values) {
  const empty = Object.keys(values).filter((field) => !values[field]);
  return Object.fromEntries(empty.map((field) => [field, file.guess[field] ?? ""]));
}
