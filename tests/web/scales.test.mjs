import assert from "node:assert/strict";
import test from "node:test";
import { MARGIN, fitScales } from "../../web/panel/scales.js";

const SIZE = { width: 400, height: 200, steps: 0, log: false };
const curve = (...points) => ({ points, smoothed: points.map(([, value]) => value) });

test("the axis reaches from the first step of any curve to the last step or the planned one", () => {
  const curves = [curve([5, 1], [20, 2]), curve([1, 1], [30, 2])];
  const found = fitScales(curves, SIZE);
  assert.deepEqual([found.firstStep, found.lastStep], [1, 30]);
  assert.equal(fitScales(curves, { ...SIZE, steps: 100 }).lastStep, 100);
  assert.equal(found.x(1), MARGIN.left);
  assert.equal(found.x(30), SIZE.width - MARGIN.right);
});

test("a position maps back to its step", () => {
  const { x, stepAt } = fitScales([curve([10, 1], [90, 2])], SIZE);
  for (const step of [10, 33, 90]) assert.ok(Math.abs(stepAt(x(step)) - step) < 1e-9);
});

test("all values lie inside the plot, the greatest on top", () => {
  for (const log of [false, true]) {
    const { y } = fitScales([curve([1, 0.02], [2, 3])], { ...SIZE, log });
    assert.ok(y(3) > MARGIN.top);
    assert.ok(y(0.02) > y(3));
    assert.ok(y(0.02) < SIZE.height - MARGIN.bottom);
  }
});

test("values above zero never make the axis reach below it", () => {
  assert.equal(fitScales([curve([1, 0.001], [2, 5])], SIZE).min, 0);
  assert.ok(fitScales([curve([1, -1], [2, 5])], SIZE).min < -1);
});

test("equal values still have an axis", () => {
  const { y, min, max } = fitScales([curve([1, 0.5], [2, 0.5])], SIZE);
  assert.ok(min < 0.5 && 0.5 < max);
  assert.ok(Number.isFinite(y(0.5)));
});

test("a logarithmic axis skips zeros and is linear where nothing is above zero", () => {
  const found = fitScales([curve([1, 0], [2, 0.1], [3, 10])], { ...SIZE, log: true });
  assert.ok(found.log);
  assert.ok(found.min > 0.05 && found.min < 0.1);
  assert.ok(Number.isFinite(found.y(0)));
  assert.equal(found.y(0), found.y(0.1));
  assert.ok(Math.abs(found.y(1) - (found.y(0.1) + found.y(10)) / 2) < 1e-9, "decades are equally far apart");
  assert.equal(fitScales([curve([1, 0], [2, 0])], { ...SIZE, log: true }).log, false);
});
