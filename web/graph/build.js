// @ts-check
import { app } from "../../../scripts/app.js";
import { drawnSize, findWidget, nextDrawing, positionBelow } from "./nodes.js";

/** Distance between columns in graph coordinates; nodes of a column are twice as far apart. */
const GAP = 40;

/**
 * Adds a node to the graph on display and sets its widgets' values.
 *
 * @param {string} type
 * @param {Iterable<number>} pos
 * @param {Record<string, unknown>} [values] Names that the node has no widget for are ignored,
 *   and so are values of another type and those that a menu does not have.
 */
export function addNode(type, pos, values = {}) {
  const node = window.LiteGraph.createNode(type);
  if (!node) throw new Error(type);
  node.pos = [...pos];
  node.widgets ??= []; // as pages load it: undo would take the difference for a change
  app.canvas.graph.add(node);
  for (const [name, value] of Object.entries(values)) setWidget(findWidget(node, name), value);
  return node;
}

/**
 * @param {ComfyWidget | undefined} widget
 * @param {unknown} value
 */
function setWidget(widget, value) {
  if (!widget || !accepts(widget, value)) return;
  widget.value = value;
  widget.callback?.(value);
}

/**
 * @param {ComfyWidget} widget
 * @param {unknown} value
 */
function accepts(widget, value) {
  const { values } = widget.options ?? {};
  return Array.isArray(values) ? values.includes(value) : typeof value === typeof widget.value;
}

/**
 * Makes a change of the graph one step of the page's undo history. What was changed before is a step of its own.
 *
 * @template T
 * @param {() => T} change
 * @returns {T}
 */
export function undoable(change) {
  const tracker = changeTracker();
  tracker?.beforeChange();
  tracker?.afterChange();
  tracker?.beforeChange();
  try {
    return change();
  } finally {
    tracker?.afterChange();
    app.canvas.setDirty(true, true);
  }
}

/** Undo history of the workflow on display; the page has none before its first workflow. */
const changeTracker = () => app.extensionManager.workflow?.activeWorkflow?.changeTracker;

/**
 * Adds what becomes of nodes in an action to the last step of the undo history. They may be gone by its end, as undo
 * works meanwhile: then the history is left as it is.
 *
 * @param {ComfyNode[]} nodes
 * @param {() => Promise<unknown>} action
 */
export async function extendLastStep(nodes, action) {
  const tracker = changeTracker();
  tracker?.beforeChange();
  try {
    await action();
  } finally {
    if (tracker) tracker.changeCount--; // afterChange() would make another step
    if (tracker && tracker === changeTracker() && nodes.every(isOnDisplay)) {
      tracker.activeState = JSON.parse(JSON.stringify((app.rootGraph ?? app.graph).serialize()));
      tracker.updateModified();
    }
  }
}

/** @param {ComfyNode} node */
export const isOnDisplay = (node) => app.canvas.graph.getNodeById(node.id) === node;

/**
 * Center of the visible part of the graph.
 *
 * @returns {ComfyPoint}
 */
export function viewCenter() {
  const [x, y, width, height] = app.canvas.visible_area;
  return [x + width / 2, y + height / 2];
}

/** Position below all nodes of the graph; the center of the view if it is empty. */
export const freePosition = () => positionBelow(app.canvas.graph.nodes, 3 * GAP) ?? viewCenter();

/**
 * Adds the nodes and links of a plan as one step of the undo history, which their final layout belongs to.
 *
 * @param {import("./request.js").GraphPlan} plan
 * @param {Iterable<number>} pos Top left corner.
 * @param {object} [options]
 * @param {Record<string, ComfyNode>} [options.existing] Nodes of the graph that the plan links to, by key.
 * @param {(nodes: Record<string, ComfyNode>) => unknown} [options.fill] Fills in what has to be asked for first.
 * @returns {Promise<Record<string, ComfyNode>>} All of these nodes, by key.
 */
export async function addPlan(plan, pos, { existing = {}, fill } = {}) {
  const nodes = { ...existing };
  const columns = undoable(() => {
    for (const { key, type, values, size } of plan.columns.flat()) {
      nodes[key] = addNode(type, pos, values);
      if (size) nodes[key].setSize(size);
    }
    for (const [from, output, to, input] of plan.links) {
      const [source, target] = [nodes[from], nodes[to]];
      source.connect(source.findOutputSlot(output), target, target.findInputSlot(input));
    }
    const columns = plan.columns.map((column) => column.map(({ key }) => nodes[key]));
    arrange(columns, pos);
    return columns;
  });
  await extendLastStep(columns.flat(), async () => {
    await fill?.(nodes);
    await nextDrawing();
    arrange(columns, pos);
    await nextDrawing();
  });
  return nodes;
}

/**
 * Places nodes in columns by the sizes at which they are drawn.
 *
 * @param {ComfyNode[][]} columns
 * @param {Iterable<number>} pos Top left corner.
 */
function arrange(columns, pos) {
  const places = [];
  let [x, top] = pos;
  for (const column of columns) {
    let [y, columnWidth] = [top, 0];
    for (const node of column) {
      const [width, height] = drawnSize(node);
      node.pos = [x, y];
      places.push({ node, newPos: { x, y } });
      y += height + 2 * GAP;
      columnWidth = Math.max(columnWidth, width);
    }
    x += columnWidth + GAP;
  }
  // Older pages do not see a change of `pos` in Vue nodes, and the newest have another name for it. In the classic
  // renderer they would give nodes the sizes of those that Vue nodes drew under the same ids.
  if (window.LiteGraph.vueNodesMode && !app.canvas.applyNodePositions) app.canvas.repositionNodesVueMode?.(places);
}
