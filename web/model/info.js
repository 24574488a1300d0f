// @ts-check
import { callBefore, findWidget, fitToWidgets, isLinked, widgetText } from "../graph/nodes.js";
import { el } from "../lib/dom.js";
import { fetchModelInfo } from "../lib/server.js";
import { messageOf, t } from "../lib/text.js";
import { REQUEST_NODE, readRequest } from "../graph/request.js";

const MIN_HEIGHT = 62;
const CHOICES = ["base_model", "transformer"];
const PORTS = ["clip", "vae"];

/** Text element of each node, and the number of its last lookup: an older one's answer is dropped.
 * @type {WeakMap<ComfyNode, {element: HTMLElement, request: number}>} */
const infos = new WeakMap();

/**
 * Adds lines to a base-model node that say which weights will be loaded and on which device the model is trained.
 *
 * @param {ComfyNode} node
 */
export function addModelInfo(node) {
  const element = el("p", { class: "edit-trainer edit-trainer-model", role: "status" });
  const options = { serialize: false, hideOnZoom: false, margin: 6, getMinHeight: () => MIN_HEIGHT };
  node.addDOMWidget("weights", "edit-trainer-model", element, options).serialize = false;
  infos.set(node, { element, request: 0 });
  const refresh = () => void showModelInfo(node);
  for (const name of CHOICES) {
    const widget = findWidget(node, name);
    if (widget) callBefore(widget, "callback", refresh);
  }
  callBefore(node, "onConnectionsChange", refresh);
  refresh();
}

/**
 * Updates the base-model nodes that a request node is connected to.
 *
 * @param {ComfyNode} request
 */
export function showLinkedModels(request) {
  for (const node of request.graph?.nodes ?? []) if (infos.has(node) && linkedTo(node) === request) showModelInfo(node);
}

/**
 * Node that is connected to a base-model node's `base_model`.
 *
 * @param {ComfyNode} node
 * @returns {ComfyNode | null | undefined} Undefined when nothing is connected; null for what cannot be followed.
 */
function linkedTo(node) {
  if (!isLinked(node, "base_model")) return undefined;
  return node.getInputNode(node.findInputSlot("base_model")) ?? null; // a subgraph's input is no node
}

/**
 * Base model that a node will load: its own choice, or the request's; empty where only the run will tell. The node's
 * menu, which a link disables, shows the request's.
 *
 * @param {ComfyNode} node
 */
function baseModel(node) {
  const source = linkedTo(node);
  const menu = findWidget(node, "base_model");
  if (source === undefined || !menu) return widgetText(node, "base_model");
  const request = source?.comfyClass === REQUEST_NODE ? readRequest(widgetText(source, "request")) : null;
  const model = String(request?.base_model ?? "");
  const { values } = menu.options ?? {};
  if (!Array.isArray(values) || !values.includes(model)) return "";
  if (menu.value !== model) menu.value = model;
  return model;
}

/**
 * Updates the lines from the node's widgets and links.
 *
 * @param {ComfyNode} node
 */
export async function showModelInfo(node) {
  fitToWidgets(node);
  const info = infos.get(node);
  if (!info) return;
  const request = ++info.request;
  const linked = PORTS.filter((name) => isLinked(node, name));
  let [text, failed] = ["", false];
  try {
    const model = baseModel(node);
    const chooser = linkedTo(node)?.comfyClass === REQUEST_NODE ? "requestChooses" : "inputChooses";
    const lines = model ? await fetchModelInfo(model, widgetText(node, "transformer"), linked) : [t(chooser)];
    text = lines.join("\n");
  } catch (error) {
    [text, failed] = [messageOf(error), true];
  }
  if (request !== info.request) return;
  info.element.textContent = text;
  info.element.classList.toggle("edit-trainer-bad", failed);
}
