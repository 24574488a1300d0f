// @ts-check

/**
 * @typedef {Node | string | null | undefined} Child
 * @typedef {{[K in keyof HTMLElementEventMap]?: (event: HTMLElementEventMap[K]) => void}} Listeners
 * @typedef {Record<string, unknown> & {on?: Listeners}} Props
 */

/**
 * Creates an element. `class`, `role`, `for`, `list`, `data-*` and `aria-*` become attributes, `on` maps event names to
 * listeners, all other props become properties. Strings become text nodes: nothing is ever parsed as HTML.
 *
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Props} [props]
 * @param {...(Child | Child[])} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function el(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  const { on = {}, ...others } = props;
  for (const [event, listener] of Object.entries(on)) {
    element.addEventListener(event, /** @type {EventListener} */ (listener));
  }
  for (const [name, value] of Object.entries(others)) {
    if (value === undefined) continue;
    if (/^(class|role|for|list|data-.*|aria-.*)$/.test(name)) element.setAttribute(name, String(value));
    else Object.assign(element, { [name]: value });
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/**
 * Adds a style sheet to the page. Ends when it is there: Vue nodes that are drawn without it keep their size.
 *
 * @param {string} href
 * @returns {Promise<void>}
 */
export function addStyles(href) {
  return new Promise((resolve) => {
    const on = { load: () => resolve(), error: () => resolve() };
    document.head.append(el("link", { rel: "stylesheet", href, on }));
  });
}

/**
 * Sets an element's text, unless it has it already.
 *
 * @param {Element} element
 * @param {string} text
 */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * Wraps a function so that any number of calls within a frame run it once, in the next animation frame.
 *
 * @param {() => void} draw
 * @returns {() => void}
 */
export function oncePerFrame(draw) {
  let pending = false;
  return () => {
    if (pending) return;
    pending = true;
    requestAnimationFrame(() => {
      pending = false;
      draw();
    });
  };
}

/**
 * Stops pointer and clipboard events on an element from reaching the graph canvas behind it.
 *
 * @param {Element} element
 */
export function shieldFromGraph(element) {
  for (const event of ["pointerdown", "pointermove", "pointerup", "dblclick", "contextmenu", "paste", "copy"]) {
    element.addEventListener(event, (e) => e.stopPropagation());
  }
}

/**
 * Adds a dialog to the page and opens it. Keys do not leave it, also while nothing in it has the focus: the page would
 * take them for its own, and some pages keep Escape from closing the dialog.
 *
 * @param {HTMLDialogElement} dialog
 */
export function showDialog(dialog) {
  /** @param {KeyboardEvent} event */
  const keepFromPage = (event) => {
    if (!(event.target instanceof Element && event.target.closest("dialog"))) event.stopPropagation();
  };
  addEventListener("keydown", keepFromPage, true);
  dialog.addEventListener("keydown", (event) => event.stopPropagation());
  dialog.addEventListener("close", () => removeEventListener("keydown", keepFromPage, true));
  document.body.append(dialog);
  dialog.showModal();
}
