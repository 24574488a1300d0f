// @ts-check
import { app } from "../../../scripts/app.js";
import { messageOf, t } from "../lib/text.js";
import { addParquet, addRequestText, completeRequestNode } from "./add.js";
import { callBefore, findWidget, widgetText } from "./nodes.js";
import { REQUEST_NODE, readRequest } from "./request.js";

/** Pause in typing after which an edited request is read. */
const TYPING_MS = 350;

/**
 * Handles a paste anywhere in the page. The JSON of a fine-tune request or a parquet file becomes a graph of nodes when
 * pasted onto the canvas; a request pasted into a request node without links is inserted, and the nodes needed for
 * training are added. All other pastes pass through.
 *
 * @param {ClipboardEvent} event
 */
export function paste(event) {
  const text = event.clipboardData?.getData("text/plain") ?? "";
  const parquet = findParquet(event.clipboardData);
  const field = event.target instanceof Element ? event.target : null;
  const node = field && findRequestNode(field);
  if (!parquet && !readRequest(text)) return;
  // The text is in its field once the paste has been handled.
  if (node && !node.isAnyOutputConnected()) setTimeout(() => completeRequestNode(node, text));
  if (field?.closest("input, textarea, [contenteditable]")) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  const pos = [...app.canvas.graph_mouse];
  if (parquet) attempt(t("parquetUnusable"), () => addParquet(parquet, pos));
  else attempt(t("requestUnusable"), () => addRequestText(text, pos));
}

/**
 * Adds a button to a request node that turns its JSON into a graph of nodes.
 *
 * @param {ComfyNode} node
 * @param {() => void} onChange Called after the request has been edited.
 */
export function addRequestButton(node, onChange) {
  const request = findWidget(node, "request");
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  const edited = () => {
    clearTimeout(timer);
    timer = setTimeout(onChange, TYPING_MS);
  };
  if (request) callBefore(request, "callback", edited);
  const button = node.addWidget("button", t("makeNodes"), null, () => {
    const pos = [node.pos[0] + node.size[0] + 80, node.pos[1]];
    attempt(t("requestUnusable"), () => addRequestText(widgetText(node, "request"), pos));
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
 * Takes a parquet file that is dropped on the canvas: it becomes a graph that trains on it. A file dropped on a node is
 * the node's.
 *
 * @param {DragEvent} event
 */
export function dropParquet(event) {
  const parquet = findParquet(event.dataTransfer);
  const target = event.target instanceof Element ? event.target : null;
  if (!parquet || target?.closest("[data-node-id], [role=dialog], dialog, input, textarea")) return;
  const pos = app.canvas.convertEventToCanvasOffset(event);
  if (app.canvas.graph.getNodeOnPos(pos[0], pos[1])?.onDragDrop) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  attempt(t("parquetUnusable"), () => addParquet(parquet, [...pos]));
}

/** @param {DataTransfer | null} data */
const findParquet = (data) => [...(data?.files ?? [])].find(({ name }) => name.toLowerCase().endsWith(".parquet"));

/**
 * Runs an action and shows its error.
 *
 * @param {string} summary
 * @param {() => Promise<unknown>} action
 */
async function attempt(summary, action) {
  try {
    await action();
  } catch (error) {
    const detail = messageOf(error);
    app.extensionManager.toast.add({ severity: "error", summary, detail });
  }
}
