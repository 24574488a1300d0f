// @ts-check

/** Frames in which Vue nodes are mounted, measured and stored; a judgement, as most take two. */
const SETTLE_FRAMES = 4;
/** Longest wait for these frames, which a hidden tab does not draw. */
const SETTLE_MS = 3000;

/**
 * Finds a node by its id in a prompt: `7`, or `1:2:7` inside subgraphs.
 *
 * @param {ComfyGraph} root
 * @param {string} executionId
 * @returns {ComfyNode | undefined}
 */
export function findNode(root, executionId) {
  const path = executionId.split(":");
  const last = path.pop() ?? "";
  /** @type {ComfyGraph | undefined} */
  let graph = root;
  for (const id of path) graph = graph?.getNodeById(id)?.subgraph;
  return graph?.getNodeById(last) ?? undefined;
}

/**
 * Lists the ids of a node in a prompt. There are several when its subgraph is used several times.
 *
 * @param {ComfyGraph} root
 * @param {ComfyNode} node
 */
export function executionIds(root, node) {
  /** @type {string[]} */
  const found = [];
  /**
   * @param {ComfyGraph | undefined} graph
   * @param {string} prefix
   */
  const visit = (graph, prefix) => {
    if (graph === node.graph) found.push(prefix + node.id);
    for (const other of graph?.nodes ?? []) {
      if (other.isSubgraphNode?.()) visit(other.subgraph, `${prefix}${other.id}:`);
    }
  };
  visit(root, "");
  return found;
}

/**
 * Finds a widget by name.
 *
 * @param {ComfyNode} node
 * @param {string} name
 */
export const findWidget = (node, name) => node.widgets?.find((widget) => widget.name === name);

/**
 * Reads a widget's value as text; empty if the node has no such widget.
 *
 * @param {ComfyNode} node
 * @param {string} name
 */
export const widgetText = (node, name) => String(findWidget(node, name)?.value ?? "");

/**
 * True if something is connected to an input. Newer pages warn about reading the slot's own `link`.
 *
 * @param {ComfyNode} node
 * @param {string} name
 */
export function isLinked(node, name) {
  const slot = node.inputs ? node.findInputSlot(name) : -1;
  return slot >= 0 && node.isInputConnected(slot);
}

/**
 * Enlarges a node until its widgets fit. A workflow saved by an older version has sizes for fewer widgets.
 *
 * @param {ComfyNode} node
 * @param {number} [minWidth]
 */
export function fitToWidgets(node, minWidth = 0) {
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width, minWidth), Math.max(node.size[1], height)]);
}

/**
 * Size at which a node is drawn, without its title: in Vue nodes that of its element, as its own is the classic canvas's.
 *
 * @param {ComfyNode} node
 * @returns {ComfyPoint}
 */
export function drawnSize(node) {
  const element = /** @type {HTMLElement | null} */ (document.querySelector(`[data-node-id="${node.id}"]`));
  const [width, height] = node.size;
  if (!element) return [width, height];
  return [Math.max(width, element.offsetWidth), Math.max(height, element.offsetHeight)];
}

/** Waits until nodes that have been added or resized are drawn and measured; not for long where nothing is drawn. */
export async function nextDrawing() {
  const frames = async () => {
    for (let frame = 0; frame < SETTLE_FRAMES; frame++) await new Promise(requestAnimationFrame);
  };
  await Promise.race([frames(), new Promise((resolve) => setTimeout(resolve, SETTLE_MS))]);
}

/**
 * Finds a position below all nodes, in line with the leftmost one; null if there are no nodes.
 *
 * @param {Pick<ComfyNode, "pos" | "size">[]} nodes
 * @param {number} gap
 * @returns {ComfyPoint | null}
 */
export function positionBelow(nodes, gap) {
  if (!nodes.length) return null;
  const left = Math.min(...nodes.map(({ pos }) => pos[0]));
  const bottom = Math.max(...nodes.map(({ pos, size }) => pos[1] + size[1]));
  return [left, bottom + gap];
}

/**
 * Runs an action before each call of an object's callback, whether or not it has one yet.
 *
 * @template {string} K
 * @param {{[name in K]?: (...args: any[]) => unknown}} target
 * @param {K} name
 * @param {() => void} action
 */
export function callBefore(target, name, action) {
  const original = target[name];
  target[name] = function (...args) {
    action();
    return original?.apply(this, args);
  };
}
