// @ts-check
import { app } from "../../../scripts/app.js";
import { callBefore, findWidget, nextDrawing } from "./nodes.js";

/**
 * Shows the elements of a node's successor once the node has been replaced, as by undo: in Vue nodes, newer pages go on
 * showing those of the node before.
 *
 * @param {ComfyNode} node
 */
export function showSuccessor(node) {
  callBefore(node, "onRemoved", async () => {
    const { id, widgets = [] } = node;
    await nextDrawing();
    const successor = app.canvas.graph.getNodeById(id);
    if (!successor || successor === node) return;
    for (const { name, element } of widgets) {
      const next = findWidget(successor, name)?.element;
      if (element?.isConnected && next && !next.isConnected) element.replaceWith(next);
    }
  });
}
