// @ts-check

/** @typedef {Pick<import("../lib/server.js").SavedRun, "request" | "settings">} Recorded */

/**
 * Lists the parameters of runs: of each its name and the value of every run as text, empty where a run has none.
 *
 * @param {Recorded[]} runs
 * @returns {{name: string, values: string[]}[]}
 */
export function parameters(runs) {
  const flat = runs.map(({ request, settings }) => {
    const { training_params: params, ...others } = request;
    return /** @type {Record<string, unknown>} */ ({ ...others, ...params, ...settings });
  });
  const names = [...new Set(flat.flatMap((values) => Object.keys(values)))];
  return names.map((name) => ({ name, values: flat.map((values) => asText(values[name])) }));
}

/**
 * Lists the parameters that are not the same in all runs.
 *
 * @param {Recorded[]} runs
 */
export const differences = (runs) => parameters(runs).filter(({ values }) => new Set(values).size > 1);

/** @param {unknown} value */
function asText(value) {
  if (value === undefined || value === null) return "";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
