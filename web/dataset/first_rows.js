// @ts-check
import { el } from "../lib/dom.js";
import { fetchFirstRows } from "../lib/server.js";

/** @typedef {import("../lib/server.js").ParquetColumns & {resource: string}} ShownFile */

/**
 * Columns that are shown, and the folder from which relative paths of images start.
 *
 * @typedef {{caption: string, images: string[], imagesRoot: string}} ShownColumns
 */

const MAX_ROWS = 3;

/** The first rows of a parquet file: their pictures and captions. */
export class FirstRows {
  element = el("div", { class: "edit-trainer-first" });
  /** Thumbnails by column. @type {Record<string, (string | null)[]>} */
  #thumbnails = {};
  /** Source of the thumbnails; they are read again when it changes. */
  #key = "";
  /** Draws what was last asked for. @type {() => void} */
  #draw = () => {};

  /** Removes the rows from the page. */
  clear() {
    this.#key = "";
    this.element.replaceChildren();
  }

  /**
   * Shows the first rows of a file.
   *
   * @param {ShownFile} file
   * @param {ShownColumns} columns
   * @param {() => Promise<boolean>} isSeen False if the server does not show the images; then it is not asked.
   */
  async show(file, columns, isSeen) {
    this.#draw = () => this.#drawRows(file, columns);
    const key = JSON.stringify([file.resource, columns.imagesRoot, columns.images]);
    if (key !== this.#key) {
      this.#key = key;
      this.#thumbnails = {};
      const names = columns.images.filter((name) => name in file.columns);
      const read = (await isSeen()) ? fetchFirstRows(file.resource, columns.imagesRoot, names) : {};
      const thumbnails = await Promise.resolve(read).catch(() => ({}));
      if (this.#key !== key) return;
      this.#thumbnails = thumbnails;
    }
    this.#draw();
  }

  /**
   * @param {ShownFile} file
   * @param {ShownColumns} columns
   */
  #drawRows(file, { caption, images }) {
    const rows = Array.from({ length: Math.min(MAX_ROWS, file.rows) }, (_, row) => {
      const pictures = images.map((name) =>
        el("img", { alt: "", draggable: false, title: name, src: this.#thumbnails[name]?.[row] ?? undefined }),
      );
      const text = file.texts[caption]?.[row] ?? "";
      return el("figure", {}, ...pictures, el("figcaption", { title: text }, text));
    });
    this.element.style.setProperty("--et-pictures", String(images.length));
    this.element.replaceChildren(...rows);
  }
}
