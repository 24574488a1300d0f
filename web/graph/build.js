import { app } from "../../../scripts/app.js";
import { widgetOf } from "./nodes.js";

const GAP = 40;
const PREFIX = "EditTrainer";

/** A new node in the graph that is looked at, with these values in its widgets. */
export function addNode(type, pos, values = {}) {
  const node = window.LiteGraph.createNode(type);
  if (!node) throw new Error(type);
  node.pos = [...pos];
  app.canvas.graph.add(node);
  setValues(node, values);
  return node;
}

/** Put values into the widgets of these names; others are left as they are. */
export function setValues(node, values) {
  for (const [name, value] of Object.entries(values)) {
    const widget = widgetOf(node, name);
    if (!widget) continue;
    widget.value = value;
    widget.callback?.(value);
  }
}

/** Connect an output to an input, both by name. */
export function connect(from, output, to, input) {
  from.connect(from.findOutputSlot(output), to, to.findInputSlot(input));
}

/** Do something to the graph that one Undo takes back. */
export function asOneChange(change) {
  const { graph } = app.canvas;
  graph.beforeChange();
  try {
    return change();
  } finally {
    graph.afterChange();
    app.canvas.setDirty(true, true);
  }
}

/** The middle of what is seen of the graph. */
export function middle() {
  const [x, y, width, height] = app.canvas.visible_area;
  return [x + width / 2, y + height / 2];
}

/** A place below all nodes of the graph. */
export function freePlace() {
  const nodes = app.canvas.graph.nodes;
  if (!nodes.length) return middle();
  return [Math.min(...nodes.map(({ pos }) => pos[0])), Math.max(...nodes.map(({ pos, size }) => pos[1] + size[1])) + 3 * GAP];
}

/** A fine-tune request as a graph of filled nodes, from `pos` to the right. `settings` are a run's settings.json. */
export function addRequestGraph(request, pos, { runName = "edit-lora", settings = null } = {}) {
  return asOneChange(() => {
    const params = request.training_params;
    const [left, top] = pos;
    const place = column([left, top]);
    const dataset = place(`${PREFIX}LoadDataset`, { resource: request.resource, ...params, ...settings });
    const values = place(`${PREFIX}Params`, params);
    const model = place(`${PREFIX}BaseModel`, { base_model: request.base_model });
    const advanced = settings && place(`${PREFIX}Settings`, settings);
    const samples = (params.samples ?? []).map((sample) => place(`${PREFIX}Sample`, sample));
    samples.forEach((sample, index) => index && connect(samples[index - 1], "samples", sample, "samples"));
    const train = addNode(`${PREFIX}Train`, [left + place.width + GAP, top], {
      run_name: runName,
      ...(settings && { seed: settings.seed }),
    });
    connect(model, "model", train, "model");
    connect(dataset, "dataset", train, "dataset");
    connect(values, "params", train, "params");
    if (samples.length) connect(samples.at(-1), "samples", train, "samples");
    if (advanced) connect(advanced, "settings", train, "settings");
    const preview = addNode(`${PREFIX}PreviewSamples`, [train.pos[0] + train.size[0] + GAP, top]);
    connect(train, "run", preview, "run");
    app.canvas.centerOnNode(train);
    return { dataset, train };
  });
}

/** What a request node needs beside it to train: base model, training and preview, connected to it. */
export function completeRequestNode(node) {
  asOneChange(() => {
    const x = node.pos[0] + node.size[0] + GAP;
    const model = addNode(`${PREFIX}BaseModel`, [x, node.pos[1]]);
    const train = addNode(`${PREFIX}Train`, [x, node.pos[1] + model.size[1] + 2 * GAP]);
    const preview = addNode(`${PREFIX}PreviewSamples`, [x + train.size[0] + GAP, node.pos[1]]);
    connect(node, "base_model", model, "base_model");
    for (const name of ["dataset", "params", "samples"]) connect(node, name, train, name);
    connect(model, "model", train, "model");
    connect(train, "run", preview, "run");
  });
}

function column([x, y]) {
  const place = (type, values) => {
    const node = addNode(type, [x, y], values);
    y += node.size[1] + 2 * GAP;
    place.width = Math.max(place.width, node.size[0]);
    return node;
  };
  place.width = 0;
  return place;
}
