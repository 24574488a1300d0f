// @ts-check
import { app } from "../../../scripts/app.js";
import { refreshInfo } from "../dataset/info.js";
import { parseRequest } from "../lib/server.js";
import { t } from "../lib/text.js";
import { addRequestGraph, completeRequestNode } from "./build.js";
import { findWidget, widgetText } from "./nodes.js";
import { REQUEST_NODE, isRequest } from "./request.js";

/**
 * Handles a paste anywhere in the page. The JSON of a fine-tune request becomes a graph of nodes when pasted onto the
 * canvas; pasted into a request node without links, it is inserted and the nodes needed for training are added. All
 * other pastes pass through.
 *
 * @param {ClipboardEvent} event
 */
export function pasteRequest(event) {
  const text = event.clipboardData?.getData("text/plain") ?? "";
  if (!isRequest(text)) return;
  const field = event.target instanceof Element ? event.target : null;
  const node = field && findRequestNode(field);
  if (node?.outputs.every((output) => !output.links?.length)) completeRequestNode(node);
  if (field?.closest("input, textarea, [contenteditable]")) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  addGraph(text, [...app.canvas.graph_mouse]);
}

/**
 * Adds a button to a request node that turns its JSON into a graph of nodes.
 *
 * @param {ComfyNode} node
 */
export function addRequestButton(node) {
  const button = node.addWidget("button", t("makeNodes"), null, () => {
    addGraph(widgetText(node, "request"), [node.pos[0] + node.size[0] + 80, node.pos[1]]);
  });
  button.serialize = false;
}

/**
 * Finds the request node that a text field belongs to, in either renderer.
 *
 * @param {Element} field
 */
function findRequestNode(field) {
  if (!field.matches("textarea")) return undefined;
  const id = field.closest("[data-node-id]")?.getAttribute("data-node-id");
  return app.canvas.graph.nodes.find(
    (node) =>
      node.comfyClass === REQUEST_NODE && (String(node.id) === id || findWidget(node, "request")?.element === field),
  );
}

/**
 * @param {string} text
 * @param {Iterable<number>} pos
 */
async function addGraph(text, pos) {
  try {
    await refreshInfo(addRequestGraph(await parseRequest(text), pos));
  } catch (error) {
    const detail = error instanceof Error ? error.message : String(error);
    app.extensionManager.toast.add({ severity: "error", summary: t("requestUnusable"), detail });
  }
}
