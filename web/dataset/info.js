// @ts-check
import { el, setText, shieldFromGraph } from "../lib/dom.js";
import { fetchColumns, fetchFirstRows, fetchParquets, uploadParquet } from "../lib/server.js";
import { count, t } from "../lib/text.js";
import { callBefore, findWidget, fitToWidgets, widgetText } from "../graph/nodes.js";
import { COLUMN_FIELDS, columnOptions, guessEmptyFields, missingFields } from "./columns.js";

/**
 * @typedef {import("../lib/server.js").ParquetColumns} ParquetColumns
 * @typedef {import("./choice.js").ChoiceWidget} ChoiceWidget
 */

const MAX_ROWS = 3;
const MIN_HEIGHT = 100;
/** Pause in typing after which a file name is looked up. */
const TYPING_MS = 350;

/** @type {Map<ComfyNode, DatasetInfo>} */
const infos = new Map();

/**
 * Adds a preview of the parquet file to a dataset node: its size, its first rows, and a way to choose or drop a file.
 *
 * @param {ComfyNode} node
 */
export function addInfo(node) {
  const info = new DatasetInfo(node);
  infos.set(node, info);
  callBefore(node, "onRemoved", () => {
    infos.delete(node);
    info.destroy();
  });
  fitToWidgets(node);
}

/**
 * Reads the parquet file that a loaded node names. The node's columns stay as they were saved.
 *
 * @param {ComfyNode} node
 */
export async function refreshInfo(node) {
  fitToWidgets(node);
  await infos.get(node)?.read(false);
}

/** Preview of one dataset node's parquet file. */
class DatasetInfo {
  /** @type {ParquetColumns & {resource: string} | null} */
  #file = null;
  /** Thumbnails of the first rows, by column. @type {Record<string, (string | null)[]>} */
  #thumbnails = {};
  /** Source of the thumbnails; they are read again when it changes. */
  #thumbnailKey = "";
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  /** Number of the last lookup: an older one's answer is dropped. */
  #request = 0;
  #removed = false;

  /** @param {ComfyNode} node */
  constructor(node) {
    this.node = node;
    this.line = el("p", { role: "status" });
    this.rows = el("div", { class: "edit-trainer-first" });
    const upload = () => this.#upload(input.files?.[0]);
    const input = el("input", { type: "file", accept: ".parquet", hidden: true, on: { change: upload } });
    const choose = el(
      "button",
      { class: "edit-trainer-button", type: "button", on: { click: () => input.click() } },
      t("chooseFile"),
    );
    this.input = input;
    const head = el("header", {}, this.line, choose, input);
    const element = el("section", { class: "edit-trainer edit-trainer-info" }, head, this.rows);
    shieldFromGraph(element);
    const options = { serialize: false, hideOnZoom: false, margin: 6, getMinHeight: () => MIN_HEIGHT };
    node.addDOMWidget("rows", "edit-trainer-info", element, options).serialize = false;
    this.#connectMenus();
    this.#acceptDrops();
    this.#say(t("dropParquet"));
  }

  destroy() {
    this.#removed = true;
    clearTimeout(this.#timer);
  }

  /**
   * Reads the file that the node names.
   *
   * @param {boolean} guess Fill in empty columns where names, types and the first rows tell.
   */
  async read(guess) {
    const resource = widgetText(this.node, "resource").trim();
    const request = ++this.#request;
    let [file, error] = [/** @type {ParquetColumns | null} */ (null), ""];
    try {
      if (resource) file = await fetchColumns(resource);
    } catch (failure) {
      error = messageOf(failure);
    }
    if (request !== this.#request || this.#removed) return;
    this.#file = file && { ...file, resource };
    if (file && guess) this.#setColumns(guessEmptyFields(file, this.#columns()));
    if (error) this.#say(error, true);
    this.#draw();
  }

  /** Columns that are chosen, by field. */
  #columns() {
    return Object.fromEntries(Object.keys(COLUMN_FIELDS).map((field) => [field, widgetText(this.node, field)]));
  }

  /** @param {Record<string, string>} columns */
  #setColumns(columns) {
    for (const [field, column] of Object.entries(columns)) {
      const widget = findWidget(this.node, field);
      if (widget) widget.value = column;
    }
  }

  #connectMenus() {
    const resource = this.#menu("resource");
    resource?.setOptions?.(async () => (await fetchParquets()).map((value) => ({ value })));
    if (resource) {
      resource.onChoice = (_value, committed) => {
        clearTimeout(this.#timer);
        this.#timer = setTimeout(() => this.read(true), committed ? 0 : TYPING_MS);
      };
    }
    for (const [field, kind] of Object.entries(COLUMN_FIELDS)) {
      const menu = this.#menu(field);
      menu?.setOptions?.(async () => columnOptions(this.#file, kind));
      if (menu) menu.onChoice = () => this.#draw();
    }
  }

  /** @param {string} name */
  #menu(name) {
    const menu = /** @type {ChoiceWidget | undefined} */ (findWidget(this.node, name));
    menu?.setLabel?.(menu.label ?? menu.name);
    return menu;
  }

  /** Accepts a file that is dropped anywhere on the node, in both renderers. */
  #acceptDrops() {
    this.node.onDragOver = (event) => [...(event.dataTransfer?.items ?? [])].some((item) => item.kind === "file");
    this.node.onDragDrop = (event) => {
      const parquet = [...(event.dataTransfer?.files ?? [])].find(({ name }) =>
        name.toLowerCase().endsWith(".parquet"),
      );
      if (!parquet) return false;
      this.#upload(parquet);
      return true;
    };
  }

  /** @param {File | undefined} parquet */
  async #upload(parquet) {
    if (!parquet) return;
    setText(this.line, t("uploading", { name: parquet.name }));
    try {
      const resource = await uploadParquet(parquet);
      this.#setColumns({ resource, caption_column: "", control_image_column: "", image_column: "" });
      await this.read(true);
    } catch (error) {
      this.#say(messageOf(error), true);
    }
    this.input.value = "";
  }

  /**
   * Shows a line of text in place of the rows.
   *
   * @param {string} text
   * @param {boolean} [isError]
   */
  #say(text, isError = false) {
    this.line.classList.toggle("edit-trainer-bad", isError);
    setText(this.line, text);
    this.rows.replaceChildren();
  }

  #draw() {
    const [file, columns] = [this.#file, this.#columns()];
    const missing = missingFields(file, columns);
    for (const field of Object.keys(COLUMN_FIELDS)) {
      findWidget(this.node, field)?.element?.toggleAttribute("data-fault", missing.includes(field));
    }
    if (!file) {
      if (!widgetText(this.node, "resource").trim()) this.#say(t("dropParquet"));
      return;
    }
    this.line.classList.remove("edit-trainer-bad");
    const size = { rows: count(file.rows), columns: count(Object.keys(file.columns).length) };
    setText(this.line, t("rowsAndColumns", size));
    const images = [columns.control_image_column, columns.image_column];
    const key = JSON.stringify([file.resource, widgetText(this.node, "images_root"), images]);
    if (this.#thumbnailKey === key) this.#drawRows(file, columns.caption_column, images);
    else this.#readThumbnails(file, key, images);
  }

  /**
   * @param {ParquetColumns & {resource: string}} file
   * @param {string} key
   * @param {string[]} images
   */
  async #readThumbnails(file, key, images) {
    this.#thumbnailKey = key;
    this.#thumbnails = {};
    const columns = images.filter((name) => name in file.columns);
    const root = widgetText(this.node, "images_root");
    const thumbnails = await fetchFirstRows(file.resource, root, columns).catch(() => ({}));
    if (this.#thumbnailKey !== key || this.#removed) return;
    this.#thumbnails = thumbnails;
    this.#drawRows(file, this.#columns().caption_column, images);
  }

  /**
   * @param {ParquetColumns} file
   * @param {string} caption
   * @param {string[]} images
   */
  #drawRows(file, caption, images) {
    const rows = Array.from({ length: Math.min(MAX_ROWS, file.rows) }, (_, row) => {
      const pictures = images.map((name) =>
        el("img", { alt: "", draggable: false, title: name, src: this.#thumbnails[name]?.[row] ?? undefined }),
      );
      const text = file.texts[caption]?.[row] ?? "";
      return el("figure", {}, ...pictures, el("figcaption", { title: text }, text));
    });
    this.rows.replaceChildren(...rows);
  }
}

/** @param {unknown} error */
const messageOf = (error) => (error instanceof Error ? error.message : String(error));
