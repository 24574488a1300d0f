import assert from "node:assert/strict";
import test from "node:test";
import { setSteps } from "../../web/runs_tab/steps.js";

/** Node with widgets, and with links by input name. */
function node(comfyClass, values = {}, links = {}) {
  const names = Object.keys(links);
  return {
    comfyClass,
    widgets: Object.entries(values).map(([name, value]) => ({ name, value })),
    findInputSlot: (name) => names.indexOf(name),
    getInputNode: (slot) => links[names[slot]] ?? null,
  };
}

const params = (steps) => node("EditTrainerParams", { steps });
const stepsOf = ({ widgets }) => widgets.find(({ name }) => name === "steps").value;

test("the parameters of the run's own Train node get the steps, and no others", () => {
  const [own, other] = [params(4), params(9)];
  const trains = [
    node("EditTrainerTrain", { run_name: "mine" }, { params: own }),
    node("EditTrainerTrain", { run_name: "theirs" }, { params: other }),
  ];
  setSteps({ nodes: [own, other, ...trains] }, "mine-2", 20);
  assert.deepEqual([own, other].map(stepsOf), [20, 9]);
});

test("a request's steps are set in its JSON", () => {
  const request = node("EditTrainerLoadRequest", { request: '{"training_params": {"steps": 4, "batch_size": 2}}' });
  const train = node("EditTrainerTrain", { run_name: "mine" }, { params: request });
  setSteps({ nodes: [request, train] }, "mine", 20);
  assert.deepEqual(JSON.parse(request.widgets[0].value), { training_params: { steps: 20, batch_size: 2 } });
});

test("parameters in a subgraph are found where the link to them cannot be followed", () => {
  const inside = params(4);
  const train = node("EditTrainerTrain", { run_name: "mine" }, { params: null });
  setSteps({ nodes: [train, { widgets: [], subgraph: { nodes: [inside] } }] }, "mine", 20);
  assert.equal(stepsOf(inside), 20);
});
