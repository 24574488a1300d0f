// @ts-check
import { count, t } from "../lib/text.js";

/**
 * What is wrong with a node, or what it has done: a text, or one of the page's texts with its values.
 *
 * @typedef {{level: "error" | "warning" | "info", text?: string, code?: string, values?: Record<string, any>}} Note
 * @typedef {{row: number, column: string, file?: string, text?: string, code?: string, values?: Record<string, any>}} Fault
 */

/**
 * Puts a note into the page's language.
 *
 * @param {Note} note
 * @param {(field: string) => string} labelOf Name of an input as the node shows it.
 */
export function noteText({ text, code, values = {} }, labelOf) {
  if (!code) return text ?? "";
  const shown = Object.entries(values).map(([name, value]) => {
    if (typeof value === "number") return [name, count(value)];
    if (name === "field") return [name, labelOf(value)];
    return [name, Array.isArray(value) ? value.join(", ") : value];
  });
  const lines = [t(`note_${code}`, Object.fromEntries(shown)), ...(values.faults ?? []).map(faultText)];
  return lines.join("\n");
}

/** @param {Fault} fault */
function faultText({ row, column, file, text, code, values }) {
  const place = file ? `${file}: ${count(row)}` : count(row);
  return t("note_fault", { row: place, column, why: code ? t(`note_${code}`, values) : text });
}
