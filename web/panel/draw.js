// @ts-check
import { count, t } from "../lib/text.js";
import { ticks } from "./decimate.js";
import { MARGIN } from "./scales.js";

/**
 * @typedef {import("./scales.js").Scales} Scales
 * @typedef {CanvasRenderingContext2D | OffscreenCanvasRenderingContext2D} Context
 * @typedef {ReturnType<typeof readColors>} Colors
 */

export const FONT = "11px Inter, system-ui, sans-serif";
const LINE_HEIGHT = 15;
/** Dots of a curve from which on they are drawn smaller. */
const MANY_DOTS = 60;

/**
 * Draws the grid, its values and the steps.
 *
 * @param {Context} context
 * @param {Scales} scales
 * @param {Colors} colors
 * @param {number} width
 * @param {number} height
 */
export function drawAxes(context, scales, colors, width, height) {
  const right = width - MARGIN.right;
  context.strokeStyle = colors.grid;
  context.fillStyle = colors.muted;
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (const value of ticks(scales.min, scales.max, scales.log)) {
    const y = Math.round(scales.y(value)) + 0.5;
    drawLine(context, MARGIN.left, y, right, y);
    context.fillText(String(Number(value.toPrecision(3))), MARGIN.left - 6, y);
  }
  context.textBaseline = "alphabetic";
  context.textAlign = "left";
  context.fillText(count(scales.firstStep), MARGIN.left, height - 6);
  context.textAlign = "right";
  context.fillText(count(scales.lastStep), right, height - 6);
  context.textAlign = "center";
  context.fillText(t("step"), (MARGIN.left + right) / 2, height - 6);
}

/**
 * Draws one curve: in each column of pixels the span of its values.
 *
 * @param {Context} context
 * @param {Scales} scales
 * @param {import("./decimate.js").Stroke[]} strokes
 * @param {string} color
 * @param {number} alpha
 * @param {number} width
 */
export function strokeCurve(context, { y }, strokes, color, alpha, width) {
  context.save();
  context.globalAlpha = alpha;
  context.strokeStyle = color;
  context.lineWidth = width;
  context.lineJoin = "round";
  context.beginPath();
  for (const { x, min, max, first, last } of strokes) {
    const at = MARGIN.left + x;
    context.lineTo(at, y(first));
    if (min !== max) {
      context.lineTo(at, y(max));
      context.lineTo(at, y(min));
      context.lineTo(at, y(last));
    }
  }
  context.stroke();
  context.restore();
}

/**
 * Draws held-out losses: dots on a dashed line, the lowest with a ring.
 *
 * @param {Context} context
 * @param {Scales} scales
 * @param {import("./scales.js").Curve} curve
 * @param {string} color
 */
export function drawHeldOut(context, { x, y }, { heldOut = [], best }, color) {
  context.save();
  context.strokeStyle = color;
  context.fillStyle = color;
  context.lineWidth = 1.5;
  context.setLineDash([5, 3]);
  context.beginPath();
  for (const [step, value] of heldOut) context.lineTo(x(step), y(value));
  context.stroke();
  context.setLineDash([]);
  for (const [step, value] of heldOut) {
    context.beginPath();
    context.arc(x(step), y(value), heldOut.length > MANY_DOTS ? 1.5 : 2.5, 0, 2 * Math.PI);
    context.fill();
    if (step !== best) continue;
    context.beginPath();
    context.arc(x(step), y(value), 6, 0, 2 * Math.PI);
    context.stroke();
  }
  context.restore();
}

/**
 * Marks the steps of samples by triangles on the axis and those of checkpoints by dotted lines.
 *
 * @param {Context} context
 * @param {Scales} scales
 * @param {{samples: number[], checkpoints: number[]}} marks
 * @param {Colors} colors
 * @param {number} height
 */
export function drawMarks(context, scales, { samples, checkpoints }, colors, height) {
  const bottom = height - MARGIN.bottom;
  context.fillStyle = colors.sample;
  for (const step of samples) {
    const x = scales.x(Math.max(step, scales.firstStep));
    context.beginPath();
    context.moveTo(x - 4, bottom + 1);
    context.lineTo(x + 4, bottom + 1);
    context.lineTo(x, bottom - 6);
    context.fill();
  }
  context.strokeStyle = colors.checkpoint;
  context.globalAlpha = 0.6;
  context.setLineDash([2, 3]);
  for (const step of checkpoints) drawLine(context, scales.x(step), MARGIN.top, scales.x(step), bottom - 8);
  context.setLineDash([]);
  context.globalAlpha = 1;
}

/**
 * Draws a box of text beside a point, on its left where there is no room on its right.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {string[]} lines
 * @param {Colors} colors
 * @param {number} x
 * @param {number} width
 */
export function drawTip(context, lines, colors, x, width) {
  const box = Math.max(...lines.map((text) => context.measureText(text).width)) + 14;
  const left = x + 10 + box > width ? x - 10 - box : x + 10;
  context.fillStyle = colors.tip;
  context.strokeStyle = colors.grid;
  context.beginPath();
  context.roundRect(left, MARGIN.top + 2, box, lines.length * LINE_HEIGHT + 8, 4);
  context.fill();
  context.stroke();
  context.fillStyle = colors.text;
  context.textAlign = "left";
  context.textBaseline = "alphabetic";
  lines.forEach((text, index) => context.fillText(text, left + 7, MARGIN.top + 17 + index * LINE_HEIGHT));
}

/**
 * Draws a straight line.
 *
 * @param {Context} context
 * @param {number} x0
 * @param {number} y0
 * @param {number} x1
 * @param {number} y1
 */
export function drawLine(context, x0, y0, x1, y1) {
  context.beginPath();
  context.moveTo(x0, y0);
  context.lineTo(x1, y1);
  context.stroke();
}

/**
 * Reads the theme's colors where the element is.
 *
 * @param {Element} element
 */
export function readColors(element) {
  const style = getComputedStyle(element);
  const read = (/** @type {string} */ name) => style.getPropertyValue(name).trim();
  return {
    text: read("--et-text"),
    muted: read("--et-muted"),
    grid: read("--et-line"),
    tip: read("--et-raised"),
    sample: read("--et-sample"),
    checkpoint: read("--et-muted"),
    curves: [read("--et-accent"), read("--et-second")],
  };
}
