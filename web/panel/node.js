import { ask } from "../lib/server.js";
import { executionIds, makeRoom, nodeOf, widgetOf } from "../graph/nodes.js";
import { RunPanel, nodeControl } from "./panel.js";

const WIDGET = "training";
const MIN_HEIGHT = 400;
const MIN_WIDTH = 400;
const panels = new Map();

/** Put a panel into a Train node. It is only shown, never saved with the workflow. */
export function addPanel(node) {
  const panel = new RunPanel(nodeControl(() => panel.executionId ?? executionIds(node)[0] ?? node.id));
  panels.set(node, panel);
  const options = { serialize: false, hideOnZoom: false, getMinHeight: () => MIN_HEIGHT, margin: 6 };
  const widget = node.addDOMWidget(WIDGET, "edit-trainer-panel", panel.element, options);
  widget.serialize = false;
  makeRoom(node, MIN_WIDTH);
  const removed = node.onRemoved;
  node.onRemoved = function (...args) {
    panels.delete(node);
    panel.destroy();
    return removed?.apply(this, args);
  };
}

/** A message from the server about a run. */
export async function onMessage(message) {
  if (!panels.size) return; // Nor is there a graph to look in, while the page loads.
  const node = nodeOf(message.node_id);
  const panel = panels.get(node);
  if (!panel || !isOf(node, panel, message)) return;
  panel.executionId = message.node_id;
  if (panel.merge(message) || panel.asking) return;
  panel.asking = true;
  await showLast(node).finally(() => (panel.asking = false));
}

/** Show in every Train node of the graph what is known of its last run. */
export async function showAll() {
  await Promise.all([...panels.keys()].filter((node) => node.graph).map(showLast));
}

async function showLast(node) {
  const panel = panels.get(node);
  for (const id of executionIds(node)) {
    const run = await ask(`/runs/${encodeURIComponent(id)}`).catch(() => null);
    if (run && isOf(node, panel, run)) {
      panel.executionId = id;
      panel.reset(run);
      return;
    }
  }
  const name = widgetOf(node, "run_name")?.value;
  const known = name && (await ask("/archive").catch(() => [])).some((line) => line.run === name);
  const run = known && (await ask(`/archive/${encodeURIComponent(name)}`).catch(() => null));
  if (run && !panel.state.run) panel.reset(run);
}

/** Whether a run is this node's: another workflow's node may have had the same id. */
function isOf(node, panel, run) {
  if (panel.state.run?.id === run.id) return true;
  const linked = node.inputs?.some((input) => input.name === "run_name" && input.link != null);
  const name = widgetOf(node, "run_name")?.value;
  return linked || run.run === name || (run.run.startsWith(`${name}-`) && /^\d+$/.test(run.run.slice(name.length + 1)));
}
