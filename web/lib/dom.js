/**
 * An element. `props` are set as properties; `class`, `data-*`, `aria-*`, `role`, `for` and `list` as attributes; `on` maps
 * event names to listeners. Children that are no nodes become text: nothing is ever parsed as HTML.
 */
export function el(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (/^(class|role|for|list|data-.*|aria-.*)$/.test(name)) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Set an element's text, when it is another one. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Call `draw` at most once a frame, however often it is asked for; the returned function asks. */
export function onFrame(draw) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      draw();
    });
  };
}

/** Keep what is typed, pressed and turned over an element away from the graph behind it. */
export function keepFromGraph(element) {
  for (const event of ["pointerdown", "pointermove", "pointerup", "dblclick", "contextmenu", "paste", "copy"]) {
    element.addEventListener(event, (e) => e.stopPropagation());
  }
}
