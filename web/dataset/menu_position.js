// @ts-check

const EDGE = 4;
const GAP = 2;
/** Height in pixels from which a menu is worth opening below its field; a longer one scrolls. */
const ENOUGH_HEIGHT = 200;

/**
 * Places a menu below its field, or above it where the window has no room below, and inside the window's width.
 *
 * @param {{left: number, top: number, bottom: number}} field Its box in the window, in CSS pixels.
 * @param {{width: number, height: number}} menu
 * @param {{width: number, height: number}} view The window.
 */
export function menuPosition(field, menu, view) {
  const left = Math.max(EDGE, Math.min(field.left, view.width - menu.width - EDGE));
  const below = view.height - field.bottom - 2 * EDGE;
  const fits = below > Math.min(menu.height, ENOUGH_HEIGHT);
  return { left, top: fits ? field.bottom + GAP : Math.max(EDGE, field.top - menu.height - GAP) };
}
