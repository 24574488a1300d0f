import { el } from "../lib/dom.js";
import { picture } from "../lib/server.js";
import { t } from "../lib/text.js";

/** Show a sample in full size over the whole page, with a handle to swipe between it and its control image. */
export function openViewer(run, row, step) {
  let at = Math.max(0, row.drawn.findIndex((sample) => sample.step === step));
  const before = el("img", { src: picture(run, row.control.filename), alt: t("controlImage"), draggable: false });
  const after = el("img", { draggable: false });
  const title = el("h2", {});
  const swipe = el("input", { type: "range", min: 0, max: 1000, value: 500, "aria-label": t("beforeAfter") });
  const handle = el("div", { class: "edit-trainer-handle" });
  const stage = el("div", { class: "edit-trainer-stage" }, before, after, handle, swipe);
  const labels = el("div", { class: "edit-trainer-labels" }, el("span", {}, t("before")), el("span", {}, t("after")));
  const close = el("button", { class: "edit-trainer-button", type: "button", on: { click: () => dialog.close() } }, t("close"));
  const [earlier, later] = [-1, 1].map((way) =>
    el("button", { class: "edit-trainer-button", type: "button", on: { click: () => go(at + way) } }, t(way < 0 ? "earlier" : "later")),
  );
  const head = el("header", {}, title, earlier, later, close);
  const dialog = el("dialog", { class: "edit-trainer edit-trainer-viewer", "aria-label": row.prompt }, head, stage, labels);

  function go(index) {
    at = Math.min(Math.max(index, 0), row.drawn.length - 1);
    const sample = row.drawn[at];
    after.src = picture(run, sample.image.filename);
    after.alt = t("sampleOf", { prompt: row.prompt, n: sample.step });
    title.textContent = `${row.prompt} · ${t("atStep", { n: sample.step })}`;
    earlier.disabled = at === 0;
    later.disabled = at === row.drawn.length - 1;
  }
  const move = () => stage.style.setProperty("--swipe", `${swipe.valueAsNumber / 10}%`);
  swipe.addEventListener("input", move);
  dialog.addEventListener("keydown", (event) => {
    event.stopPropagation();
    const way = { ArrowUp: 1, PageUp: 1, ArrowDown: -1, PageDown: -1 }[event.key];
    if (!way) return;
    event.preventDefault();
    go(at + way);
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => dialog.remove());
  go(at);
  move();
  document.body.append(dialog);
  dialog.showModal();
  swipe.focus();
}
