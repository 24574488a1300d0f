// @ts-check
import { findWidget, widgetText } from "../graph/nodes.js";
import { REQUEST_NODE, readRequest } from "../graph/request.js";
import { hasRunName } from "../panel/state.js";

/**
 * Sets the number of steps of a run in a graph: in the parameters or the request that its Train node is connected to.
 * Where the link cannot be followed, as out of a subgraph, every node with a number of steps gets it.
 *
 * @param {ComfyGraph} root
 * @param {string} run
 * @param {number} steps
 */
export function setSteps(root, run, steps) {
  const nodes = [...allNodes(root)];
  const trains = nodes.filter(
    (node) => node.comfyClass === "EditTrainerTrain" && hasRunName(run, widgetText(node, "run_name")),
  );
  const linked = trains.map((node) => node.getInputNode(node.findInputSlot("params")));
  const followed = linked.length > 0 && linked.every((node) => node && hasSteps(node));
  for (const node of followed ? linked : nodes.filter(hasSteps)) if (node) setNodeSteps(node, steps);
}

/**
 * @param {ComfyGraph} graph
 * @returns {Iterable<ComfyNode>}
 */
function* allNodes(graph) {
  for (const node of graph.nodes) {
    yield node;
    if (node.subgraph) yield* allNodes(node.subgraph);
  }
}

/** @param {ComfyNode} node */
const hasSteps = (node) => ["EditTrainerParams", REQUEST_NODE].includes(node.comfyClass ?? "");

/**
 * @param {ComfyNode} node
 * @param {number} steps
 */
function setNodeSteps(node, steps) {
  setWidget(findWidget(node, "steps"), steps);
  const request = readRequest(widgetText(node, "request"));
  if (!request) return;
  request.training_params = { .../** @type {object} */ (request.training_params), steps };
  setWidget(findWidget(node, "request"), JSON.stringify(request, null, 2));
}

/**
 * @param {ComfyWidget | undefined} widget
 * @param {unknown} value
 */
function setWidget(widget, value) {
  if (!widget) return;
  widget.value = value;
  widget.callback?.(value);
}
