// @ts-check
import { el, oncePerFrame } from "../lib/dom.js";
import { count, loss, t } from "../lib/text.js";
import { decimate, nearest, ticks } from "./decimate.js";
import { MARGIN, fitScales } from "./scales.js";

// A canvas of our own and no chart library: ComfyUI serves a pack's files as they are, so a library would have to be
// copied into the repository, and this one plot with its marks needs a fraction of what the smallest of them has.

/**
 * @typedef {import("./scales.js").Curve} Curve
 * @typedef {import("./scales.js").Scales} Scales
 * @typedef {CanvasRenderingContext2D | OffscreenCanvasRenderingContext2D} Context
 */

/**
 * Keeps the canvas in host memory: it is so small that a round trip to the GPU takes longer than drawing it.
 *
 * @type {CanvasRenderingContext2DSettings}
 */
const IN_MEMORY = { willReadFrequently: true };
const FONT = "11px Inter, system-ui, sans-serif";
const LINE_HEIGHT = 15;

/**
 * Loss curves on a canvas, each raw (faint) and smoothed (strong), with marks for samples and checkpoints. Two curves
 * compare two runs.
 */
export class LossChart {
  #log = false;
  /** @type {Curve[]} */
  #curves = [];
  /** @type {number[]} */
  #samples = [];
  /** @type {number[]} */
  #checkpoints = [];
  #steps = 0;
  /** Pointer position in CSS pixels. @type {number | null} */
  #hover = null;
  #announcing = false;
  /** Width and height in CSS pixels. */
  #size = [0, 0];
  /** Everything except the hover, drawn once for all positions of the pointer. @type {OffscreenCanvas | null} */
  #base = null;
  /** @type {Scales | null} */
  #scales = null;
  /** @type {ReturnType<typeof readColors> | null} */
  #colors = null;
  #frame = oncePerFrame(() => this.#draw());

  constructor() {
    this.canvas = el("canvas", {
      class: "edit-trainer-chart-canvas",
      tabIndex: 0,
      role: "img",
      "aria-label": t("lossCurve"),
      on: {
        pointermove: (event) => this.#hoverAt(event.offsetX),
        pointerleave: () => this.#hoverAt(null),
        blur: () => this.#hoverAt(null),
        keydown: (event) => this.#onKey(event),
      },
    });
    this.logSwitch = el("button", {
      class: "edit-trainer-chip",
      type: "button",
      title: t("logScale"),
      textContent: t("log"),
      "aria-pressed": "false",
      on: { click: () => this.#toggleLog() },
    });
    this.value = el("output", { class: "edit-trainer-visually-hidden", "aria-live": "polite" });
    this.element = el("div", { class: "edit-trainer-chart" }, this.canvas, this.logSwitch, this.value);
    this.resizes = new ResizeObserver(([{ contentRect }]) => {
      this.#size = [contentRect.width, contentRect.height];
      this.#refresh();
    });
    this.resizes.observe(this.canvas);
    // ComfyUI switches themes through classes and CSS variables on these two elements.
    this.themes = new MutationObserver(() => {
      this.#colors = null;
      this.#refresh();
    });
    for (const themed of [document.documentElement, document.body]) {
      this.themes.observe(themed, { attributeFilter: ["class", "style"] });
    }
  }

  /**
   * Shows curves and marks.
   *
   * @param {Curve[]} curves
   * @param {{samples?: number[], checkpoints?: number[], steps?: number}} [marks] Steps of the marks, and the step that
   *   the axis reaches to at least.
   */
  show(curves, { samples = [], checkpoints = [], steps = 0 } = {}) {
    this.#curves = curves.filter((curve) => curve.points.length);
    this.#samples = samples;
    this.#checkpoints = checkpoints;
    this.#steps = steps;
    this.#refresh();
  }

  /** Releases the observers and the curves of a chart whose element has been removed. */
  destroy() {
    this.resizes.disconnect();
    this.themes.disconnect();
    this.#curves = [];
    this.#base = null;
  }

  #refresh() {
    this.#base = null;
    this.#frame();
  }

  #toggleLog() {
    this.#log = !this.#log;
    this.logSwitch.setAttribute("aria-pressed", String(this.#log));
    this.#refresh();
  }

  /** @param {number | null} x */
  #hoverAt(x) {
    this.#hover = x;
    this.#frame();
  }

  /** @param {KeyboardEvent} event */
  #onKey(event) {
    const direction = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!direction || !this.#curves.length) return;
    event.preventDefault();
    event.stopPropagation();
    const right = this.#size[0] - MARGIN.right;
    const x = (this.#hover ?? right) + direction * (event.shiftKey ? 20 : 2);
    this.#hoverAt(Math.min(Math.max(x, MARGIN.left), right));
    this.#announcing = true;
  }

  #draw() {
    const [width, height] = this.#size;
    if (!width || !height) return;
    const ratio = Math.max(window.devicePixelRatio || 1, 2);
    const [columns, rows] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (this.canvas.width !== columns || this.canvas.height !== rows) {
      this.canvas.width = columns;
      this.canvas.height = rows;
      this.#base = null;
    }
    const context = this.canvas.getContext("2d", IN_MEMORY);
    if (!context) return;
    this.#base ??= this.#drawBase(columns, rows, ratio);
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, columns, rows);
    context.drawImage(this.#base, 0, 0);
    context.scale(ratio, ratio);
    if (this.#hover !== null && this.#scales) this.#drawHover(context, this.#hover, this.#scales, width, height);
  }

  /**
   * @param {number} columns
   * @param {number} rows
   * @param {number} ratio
   */
  #drawBase(columns, rows, ratio) {
    const base = new OffscreenCanvas(columns, rows);
    const context = base.getContext("2d", IN_MEMORY);
    if (!context) return base;
    const [width, height] = this.#size;
    const colors = (this.#colors ??= readColors(this.canvas));
    context.scale(ratio, ratio);
    context.font = FONT;
    this.#scales = null;
    if (!this.#curves.length) {
      context.fillStyle = colors.muted;
      context.textAlign = "center";
      context.fillText(t("noLossYet"), width / 2, height / 2);
      return base;
    }
    const scales = fitScales(this.#curves, { width, height, steps: this.#steps, log: this.#log });
    this.#scales = scales;
    drawAxes(context, scales, colors, width, height);
    const plotColumns = Math.max(2, Math.round(width - MARGIN.left - MARGIN.right));
    this.#curves.forEach(({ points, smoothed }, index) => {
      const color = colors.curves[index % colors.curves.length];
      const { firstStep, lastStep } = scales;
      strokeCurve(context, scales, decimate(points, firstStep, lastStep, plotColumns), color, 0.5, 1);
      strokeCurve(context, scales, decimate(points, firstStep, lastStep, plotColumns, smoothed), color, 1, 2);
    });
    this.#drawMarks(context, scales, colors, height);
    return base;
  }

  /**
   * @param {Context} context
   * @param {Scales} scales
   * @param {ReturnType<typeof readColors>} colors
   * @param {number} height
   */
  #drawMarks(context, scales, colors, height) {
    const bottom = height - MARGIN.bottom;
    context.fillStyle = colors.sample;
    for (const step of this.#samples) {
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
    for (const step of this.#checkpoints) line(context, scales.x(step), MARGIN.top, scales.x(step), bottom - 8);
    context.setLineDash([]);
    context.globalAlpha = 1;
  }

  /**
   * @param {CanvasRenderingContext2D} context
   * @param {number} hover
   * @param {Scales} scales
   * @param {number} width
   * @param {number} height
   */
  #drawHover(context, hover, scales, width, height) {
    const colors = (this.#colors ??= readColors(this.canvas));
    const hits = this.#curves.map((curve) => ({ curve, index: nearest(curve.points, scales.stepAt(hover)) }));
    const step = hits[0].curve.points[hits[0].index][0];
    const x = scales.x(step);
    context.font = FONT;
    context.strokeStyle = colors.muted;
    line(context, x, MARGIN.top, x, height - MARGIN.bottom);
    const lines = [`${t("step")} ${count(step)}`];
    hits.forEach(({ curve, index }, number) => {
      const [at, raw] = curve.points[index];
      const smoothed = curve.smoothed[index];
      context.fillStyle = colors.curves[number % colors.curves.length];
      context.beginPath();
      context.arc(scales.x(at), scales.y(smoothed), 3.5, 0, 2 * Math.PI);
      context.fill();
      lines.push(`${t("loss")} ${loss(raw)}`, `${t("smoothed")} ${loss(smoothed)}`);
    });
    if (this.#samples.includes(step)) lines.push(t("sampled"));
    if (this.#checkpoints.includes(step)) lines.push(t("checkpoint"));
    drawTip(context, lines, colors, x, width);
    if (this.#announcing) {
      this.#announcing = false;
      this.value.textContent = lines.join(", ");
    }
  }
}

/**
 * @param {Context} context
 * @param {Scales} scales
 * @param {ReturnType<typeof readColors>} colors
 * @param {number} width
 * @param {number} height
 */
function drawAxes(context, scales, colors, width, height) {
  const right = width - MARGIN.right;
  context.strokeStyle = colors.grid;
  context.fillStyle = colors.muted;
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (const value of ticks(scales.min, scales.max, scales.log)) {
    const y = Math.round(scales.y(value)) + 0.5;
    line(context, MARGIN.left, y, right, y);
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
 * @param {Context} context
 * @param {Scales} scales
 * @param {import("./decimate.js").Stroke[]} strokes
 * @param {string} color
 * @param {number} alpha
 * @param {number} width
 */
function strokeCurve(context, { y }, strokes, color, alpha, width) {
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
 * Draws a box of text beside a point, on its left where there is no room on its right.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {string[]} lines
 * @param {ReturnType<typeof readColors>} colors
 * @param {number} x
 * @param {number} width
 */
function drawTip(context, lines, colors, x, width) {
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
 * @param {Context} context
 * @param {number} x0
 * @param {number} y0
 * @param {number} x1
 * @param {number} y1
 */
function line(context, x0, y0, x1, y1) {
  context.beginPath();
  context.moveTo(x0, y0);
  context.lineTo(x1, y1);
  context.stroke();
}

/** @param {Element} element */
function readColors(element) {
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
