// @ts-check
import { app } from "../../../scripts/app.js";
import { undoable } from "../graph/build.js";
import { fitToWidgets, nextDrawing } from "../graph/nodes.js";

/** Setting of newer pages that folds nothing. */
const ALWAYS_SHOWN = "Comfy.Node.AlwaysShowAdvancedWidgets";

/**
 * Finds the input that a note is about among those that the page folds as advanced.
 *
 * @param {ComfyNode} node
 * @param {import("./text.js").Note} note
 * @param {string} text The note as it is shown.
 */
export function advancedInput(node, note, text) {
  if (app.extensionManager.setting.get(ALWAYS_SHOWN)) return undefined;
  const inputs = node.widgets?.filter((input) => isAdvanced(node, input)) ?? [];
  return inputs.find(({ name }) => name === note.values?.field) ?? inputs.find((input) => isNamed(input, text));
}

/**
 * Unfolds a node's advanced inputs, as one step of the undo history, and puts the focus into one of them.
 *
 * @param {ComfyNode} node
 * @param {ComfyWidget} input
 */
export async function showInput(node, input) {
  if (!node.showAdvanced) {
    undoable(() => {
      node.showAdvanced = true;
      fitToWidgets(node);
    });
  }
  await nextDrawing();
  const own = /** @type {HTMLElement | null | undefined} */ (input.element?.querySelector("input"));
  const selector = `[data-node-id="${node.id}"] [aria-label="${CSS.escape(input.name)}"]`;
  const field = own ?? /** @type {HTMLElement | null} */ (document.querySelector(selector));
  field?.focus({ preventScroll: true }); // scrolling would move the page under the canvas
}

/**
 * True for an input that the page folds, or has unfolded. Not every classic canvas folds what is marked so.
 *
 * @param {ComfyNode} node
 * @param {ComfyWidget} input
 */
function isAdvanced(node, input) {
  if (window.LiteGraph.vueNodesMode) return Boolean(input.options?.advanced || input.advanced);
  return Boolean(input.advanced && (node.showAdvanced || !node.isWidgetVisible(input)));
}

/**
 * True if a text names an input. Names of a single word also stand for other things.
 *
 * @param {ComfyWidget} input
 * @param {string} text
 */
function isNamed({ name, label }, text) {
  if (!name.includes("_")) return false;
  return new RegExp(`\\b${name}\\b`).test(text) || Boolean(label && text.includes(label));
}
