// @ts-check
import { el, oncePerFrame } from "../lib/dom.js";
import { count, loss, t } from "../lib/text.js";
import { decimate, nearest } from "./decimate.js";
import { FONT, drawAxes, drawHeldOut, drawLine, drawMarks, drawTip, readColors, strokeCurve } from "./draw.js";
import { MARGIN, fitScales } from "./scales.js";

// A canvas of our own and no chart library: ComfyUI serves a pack's files as they are, so a library would have to be
// copied into the repository, and this one plot with its marks needs a fraction of what the smallest of them has.

/**
 * @typedef {import("./scales.js").Curve} Curve
 * @typedef {import("./scales.js").Scales} Scales
 * @typedef {import("./draw.js").Colors} Colors
 */

/**
 * Keeps the canvas in host memory: it is so small that a round trip to the GPU takes longer than drawing it.
 *
 * @type {CanvasRenderingContext2DSettings}
 */
const IN_MEMORY = { willReadFrequently: true };

/**
 * Loss curves on a canvas, each raw (faint) and smoothed (strong), with the held-out losses (dashed) and marks for
 * samples and checkpoints. Two curves compare two runs.
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
  /** @type {Colors | null} */
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
    this.#curves.forEach((curve, index) => drawHeldOut(context, scales, curve, this.#heldOutColor(index, colors)));
    drawMarks(context, scales, { samples: this.#samples, checkpoints: this.#checkpoints }, colors, height);
    return base;
  }

  /**
   * Color of a run's held-out losses: its own where runs are compared.
   *
   * @param {number} index
   * @param {Colors} colors
   */
  #heldOutColor(index, colors) {
    return colors.curves[(this.#curves.length > 1 ? index : 1) % colors.curves.length];
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
    drawLine(context, x, MARGIN.top, x, height - MARGIN.bottom);
    const lines = [`${t("step")} ${count(step)}`];
    hits.forEach(({ curve, index }, number) => {
      const [at, raw] = curve.points[index];
      const smoothed = curve.smoothed[index];
      context.fillStyle = colors.curves[number % colors.curves.length];
      context.beginPath();
      context.arc(scales.x(at), scales.y(smoothed), 3.5, 0, 2 * Math.PI);
      context.fill();
      lines.push(`${t("loss")} ${loss(raw)}`, `${t("smoothed")} ${loss(smoothed)}`);
      if (curve.heldOut?.length) {
        const [when, value] = curve.heldOut[nearest(curve.heldOut, step)];
        context.fillStyle = this.#heldOutColor(number, colors);
        context.beginPath();
        context.arc(scales.x(when), scales.y(value), 3.5, 0, 2 * Math.PI);
        context.fill();
        const where = when === step ? "" : ` (${t("atStep", { n: count(when) })})`;
        lines.push(`${t("heldOut")} ${loss(value)}${where}${when === curve.best ? ` · ${t("lowest")}` : ""}`);
      }
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
