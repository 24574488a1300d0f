// @ts-check

// A few lines in place of a library, which would have to be copied into the repository: dropped pictures are compressed
// already, so that a zip of them is their bytes with headers between.

/** @typedef {{path: string, file: Blob}} ZipEntry */

/** Limits of a zip without the format's extension for large ones. */
const [MAX_BYTES, MAX_FILES] = [0xffffffff, 0xffff];
/** Flag of names in UTF-8. */
const UTF8 = 1 << 11;
/** 1 January 1980, midnight: the same files give the same zip. */
const DATE = 0x21;

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

/**
 * Makes a zip of files, in the order of their paths. Its parts are the files themselves, which are not kept in memory;
 * each is read once for its checksum. Returns null for more than a zip of this kind can hold.
 *
 * @param {ZipEntry[]} entries
 * @returns {Promise<Blob | null>}
 */
export async function zipFiles(entries) {
  const sorted = [...entries].sort((a, b) => (a.path < b.path ? -1 : 1));
  /** @type {BlobPart[]} */
  const parts = [];
  /** @type {BlobPart[]} */
  const directory = [];
  let [offset, size] = [0, 0];
  for (const { path, file } of sorted) {
    const name = new TextEncoder().encode(path);
    const common = [20, UTF8, 0, 0, DATE];
    const sums = [await crc32(file), file.size, file.size];
    const local = header(0x04034b50, common, sums, [name.length, 0]);
    const central = header(0x02014b50, [20, ...common], sums, [name.length, 0, 0, 0, 0], [0, offset]);
    parts.push(local, name, file);
    directory.push(central, name);
    offset += local.length + name.length + file.size;
    size += central.length + name.length;
    if (offset + size > MAX_BYTES) return null;
  }
  if (sorted.length > MAX_FILES) return null;
  const end = header(0x06054b50, [0, 0, sorted.length, sorted.length], [size, offset], [0]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

/**
 * A header: its mark, then groups of numbers of 2 and 4 bytes in turn.
 *
 * @param {number} mark
 * @param {...number[]} groups
 */
function header(mark, ...groups) {
  const bytes = groups.reduce((sum, group, index) => sum + group.length * (index % 2 ? 4 : 2), 4);
  const view = new DataView(new ArrayBuffer(bytes));
  view.setUint32(0, mark, true);
  let at = 4;
  groups.forEach((group, index) => {
    for (const number of group) {
      if (index % 2) view.setUint32(at, number, true);
      else view.setUint16(at, number, true);
      at += index % 2 ? 4 : 2;
    }
  });
  return new Uint8Array(view.buffer);
}

/** @param {Blob} file */
async function crc32(file) {
  let value = 0xffffffff;
  const reader = file.stream().getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    for (const byte of part.value) value = CRC_TABLE[(value ^ byte) & 0xff] ^ (value >>> 8);
  }
  return (value ^ 0xffffffff) >>> 0;
}
