import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import test, { afterEach } from "node:test";
import { fileURLToPath } from "node:url";
import { count, duration, loss, memory, setLanguage, speed, t, timeOfDay } from "../../web/lib/text.js";

const PACK = new URL("../../", import.meta.url);
const read = (path) => readFileSync(new URL(path, PACK), "utf-8");
const texts = (language) => JSON.parse(read(`locales/${language}/main.json`)).editTrainer;
const nodes = (language) => JSON.parse(read(`locales/${language}/nodeDefs.json`));
const placeholders = (text) => [...text.matchAll(/\{\w+\}/g)].map(([name]) => name).sort();

afterEach(() => setLanguage({}, "en"));

test("texts are looked up in the language, then in English, then shown as their key", () => {
  setLanguage({ en: { editTrainer: { a: "A", b: "B" } }, zh: { editTrainer: { a: "甲" } } }, "zh");
  assert.deepEqual(
    ["a", "b", "c"].map((key) => t(key)),
    ["甲", "B", "c"],
  );
  setLanguage({}, undefined);
  assert.equal(t("a"), "a");
});

test("placeholders are filled in, and stay where there is no value", () => {
  setLanguage({ en: { editTrainer: { line: "{n} of {total}, {n} again" } } }, "en");
  assert.equal(t("line", { n: 0 }), "0 of {total}, 0 again");
  assert.equal(t("line", { n: "$&", total: 2 }), "$& of 2, $& again");
});

test("durations", () => {
  assert.deepEqual([0, 59.6, 245, 3599, 3723, 90000, -5].map(duration), [
    "0:00",
    "1:00",
    "4:05",
    "59:59",
    "1:02:03",
    "25:00:00",
    "0:00",
  ]);
});

test("a time of day has its weekday only when that is not today's", () => {
  const noon = new Date(2024, 0, 3, 12, 0);
  assert.match(timeOfDay(60, noon), /^12:01/);
  assert.match(timeOfDay(24 * 3600, noon), /^Thu/);
});

test("losses, speeds, memory and counts", () => {
  setLanguage({ en: { editTrainer: { stepsPerSecond: "{n} steps/s", secondsPerStep: "{n} s/step" } } }, "en");
  assert.deepEqual([0.123456, 0, null, undefined, NaN].map(loss), ["0.1235", "0.000", "–", "–", "–"]);
  assert.deepEqual([0.25, 1, 1.424, 0, null].map(speed), ["4.00 steps/s", "1.00 s/step", "1.42 s/step", "–", "–"]);
  assert.equal(memory([2 ** 30, 24 * 2 ** 30]), "1.0 / 24.0 GiB");
  assert.equal(count(20180), "20,180");
});

test("all languages have the same texts with the same placeholders", () => {
  const english = texts("en");
  for (const language of readdirSync(new URL("locales/", PACK))) {
    const own = texts(language);
    assert.deepEqual(Object.keys(own), Object.keys(english), language);
    for (const key of Object.keys(english)) {
      assert.deepEqual(placeholders(own[key]), placeholders(english[key]), `${language}: ${key}`);
    }
  }
});

test("every text that the page asks for by name is there", () => {
  const english = texts("en");
  const files = readdirSync(fileURLToPath(new URL("web/", PACK)), { recursive: true }).filter((name) =>
    name.endsWith(".js"),
  );
  const keys = files.flatMap((file) => [...read(`web/${file}`).matchAll(/\bt\("(\w+)"/g)].map(([, key]) => key));
  assert.ok(keys.length > 20);
  assert.deepEqual(
    keys.filter((key) => !(key in english)),
    [],
  );
  const states = ["checking", "loading", "caching", "sampling", "saving", "running", "finished", "stopped", "failed"];
  assert.deepEqual(
    states.filter((key) => !(key in english)),
    [],
  );
});

test("translated nodes, inputs and outputs exist", () => {
  const english = nodes("en");
  for (const [node, own] of Object.entries(nodes("zh"))) {
    assert.ok(node in english, node);
    for (const group of ["inputs", "outputs"]) {
      for (const name of Object.keys(own[group] ?? {})) assert.ok(name in english[node][group], `${node}.${name}`);
    }
  }
});
