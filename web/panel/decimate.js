// @ts-check

/** @typedef {import("../lib/server.js").Point} Point */

/**
 * The values that fall into one pixel column of a chart.
 *
 * @typedef {{x: number, min: number, max: number, first: number, last: number}} Stroke
 */

/**
 * Reduces a curve of any length to at most `columns` vertical strokes.
 *
 * @param {Point[]} points In order of step.
 * @param {number} first Step of the leftmost column.
 * @param {number} last Step of the rightmost column.
 * @param {number} columns
 * @param {number[] | null} [values] Drawn instead of the points' own values, one for each point.
 * @returns {Stroke[]}
 */
export function decimate(points, first, last, columns, values = null) {
  /** @type {Stroke[]} */
  const strokes = [];
  const scale = (columns - 1) / Math.max(1, last - first);
  /** @type {Stroke | null} */
  let stroke = null;
  for (let index = 0; index < points.length; index++) {
    const point = points[index];
    const value = values === null ? point[1] : values[index];
    const x = Math.round((point[0] - first) * scale);
    if (stroke === null || stroke.x !== x) {
      stroke = { x, min: value, max: value, first: value, last: value };
      strokes.push(stroke);
    } else {
      if (value < stroke.min) stroke.min = value;
      if (value > stroke.max) stroke.max = value;
      stroke.last = value;
    }
  }
  return strokes;
}

/**
 * Finds the index of the point nearest to a step.
 *
 * @param {Point[]} points In order of step, at least one.
 * @param {number} step
 */
export function nearest(points, step) {
  let [low, high] = [0, points.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < step) low = middle + 1;
    else high = middle;
  }
  return low > 0 && step - points[low - 1][0] < points[low][0] - step ? low - 1 : low;
}

/**
 * Chooses round values for the ticks of an axis: multiples of 1, 2 or 5 times a power of ten; on a logarithmic axis 1,
 * 2 and 5 of each decade, or only the decades where that would be more than six.
 *
 * @param {number} min Above 0 on a logarithmic axis.
 * @param {number} max
 * @param {boolean} log
 * @returns {number[]}
 */
export function ticks(min, max, log) {
  const found = [];
  if (log) {
    for (let power = Math.floor(Math.log10(min)); power <= Math.log10(max); power++) {
      for (const factor of [1, 2, 5]) {
        const value = factor * 10 ** power;
        if (value >= min && value <= max) found.push(value);
      }
    }
    return found.length <= 6 ? found : found.filter((value) => /^1/.test(value.toExponential()));
  }
  const rough = (max - min) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5].map((factor) => factor * power).find((size) => size >= rough) ?? 10 * power;
  for (let index = Math.ceil(min / step); index * step <= max; index++) found.push(index * step);
  return found;
}
