// @ts-check

/** Space around the plot for the axes' labels, in CSS pixels. */
export const MARGIN = { left: 44, right: 8, top: 8, bottom: 20 };

/** Share of the value range left free above and below the curves. */
const PADDING = 0.06;

/**
 * Losses of a run: each step's, smoothed, and on rows that it does not train on, with the step of the lowest.
 *
 * @typedef {object} Curve
 * @property {import("../lib/server.js").Point[]} points
 * @property {number[]} smoothed
 * @property {import("../lib/server.js").Point[]} [heldOut]
 * @property {number | null} [best]
 */

/**
 * Mapping between a chart's data and its pixels.
 *
 * @typedef {object} Scales
 * @property {number} firstStep
 * @property {number} lastStep
 * @property {boolean} log False also where a logarithmic axis was asked for but no value is above 0.
 * @property {number} min Value at the bottom of the plot.
 * @property {number} max Value at its top.
 * @property {(step: number) => number} x
 * @property {(value: number) => number} y
 * @property {(x: number) => number} stepAt Inverse of `x`.
 */

/**
 * Fits the axes of a chart to its curves.
 *
 * @param {Curve[]} curves At least one, none of them empty.
 * @param {{width: number, height: number, steps: number, log: boolean}} options Size in CSS pixels; the axis reaches
 *   to `steps`, or to the last point.
 * @returns {Scales}
 */
export function fitScales(curves, { width, height, steps, log: wantsLog }) {
  let [min, max, firstStep, lastStep] = [Infinity, -Infinity, Infinity, steps];
  for (const points of curves.flatMap(({ points, heldOut = [] }) => (heldOut.length ? [points, heldOut] : [points]))) {
    firstStep = Math.min(firstStep, points[0][0]);
    lastStep = Math.max(lastStep, points[points.length - 1][0]);
    for (let index = 0; index < points.length; index++) {
      const value = points[index][1];
      if (value > max) max = value;
      if (value < min && (value > 0 || !wantsLog)) min = value;
    }
  }
  const log = wantsLog && min > 0 && Number.isFinite(min);
  const transform = log ? Math.log10 : (/** @type {number} */ value) => value;
  let [bottom, top] = [transform(min), transform(max)];
  const padding = (top - bottom || Math.abs(top) || 1) * PADDING;
  top += padding;
  bottom = log ? bottom - padding : Math.max(min >= 0 ? 0 : -Infinity, bottom - padding);
  const [plotWidth, plotHeight] = [width - MARGIN.left - MARGIN.right, height - MARGIN.top - MARGIN.bottom];
  return {
    firstStep,
    lastStep,
    log,
    min: log ? 10 ** bottom : bottom,
    max: log ? 10 ** top : top,
    x: (step) => MARGIN.left + ((step - firstStep) / Math.max(1, lastStep - firstStep)) * plotWidth,
    y: (value) =>
      MARGIN.top + (1 - (transform(log ? Math.max(value, min) : value) - bottom) / (top - bottom)) * plotHeight,
    stepAt: (x) => firstStep + ((x - MARGIN.left) / plotWidth) * (lastStep - firstStep),
  };
}
