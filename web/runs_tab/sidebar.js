import { app } from "../../../scripts/app.js";
import { addNode, addRequestGraph, asOneChange, freePlace, middle } from "../graph/build.js";
import { refreshInfo } from "../dataset/info.js";
import { el } from "../lib/dom.js";
import { ask, picture } from "../lib/server.js";
import { count, loss, t } from "../lib/text.js";
import { showAll } from "../panel/node.js";
import { openRuns } from "./compare.js";

const LORA = "application/x-edit-trainer-lora";
const REFRESH_MS = 5000;

/** The sidebar's tab with all runs of the output folder. */
export function runsTab() {
  let timer = 0;
  addEventListener("dragover", (event) => event.dataTransfer?.types.includes(LORA) && event.preventDefault());
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

class RunList {
  #chosen = new Set();
  #shown = "";

  constructor() {
    this.compare = button("compare", () => open([...this.#chosen]));
    this.compare.disabled = true;
    this.list = el("ul", { class: "edit-trainer-runs" });
    const head = el("header", {}, el("h3", {}, t("runs")), this.compare);
    this.element = el("div", { class: "edit-trainer edit-trainer-sidebar" }, head, this.list);
  }

  async refresh() {
    const runs = await ask("/archive").catch(() => null);
    const text = JSON.stringify(runs);
    if (!runs || text === this.#shown) return;
    this.#shown = text;
    const focused = [...this.list.querySelectorAll("button, input")].indexOf(document.activeElement);
    const empty = el("li", { class: "edit-trainer-empty" }, t("noRuns"));
    this.list.replaceChildren(...(runs.length ? runs.map((run) => this.#row(run)) : [empty]));
    if (focused >= 0) this.list.querySelectorAll("button, input")[focused]?.focus();
  }

  #row(run) {
    const thumbnail = run.thumbnail
      ? el("img", { src: picture(run.run, run.thumbnail, 128), alt: "", loading: "lazy", draggable: false })
      : el("div", { class: "edit-trainer-blank" });
    const steps = `${t(run.state)} · ${count(run.step)} / ${count(run.steps)} · ${t("loss")} ${loss(run.loss)}`;
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
      run.lora && loraButton(run.lora),
      el("label", {}, choose, t("compareThis")),
    );
    return el(
      "li",
      { class: "edit-trainer-run" },
      thumbnail,
      el("strong", { title: run.run }, run.run),
      el("small", { title: run.base_model }, run.base_model),
      el("small", {}, steps),
      actions,
    );
  }

  #choose(name, chosen) {
    if (chosen) this.#chosen.add(name);
    else this.#chosen.delete(name);
    this.compare.disabled = this.#chosen.size !== 2;
  }
}

function button(label, press) {
  return el("button", { class: "edit-trainer-button", type: "button", on: { click: () => attempt(press) } }, t(label));
}

function loraButton(file) {
  const lora = button("addLora", () => addLora(file, middle()));
  lora.title = `${t("dragLora")}\n${file}`;
  lora.draggable = true;
  lora.addEventListener("dragstart", (event) => {
    event.dataTransfer.setData(LORA, file);
    event.dataTransfer.effectAllowed = "copy";
  });
  return lora;
}

async function attempt(press) {
  try {
    await press();
  } catch (error) {
    app.extensionManager.toast.add({ severity: "error", summary: t("didNotWork"), detail: error.message, life: 8000 });
  }
}

async function open(names) {
  openRuns(await Promise.all(names.map((name) => ask(`/archive/${encodeURIComponent(name)}`))));
}

/** Open the graph that the run was queued from; of one that no page has queued, a graph of its request. */
async function resume(name) {
  const { request, settings, workflow } = await ask(`/archive/${encodeURIComponent(name)}`);
  if (workflow) return app.loadGraphData(workflow);
  const { dataset } = addRequestGraph(request, freePlace(), { runName: name, settings });
  await Promise.all([refreshInfo(dataset), showAll()]);
}

function dropLora(event) {
  const file = event.dataTransfer?.getData(LORA);
  if (!file) return;
  event.preventDefault();
  event.stopPropagation();
  addLora(file, app.canvas.convertEventToCanvasOffset(event));
}

async function addLora(file, pos) {
  await app.refreshComboInNodes();
  asOneChange(() => addNode("LoraLoaderModelOnly", pos, { lora_name: file }));
}
