import { app } from "../../../scripts/app.js";
import { refreshInfo } from "../dataset/info.js";
import { tell } from "../lib/server.js";
import { t } from "../lib/text.js";
import { addRequestGraph, completeRequestNode } from "./build.js";
import { widgetOf } from "./nodes.js";

const LONGEST = 4 * 2 ** 20;

/** On a paste anywhere in the page: a fine-tune request's JSON on the canvas becomes a graph; all else is let through. */
export function pasteRequest(event) {
  if (event.target?.closest?.("input, textarea, [contenteditable]")) return;
  const text = event.clipboardData?.getData("text/plain") ?? "";
  if (!isRequest(text)) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  addGraph(text, [...app.canvas.graph_mouse]);
}

/** Give a request node a button that makes its text a graph of nodes, and have a paste into it complete the graph. */
export function addRequestButton(node) {
  const button = node.addWidget("button", t("makeNodes"), null, () => {
    addGraph(widgetOf(node, "request").value, [node.pos[0] + node.size[0] + 80, node.pos[1]]);
  });
  button.serialize = false;
  const field = widgetOf(node, "request");
  (field.element ?? field.inputEl)?.addEventListener("paste", (event) => {
    const unused = node.outputs.every((output) => !output.links?.length);
    if (unused && isRequest(event.clipboardData?.getData("text/plain") ?? "")) completeRequestNode(node);
  });
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
