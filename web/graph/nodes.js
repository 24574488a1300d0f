import { app } from "../../../scripts/app.js";

/** The graph at the top, which holds all others. */
export const rootGraph = () => app.rootGraph ?? app.graph;

/** The node of an id in a prompt: `7`, or `1:2:7` inside subgraphs. Undefined when it is not in the graph. */
export function nodeOf(executionId) {
  const path = String(executionId).split(":");
  const last = path.pop();
  const graph = path.reduce((inside, id) => inside?.getNodeById(id)?.subgraph, rootGraph());
  return graph?.getNodeById(last) ?? undefined;
}

/** The ids that a node has in a prompt: several when its subgraph is used several times. */
export function executionIds(node) {
  const found = [];
  const walk = (graph, prefix) => {
    if (graph === node.graph) found.push(prefix + node.id);
    for (const other of graph?.nodes ?? []) {
      if (other.isSubgraphNode?.()) walk(other.subgraph, `${prefix}${other.id}:`);
    }
  };
  walk(rootGraph(), "");
  return found;
}

/** The widget of a node by its name. */
export const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);

/** Make a node large enough for its widgets, which a workflow from before they were there was not saved for. */
export function makeRoom(node, leastWidth = 0) {
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width, leastWidth), Math.max(node.size[1], height)]);
}
