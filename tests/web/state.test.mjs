import assert from "node:assert/strict";
import test from "node:test";
import { RunState, hasRunName, heldOutLoss, progressFraction, sampleAt, sampleRows } from "../../web/panel/state.js";

const EMPTY = { points: [], samples: [], checkpoints: [], warnings: [] };
const START = { points: 0, samples: 0, checkpoints: 0, warnings: 0 };
const snapshot = (values = {}) => ({ id: "a", run: "a", state: "running", step: 0, steps: 0, ...EMPTY, ...values });
const message = (values = {}) => ({ ...snapshot(), node_id: "7", from: START, ...values });
const image = (filename) => ({ filename, subfolder: "", type: "output" });

test("a snapshot is copied", () => {
  const state = new RunState();
  const given = snapshot({ points: [[1, 2]] });
  state.reset(given);
  state.merge(message({ points: [[2, 1]], from: { ...START, points: 1 } }));
  assert.deepEqual(given.points, [[1, 2]]);
  assert.deepEqual(state.run.points, [
    [1, 2],
    [2, 1],
  ]);
});

test("messages of a new run need no snapshot", () => {
  const state = new RunState();
  assert.equal(state.merge(message({ id: "new", step: 1, points: [[1, 0.5]] })), true);
  assert.deepEqual([state.run.id, state.run.step, state.run.points], ["new", 1, [[1, 0.5]]]);
  assert.equal("from" in state.run, false);
});

test("a message that overlaps with what is known adds only what is new", () => {
  const state = new RunState();
  state.reset(
    snapshot({
      points: [
        [1, 1],
        [2, 2],
        [3, 3],
      ],
      warnings: ["w"],
    }),
  );
  const from = { ...START, points: 1 };
  assert.equal(
    state.merge(
      message({
        points: [
          [2, 2],
          [3, 3],
          [4, 4],
        ],
        warnings: ["w"],
        from,
      }),
    ),
    true,
  );
  assert.deepEqual(
    state.run.points.map(([step]) => step),
    [1, 2, 3, 4],
  );
  assert.deepEqual(state.run.warnings, ["w"]);
});

test("a message after a missed one is refused and changes nothing", () => {
  for (const known of [
    snapshot({ points: [[1, 1]] }),
    snapshot({
      id: "b",
      points: [
        [1, 1],
        [2, 2],
        [3, 3],
      ],
    }),
  ]) {
    const state = new RunState();
    state.reset(known);
    const next = message({ state: "finished", step: 4, points: [[4, 4]], from: { ...START, points: 3 } });
    assert.equal(state.merge(next), false);
    assert.deepEqual([state.run.id, state.run.state, state.run.step], [known.id, "running", 0]);
    assert.deepEqual(state.run.points, known.points);
  }
});

test("the smoothed loss starts at the first value, follows a trend and outlives a message", () => {
  const state = new RunState();
  assert.equal(state.smoothedLoss, undefined);
  state.reset(snapshot({ points: [[1, 4]] }));
  assert.deepEqual(state.smoothed, [4]);
  for (let step = 2; step <= 1000; step++) {
    state.merge(message({ points: [[step, 1]], from: { ...START, points: step - 1 } }));
  }
  assert.equal(state.smoothed.length, 1000);
  assert.ok(state.smoothed[1] < 4 && state.smoothed[1] > 1);
  assert.ok(Math.abs(state.smoothedLoss - 1) < 1e-6);
  const whole = new RunState();
  whole.reset(snapshot({ points: state.run.points }));
  assert.deepEqual(whole.smoothed, state.smoothed);
  state.reset(snapshot({ id: "b", points: [[1, 7]] }));
  assert.deepEqual(state.smoothed, [7]);
});

test("one outlier moves a long run's smoothed loss by a fiftieth", () => {
  const state = new RunState();
  const points = Array.from({ length: 1000 }, (_, index) => [index + 1, 1]);
  state.reset(snapshot({ points: [...points, [1001, 51]] }));
  assert.ok(Math.abs(state.smoothedLoss - 2) < 1e-9);
});

test("the progress bar counts steps, and before the first one its phase", () => {
  const cases = [
    [{ phase: "caching", done: 3, total: 4, steps: 10 }, 0.75],
    [{ phase: "loading", done: 0, total: 0 }, 0],
    [{ phase: "training", done: 1, total: 1, steps: 10 }, 0],
    [{ phase: "sampling", done: 1, total: 2, step: 5, steps: 10 }, 0.5],
    [{ state: "stopped", phase: "caching", done: 4, total: 4, steps: 10 }, 0],
    [{ state: "finished", phase: "saving", done: 0, total: 1 }, 1],
  ];
  for (const [run, fraction] of cases) assert.equal(progressFraction(snapshot(run)), fraction, JSON.stringify(run));
});

test("a run folder belongs to its run name, numbered or not", () => {
  assert.deepEqual(
    ["edit", "edit-2", "edit-17"].map((folder) => hasRunName(folder, "edit")),
    [true, true, true],
  );
  const others = ["edit-", "edit-2b", "edit-two", "edit2", "other", "edit-2-3"];
  assert.deepEqual(
    others.filter((folder) => hasRunName(folder, "edit")),
    [],
  );
  assert.equal(hasRunName("a.b-2", "a+b"), false);
});

test("samples become rows in order of prompt and step", () => {
  const sample = (step, index) => ({
    step,
    index,
    prompt: `p${index}`,
    image: image(`${step}-${index}`),
    control: image(`c${index}`),
  });
  const { rows, steps } = sampleRows([sample(10, 1), sample(0, 1), sample(0, 0), sample(20, 0)]);
  assert.deepEqual(steps, [0, 10, 20]);
  assert.deepEqual(
    rows.map((row) => [row.prompt, row.controls[0].filename]),
    [
      ["p0", "c0"],
      ["p1", "c1"],
    ],
  );
  assert.deepEqual(
    rows.map((row) => row.generated.map(({ step }) => step)),
    [
      [0, 20],
      [0, 10],
    ],
  );
  assert.deepEqual(sampleRows([]), { rows: [], steps: [] });
  const both = { ...sample(0, 0), controls: [image("a"), image("b")] };
  assert.deepEqual(sampleRows([both]).rows[0].controls, both.controls);
});

test("a row shows its newest sample at or before the chosen step", () => {
  const row = sampleRows(
    [4, 8].map((step) => ({ step, index: 0, prompt: "p", image: image("i"), control: image("c") })),
  ).rows[0];
  assert.deepEqual(
    [0, 4, 7, 8, 99].map((step) => sampleAt(row, step).step),
    [4, 4, 4, 8, 8],
  );
});

test("held-out losses come with messages, also from a server that sends none", () => {
  const state = new RunState();
  assert.equal(state.merge(message({ id: "new" })), true);
  assert.deepEqual(state.run.validation, []);
  assert.equal(heldOutLoss(state.run), null);
  const from = { ...START, validation: 0 };
  assert.equal(state.merge(message({ id: "new", validation: [[0, 1]], best_step: 0, from })), true);
  assert.equal(state.merge(message({ id: "new", validation: [[20, 3]], from: { ...from, validation: 2 } })), false);
  const next = { validation: [[10, 2]], best_step: 0, from: { ...from, validation: 1 } };
  assert.equal(state.merge(message({ id: "new", ...next })), true);
  assert.deepEqual(state.run.validation, [
    [0, 1],
    [10, 2],
  ]);
  assert.deepEqual(heldOutLoss(state.run), { last: 2, best: 1, step: 0, risen: false });
});

test("the held-out loss has risen once it was above its lowest for long", () => {
  const after = (...losses) => losses.map((loss, index) => [10 * index, loss]);
  const risen = (...losses) => heldOutLoss({ validation: after(...losses), best_step: 10 }).risen;
  assert.equal(risen(1, 0.5, 0.6, 0.6, 0.6), false);
  assert.equal(risen(1, 0.5, 0.6, 0.6, 0.6, 0.6), true);
  assert.equal(risen(1, 0.5, 0.6, 0.6, 0.6, 0.503), false);
});
