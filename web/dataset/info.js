// @ts-check
import { el, setText, shieldFromGraph } from "../lib/dom.js";
import { fetchColumns, fetchDatasetNotes, fetchParquets } from "../lib/server.js";
import { fetchEdits } from "../lib/rows.js";
import { counted, editLines, messageOf, t } from "../lib/text.js";
import { undoable } from "../graph/build.js";
import { callBefore, findWidget, fitToWidgets, isLinked, widgetText } from "../graph/nodes.js";
import { embedNotes, setNotes } from "../notes/node.js";
import { openRows } from "./browser.js";
import { COLUMN_FIELDS, columnOptions, guessEmptyFields, missingFields } from "./columns.js";
import { FirstRows } from "./first_rows.js";
import { Uploads } from "./uploads.js";

/** @typedef {import("./choice.js").ChoiceWidget} ChoiceWidget */

/** Least size of a node that is added, in pixels: names of columns beside the names of their inputs, and the rows. */
const [MIN_WIDTH, MIN_HEIGHT] = [400, 100];
/** Gap between the parts, as in the style sheet. */
const GAP = 6;
/** Notes on a folder of images that the server does not show. */
const UNSEEN = ["imagesOutside", "imagesRootMissing"];
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
  fitToWidgets(node, MIN_WIDTH);
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

/** Reads the files of all dataset nodes again, as another node has written one. */
export function rereadInfos() {
  for (const info of infos.values()) info.reread();
}

/** Preview of one dataset node's parquet file. */
class DatasetInfo {
  /** @type {import("./first_rows.js").ShownFile | null} */
  #file = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  /** Number of the last lookup: an older one's answer is dropped. */
  #request = 0;
  /** Values that were last checked. */
  #checked = "";
  /** Notes on them. @type {Promise<import("../notes/text.js").Note[]>} */
  #notes = Promise.resolve([]);
  /** Done when they are shown. @type {Promise<void>} */
  #shown = Promise.resolve();
  #removed = false;

  /** @param {ComfyNode} node */
  constructor(node) {
    this.node = node;
    this.line = el("p", { role: "status" });
    this.rows = new FirstRows();
    const uploads = new Uploads((resource) => this.#choose(resource), {
      progress: (line) => setText(this.line, line),
      fault: (text) => this.#say(text, true),
      end: () => this.#draw(),
    });
    this.look = el(
      "button",
      { class: "edit-trainer-button", type: "button", hidden: true, on: { click: () => this.#lookThrough() } },
      t("lookThrough"),
    );
    this.edits = el("p", { class: "edit-trainer-plan", hidden: true });
    const head = el("header", {}, this.line, this.edits, this.look, ...uploads.elements);
    this.notes = embedNotes(node);
    const element = el("section", { class: "edit-trainer edit-trainer-info" }, this.notes.element, head, this.rows.element);
    shieldFromGraph(element);
    const getMinHeight = () => MIN_HEIGHT + (this.notes.height && this.notes.height + GAP);
    const options = { serialize: false, hideOnZoom: false, margin: 6, getMinHeight };
    node.addDOMWidget("rows", "edit-trainer-info", element, options).serialize = false;
    this.#connectMenus();
    uploads.acceptDrops(node);
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
    const file = resource ? await fetchColumns(resource).catch(() => null) : null;
    if (request !== this.#request || this.#removed) return;
    this.#file = file && { ...file, resource };
    this.#showEdits();
    if (file && guess) this.#setColumns(guessEmptyFields(file, this.#columns()));
    if (!file) this.#say(resource ? t("noPreview") : t("dropParquet"));
    this.#draw();
    await this.#shown; // The node grows with them, which belongs to the step of the undo history that it was added in.
  }

  /** Reads the file and its pictures again. */
  reread() {
    this.rows.clear();
    this.read(false);
  }

  /** Says how many rows are left out and captions edited. */
  async #showEdits() {
    const file = this.#file;
    const state = file && (await fetchEdits(file.resource).catch(() => null));
    if (file !== this.#file) return;
    const edited = state?.captions[this.#columns().caption_column]?.length ?? 0;
    setText(this.edits, state ? state.fault || editLines(state.left_out_rows, edited).join(" · ") : "");
    this.edits.classList.toggle("edit-trainer-bad", Boolean(state?.fault));
    this.edits.hidden = !this.edits.textContent;
  }

  /** Opens all rows of the file. */
  async #lookThrough() {
    const [file, columns] = [this.#file, this.#columns()];
    if (!file) return;
    const more = [columns.control_image_column_2, columns.control_image_column_3];
    const controls = [columns.control_image_column, ...more].filter((name) => name in file.columns);
    const source = {
      resource: file.resource,
      imagesRoot: widgetText(this.node, "images_root"),
      caption: columns.caption_column,
      controls,
      target: columns.image_column,
    };
    await openRows(source, () => this.#showEdits()).catch((error) => this.#say(messageOf(error), true));
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

  /** Shows in the node what is wrong with the values that are chosen in it. */
  #check() {
    const names = ["resource", ...Object.keys(COLUMN_FIELDS), "images_root"];
    const chosen = names.filter((name) => !isLinked(this.node, name));
    const inputs = Object.fromEntries(chosen.map((name) => [name, widgetText(this.node, name)]));
    const key = JSON.stringify(inputs);
    if (key === this.#checked) return;
    if (this.#checked) setNotes(this.node, "run", []);
    this.#checked = key;
    this.#notes = fetchDatasetNotes(inputs).catch(() => []);
    this.#shown = this.#notes.then((notes) => {
      if (key === this.#checked && !this.#removed) setNotes(this.node, "inputs", notes);
    });
  }

  #connectMenus() {
    const root = findWidget(this.node, "images_root");
    if (root) callBefore(root, "callback", () => setTimeout(() => this.#draw()));
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

  /**
   * Chooses a file that is new, with its columns, as one step of the page's undo history.
   *
   * @param {string} resource
   */
  async #choose(resource) {
    const empty = Object.fromEntries(Object.keys(COLUMN_FIELDS).map((field) => [field, ""]));
    const file = await fetchColumns(resource);
    if (this.#removed) return;
    undoable(() => this.#setColumns({ ...guessEmptyFields(file, empty), resource }));
    await this.read(false);
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
    this.rows.clear();
  }

  #draw() {
    this.#check();
    const [file, columns] = [this.#file, this.#columns()];
    const missing = missingFields(file, columns);
    for (const field of Object.keys(COLUMN_FIELDS)) {
      findWidget(this.node, field)?.element?.toggleAttribute("data-fault", missing.includes(field));
    }
    this.look.hidden = !file || [columns.caption_column, columns.image_column].some((name) => !(name in file.columns));
    if (!file) {
      if (!widgetText(this.node, "resource").trim()) this.#say(t("dropParquet"));
      return;
    }
    this.line.classList.remove("edit-trainer-bad");
    const size = { rows: counted("row", file.rows), columns: counted("column", Object.keys(file.columns).length) };
    setText(this.line, t("rowsAndColumns", size));
    const more = [columns.control_image_column_2, columns.control_image_column_3].filter(Boolean);
    const images = [columns.control_image_column, ...more, columns.image_column];
    const shown = { caption: columns.caption_column, images, imagesRoot: widgetText(this.node, "images_root") };
    const isSeen = async () => (await this.#notes).every(({ code }) => !UNSEEN.includes(code ?? ""));
    this.rows.show(file, shown, isSeen);
  }
}
