import assert from "node:assert/strict";
import test from "node:test";
import {
  callBefore,
  executionIds,
  findNode,
  findWidget,
  fitToWidgets,
  isLinked,
  positionBelow,
  widgetText,
} from "../../web/graph/nodes.js";

/** Graph of these nodes by id; a node is an object with what a test needs. */
function graph(nodes) {
  const made = {
    nodes: Object.entries(nodes).map(([id, node]) => Object.assign(node, { id: Number(id) })),
    getNodeById: (id) => made.nodes.find((node) => String(node.id) === String(id)) ?? null,
  };
  for (const node of made.nodes) node.graph = made;
  return made;
}

const subgraph = (inner) => ({ subgraph: inner, isSubgraphNode: () => true });

test("a node is found by its id in a prompt, through subgraphs", () => {
  const train = {};
  const inner = graph({ 5: train });
  const root = graph({ 1: {}, 2: subgraph(graph({ 3: subgraph(inner) })) });
  assert.equal(findNode(root, "1"), root.nodes[0]);
  assert.equal(findNode(root, "2:3:5"), train);
  for (const id of ["9", "2:9:5", "1:5", "2:3:9", ""]) assert.equal(findNode(root, id), undefined, id);
});

test("a node of a subgraph that is used twice has two ids", () => {
  const train = {};
  const inner = graph({ 5: train });
  const root = graph({ 1: subgraph(inner), 2: {}, 3: subgraph(graph({ 4: subgraph(inner) })) });
  assert.deepEqual(executionIds(root, train), ["1:5", "3:4:5"]);
  assert.deepEqual(executionIds(root, root.nodes[1]), ["2"]);
  assert.deepEqual(executionIds(root, { id: 8, graph: null }), []);
  for (const id of executionIds(root, train)) assert.equal(findNode(root, id), train);
});

test("widgets are found by name and read as text", () => {
  const node = {
    widgets: [
      { name: "steps", value: 30 },
      { name: "empty", value: null },
    ],
  };
  assert.equal(findWidget(node, "steps"), node.widgets[0]);
  assert.deepEqual(
    ["steps", "empty", "none"].map((name) => widgetText(node, name)),
    ["30", "", ""],
  );
  assert.equal(findWidget({}, "steps"), undefined);
});

test("a node grows to fit its widgets and never shrinks", () => {
  const node = { size: [300, 100], computeSize: () => [210, 260], setSize: (size) => (node.size = size) };
  fitToWidgets(node);
  assert.deepEqual(node.size, [300, 260]);
  fitToWidgets(node, 400);
  assert.deepEqual(node.size, [400, 260]);
});

test("the position below all nodes", () => {
  const nodes = [
    { pos: [50, 10], size: [100, 400] },
    { pos: [-20, 300], size: [80, 40] },
  ];
  assert.deepEqual(positionBelow(nodes, 30), [-20, 440]);
  assert.equal(positionBelow([], 30), null);
});

test("an action runs before a callback, which keeps its arguments, its object and its result", () => {
  const calls = [];
  const target = {
    onChange(...args) {
      calls.push(["callback", this === target, ...args]);
      return "result";
    },
  };
  callBefore(target, "onChange", () => calls.push(["action"]));
  assert.equal(target.onChange(1, 2), "result");
  assert.deepEqual(calls, [["action"], ["callback", true, 1, 2]]);
  callBefore(target, "onRemoved", () => calls.push(["removed"]));
  assert.equal(target.onRemoved(), undefined);
  assert.deepEqual(calls.at(-1), ["removed"]);
});

test("what is connected is asked of the node, and an input that it lacks is not", () => {
  const names = ["clip", "vae"];
  const node = {
    inputs: names,
    findInputSlot: (name) => names.indexOf(name),
    isInputConnected: (slot) => [false, true][slot],
  };
  assert.deepEqual(["clip", "vae", "image"].map((name) => isLinked(node, name)), [false, true, false]);
  assert.equal(isLinked({}, "clip"), false);
});
