import assert from "node:assert/strict";
import test from "node:test";
import { decimate, nearest, ticks } from "../../web/panel/decimate.js";

test("a long curve becomes one stroke for each pixel column", () => {
  const points = Array.from({ length: 20000 }, (_, index) => [index + 1, Math.sin(index)]);
  const strokes = decimate(points, 1, 20000, 300);
  assert.equal(strokes.length, 300);
  assert.deepEqual(
    strokes.map(({ x }) => x),
    Array.from({ length: 300 }, (_, x) => x),
  );
});

test("a stroke keeps the extremes and both ends of its points", () => {
  const points = [
    [1, 5],
    [2, 9],
    [3, 1],
    [4, 4],
    [100, 7],
  ];
  assert.deepEqual(decimate(points, 1, 100, 2), [
    { x: 0, min: 1, max: 9, first: 5, last: 4 },
    { x: 1, min: 7, max: 7, first: 7, last: 7 },
  ]);
});

test("other values take the place of the points' own", () => {
  const strokes = decimate(
    [
      [1, 5],
      [2, 9],
    ],
    1,
    2,
    2,
    [0.5, 0.25],
  );
  assert.deepEqual(
    strokes.map(({ first }) => first),
    [0.5, 0.25],
  );
});

test("a single point and an empty curve", () => {
  assert.deepEqual(decimate([], 0, 10, 100), []);
  assert.deepEqual(decimate([[3, 2]], 3, 3, 100), [{ x: 0, min: 2, max: 2, first: 2, last: 2 }]);
});

test("the nearest point, also outside of the curve and between two points", () => {
  const points = [
    [10, 0],
    [20, 0],
    [40, 0],
  ];
  const steps = [0, 10, 14, 16, 29, 31, 40, 99];
  assert.deepEqual(
    steps.map((step) => nearest(points, step)),
    [0, 0, 0, 1, 1, 2, 2, 2],
  );
  assert.equal(nearest([[5, 1]], 50), 0);
});

test("linear ticks are round and inside the bounds", () => {
  assert.deepEqual(ticks(0, 1, false), [0, 0.5, 1]);
  assert.deepEqual(ticks(3, 17, false), [5, 10, 15]);
  assert.deepEqual(ticks(0, 8, false), [0, 2, 4, 6, 8]);
  for (const [min, max] of [
    [0.013, 0.021],
    [-4, 9],
    [0, 1e6],
    [0.1, 0.1001],
  ]) {
    const found = ticks(min, max, false);
    assert.ok(found.length >= 2 && found.length <= 6, String(found));
    assert.ok(
      found.every((value) => value >= min && value <= max),
      String(found),
    );
  }
});

test("logarithmic ticks are 1, 2 and 5 of a decade, and whole decades on a long axis", () => {
  assert.deepEqual(
    ticks(0.04, 0.6, true).map((value) => value.toPrecision(1)),
    ["0.05", "0.1", "0.2", "0.5"],
  );
  assert.deepEqual(
    ticks(0.001, 10, true).map((value) => value.toPrecision(1)),
    ["0.001", "0.01", "0.1", "1", "1e+1"],
  );
});
