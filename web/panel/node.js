// @ts-check
import { app } from "../../../scripts/app.js";
import { controlRun, fetchLiveRun, fetchSavedRun, fetchSavedRuns } from "../lib/server.js";
import { callBefore, executionIds, findNode, fitToWidgets, isLinked, widgetText } from "../graph/nodes.js";
import { RunPanel } from "./panel.js";
import { hasRunName } from "./state.js";

/**
 * The panel of a Train node, and the id under which the node was last run.
 *
 * @typedef {{panel: RunPanel, executionId: string | null, loading: boolean}} NodePanel
 */

const MIN_HEIGHT = 400;
const MIN_WIDTH = 400;
/** Saved runs that are read to find a node's own; a judgement: each has thousands of points. */
const MAX_CANDIDATES = 4;

/** @type {Map<ComfyNode, NodePanel>} */
const panels = new Map();

/** The root graph has a name of its own only in newer pages. */
const rootGraph = () => app.rootGraph ?? app.graph;

/**
 * Adds a panel to a Train node. It is display only and never saved with the workflow.
 *
 * @param {ComfyNode} node
 */
export function addPanel(node) {
  const runId = () => entry.executionId ?? executionIds(rootGraph(), node)[0] ?? node.id;
  const panel = new RunPanel((action) => controlRun(runId(), action));
  /** @type {NodePanel} */
  const entry = { panel, executionId: null, loading: false };
  panels.set(node, entry);
  const options = { serialize: false, hideOnZoom: false, getMinHeight: () => MIN_HEIGHT, margin: 6 };
  node.addDOMWidget("training", "edit-trainer-panel", panel.element, options).serialize = false;
  fitToWidgets(node, MIN_WIDTH);
  callBefore(node, "onRemoved", () => {
    panels.delete(node);
    panel.destroy();
  });
}

/**
 * Handles the server's message about a run.
 *
 * @param {import("../lib/server.js").Message} message
 */
export async function onMessage(message) {
  if (!panels.size) return; // While the page loads there is no graph to search either.
  const node = findNode(rootGraph(), message.node_id);
  const entry = node && panels.get(node);
  if (!entry || !isRunOf(node, entry.panel, message)) return;
  entry.executionId = message.node_id;
  if (entry.panel.merge(message) || entry.loading) return;
  entry.loading = true;
  await showLastRun(node, entry, message.id).finally(() => (entry.loading = false));
}

/** Shows the last known run in every Train node of the graph. */
export async function showAllRuns() {
  await Promise.all([...panels].map(([node, entry]) => node.graph && showLastRun(node, entry)));
}

/**
 * Shows the node's run of this session; if there is none, the saved run of its name.
 *
 * @param {ComfyNode} node
 * @param {NodePanel} entry
 * @param {string} [wanted] Id of the run that the server tells of. Without it the run must have the node's name: a
 *   workflow that is opened twice has one id.
 */
async function showLastRun(node, entry, wanted) {
  const { panel } = entry;
  for (const id of executionIds(rootGraph(), node)) {
    const run = await fetchLiveRun(id).catch(() => null);
    if (run && isRunOf(node, panel, run) && (run.id === wanted || isNamed(node, run))) {
      entry.executionId = id;
      panel.reset(run);
      return;
    }
  }
  const run = await findSavedRun(widgetText(node, "run_name"));
  if (run && !panel.state.run) panel.reset(run);
}

/**
 * Reads the newest saved run of a name, or of the numbered names beside it, that this workflow has started; the run of
 * the name itself if none says so.
 *
 * @param {string} name
 */
async function findSavedRun(name) {
  const lines = name ? await fetchSavedRuns().catch(() => []) : [];
  const numbered = lines.filter((line) => hasRunName(line.run, name)).slice(0, MAX_CANDIDATES);
  const runs = await Promise.all(numbered.map((line) => fetchSavedRun(line.run).catch(() => null)));
  return runs.find((run) => run && isOfThisWorkflow(run)) ?? runs.find((run) => run?.run === name) ?? null;
}

/**
 * True if a run has the name that the node gives, or gets through a link.
 *
 * @param {ComfyNode} node
 * @param {import("../lib/server.js").Snapshot} run
 */
function isNamed(node, run) {
  return isLinked(node, "run_name") || hasRunName(run.run, widgetText(node, "run_name"));
}

/** @param {import("../lib/server.js").Snapshot} run */
const isOfThisWorkflow = (run) => !!run.workflow_id && run.workflow_id === rootGraph().id;

/**
 * True if a run is this node's: a node of another workflow may have had the same id. Runs that carry no workflow's id,
 * and workflows without one, are told by the name.
 *
 * @param {ComfyNode} node
 * @param {RunPanel} panel
 * @param {import("../lib/server.js").Snapshot} run
 */
function isRunOf(node, panel, run) {
  if (panel.state.run?.id === run.id) return true;
  if (run.workflow_id && rootGraph().id) return isOfThisWorkflow(run);
  return isNamed(node, run);
}
