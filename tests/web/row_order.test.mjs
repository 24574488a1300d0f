import assert from "node:assert/strict";
import test from "node:test";
import { RowOrder, rowsByCode, visiblePlaces, worstFirst } from "../../web/dataset/row_order.js";

test("chosen rows come first, all others follow in the file's order, each once", () => {
  for (const first of [[], [0], [9], [4, 2, 9], [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]]) {
    const order = new RowOrder(10, first);
    const shown = Array.from({ length: 10 }, (_, place) => order.at(place));
    const others = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9].filter((row) => !first.includes(row));
    assert.deepEqual(shown, [...first, ...others]);
    shown.forEach((row, place) => assert.equal(order.placeOf(row), place));
  }
});

test("a hundred thousand rows are ordered by twenty thousand lookups in no time", () => {
  const first = Array.from({ length: 20_000 }, (_, index) => 99_999 - 3 * index);
  const order = new RowOrder(100_000, first);
  const start = performance.now();
  const seen = new Set();
  for (let place = 0; place < 100_000; place++) seen.add(order.at(place));
  assert.equal(seen.size, 100_000);
  assert.ok(performance.now() - start < 2000);
});

test("the worst rows come first: by kind, by how little differs, by row", () => {
  const found = [
    [1, ["near"], { levels: 5 }],
    [2, ["emptyCaption"], {}],
    [3, ["near", "shape"], { levels: 2 }],
    [4, ["same"], {}],
    [5, ["unreadable", "emptyCaption"], { why: "gone" }],
    [0, ["same"], {}],
    [6, ["swapped"], {}],
  ];
  assert.deepEqual(worstFirst(found), [5, 0, 4, 6, 3, 1, 2]);
  assert.deepEqual(rowsByCode(found).get("emptyCaption"), [2, 5]);
  assert.deepEqual(rowsByCode(found).get("shape"), [3]);
  const left = rowsByCode(found, [3, 4], [5]);
  assert.deepEqual(
    ["same", "near", "shape", "unreadable", "emptyCaption"].map((code) => left.get(code)),
    [[0], [1], [], [5], [2]],
  );
});

test("only rows near the view are drawn", () => {
  assert.deepEqual(visiblePlaces(0, 600, 100, 1000), [0, 9]);
  assert.deepEqual(visiblePlaces(5050, 600, 100, 1000), [47, 60]);
  assert.deepEqual(visiblePlaces(99_400, 600, 100, 1000), [991, 1000]);
  assert.deepEqual(visiblePlaces(0, 600, 100, 2), [0, 2]);
  assert.deepEqual(visiblePlaces(500, 600, 100, 0), [0, 0]);
});
