import { app } from "../../../scripts/app.js";
import { refreshInfo } from "../dataset/info.js";
import { tell } from "../lib/server.js";
import { t } from "../lib/text.js";
import { addRequestGraph, completeRequestNode } from "./build.js";
import { widgetOf } from "./nodes.js";

const LONGEST = 4 * 2 ** 20;
const REQUEST = "EditTrainerLoadRequest";

/**
 * On a paste anywhere in the page: a fine-tune request's JSON on the canvas becomes a graph, and in a request node that
 * nothing follows it gets what it needs to train. All else is let through.
 */
export function pasteRequest(event) {
  const text = event.clipboardData?.getData("text/plain") ?? "";
  if (!isRequest(text)) return;
  const node = requestNodeOf(event.target);
  if (node?.outputs.every((output) => !output.links?.length)) completeRequestNode(node);
  if (event.target?.closest?.("input, textarea, [contenteditable]")) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  addGraph(text, [...app.canvas.graph_mouse]);
}

/** Give a request node a button that makes its text a graph of nodes. */
export function addRequestButton(node) {
  const button = node.addWidget("button", t("makeNodes"), null, () => {
    addGraph(widgetOf(node, "request").value, [node.pos[0] + node.size[0] + 80, node.pos[1]]);
  });
  button.serialize = false;
}

/** The request node whose text field this is, in either renderer. */
function requestNodeOf(field) {
  if (!field?.matches?.("textarea")) return undefined;
  const id = field.closest("[data-node-id]")?.dataset.nodeId;
  return app.canvas.graph.nodes.find(
    (node) => node.comfyClass === REQUEST && (String(node.id) === id || widgetOf(node, "request").element === field),
  );
}

/** Whether a text is meant as a fine-tune request, faults aside. */
export function isRequest(text) {
  if (text.length > LONGEST || !text.trimStart().startsWith("{") || !text.includes("training_params")) return false;
  try {
    const data = JSON.parse(text);
    return data !== null && typeof data === "object" && "training_params" in data && !("nodes" in data);
  } catch {
    return false;
  }
}

async function addGraph(text, pos) {
  try {
    const { request, error } = await tell("/request", {}, text);
    if (error) throw new Error(error);
    const { dataset } = addRequestGraph(request, pos);
    await refreshInfo(dataset);
  } catch (error) {
    app.extensionManager.toast.add({ severity: "error", summary: t("requestUnusable"), detail: error.message });
  }
}
