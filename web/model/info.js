// @ts-check
import { callBefore, findWidget, fitToWidgets, widgetText } from "../graph/nodes.js";
import { el } from "../lib/dom.js";
import { fetchModelInfo } from "../lib/server.js";

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
 * Updates the lines from the node's widgets and links.
 *
 * @param {ComfyNode} node
 */
export async function showModelInfo(node) {
  fitToWidgets(node);
  const info = infos.get(node);
  if (!info) return;
  const request = ++info.request;
  const linked = PORTS.filter((name) => node.inputs?.some((input) => input.name === name && input.link != null));
  let [text, failed] = ["", false];
  try {
    text = (await fetchModelInfo(widgetText(node, "base_model"), widgetText(node, "transformer"), linked)).join("\n");
  } catch (error) {
    [text, failed] = [error instanceof Error ? error.message : String(error), true];
  }
  if (request !== info.request) return;
  info.element.textContent = text;
  info.element.classList.toggle("edit-trainer-bad", failed);
}
