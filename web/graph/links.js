// @ts-check
import { app } from "../../../scripts/app.js";

/** Types of the pack's links. */
const TYPES = ["EDIT_MODEL", "EDIT_DATASET", "EDIT_PARAMS", "EDIT_SAMPLES", "EDIT_SETTINGS", "EDIT_RUN"];
/** Their colour: none of ComfyUI's palettes uses it, and it stands out from light and dark backgrounds. */
const COLOR = "#d9822b";

/** Gives the pack's links and slots one colour, now and whenever a palette has been chosen. */
export function colorLinks() {
  setColors();
  new MutationObserver(setColors).observe(document.documentElement, { attributeFilter: ["style"] });
}

function setColors() {
  const root = document.documentElement.style;
  for (const type of TYPES) {
    app.canvas.default_connection_color_byType[type] = COLOR;
    window.LGraphCanvas.link_type_colors[type] = COLOR;
    const property = `--color-datatype-${type}`;
    if (root.getPropertyValue(property) !== COLOR) root.setProperty(property, COLOR);
  }
}
