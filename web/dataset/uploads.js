// @ts-check
import { el } from "../lib/dom.js";
import { messageOf, t } from "../lib/text.js";
import { readDrop, uploadDrop } from "./drop.js";

/**
 * How a node shows an upload: each line of its progress, its fault, and its end without a file.
 *
 * @typedef {{progress: (line: string) => void, fault: (text: string) => void, end: () => void}} UploadView
 */

/** Files that a person gives to a dataset node: chosen with a button, or dropped on the node. */
export class Uploads {
  /**
   * @param {(resource: string) => Promise<void>} onUploaded Called with the name of the parquet.
   * @param {UploadView} view
   */
  constructor(onUploaded, view) {
    this.onUploaded = onUploaded;
    this.view = view;
    const upload = () => {
      const file = input.files?.[0];
      if (file) this.#upload(/\.zip$/i.test(file.name) ? { zip: file } : { parquet: file });
    };
    const input = el("input", { type: "file", accept: ".parquet,.zip", hidden: true, on: { change: upload } });
    const choose = el(
      "button",
      { class: "edit-trainer-button", type: "button", on: { click: () => input.click() } },
      t("chooseFile"),
    );
    this.input = input;
    this.elements = [choose, input];
  }

  /**
   * Accepts files that are dropped anywhere on the node, in both renderers.
   *
   * @param {ComfyNode} node
   */
  acceptDrops(node) {
    node.onDragOver = (event) => [...(event.dataTransfer?.items ?? [])].some((item) => item.kind === "file");
    node.onDragDrop = (event) => {
      const dropped = readDrop(event.dataTransfer);
      if (dropped) this.#upload(dropped);
      return Boolean(dropped);
    };
    const take = (/** @type {DragEvent} */ event) => {
      if (!node.onDragOver?.(event)) return;
      event.preventDefault();
      event.stopPropagation();
      if (event.type === "drop") node.onDragDrop?.(event);
    };
    // In the classic renderer elements lie above the canvas, which hears only of what is dropped on itself.
    for (const { element } of node.widgets ?? []) {
      element?.addEventListener("dragover", take);
      element?.addEventListener("drop", take);
    }
  }

  /** @param {import("./drop.js").Dropped} dropped */
  async #upload(dropped) {
    try {
      const resource = await uploadDrop(dropped, this.view.progress);
      if (resource) await this.onUploaded(resource);
      else this.view.end();
    } catch (error) {
      this.view.fault(messageOf(error));
    }
    this.input.value = "";
  }
}
