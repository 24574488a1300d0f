import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import { zipFiles } from "../../web/dataset/zip.js";

const READ = `
import json, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as archive:
    assert archive.testzip() is None
    print(json.dumps([[info.filename, archive.read(info).hex()] for info in archive.infolist()]))
`;

/** Names and contents of a zip, as Python reads them. */
async function read(blob) {
  const path = join(mkdtempSync(join(tmpdir(), "zip-")), "a.zip");
  writeFileSync(path, Buffer.from(await blob.arrayBuffer()));
  return JSON.parse(execFileSync("python3", ["-c", READ, path], { encoding: "utf8" }));
}

test("a zip has the files by name, whatever is in them", async () => {
  const bytes = Uint8Array.from({ length: 70_000 }, (_, index) => (index * 7919) >> 3);
  const entries = [
    { path: "target/ü 猫.png", file: new Blob([bytes]) },
    { path: "control/a.png", file: new Blob(["one"]) },
    { path: "control/empty.txt", file: new Blob([]) },
  ];
  assert.deepEqual(await read(await zipFiles(entries)), [
    ["control/a.png", Buffer.from("one").toString("hex")],
    ["control/empty.txt", ""],
    ["target/ü 猫.png", Buffer.from(bytes).toString("hex")],
  ]);
});

test("the same files give the same zip", async () => {
  const entries = ["a", "b", "c"].map((path) => ({ path, file: new Blob([path]) }));
  const [one, other] = [await zipFiles(entries), await zipFiles([...entries].reverse())];
  assert.deepEqual(await one.arrayBuffer(), await other.arrayBuffer());
});

test("more than a zip can hold is refused", async () => {
  const file = new Blob([]);
  const entries = Array.from({ length: 0x10000 }, (_, index) => ({ path: String(index), file }));
  assert.equal(await zipFiles(entries), null);
  const huge = { size: 0xffffffff, stream: () => new Blob([]).stream() };
  assert.equal(await zipFiles([{ path: "a", file: huge }]), null);
});
