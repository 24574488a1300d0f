// @ts-check
import { isLinked, widgetText } from "../graph/nodes.js";
import { fetchRequestNotes } from "../lib/server.js";
import { setNotes } from "./node.js";

/**
 * Shows in a request node what is wrong with its JSON. A file that it names instead is checked when the graph is run.
 *
 * @param {ComfyNode} node
 */
export async function showRequestFaults(node) {
  const read = () => (isLinked(node, "request") ? "" : widgetText(node, "request").trim());
  const text = read();
  const notes = text.startsWith("{") ? await fetchRequestNotes(text).catch(() => []) : [];
  if (node.graph && text === read()) setNotes(node, "inputs", notes);
}
