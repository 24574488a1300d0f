// @ts-check
import { app } from "../../../scripts/app.js";
import { findWidget, positionBelow } from "./nodes.js";
import { completionPlan, requestPlan } from "./request.js";

/** Distance between columns in graph coordinates; nodes of a column are twice as far apart. */
const GAP = 40;

/**
 * Adds a node to the graph on display and sets its widgets' values.
 *
 * @param {string} type
 * @param {Iterable<number>} pos
 * @param {Record<string, unknown>} [values] Names that the node has no widget for are ignored.
 */
export function addNode(type, pos, values = {}) {
  const node = window.LiteGraph.createNode(type);
  if (!node) throw new Error(type);
  node.pos = [...pos];
  app.canvas.graph.add(node);
  for (const [name, value] of Object.entries(values)) {
    const widget = findWidget(node, name);
    if (!widget) continue;
    widget.value = value;
    widget.callback?.(value);
  }
  return node;
}

/**
 * Runs a change of the graph as one step of its undo history.
 *
 * @template T
 * @param {() => T} change
 * @returns {T}
 */
export function undoable(change) {
  const { graph } = app.canvas;
  graph.beforeChange();
  try {
    return change();
  } finally {
    graph.afterChange();
    app.canvas.setDirty(true, true);
  }
}

/**
 * Center of the visible part of the graph.
 *
 * @returns {ComfyPoint}
 */
export function viewCenter() {
  const [x, y, width, height] = app.canvas.visible_area;
  return [x + width / 2, y + height / 2];
}

/** Position below all nodes of the graph; the center of the view if it is empty. */
export const freePosition = () => positionBelow(app.canvas.graph.nodes, 3 * GAP) ?? viewCenter();

/**
 * Adds the graph of a fine-tune request, with its top left corner at `pos`. Returns the dataset node.
 *
 * @param {import("../lib/server.js").TrainingRequest} request
 * @param {Iterable<number>} pos
 * @param {{runName?: string, settings?: import("../lib/server.js").Settings | null}} [options]
 */
export function addRequestGraph(request, pos, { runName = "edit-lora", settings = null } = {}) {
  return undoable(() => {
    const nodes = addPlan(requestPlan(request, runName, settings), pos);
    app.canvas.centerOnNode(nodes.train);
    return nodes.dataset;
  });
}

/**
 * Adds a base model, a Train node and a preview beside a request node, and connects all four.
 *
 * @param {ComfyNode} request
 */
export function completeRequestNode(request) {
  const pos = [request.pos[0] + request.size[0] + GAP, request.pos[1]];
  undoable(() => addPlan(completionPlan(), pos, { request }));
}

/**
 * Adds the nodes and links of a plan.
 *
 * @param {import("./request.js").GraphPlan} plan
 * @param {Iterable<number>} pos Top left corner.
 * @param {Record<string, ComfyNode>} [existing] Nodes of the graph that the plan links to, by key.
 */
function addPlan(plan, pos, existing = {}) {
  const nodes = { ...existing };
  let [x, top] = pos;
  for (const column of plan.columns) {
    let [y, width] = [top, 0];
    for (const { key, type, values } of column) {
      const node = addNode(type, [x, y], values);
      nodes[key] = node;
      y += node.size[1] + 2 * GAP;
      width = Math.max(width, node.size[0]);
    }
    x += width + GAP;
  }
  for (const [from, output, to, input] of plan.links) {
    const [source, target] = [nodes[from], nodes[to]];
    source.connect(source.findOutputSlot(output), target, target.findInputSlot(input));
  }
  return nodes;
}
