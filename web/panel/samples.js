import { el, onFrame, setText } from "../lib/dom.js";
import { picture } from "../lib/server.js";
import { t } from "../lib/text.js";
import { sampleRows } from "./state.js";
import { openViewer } from "./viewer.js";

const SMALL = 96;
const LARGE = 512;
const SETTLED_MS = 150;
const MOST_IN_SIGHT = 2;
const MOST_KEPT = 120;

/**
 * The samples of a run: a row a prompt with its control image, the chosen step large, and a strip of all steps; a slider
 * and the arrow keys go through the steps. Small pictures are loaded as they come into sight; of those out of sight only
 * the last seen are kept.
 */
export class SampleGrid {
  #run = "";
  #rows = [];
  #steps = [];
  #chosen = null;
  #settling = 0;
  #views = new Map();
  #frame = onFrame(() => this.#draw());
  #kept = new Set();
  #sight = new IntersectionObserver((entries) => this.#see(entries));

  constructor() {
    this.slider = el("input", {
      type: "range",
      min: 0,
      max: 0,
      step: 1,
      "aria-label": t("sampledStep"),
      on: { input: () => this.#choose(this.slider.valueAsNumber), keydown: (event) => event.stopPropagation() },
    });
    this.label = el("output", { class: "edit-trainer-step" });
    this.scrub = el("div", { class: "edit-trainer-scrub" }, this.slider, this.label);
    this.list = el("div", { class: "edit-trainer-rows", on: { keydown: (event) => this.#key(event) } });
    this.empty = el("p", { class: "edit-trainer-empty", textContent: t("noSamplesYet") });
    this.element = el("div", { class: "edit-trainer-samples" }, this.scrub, this.list, this.empty);
    this.#draw();
  }

  /** Show these samples of a run. The newest step stays chosen until the person chooses another one. */
  show(run, samples) {
    if (run !== this.#run) {
      this.#chosen = null;
      this.#views.clear();
      this.#sight.disconnect();
      this.#kept.clear();
      this.list.replaceChildren();
    }
    this.#run = run;
    const { rows, steps } = sampleRows(samples);
    this.#rows = rows;
    this.#steps = steps;
    this.#frame();
  }

  #choose(index) {
    const last = this.#steps.length - 1;
    const within = Math.min(Math.max(index, 0), last);
    this.#chosen = within === last ? null : this.#steps[within];
    this.#frame();
  }

  #key(event) {
    const way = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (!way) return;
    event.preventDefault();
    event.stopPropagation();
    this.#choose(this.#steps.indexOf(this.#step) + way);
  }

  get #step() {
    return this.#chosen ?? this.#steps.at(-1);
  }

  #draw() {
    const step = this.#step;
    this.scrub.hidden = this.list.hidden = !this.#rows.length;
    this.empty.hidden = !this.scrub.hidden;
    if (!this.#rows.length) return;
    this.slider.max = this.#steps.length - 1;
    this.slider.value = this.#steps.indexOf(step);
    this.slider.disabled = this.#steps.length < 2;
    this.slider.setAttribute("aria-valuetext", t("atStep", { n: step }));
    setText(this.label, t("atStep", { n: step }));
    this.list.style.setProperty("--et-rows", Math.min(this.#rows.length, MOST_IN_SIGHT));
    for (const row of this.#rows) this.#drawRow(row, step);
    clearTimeout(this.#settling);
    this.#settling = setTimeout(() => this.#settle(), SETTLED_MS);
  }

  /** Scroll the strips to the chosen step, once the person has come to it: this lays the page out. */
  #settle() {
    // Not scrollIntoView, which would also scroll what is around the strip.
    for (const { strip, current } of this.#views.values()) if (current) strip.scrollTop = current.offsetTop;
  }

  #drawRow(row, step) {
    let view = this.#views.get(row.index);
    if (!view) {
      view = this.#newRow(row);
      this.#views.set(row.index, view);
      this.list.append(view.element);
    }
    for (const { step: drawn, image } of row.drawn.slice(view.strip.childElementCount)) {
      view.strip.append(this.#small(drawn, image));
    }
    const shown = row.drawn.findLast((sample) => sample.step <= step) ?? row.drawn[0];
    const source = picture(this.#run, shown.image.filename, LARGE);
    if (view.large.dataset.src !== source) {
      view.large.dataset.src = source;
      view.large.src = source;
      view.large.alt = t("sampleOf", { prompt: row.prompt, n: shown.step });
      view.shown = shown;
    }
    for (const small of view.strip.children) {
      const current = small.dataset.step === String(shown.step);
      if (current !== small.classList.contains("edit-trainer-current")) {
        small.classList.toggle("edit-trainer-current", current);
        if (current) view.current = small;
      }
    }
  }

  #newRow(row) {
    const control = el("img", {
      class: "edit-trainer-control",
      src: picture(this.#run, row.control.filename, LARGE),
      alt: t("controlImage"),
      title: t("controlImage"),
      draggable: false,
      decoding: "async",
    });
    const large = el("img", { class: "edit-trainer-large", draggable: false, decoding: "async" });
    const open = el("button", {
      class: "edit-trainer-picture",
      type: "button",
      title: t("openFullSize"),
      on: { click: () => openViewer(this.#run, this.#rows.find(({ index }) => index === row.index), view.shown.step) },
    });
    open.append(large);
    const strip = el("div", { class: "edit-trainer-strip" });
    const prompt = el("p", { class: "edit-trainer-prompt", textContent: row.prompt, title: row.prompt });
    const element = el("div", { class: "edit-trainer-row" }, prompt, control, open, strip);
    const view = { element, large, strip, shown: row.drawn[0] };
    return view;
  }

  #small(step, image) {
    const img = el("img", {
      decoding: "async",
      draggable: false,
      width: 40,
      height: 40,
      "data-src": picture(this.#run, image.filename, SMALL),
      alt: t("atStep", { n: step }),
    });
    this.#sight.observe(img);
    const choose = () => this.#choose(this.#steps.indexOf(step));
    const title = t("atStep", { n: step });
    return el("button", { class: "edit-trainer-small", type: "button", title, "data-step": step, on: { click: choose } }, img);
  }

  #see(entries) {
    for (const { target, isIntersecting } of entries) {
      this.#kept.delete(target);
      if (isIntersecting && !target.hasAttribute("src")) target.src = target.dataset.src;
      if (isIntersecting || target.hasAttribute("src")) this.#kept.add(target);
      target.toggleAttribute("data-seen", isIntersecting);
    }
    for (const image of this.#kept) {
      if (this.#kept.size <= MOST_KEPT) break;
      if (image.hasAttribute("data-seen")) continue;
      image.removeAttribute("src");
      this.#kept.delete(image);
    }
  }
}
