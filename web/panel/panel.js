// @ts-check
import { el, oncePerFrame, setText, shieldFromGraph } from "../lib/dom.js";
import { count, duration, loss, memory, messageOf, speed, t, timeOfDay } from "../lib/text.js";
import { LossChart } from "./chart.js";
import { CheckpointRow } from "./checkpoints.js";
import { SampleGrid } from "./samples.js";
import { RunState, heldOutLoss, progressFraction } from "./state.js";

/**
 * @typedef {import("../lib/server.js").Snapshot} Snapshot
 * @typedef {"stop" | "sample"} Action
 * @typedef {(action: Action) => Promise<unknown>} Control
 */

/** Beginning of the trainer's own warning of what `riseLines` says. */
const RISE_WARNING = "The held-out loss has not fallen since";

/** How long "Sample now" stays disabled after a press, so that a double click asks for one round of samples. */
const SAMPLE_PAUSE_MS = 1500;

/** Live view of a run: phase, progress bar, figures, loss curve and samples, and buttons that control the run. */
export class RunPanel {
  state = new RunState();
  #frame = oncePerFrame(() => this.#draw());
  #drawn = { points: -1, validation: -1, checkpoints: -1, samples: -1, id: "" };
  /** What the message says, so that it is announced once. */
  #said = "";
  /** When the newest snapshot or message came, in milliseconds. */
  #updated = 0;

  /** @param {Control | null} [control] Called when a button is pressed; without it there are no buttons. */
  constructor(control = null) {
    this.phase = el("span", { class: "edit-trainer-phase" });
    this.name = el("span", { class: "edit-trainer-name" });
    this.left = el("span", { class: "edit-trainer-left" });
    this.bar = el("progress", { max: 1, value: 0, "aria-label": t("progress") });
    this.cells = {
      step: numberCell("step"),
      loss: numberCell("loss"),
      smoothed: numberCell("smoothed"),
      heldOut: numberCell("heldOut"),
      speed: numberCell("speed"),
      memory: numberCell("memory"),
    };
    const numbers = el("dl", { class: "edit-trainer-numbers" }, ...Object.values(this.cells).map(({ cell }) => cell));
    this.plan = el("p", { class: "edit-trainer-plan", hidden: true });
    this.message = el("p", { class: "edit-trainer-message", role: "status", hidden: true });
    this.exports = new CheckpointRow();
    this.chart = new LossChart();
    this.samples = new SampleGrid();
    /** @type {HTMLButtonElement[]} */
    this.buttons = control
      ? [this.#button("sampleNow", "sample", control), this.#button("stopAndSave", "stop", control)]
      : [];
    const buttons = control && el("div", { class: "edit-trainer-buttons" }, ...this.buttons);
    this.element = el(
      "section",
      { class: "edit-trainer edit-trainer-panel", "aria-label": t("training") },
      el("div", { class: "edit-trainer-head" }, this.phase, this.name, this.left),
      this.bar,
      el("div", { class: "edit-trainer-figures" }, numbers, buttons),
      this.plan,
      this.message,
      this.exports.element,
      this.chart.element,
      this.samples.element,
    );
    shieldFromGraph(this.element);
    this.#draw();
  }

  /**
   * Shows a snapshot.
   *
   * @param {Snapshot} snapshot
   */
  reset(snapshot) {
    this.state.reset(snapshot);
    this.#update();
  }

  /**
   * Merges a message. Returns false when a snapshot is needed first.
   *
   * @param {import("../lib/server.js").Message} message
   */
  merge(message) {
    const merged = this.state.merge(message);
    this.#update();
    return merged;
  }

  /** Releases the observers of a panel whose element has been removed. */
  destroy() {
    this.chart.destroy();
    this.samples.destroy();
  }

  #update() {
    this.#updated = Date.now();
    this.#frame();
  }

  /**
   * @param {string} label
   * @param {Action} action
   * @param {Control} control
   */
  #button(label, action, control) {
    const release = () => {
      delete button.dataset.pressed;
      this.#frame();
    };
    const press = async () => {
      button.disabled = true;
      button.dataset.pressed = this.state.run?.id;
      try {
        await control(action);
        if (action === "sample") setTimeout(release, SAMPLE_PAUSE_MS);
      } catch (error) {
        release();
        this.#say([messageOf(error)], 1);
      }
    };
    const button = el(
      "button",
      { class: "edit-trainer-button", type: "button", disabled: true, on: { click: press } },
      t(label),
    );
    return button;
  }

  #draw() {
    const run = this.state.run;
    const running = run?.state === "running";
    this.element.dataset.state = run?.state ?? "empty";
    for (const button of this.buttons) button.disabled = !running || button.dataset.pressed === run?.id;
    this.cells.memory.cell.hidden = !run?.memory;
    this.cells.heldOut.cell.hidden = !run?.validation?.length;
    if (!run) {
      setText(this.phase, t("notStarted"));
      this.#say([t("notStartedYet")]);
      this.chart.show([]);
      return;
    }
    setText(this.phase, running ? phaseText(run) : t(run.state));
    setText(this.name, run.run);
    this.name.title = run.run;
    setText(this.left, this.#timeLeft(run));
    this.bar.value = progressFraction(run);
    this.#drawNumbers(run);
    setText(this.plan, run.plan ?? "");
    this.plan.hidden = !run.plan;
    const end = endLines(run);
    const lines = [...end, ...resumeLines(run), ...riseLines(run), ...otherWarnings(run)];
    this.#say(lines, run.state === "failed" ? end.length : 0);
    this.#drawPictures(run);
  }

  /** @param {Snapshot} run */
  #timeLeft(run) {
    if (run.state !== "running" || run.seconds_left === null) return "";
    const seconds = Math.max(0, run.seconds_left - (Date.now() - this.#updated) / 1000);
    return t("left", { time: duration(seconds), at: timeOfDay(seconds) });
  }

  /** @param {Snapshot} run */
  #drawNumbers(run) {
    const { cells } = this;
    setText(cells.step.value, run.steps ? `${count(run.step)} / ${count(run.steps)}` : "–");
    setText(cells.loss.value, loss(run.points.at(-1)?.[1]));
    setText(cells.smoothed.value, loss(this.state.smoothedLoss));
    const heldOut = heldOutLoss(run);
    if (heldOut) {
      const lowest = { loss: loss(heldOut.last), best: loss(heldOut.best), n: count(heldOut.step) };
      setText(cells.heldOut.value, t("heldOutValue", lowest));
    }
    setText(cells.speed.value, speed(run.seconds));
    if (run.memory) setText(cells.memory.value, memory(run.memory));
  }

  /**
   * Redraws the chart and the samples, each only if it has something new to show.
   *
   * @param {import("./state.js").Run} run
   */
  #drawPictures({ id, run, steps, points, validation, best_step, checkpoints, samples }) {
    const drawn = this.#drawn;
    const lists = { points, validation, checkpoints, samples };
    const lengths = Object.entries(lists).map(([name, list]) => [name, list.length]);
    const next = /** @type {typeof drawn} */ ({ id, ...Object.fromEntries(lengths) });
    this.#drawn = next;
    const newSamples = drawn.id !== id || drawn.samples !== next.samples;
    const names = /** @type {const} */ (["points", "validation", "checkpoints"]);
    if (newSamples || names.some((name) => drawn[name] !== next[name])) {
      const sampled = [...new Set(samples.map((sample) => sample.step))];
      const curve = { points, smoothed: this.state.smoothed, heldOut: validation, best: best_step };
      this.chart.show([curve], { samples: sampled, checkpoints, steps });
    }
    if (drawn.id !== id || drawn.checkpoints !== next.checkpoints || drawn.validation !== next.validation) {
      this.exports.show(run, checkpoints, best_step);
    }
    if (newSamples) this.samples.show(run, samples);
  }

  /**
   * @param {string[]} lines
   * @param {number} [errors] How many of the first lines are errors.
   */
  #say(lines, errors = 0) {
    const key = JSON.stringify([lines, errors]);
    if (key === this.#said) return;
    this.#said = key;
    const item = (/** @type {string} */ text, /** @type {number} */ index) =>
      el("span", { class: index < errors ? "edit-trainer-bad" : "" }, text);
    this.message.replaceChildren(...lines.map(item));
    this.message.hidden = !lines.length;
  }
}

/** @param {string} key */
function numberCell(key) {
  const value = el("dd", {}, "–");
  return { value, cell: el("div", { class: `edit-trainer-number edit-trainer-${key}` }, el("dt", {}, t(key)), value) };
}

/** @param {Snapshot} run */
function endLines(run) {
  if (run.state === "running") return [];
  const stopped = run.state === "stopped" ? [t("stoppedSaved", { n: count(run.step) })] : [];
  return [...stopped, run.status].filter(Boolean);
}

/** @param {Snapshot} run */
const resumeLines = ({ resumed_at }) => (resumed_at ? [t("resumedAt", { n: count(resumed_at) })] : []);

/** @param {Snapshot} run */
function riseLines(run) {
  const heldOut = heldOutLoss(run);
  if (!heldOut?.risen) return [];
  return [t("heldOutRisen", { n: count(heldOut.step), best: loss(heldOut.best), last: loss(heldOut.last) })];
}

/** @param {Snapshot} run */
const otherWarnings = ({ warnings }) => warnings.filter((warning) => !warning.startsWith(RISE_WARNING));

/** @param {Snapshot} run */
function phaseText(run) {
  const name = run.phase ? t(run.phase) : "";
  return run.phase !== "training" && run.total > 1 ? `${name} ${count(run.done)} / ${count(run.total)}` : name;
}
