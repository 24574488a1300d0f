import { el, keepFromGraph, onFrame, setText } from "../lib/dom.js";
import { tell } from "../lib/server.js";
import { clock, count, duration, loss, memory, speed, t } from "../lib/text.js";
import { LossChart } from "./chart.js";
import { SampleGrid } from "./samples.js";
import { RunState } from "./state.js";

const RUNNING = "running";

/** A run as a person looks at it while it goes: phase, bar, numbers, loss curve, samples, and two buttons. */
export class RunPanel {
  state = new RunState();
  #frame = onFrame(() => this.#draw());
  #drawn = { points: -1, checkpoints: -1, samples: -1, id: "" };

  /** `control(what)` is asked to `stop` or to `sample`; without it there are no buttons. */
  constructor(control = null) {
    this.phase = el("span", { class: "edit-trainer-phase" });
    this.name = el("span", { class: "edit-trainer-name" });
    this.left = el("span", { class: "edit-trainer-left" });
    this.bar = el("progress", { max: 1, value: 0, "aria-label": t("progress") });
    this.numbers = el("dl", { class: "edit-trainer-numbers" });
    this.cells = Object.fromEntries(
      ["step", "loss", "smoothed", "speed", "memory"].map((key) => [key, this.#number(key)]),
    );
    this.plan = el("p", { class: "edit-trainer-plan", hidden: true });
    this.message = el("p", { class: "edit-trainer-message", role: "status", hidden: true });
    this.chart = new LossChart();
    this.samples = new SampleGrid();
    this.stop = this.#button("stopAndSave", "stop", control);
    this.sample = this.#button("sampleNow", "sample", control);
    const buttons = control && el("div", { class: "edit-trainer-buttons" }, this.sample, this.stop);
    const head = el("div", { class: "edit-trainer-head" }, this.phase, this.name, this.left);
    this.element = el(
      "section",
      { class: "edit-trainer edit-trainer-panel", "aria-label": t("training") },
      head,
      this.bar,
      el("div", { class: "edit-trainer-figures" }, this.numbers, buttons),
      this.plan,
      this.message,
      this.chart.element,
      this.samples.element,
    );
    keepFromGraph(this.element);
    this.#draw();
  }

  /** Show a snapshot. */
  reset(snapshot) {
    this.state.reset(snapshot);
    this.arrived = Date.now();
    this.#frame();
  }

  /** Take a message in; false when a snapshot is needed first. */
  merge(message) {
    const whole = this.state.merge(message);
    this.arrived = Date.now();
    this.#frame();
    return whole;
  }

  /** Stop observing; the element is gone. */
  destroy() {
    this.chart.destroy();
  }

  #number(key) {
    const value = el("dd", {}, "–");
    const cell = el("div", { class: `edit-trainer-number edit-trainer-${key}` }, el("dt", {}, t(key)), value);
    this.numbers.append(cell);
    return { cell, value };
  }

  #button(label, what, control) {
    const press = async () => {
      button.disabled = true;
      button.dataset.pressed = this.state.run.id;
      try {
        await control(what);
        if (what === "sample") setTimeout(() => this.#release(button), 1500);
      } catch (error) {
        this.#release(button);
        this.#say(error.message, true);
      }
    };
    const button = el("button", { class: "edit-trainer-button", type: "button", disabled: true, on: { click: press } }, t(label));
    return button;
  }

  #release(button) {
    delete button.dataset.pressed;
    this.#frame();
  }

  #draw() {
    const run = this.state.run;
    this.element.dataset.state = run?.state ?? "empty";
    const running = run?.state === RUNNING;
    for (const button of [this.stop, this.sample]) button.disabled = !running || button.dataset.pressed === run?.id;
    this.cells.memory.cell.hidden = !run?.memory;
    if (!run) {
      setText(this.phase, t("notStarted"));
      this.#say(t("notStartedYet"), false);
      this.chart.show([]);
      return;
    }
    setText(this.phase, running ? this.#phase(run) : t(run.state));
    setText(this.name, run.run);
    this.name.title = run.run;
    setText(this.left, this.#left(run));
    this.bar.value = this.#share(run);
    this.#numbers(run);
    setText(this.plan, run.plan ?? "");
    this.plan.hidden = !run.plan;
    this.#say([...this.#end(run), ...run.warnings].join("\n"), run.state === "failed");
    this.#pictures(run);
  }

  #end(run) {
    if (run.state === "failed") return [run.status];
    return run.state === "stopped" ? [t("stoppedSaved", { n: count(run.step) })] : [];
  }

  #phase(run) {
    const known = run.phase ? t(run.phase) : "";
    const counted = run.phase !== "training" && run.total > 1 ? ` ${count(run.done)} / ${count(run.total)}` : "";
    return known + counted;
  }

  #left(run) {
    if (run.state !== RUNNING || run.seconds_left === null) return "";
    const seconds = Math.max(0, run.seconds_left - (Date.now() - this.arrived) / 1000);
    return t("left", { time: duration(seconds), at: clock(seconds) });
  }

  #share(run) {
    if (run.state === "finished") return 1;
    if (run.steps && (run.step || run.phase === "training" || run.state !== RUNNING)) return run.step / run.steps;
    return run.total ? run.done / run.total : 0;
  }

  #numbers(run) {
    const { step, loss: now, smoothed, speed: pace, memory: used } = this.cells;
    setText(step.value, run.steps ? `${count(run.step)} / ${count(run.steps)}` : "–");
    setText(now.value, loss(run.points.at(-1)?.[1]));
    setText(smoothed.value, loss(this.state.smoothedLoss));
    setText(pace.value, speed(run.seconds));
    if (run.memory) setText(used.value, memory(run.memory));
  }

  #pictures(run) {
    const drawn = this.#drawn;
    const other = drawn.id !== run.id;
    const { points, checkpoints, samples } = run;
    if (other || drawn.points !== points.length || drawn.checkpoints !== checkpoints.length || drawn.samples !== samples.length) {
      const steps = [...new Set(samples.map((sample) => sample.step))];
      this.chart.show([{ points, smoothed: this.state.smoothed }], { samples: steps, checkpoints, steps: run.steps });
    }
    if (other || drawn.samples !== samples.length) this.samples.show(run.run, samples);
    this.#drawn = { id: run.id, points: points.length, checkpoints: checkpoints.length, samples: samples.length };
  }

  #say(text, bad) {
    setText(this.message, text);
    this.message.hidden = !text;
    this.message.classList.toggle("edit-trainer-bad", bad);
  }
}

/** What a panel's buttons do to the run of a node, by the node's id in the prompt. */
export const nodeControl = (nodeId) => (what) => tell(`/runs/${encodeURIComponent(nodeId())}/${what}`);
