import { el, onFrame } from "../lib/dom.js";
import { count, loss, t } from "../lib/text.js";
import { decimate, nearest, ticks } from "./decimate.js";

const MARGIN = { left: 44, right: 8, top: 8, bottom: 20 };
/** Small and drawn anew each time: waiting for the graphics card would take longer than drawing. */
const IN_MEMORY = { willReadFrequently: true };
const FONT = "11px Inter, system-ui, sans-serif";

/**
 * The loss curve on a canvas: raw faint, smoothed strong, marks where samples were drawn and checkpoints saved. Curves
 * are [{points, smoothed}]; a second one is another run to compare with.
 */
export class LossChart {
  log = false;
  #curves = [];
  #samples = [];
  #checkpoints = [];
  #steps = 0;
  #hover = null;
  #size = [0, 0];
  #base = null;
  #frame = onFrame(() => this.#draw());

  constructor() {
    this.canvas = el("canvas", {
      class: "edit-trainer-chart-canvas",
      tabIndex: 0,
      role: "img",
      "aria-label": t("lossCurve"),
      on: {
        pointermove: (event) => this.#point(event.offsetX),
        pointerleave: () => this.#point(null),
        blur: () => this.#point(null),
        keydown: (event) => this.#key(event),
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
    // ComfyUI's themes are variables and classes of these two.
    this.themes = new MutationObserver(() => {
      this.colors = null;
      this.#refresh();
    });
    for (const themed of [document.documentElement, document.body]) {
      this.themes.observe(themed, { attributeFilter: ["class", "style"] });
    }
  }

  /** Show these curves and marks. `steps` is how far the axis goes. */
  show(curves, { samples = [], checkpoints = [], steps = 0 } = {}) {
    this.#curves = curves.filter((curve) => curve.points.length);
    this.#samples = samples;
    this.#checkpoints = checkpoints;
    this.#steps = steps;
    this.#refresh();
  }

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
    this.log = !this.log;
    this.logSwitch.setAttribute("aria-pressed", String(this.log));
    this.#refresh();
  }

  #point(x) {
    this.#hover = x;
    this.#frame();
  }

  #key(event) {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!way || !this.#curves.length) return;
    event.preventDefault();
    event.stopPropagation();
    const width = this.#size[0];
    const x = (this.#hover ?? width - MARGIN.right) + way * (event.shiftKey ? 20 : 2);
    this.#point(Math.min(Math.max(x, MARGIN.left), width - MARGIN.right));
    this.announce = true;
  }

  #draw() {
    const [width, height] = this.#size;
    if (!width || !height) return;
    const ratio = Math.max(window.devicePixelRatio || 1, 2);
    const [columns, lines] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (this.canvas.width !== columns || this.canvas.height !== lines) {
      this.canvas.width = columns;
      this.canvas.height = lines;
      this.#base = null;
    }
    if (!this.#base) {
      this.#base = new OffscreenCanvas(this.canvas.width, this.canvas.height);
      const context = this.#base.getContext("2d", IN_MEMORY);
      context.scale(ratio, ratio);
      this.#drawBase(context, width, height);
    }
    const context = this.canvas.getContext("2d", IN_MEMORY);
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    context.drawImage(this.#base, 0, 0);
    context.scale(ratio, ratio);
    if (this.#hover !== null && this.#curves.length) this.#drawHover(context, width, height);
  }

  #drawBase(context, width, height) {
    const colors = (this.colors ??= readColors(this.canvas));
    context.font = FONT;
    if (!this.#curves.length) {
      context.fillStyle = colors.muted;
      context.textAlign = "center";
      context.fillText(t("noLossYet"), width / 2, height / 2);
      return;
    }
    const scale = (this.scale = this.#scales(width, height));
    this.#drawAxes(context, scale, width, height);
    this.#curves.forEach((curve, index) => {
      const color = colors.curves[index % colors.curves.length];
      const columns = Math.max(2, Math.round(width - MARGIN.left - MARGIN.right));
      this.#stroke(context, decimate(curve.points, scale.first, scale.last, columns), color, 0.5, 1);
      this.#stroke(context, decimate(curve.points, scale.first, scale.last, columns, curve.smoothed), color, 1, 2);
    });
    this.#drawMarks(context, scale, height);
  }

  #scales(width, height) {
    let [least, most, first, last] = [Infinity, -Infinity, Infinity, this.#steps];
    for (const { points } of this.#curves) {
      first = Math.min(first, points[0][0]);
      last = Math.max(last, points.at(-1)[0]);
      for (let index = 0; index < points.length; index++) {
        const value = points[index][1];
        if (value > most) most = value;
        if (value < least && (value > 0 || !this.log)) least = value;
      }
    }
    const log = this.log && least > 0 && Number.isFinite(least);
    const change = log ? Math.log10 : (value) => value;
    let [bottom, top] = [change(least), change(most)];
    const pad = (top - bottom || Math.abs(top) || 1) * 0.06;
    [bottom, top] = [log ? bottom - pad : Math.max(least >= 0 ? 0 : -Infinity, bottom - pad), top + pad];
    const [w, h] = [width - MARGIN.left - MARGIN.right, height - MARGIN.top - MARGIN.bottom];
    return {
      first,
      last,
      log,
      least: log ? 10 ** bottom : bottom,
      most: log ? 10 ** top : top,
      x: (step) => MARGIN.left + ((step - first) / Math.max(1, last - first)) * w,
      y: (value) => MARGIN.top + (1 - (change(log ? Math.max(value, least) : value) - bottom) / (top - bottom)) * h,
      step: (x) => first + ((x - MARGIN.left) / w) * (last - first),
    };
  }

  #drawAxes(context, scale, width, height) {
    const { grid, muted } = this.colors;
    context.strokeStyle = grid;
    context.fillStyle = muted;
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (const value of ticks(scale.least, scale.most, scale.log)) {
      const y = Math.round(scale.y(value)) + 0.5;
      line(context, MARGIN.left, y, width - MARGIN.right, y);
      context.fillText(String(Number(value.toPrecision(3))), MARGIN.left - 6, y);
    }
    context.textBaseline = "alphabetic";
    context.textAlign = "left";
    context.fillText(count(scale.first), MARGIN.left, height - 6);
    context.textAlign = "right";
    context.fillText(count(scale.last), width - MARGIN.right, height - 6);
    context.textAlign = "center";
    context.fillText(t("step"), (MARGIN.left + width - MARGIN.right) / 2, height - 6);
  }

  #stroke(context, strokes, color, alpha, width) {
    context.save();
    context.globalAlpha = alpha;
    context.strokeStyle = color;
    context.lineWidth = width;
    context.lineJoin = "round";
    context.beginPath();
    const { y } = this.scale;
    for (const { x, least, most, begin, last } of strokes) {
      const at = MARGIN.left + x;
      context.lineTo(at, y(begin));
      if (least !== most) {
        context.lineTo(at, y(most));
        context.lineTo(at, y(least));
        context.lineTo(at, y(last));
      }
    }
    context.stroke();
    context.restore();
  }

  #drawMarks(context, scale, height) {
    const bottom = height - MARGIN.bottom;
    context.fillStyle = this.colors.sample;
    for (const step of this.#samples) {
      const x = scale.x(Math.max(step, scale.first));
      context.beginPath();
      context.moveTo(x - 4, bottom + 1);
      context.lineTo(x + 4, bottom + 1);
      context.lineTo(x, bottom - 6);
      context.fill();
    }
    context.strokeStyle = this.colors.checkpoint;
    context.globalAlpha = 0.6;
    context.setLineDash([2, 3]);
    for (const step of this.#checkpoints) line(context, scale.x(step), MARGIN.top, scale.x(step), bottom - 8);
    context.setLineDash([]);
    context.globalAlpha = 1;
  }

  #drawHover(context, width, height) {
    const { scale, colors } = this;
    const step = scale.step(this.#hover);
    const found = this.#curves.map((curve) => [curve, nearest(curve.points, step)]);
    const at = found[0][0].points[found[0][1]][0];
    const x = scale.x(at);
    context.font = FONT;
    context.strokeStyle = colors.muted;
    line(context, x, MARGIN.top, x, height - MARGIN.bottom);
    const lines = [`${t("step")} ${count(at)}`];
    found.forEach(([curve, index], number) => {
      const [, raw] = curve.points[index];
      const smooth = curve.smoothed[index];
      context.fillStyle = colors.curves[number % colors.curves.length];
      context.beginPath();
      context.arc(scale.x(curve.points[index][0]), scale.y(smooth), 3.5, 0, 7);
      context.fill();
      lines.push(`${t("loss")} ${loss(raw)}`, `${t("smoothed")} ${loss(smooth)}`);
    });
    if (this.#samples.includes(at)) lines.push(t("sampled"));
    if (this.#checkpoints.includes(at)) lines.push(t("checkpoint"));
    const box = Math.max(...lines.map((text) => context.measureText(text).width)) + 14;
    const left = x + 10 + box > width ? x - 10 - box : x + 10;
    context.fillStyle = colors.tip;
    context.strokeStyle = colors.grid;
    context.beginPath();
    context.roundRect(left, MARGIN.top + 2, box, lines.length * 15 + 8, 4);
    context.fill();
    context.stroke();
    context.fillStyle = colors.text;
    context.textAlign = "left";
    context.textBaseline = "alphabetic";
    lines.forEach((text, index) => context.fillText(text, left + 7, MARGIN.top + 17 + index * 15));
    if (this.announce) {
      this.announce = false;
      this.value.textContent = lines.join(", ");
    }
  }
}

function line(context, x0, y0, x1, y1) {
  context.beginPath();
  context.moveTo(x0, y0);
  context.lineTo(x1, y1);
  context.stroke();
}

function readColors(element) {
  const style = getComputedStyle(element);
  const read = (name) => style.getPropertyValue(name).trim();
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
