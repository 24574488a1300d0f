// @ts-check
import { el, showDialog } from "../lib/dom.js";
import { t } from "../lib/text.js";
import { LossChart } from "../panel/chart.js";
import { RunPanel } from "../panel/panel.js";
import { SampleGrid } from "../panel/samples.js";
import { RunState } from "../panel/state.js";
import { differences, parameters } from "./parameters.js";

/** @typedef {import("../lib/server.js").SavedRun} SavedRun */

/**
 * Opens a dialog with one run's panel, or with two runs side by side: both curves in one chart, the
 * parameters that differ, and their samples.
 *
 * @param {SavedRun[]} runs
 */
export function openRuns(runs) {
  const view = runs.length === 1 ? singleView(runs[0]) : comparison(runs);
  const names = runs.map((run) => el("span", { class: runs.length > 1 ? "edit-trainer-key" : "", title: run.run }, run.run));
  const close = el(
    "button",
    { class: "edit-trainer-button", type: "button", on: { click: () => dialog.close() } },
    t("close"),
  );
  const dialog = el(
    "dialog",
    { class: "edit-trainer edit-trainer-compare", "aria-label": t("runs") },
    el("header", {}, ...names, close),
    ...view.elements,
  );
  dialog.addEventListener("close", () => {
    view.destroy();
    dialog.remove();
  });
  showDialog(dialog);
}

/** @param {SavedRun} run */
function singleView(run) {
  const panel = new RunPanel();
  panel.reset(run);
  const all = parameters([run]).filter(({ values }) => values[0] !== "");
  const details = el("details", {}, el("summary", {}, t("parameters")), table(all));
  return { elements: [panel.element, details], destroy: () => panel.destroy() };
}

/** @param {SavedRun[]} runs */
function comparison(runs) {
  const chart = new LossChart();
  const curves = runs.map((run) => {
    const state = new RunState();
    state.reset(run);
    return { points: run.points, smoothed: state.smoothed, heldOut: run.validation, best: run.best_step };
  });
  chart.show(curves, { steps: Math.max(...runs.map((run) => run.step)) });
  const grids = runs.map((run) => {
    const grid = new SampleGrid();
    grid.show(run.run, run.samples);
    return grid;
  });
  const sides = runs.map(({ run, base_model }, index) =>
    el("section", {}, el("h3", {}, run), el("p", { class: "edit-trainer-plan" }, base_model), grids[index].element),
  );
  return {
    elements: [chart.element, differenceTable(runs), el("div", { class: "edit-trainer-sides" }, ...sides)],
    destroy: () => [chart, ...grids].forEach((part) => part.destroy()),
  };
}

/** @param {SavedRun[]} runs */
function differenceTable(runs) {
  const found = differences(runs);
  if (!found.length) return el("p", { class: "edit-trainer-plan" }, t("sameParameters"));
  return table(found, [t("differentParameters"), ...runs.map(({ run }) => run)]);
}

/**
 * @param {ReturnType<typeof parameters>} rows
 * @param {string[]} [head]
 */
function table(rows, head) {
  const line = (/** @type {"th" | "td"} */ tag, /** @type {string[]} */ cells) =>
    el("tr", {}, ...cells.map((text) => el(tag, { title: text }, text)));
  const lines = rows.map(({ name, values }) => line("td", [name, ...values]));
  return el("table", { class: "edit-trainer-parameters" }, head ? line("th", head) : null, ...lines);
}
