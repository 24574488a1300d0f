// @ts-check
import { app } from "../../../scripts/app.js";
import { addRequestGraph } from "../graph/add.js";
import { freePosition, undoable, viewCenter } from "../graph/build.js";
import { addLoader } from "../graph/weights.js";
import { el } from "../lib/dom.js";
import { deleteRun, fetchSavedRun, fetchSavedRuns, imageUrl } from "../lib/server.js";
import { count, loss, messageOf, t } from "../lib/text.js";
import { showAllRuns } from "../panel/node.js";
import { ask } from "./ask.js";
import { openRuns } from "./compare.js";
import { askPush } from "./push.js";
import { setSteps } from "./steps.js";

/** @typedef {import("../lib/server.js").RunSummary} RunSummary */

/** Type under which a LoRA's file name is dragged. */
const LORA_TYPE = "application/x-edit-trainer-lora";
const REFRESH_MS = 5000;
const THUMBNAIL_PIXELS = 128;
const TOAST_MS = 8000;

/**
 * Creates the sidebar tab with the runs of the output folder.
 *
 * @returns {ComfySidebarTab}
 */
export function runsTab() {
  /** @type {ReturnType<typeof setInterval> | undefined} */
  let timer;
  addEventListener("dragover", (event) => event.dataTransfer?.types.includes(LORA_TYPE) && event.preventDefault());
  addEventListener("drop", dropLora, true);
  return {
    id: "edit-trainer-runs",
    icon: "pi pi-chart-line",
    title: t("runs"),
    tooltip: t("runsOf"),
    type: "custom",
    render(container) {
      clearInterval(timer);
      const list = new RunList();
      container.replaceChildren(list.element);
      list.refresh();
      timer = setInterval(() => (container.isConnected ? list.refresh() : clearInterval(timer)), REFRESH_MS);
    },
    destroy: () => clearInterval(timer),
  };
}

/** List of runs with their actions. */
class RunList {
  /** Names of the runs chosen for comparison. @type {Set<string>} */
  #chosen = new Set();
  /** The runs on display, as JSON: the list is built again only when they change. */
  #shown = "";

  constructor() {
    this.compare = button("compare", () => open([...this.#chosen]));
    this.compare.disabled = true;
    this.list = el("ul", { class: "edit-trainer-runs" });
    const head = el("header", {}, el("h3", {}, t("runs")), this.compare);
    this.element = el("div", { class: "edit-trainer edit-trainer-sidebar" }, head, this.list);
  }

  async refresh() {
    const runs = await fetchSavedRuns().catch(() => null);
    const text = JSON.stringify(runs);
    if (!runs || text === this.#shown) return;
    this.#shown = text;
    const focused = this.#controls().findIndex((control) => control === document.activeElement);
    const empty = el("li", { class: "edit-trainer-empty" }, t("noRuns"));
    this.list.replaceChildren(...(runs.length ? runs.map((run) => this.#row(run)) : [empty]));
    this.#controls()[focused]?.focus();
  }

  /** @returns {HTMLElement[]} */
  #controls() {
    return [...this.list.querySelectorAll(/** @type {"button" | "input"} */ ("button, input"))];
  }

  /** @param {RunSummary} run */
  #row(run) {
    const thumbnail = run.thumbnail
      ? el("img", {
          src: imageUrl(run.run, run.thumbnail, THUMBNAIL_PIXELS),
          alt: "",
          loading: "lazy",
          draggable: false,
        })
      : el("div", { class: "edit-trainer-blank" });
    const progress = `${t(run.state)} · ${count(run.step)} / ${count(run.steps)} · ${t("loss")} ${loss(run.smoothed)}`;
    const choose = el("input", {
      type: "checkbox",
      checked: this.#chosen.has(run.run),
      on: { change: () => this.#choose(run.run, choose.checked) },
    });
    const actions = el(
      "div",
      { class: "edit-trainer-actions" },
      button("open", () => open([run.run])),
      button("resume", () => resume(run.run)),
      run.lora === null ? null : loraButton(run.lora),
      run.state === "running" ? null : button("pushRun", () => push(run.run)),
      run.state === "running" ? null : button("deleteRun", () => this.#delete(run.run)),
      el("label", {}, choose, t("compareThis")),
    );
    return el(
      "li",
      { class: "edit-trainer-run" },
      thumbnail,
      el("strong", { title: run.run }, run.run),
      el("small", { title: run.base_model }, run.base_model),
      el("small", { title: t("smoothed") }, progress),
      actions,
    );
  }

  /** @param {string} name */
  async #delete(name) {
    if (!(await ask(t("deleteQuestion", { run: name }), t("deleteRun")))) return;
    const inBin = await deleteRun(name);
    this.#choose(name, false);
    await this.refresh();
    notify("info", "deleteRun", t(inBin ? "deletedToBin" : "deletedForGood", { run: name }));
  }

  /**
   * @param {string} name
   * @param {boolean} chosen
   */
  #choose(name, chosen) {
    if (chosen) this.#chosen.add(name);
    else this.#chosen.delete(name);
    this.compare.disabled = this.#chosen.size !== 2;
  }
}

/**
 * Shows a message for a while.
 *
 * @param {"info" | "error"} severity
 * @param {string} title
 * @param {string} detail
 */
function notify(severity, title, detail) {
  app.extensionManager.toast.add({ severity, summary: t(title), detail, life: TOAST_MS });
}

/**
 * Creates a button whose action's errors are shown as a toast.
 *
 * @param {string} label
 * @param {() => unknown} press
 */
function button(label, press) {
  const click = async () => {
    try {
      await press();
    } catch (error) {
      notify("error", "didNotWork", messageOf(error));
    }
  };
  return el("button", { class: "edit-trainer-button", type: "button", on: { click } }, t(label));
}

/** @param {string} file */
function loraButton(file) {
  const lora = button("addLora", () => addLoader(file, viewCenter()));
  lora.title = `${t("dragLora")}\n${file}`;
  lora.draggable = true;
  lora.addEventListener("dragstart", ({ dataTransfer }) => {
    if (!dataTransfer) return;
    dataTransfer.setData(LORA_TYPE, file);
    dataTransfer.effectAllowed = "copy";
  });
  return lora;
}

/**
 * Pushes a run's LoRA to the Hugging Face hub, once its user has said where to.
 *
 * @param {string} name
 */
async function push(name) {
  const answer = await askPush(name);
  if (!answer) return;
  notify("info", "pushRun", t("pushing", { run: name, repo: answer.repo }));
  notify("info", "pushRun", t("pushed", { run: name, url: await answer.push() }));
}

/** @param {string[]} names */
async function open(names) {
  openRuns(await Promise.all(names.map(fetchSavedRun)));
}

/**
 * Opens the graph that a run was queued from; for a run that was not queued by a page, a graph of its request. Asks for
 * the number of steps where the run is finished: with the same number nothing would be trained.
 *
 * @param {string} name
 */
async function resume(name) {
  const { request, settings, workflow, state, steps } = await fetchSavedRun(name);
  const question = t("moreSteps", { run: name, n: count(steps) });
  const more = state === "finished" ? await ask(question, t("resume"), { number: steps }) : "";
  if (more === null) return;
  if (workflow) {
    await app.loadGraphData(workflow);
    if (more) undoable(() => setSteps(app.canvas.graph, name, Number(more)));
    return;
  }
  if (more) request.training_params.steps = Number(more);
  await addRequestGraph(request, freePosition(), { runName: name, settings });
  await showAllRuns();
}

/** @param {DragEvent} event */
function dropLora(event) {
  const file = event.dataTransfer?.getData(LORA_TYPE);
  if (!file) return;
  event.preventDefault();
  event.stopPropagation();
  addLoader(file, app.canvas.convertEventToCanvasOffset(event));
}
