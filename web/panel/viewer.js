// @ts-check
import { el, showDialog } from "../lib/dom.js";
import { imageUrl } from "../lib/server.js";
import { t } from "../lib/text.js";

/**
 * Opens a sample in full size over the page, with a slider that wipes between it and its control image. Of several
 * control images a button each chooses which.
 *
 * @param {string} run
 * @param {import("./state.js").SampleRow} row
 * @param {number} step
 */
export function openViewer(run, row, step) {
  let index = Math.max(
    0,
    row.generated.findIndex((sample) => sample.step === step),
  );
  const before = el("img", { alt: t("controlImage"), draggable: false });
  const after = el("img", { draggable: false });
  const title = el("h2", {});
  const swipe = el("input", { type: "range", min: 0, max: 1000, value: 500, "aria-label": t("beforeAfter") });
  const handle = el("div", { class: "edit-trainer-handle" });
  const stage = el("div", { class: "edit-trainer-stage" }, before, after, handle, swipe);
  const labels = el("div", { class: "edit-trainer-labels" }, el("span", {}, t("before")), el("span", {}, t("after")));
  const earlier = button("earlier", () => show(index - 1));
  const later = button("later", () => show(index + 1));
  const close = button("close", () => dialog.close());
  const choices = row.controls.map((_, number) => button("controlNumber", () => compare(number), { n: number + 1 }));
  const head = el("header", {}, title, ...(choices.length > 1 ? choices : []), earlier, later, close);
  const dialog = el(
    "dialog",
    { class: "edit-trainer edit-trainer-viewer", "aria-label": row.prompt },
    head,
    stage,
    labels,
  );

  /** @param {number} wanted */
  function show(wanted) {
    index = Math.min(Math.max(wanted, 0), row.generated.length - 1);
    const sample = row.generated[index];
    after.src = imageUrl(run, sample.image.filename);
    after.alt = t("sampleOf", { prompt: row.prompt, n: sample.step });
    title.textContent = `${row.prompt} · ${t("atStep", { n: sample.step })}`;
    earlier.disabled = index === 0;
    later.disabled = index === row.generated.length - 1;
  }
  /** @param {number} number */
  function compare(number) {
    const control = row.controls[number];
    for (const part of [before, handle, swipe, labels]) part.hidden = !control;
    if (!control) swipe.value = "0";
    else before.src = imageUrl(run, control.filename);
    choices.forEach((choice, other) => choice.setAttribute("aria-pressed", String(other === number)));
  }
  const moveHandle = () => stage.style.setProperty("--swipe", `${swipe.valueAsNumber / 10}%`);
  swipe.addEventListener("input", moveHandle);
  dialog.addEventListener("keydown", (event) => {
    const offset = { ArrowUp: 1, PageUp: 1, ArrowDown: -1, PageDown: -1 }[event.key];
    if (!offset) return;
    event.preventDefault();
    show(index + offset);
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => dialog.remove());
  show(index);
  compare(0);
  moveHandle();
  showDialog(dialog);
  swipe.focus();
}

/**
 * @param {string} label
 * @param {() => void} press
 * @param {Record<string, unknown>} [values]
 */
function button(label, press, values) {
  return el("button", { class: "edit-trainer-button", type: "button", on: { click: press } }, t(label, values));
}
