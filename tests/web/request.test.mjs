import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import { completionPlan, datasetPlan, draftRequest, readRequest, requestPlan } from "../../web/graph/request.js";

const INTERFACE = JSON.parse(readFileSync(new URL("../comfyui/object_info.json", import.meta.url), "utf-8"));
const REQUEST = {
  resource: "main/edits.parquet",
  base_model: "tiny/flux-kontext",
  training_params: {
    steps: 30,
    caption_column: "caption",
    samples: [{ prompt: "one" }, { prompt: "two" }, { prompt: "three" }],
  },
};
const keys = (plan) => plan.columns.map((column) => column.map(({ key }) => key));
const node = (plan, key) => plan.columns.flat().find((planned) => planned.key === key);

/** Every planned node exists, and every link joins an output to an input of the same type. */
function check(plan, existing = {}) {
  const types = { ...existing, ...Object.fromEntries(plan.columns.flat().map(({ key, type }) => [key, type])) };
  for (const type of Object.values(types)) assert.ok(type in INTERFACE, type);
  for (const [from, output, to, input] of plan.links) {
    const source = INTERFACE[types[from]].outputs.find(([name]) => name === output);
    const { required, optional } = INTERFACE[types[to]].inputs;
    const target = { ...required, ...optional }[input];
    assert.ok(source && target, `${from}.${output} to ${to}.${input}`);
    assert.ok(
      source[1] === target[0] || target[0] === "COMBO",
      `${from}.${output} to ${to}.${input}: ${source[1]}, ${target[0]}`,
    );
  }
}

test("a request is recognized by its training_params", () => {
  assert.ok(readRequest(JSON.stringify(REQUEST)));
  assert.ok(readRequest(`\n  ${JSON.stringify({ training_params: {} })}`));
});

test("a workflow, other JSON and other text are not requests", () => {
  const others = [
    "",
    "training_params",
    "{",
    '{"training_params"',
    "{}",
    '{"prompt": "training_params"}',
    '["training_params"]',
  ];
  others.push(JSON.stringify({ nodes: [], training_params: {} }));
  others.push(JSON.stringify({ training_params: "x".repeat(4 * 2 ** 20) }));
  assert.deepEqual(others.filter(readRequest), []);
});

test("a request's graph: inputs, then training, then the preview", () => {
  const plan = requestPlan(REQUEST, "mine", null);
  const inputs = ["dataset", "params", "model", "sample 0", "sample 1", "sample 2"];
  assert.deepEqual(keys(plan), [inputs, ["train"], ["preview"]]);
  check(plan);
  assert.deepEqual(node(plan, "train").values, { run_name: "mine" });
  assert.equal(node(plan, "dataset").values.resource, "main/edits.parquet");
  assert.equal(node(plan, "dataset").values.caption_column, "caption");
  assert.equal(node(plan, "params").values.steps, 30);
  assert.deepEqual(node(plan, "model").values, { base_model: "tiny/flux-kontext" });
});

test("sample prompts are chained in their order, the last one to training", () => {
  const chain = requestPlan(REQUEST, "mine", null).links.filter(([, output]) => output === "samples");
  assert.deepEqual(
    chain.map(([from, , to]) => [from, to]),
    [
      ["sample 0", "sample 1"],
      ["sample 1", "sample 2"],
      ["sample 2", "train"],
    ],
  );
  const none = requestPlan({ ...REQUEST, training_params: { steps: 1 } }, "mine", null);
  assert.deepEqual(
    none.links.filter(([, output]) => output === "samples"),
    [],
  );
});

test("a resumed run's graph also has its settings and its seed", () => {
  const plan = requestPlan(REQUEST, "mine", { seed: 7, images_root: "pictures" });
  check(plan);
  assert.deepEqual(keys(plan)[0].slice(0, 4), ["dataset", "params", "model", "settings"]);
  assert.deepEqual(node(plan, "train").values, { run_name: "mine", seed: 7 });
  assert.equal(node(plan, "dataset").values.images_root, "pictures");
  assert.ok(plan.links.some(([from, , to, input]) => from === "settings" && to === "train" && input === "settings"));
});

test("a request node is completed with all that training needs", () => {
  const plan = completionPlan();
  check(plan, { request: "EditTrainerLoadRequest" });
  const required = Object.entries(INTERFACE.EditTrainerTrain.inputs.required).filter(([, [type]]) =>
    type.startsWith("EDIT_"),
  );
  const linked = plan.links.filter(([, , to]) => to === "train").map(([, , , input]) => input);
  assert.deepEqual(
    required.map(([name]) => name).filter((name) => !linked.includes(name)),
    [],
  );
});

test("a request with dots for its parameters is read, and what a draft lacks stays empty", () => {
  const data = readRequest('{"resource": "main/a.parquet", "base_model": "<name>", "training_params": { ... }}');
  assert.deepEqual(data.training_params, {});
  assert.deepEqual(draftRequest(data), { resource: "main/a.parquet", base_model: "<name>", training_params: { samples: [] } });
  assert.deepEqual(draftRequest({ training_params: { samples: ["no", { prompt: "yes" }] } }).training_params.samples, [
    { prompt: "yes" },
  ]);
});

test("the gaps of a request stand in a note before its other nodes", () => {
  const plan = requestPlan(REQUEST, "mine", null, "caption_column: is missing");
  assert.equal(keys(plan)[0][0], "note");
  assert.equal(node(plan, "note").values.text, "caption_column: is missing");
});

test("a parquet's graph has its guessed columns, its name and its first captions as samples", () => {
  const guess = { caption_column: "text", image_column: "after" };
  const file = { columns: {}, kinds: {}, guess, rows: 3, texts: { text: ["one", "two", "three"] } };
  const plan = datasetPlan("cats.parquet", file, "tiny/flux-kontext");
  check(plan);
  assert.equal(node(plan, "dataset").values.image_column, "after");
  assert.equal(node(plan, "train").values.run_name, "cats");
  assert.deepEqual(
    [0, 1, 2].map((index) => node(plan, `sample ${index}`)?.values.prompt),
    ["one", "two", undefined],
  );
  assert.equal(node(plan, "params").values.steps, 200);
  const large = datasetPlan("cats.parquet", { ...file, guess: {} }, null);
  assert.equal(node(large, "params").values.steps, undefined);
  assert.equal(node(large, "sample 0"), undefined);
});

test("a request for several control images names their columns, and its samples all their images", () => {
  const request = {
    ...REQUEST,
    training_params: {
      caption_column: "c",
      control_image_columns: ["a", "b"],
      image_column: "o",
      samples: [
        { ctrl_img_url: ["1.png", "2.png"], prompt: "both" },
        { ctrl_img_url: ["1.png"], prompt: "one" },
      ],
    },
  };
  const nodes = requestPlan(request, "r", { seed: 1, cache_text_embeddings: true }).columns.flat();
  const values = Object.fromEntries(nodes.map((node) => [node.key, node.values]));
  const { control_image_column, control_image_column_2, control_image_column_3 } = values.dataset;
  assert.deepEqual([control_image_column, control_image_column_2, control_image_column_3], ["a", "b", ""]);
  assert.equal(values.params.cache_text_embeddings, true);
  assert.deepEqual(values["sample 0"], { prompt: "both", ctrl_img_url: '["1.png","2.png"]' });
  assert.deepEqual(values["sample 1"], { prompt: "one", ctrl_img_url: "1.png" });
});
