import { makeRoom, widgetOf } from "../graph/nodes.js";
import { el } from "../lib/dom.js";
import { ask } from "../lib/server.js";

const MIN_HEIGHT = 62;
const CHOICES = ["base_model", "transformer"];
const PORTS = ["clip", "vae"];
const infos = new WeakMap();

/** Under a base-model node's widgets: what will be loaded from where, and on which device it is trained. */
export function addModelInfo(node) {
  const element = el("p", { class: "edit-trainer edit-trainer-model", role: "status" });
  const options = { serialize: false, hideOnZoom: false, margin: 6, getMinHeight: () => MIN_HEIGHT };
  node.addDOMWidget("weights", "edit-trainer-model", element, options).serialize = false;
  infos.set(node, { element, request: 0 });
  for (const name of CHOICES) {
    const widget = widgetOf(node, name);
    if (!widget) continue;
    const chosen = widget.callback;
    widget.callback = function (...args) {
      showModelInfo(node);
      return chosen?.apply(this, args);
    };
  }
  const changed = node.onConnectionsChange;
  node.onConnectionsChange = function (...args) {
    showModelInfo(node);
    return changed?.apply(this, args);
  };
  showModelInfo(node);
}

/** Ask again what the choice of a node amounts to. */
export async function showModelInfo(node) {
  makeRoom(node);
  const info = infos.get(node);
  const request = ++info.request;
  const choices = CHOICES.map((name) => [name, widgetOf(node, name)?.value ?? ""]);
  const linked = PORTS.filter((name) => node.inputs?.some((input) => input.name === name && input.link != null));
  const query = [...choices, ...linked.map((name) => ["connected", name])];
  const { lines, error } = await ask("/base_model", query).catch(({ message }) => ({ error: message }));
  if (request !== info.request) return;
  info.element.textContent = error ?? lines.join("\n");
  info.element.classList.toggle("edit-trainer-bad", Boolean(error));
}
