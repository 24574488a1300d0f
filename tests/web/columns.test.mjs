import assert from "node:assert/strict";
import test from "node:test";
import { columnOptions, guessEmptyFields, missingFields } from "../../web/dataset/columns.js";
import { menuPosition } from "../../web/dataset/menu_position.js";

const FILE = {
  columns: { id: "int64", caption: "string", before: "struct", after: "string" },
  kinds: { caption: "text", before: "image", after: "either" },
  guess: { caption_column: "caption", image_column: "after" },
  rows: 2,
  texts: {},
};

test("a menu lists the columns that fit first, each group in the file's order", () => {
  assert.deepEqual(columnOptions(FILE, "image"), [
    { value: "before", note: "struct", fits: true },
    { value: "after", note: "string", fits: true },
    { value: "id", note: "int64", fits: false },
    { value: "caption", note: "string", fits: false },
  ]);
  assert.deepEqual(
    columnOptions(FILE, "text").map(({ value }) => value),
    ["caption", "after", "id", "before"],
  );
  assert.deepEqual(columnOptions(null, "text"), []);
});

test("fields that name no column of the file", () => {
  const values = { caption_column: "caption", control_image_column: "typo", image_column: "" };
  assert.deepEqual(missingFields(FILE, values), ["control_image_column"]);
  assert.deepEqual(missingFields(null, values), []);
});

test("only empty fields are guessed", () => {
  const values = { caption_column: "mine", control_image_column: "", image_column: "" };
  assert.deepEqual(guessEmptyFields(FILE, values), { control_image_column: "", image_column: "after" });
});

test("a menu opens below its field, above it without room, and inside the window", () => {
  const view = { width: 1000, height: 800 };
  const menu = { width: 200, height: 150 };
  assert.deepEqual(menuPosition({ left: 50, top: 100, bottom: 126 }, menu, view), { left: 50, top: 128 });
  assert.deepEqual(menuPosition({ left: 950, top: 700, bottom: 726 }, menu, view), { left: 796, top: 548 });
  assert.deepEqual(menuPosition({ left: -30, top: 100, bottom: 126 }, menu, view).left, 4);
  const long = { width: 200, height: 2000 };
  assert.equal(menuPosition({ left: 50, top: 300, bottom: 326 }, long, view).top, 328, "it scrolls there");
  assert.equal(menuPosition({ left: 50, top: 700, bottom: 726 }, long, view).top, 4);
});
