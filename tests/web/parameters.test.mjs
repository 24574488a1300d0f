import assert from "node:assert/strict";
import test from "node:test";
import { differences, parameters } from "../../web/runs_tab/parameters.js";

const run = (params, settings = {}) => ({
  request: { resource: "a.parquet", base_model: "tiny/flux-kontext", training_params: params },
  settings,
});

test("a run's parameters are those of its request and its settings, as text", () => {
  const rows = parameters([run({ steps: 4, use_lora: true, samples: [{ prompt: "one" }] }, { seed: 42, init_lora: null })]);
  assert.deepEqual(Object.fromEntries(rows.map(({ name, values }) => [name, values[0]])), {
    resource: "a.parquet",
    base_model: "tiny/flux-kontext",
    steps: "4",
    use_lora: "true",
    samples: '[{"prompt":"one"}]',
    seed: "42",
    init_lora: "",
  });
});

test("only what differs between two runs is listed, also what one of them lacks", () => {
  const one = run({ steps: 4, lora_rank: 16 }, { seed: 42 });
  const other = run({ steps: 6, lora_rank: 16 }, { seed: 42, compile: "off" });
  assert.deepEqual(differences([one, other]), [
    { name: "steps", values: ["4", "6"] },
    { name: "compile", values: ["", "off"] },
  ]);
  assert.deepEqual(differences([one, one]), []);
});
