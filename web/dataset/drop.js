// @ts-check
import { el } from "../lib/dom.js";
import { packPictures, uploadDataset } from "../lib/server.js";
import { t } from "../lib/text.js";
import { confirmForm } from "../runs_tab/ask.js";
import { zipFiles } from "./zip.js";

/** @typedef {import("./zip.js").ZipEntry} ZipEntry */

/** What the server says of pairs without a caption, of which one for all can be given. */
const NO_CAPTION = "has no caption";
/** Name of a zip of pictures that were dropped without a folder. */
const PICTURES = "pictures";

/**
 * Files that were dropped: a parquet, a zip, or pictures and folders of them.
 *
 * @typedef {{parquet?: File, zip?: File, pictures?: () => Promise<{name: string, entries: ZipEntry[]}>}} Dropped
 */

/**
 * Finds out what was dropped; null for what is no dataset. To be called while the event is handled, as its data is gone
 * after that.
 *
 * @param {DataTransfer | null} data
 * @returns {Dropped | null}
 */
export function readDrop(data) {
  const files = [...(data?.files ?? [])];
  const ending = (/** @type {string} */ suffix) => files.find(({ name }) => name.toLowerCase().endsWith(suffix));
  const [parquet, zip] = [ending(".parquet"), ending(".zip")];
  if (parquet || zip) return { parquet, zip: parquet ? undefined : zip };
  if (!files.length) return null;
  const found = [...(data?.items ?? [])].map((item) => (item.kind === "file" ? item.webkitGetAsEntry() : null));
  const dropped = /** @type {FileSystemEntry[]} */ (found.filter(Boolean));
  if (!dropped.length) return { pictures: async () => ({ name: PICTURES, entries: files.map(asEntry) }) };
  return { pictures: () => readEntries(dropped) };
}

/**
 * Uploads what was dropped, and packs what is no parquet. Returns the parquet's name below the input folder; null where
 * the person gives no caption. Throws an Error with the server's message.
 *
 * @param {Dropped} dropped
 * @param {(line: string) => void} say Called with what is being done.
 * @returns {Promise<string | null>}
 */
export async function uploadDrop({ parquet, zip, pictures }, say) {
  let file = parquet ?? zip;
  if (!file && pictures) {
    const { name, entries } = await pictures();
    say(t("packing", { name }));
    const blob = await zipFiles(entries);
    if (!blob) throw new Error(t("tooLargeToDrop"));
    file = new File([blob], `${name}.zip`);
  }
  if (!file) return null;
  say(t("uploading", { name: file.name }));
  const uploaded = await uploadDataset(file);
  if (parquet) return uploaded;
  say(t("packing", { name: file.name }));
  try {
    return await packPictures(uploaded);
  } catch (error) {
    if (!(error instanceof Error && error.message.includes(NO_CAPTION))) throw error;
    const caption = await askCaption();
    return caption && (await packPictures(uploaded, caption));
  }
}

/** Asks for one caption for all pairs. Resolves to null when the dialog is closed. */
async function askCaption() {
  const field = el("input", { type: "text", required: true });
  const confirmed = await confirmForm(t("packPairs"), el("label", {}, el("p", {}, t("oneCaption")), field));
  return confirmed ? field.value : null;
}

/**
 * Reads dropped files and folders. Of a single folder the paths start inside it.
 *
 * @param {FileSystemEntry[]} dropped
 */
async function readEntries(dropped) {
  const [only] = dropped.length === 1 && dropped[0].isDirectory ? dropped : [];
  /** @type {ZipEntry[]} */
  const entries = [];
  for (const entry of only ? await childrenOf(only) : dropped) await collect(entry, "", entries);
  return { name: only?.name ?? PICTURES, entries };
}

/**
 * @param {FileSystemEntry} entry
 * @param {string} folder
 * @param {ZipEntry[]} entries
 */
async function collect(entry, folder, entries) {
  if (entry.name.startsWith(".")) return; // what an operating system adds
  if (entry.isDirectory) {
    for (const child of await childrenOf(entry)) await collect(child, `${folder}${entry.name}/`, entries);
    return;
  }
  const source = /** @type {FileSystemFileEntry} */ (entry);
  const file = await new Promise((resolve, reject) => source.file(resolve, reject));
  entries.push({ path: folder + entry.name, file });
}

/**
 * @param {FileSystemEntry} folder
 * @returns {Promise<FileSystemEntry[]>}
 */
async function childrenOf(folder) {
  const reader = /** @type {FileSystemDirectoryEntry} */ (folder).createReader();
  /** @type {FileSystemEntry[]} */
  const children = [];
  for (;;) {
    /** @type {FileSystemEntry[]} */
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return children;
    children.push(...some);
  }
}

/** @param {File} file */
const asEntry = (file) => ({ path: file.name, file });
