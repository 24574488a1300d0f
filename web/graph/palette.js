// @ts-check
import { app } from "../../../scripts/app.js";

/** Types of the pack's links. */
const TYPES = ["EDIT_MODEL", "EDIT_DATASET", "EDIT_PARAMS", "EDIT_SAMPLES", "EDIT_SETTINGS", "EDIT_RUN"];
/** Their colour: none of ComfyUI's palettes uses it, and it stands out from light and dark backgrounds. */
const COLOR = "#d9822b";

/** Colours in which the classic canvas draws its rows, by the pack's name for them in the style sheet. */
const ROW_COLORS = /** @type {const} */ ({
  "--edit-trainer-row": "WIDGET_BGCOLOR",
  "--edit-trainer-row-line": "WIDGET_OUTLINE_COLOR",
  "--edit-trainer-row-text": "WIDGET_TEXT_COLOR",
  "--edit-trainer-row-label": "WIDGET_SECONDARY_TEXT_COLOR",
});

/** Gives the pack's links one colour, and its rows those of ComfyUI's, now and whenever a palette has been chosen. */
export function followPalette() {
  setColors();
  new MutationObserver(setColors).observe(document.documentElement, { attributeFilter: ["style"] });
}

function setColors() {
  for (const type of TYPES) {
    app.canvas.default_connection_color_byType[type] = COLOR;
    window.LGraphCanvas.link_type_colors[type] = COLOR;
    setProperty(`--color-datatype-${type}`, COLOR);
  }
  for (const [name, color] of Object.entries(ROW_COLORS)) setProperty(name, window.LiteGraph[color]);
}

/**
 * Sets a property of the page's style, unless it has it already: setting it is a change that is observed.
 *
 * @param {string} name
 * @param {string} value
 */
function setProperty(name, value) {
  const root = document.documentElement.style;
  if (root.getPropertyValue(name) !== value) root.setProperty(name, value);
}
