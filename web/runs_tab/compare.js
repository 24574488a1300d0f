import { el } from "../lib/dom.js";
import { t } from "../lib/text.js";
import { LossChart } from "../panel/chart.js";
import { RunPanel } from "../panel/panel.js";
import { SampleGrid } from "../panel/samples.js";
import { RunState } from "../panel/state.js";

/** Show one run whole, or two side by side: their curves in one chart, and their samples. */
export function openRuns(runs) {
  const shown = runs.length === 1 ? single(runs[0]) : pair(runs);
  const names = runs.map((run) => el("span", { class: runs.length > 1 ? "edit-trainer-key" : "" }, run.run));
  const close = el("button", { class: "edit-trainer-button", type: "button", on: { click: () => dialog.close() } }, t("close"));
  const dialog = el(
    "dialog",
    { class: "edit-trainer edit-trainer-compare", "aria-label": t("runs") },
    el("header", {}, ...names, close),
    ...shown.elements,
  );
  dialog.addEventListener("keydown", (event) => event.stopPropagation());
  dialog.addEventListener("close", () => {
    shown.destroy();
    dialog.remove();
  });
  document.body.append(dialog);
  dialog.showModal();
}

function single(run) {
  const panel = new RunPanel();
  panel.reset(run);
  return { elements: [panel.element], destroy: () => panel.destroy() };
}

function pair(runs) {
  const chart = new LossChart();
  const curves = runs.map((run) => {
    const state = new RunState();
    state.reset(run);
    return { points: run.points, smoothed: state.smoothed };
  });
  chart.show(curves, { steps: Math.max(...runs.map((run) => run.step)) });
  const sides = runs.map((run) => {
    const grid = new SampleGrid();
    grid.show(run.run, run.samples);
    return el("section", {}, el("h3", {}, run.run), el("p", { class: "edit-trainer-plan" }, run.base_model), grid.element);
  });
  const elements = [chart.element, el("div", { class: "edit-trainer-sides" }, ...sides)];
  return { elements, destroy: () => chart.destroy() };
}
