// @ts-check
import { el, oncePerFrame, setText } from "../lib/dom.js";
import { imageUrl } from "../lib/server.js";
import { t } from "../lib/text.js";
import { sampleAt, sampleRows } from "./state.js";
import { openViewer } from "./viewer.js";

/**
 * @typedef {import("./state.js").SampleRow} SampleRow
 * @typedef {import("./state.js").GeneratedSample} GeneratedSample
 */

/**
 * Elements of a row on the page.
 *
 * @typedef {object} RowView
 * @property {HTMLElement} element
 * @property {HTMLImageElement} large
 * @property {HTMLElement} strip
 * @property {GeneratedSample} shown Sample in the large image.
 * @property {HTMLElement | null} current Its button in the strip.
 */

const SMALL_PIXELS = 96;
const LARGE_PIXELS = 512;
/** The strips scroll to the chosen step once the slider has rested this long: scrolling lays out the page. */
const SETTLE_MS = 150;
/** Thumbnails of 96 x 96 pixels are 37 kB decoded, so that this many take 4.4 MB. */
const MAX_LOADED = 120;

/**
 * Samples of a run: for each prompt a row with its control images, the sample of the chosen step, and a strip of all
 * steps. A slider and the arrow keys choose the step. Thumbnails load as they scroll into view, and those scrolled out
 * of view longest ago are unloaded.
 */
export class SampleGrid {
  #run = "";
  /** @type {SampleRow[]} */
  #rows = [];
  /** @type {number[]} */
  #steps = [];
  /** Step the user has chosen; null follows the newest. @type {number | null} */
  #chosen = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #settling;
  /** @type {Map<number, RowView>} */
  #views = new Map();
  #frame = oncePerFrame(() => this.#draw());
  /** Loaded thumbnails, the last seen at the end. @type {Set<HTMLImageElement>} */
  #loaded = new Set();
  #visibility = new IntersectionObserver((entries) => this.#load(entries));

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
    this.list = el("div", { class: "edit-trainer-rows", on: { keydown: (event) => this.#onKey(event) } });
    this.empty = el("p", { class: "edit-trainer-empty", textContent: t("noSamplesYet") });
    this.element = el("div", { class: "edit-trainer-samples" }, this.scrub, this.list, this.empty);
    this.#draw();
  }

  /**
   * Shows a run's samples. The newest step stays chosen until the user chooses another one.
   *
   * @param {string} run
   * @param {import("../lib/server.js").Sample[]} samples
   */
  show(run, samples) {
    if (run !== this.#run) this.#clear();
    this.#run = run;
    const { rows, steps } = sampleRows(samples);
    this.#rows = rows;
    this.#steps = steps;
    this.#frame();
  }

  /** Releases the observer of a grid whose element has been removed. */
  destroy() {
    clearTimeout(this.#settling);
    this.#visibility.disconnect();
  }

  #clear() {
    this.#chosen = null;
    this.#views.clear();
    this.#visibility.disconnect();
    this.#loaded.clear();
    this.list.replaceChildren();
  }

  /** @param {number} index */
  #choose(index) {
    const last = this.#steps.length - 1;
    const clamped = Math.min(Math.max(index, 0), last);
    this.#chosen = clamped === last ? null : this.#steps[clamped];
    this.#frame();
  }

  /** @param {KeyboardEvent} event */
  #onKey(event) {
    const offset = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (!offset) return;
    event.preventDefault();
    event.stopPropagation();
    this.#choose(this.#steps.indexOf(this.#step) + offset);
  }

  get #step() {
    return this.#chosen ?? this.#steps.at(-1) ?? 0;
  }

  #draw() {
    const step = this.#step;
    this.scrub.hidden = this.list.hidden = !this.#rows.length;
    this.empty.hidden = !this.scrub.hidden;
    if (!this.#rows.length) return;
    this.slider.max = String(this.#steps.length - 1);
    this.slider.value = String(this.#steps.indexOf(step));
    this.slider.disabled = this.#steps.length < 2;
    this.slider.setAttribute("aria-valuetext", t("atStep", { n: step }));
    setText(this.label, t("atStep", { n: step }));
    this.list.style.setProperty("--et-rows", String(this.#rows.length));
    for (const row of this.#rows) this.#drawRow(row, step);
    clearTimeout(this.#settling);
    this.#settling = setTimeout(() => this.#scrollStrips(), SETTLE_MS);
  }

  #scrollStrips() {
    // Not scrollIntoView, which would also scroll the strip's ancestors.
    for (const { strip, current } of this.#views.values()) if (current) strip.scrollTop = current.offsetTop;
  }

  /**
   * @param {SampleRow} row
   * @param {number} step
   */
  #drawRow(row, step) {
    let view = this.#views.get(row.index);
    if (!view) {
      view = this.#newRow(row);
      this.#views.set(row.index, view);
      this.list.append(view.element);
    }
    for (const sample of row.generated.slice(view.strip.childElementCount)) view.strip.append(this.#thumbnail(sample));
    const shown = sampleAt(row, step);
    const source = imageUrl(this.#run, shown.image.filename, LARGE_PIXELS);
    if (view.large.dataset.src !== source) {
      view.large.dataset.src = source;
      view.large.src = source;
      view.large.alt = t("sampleOf", { prompt: row.prompt, n: shown.step });
      view.shown = shown;
    }
    for (const button of /** @type {Iterable<HTMLElement>} */ (view.strip.children)) {
      const current = button.dataset.step === String(shown.step);
      if (current !== button.classList.contains("edit-trainer-current")) {
        button.classList.toggle("edit-trainer-current", current);
        if (current) view.current = button;
      }
    }
  }

  /**
   * @param {SampleRow} row
   * @returns {RowView}
   */
  #newRow({ index, prompt, controls, generated }) {
    const pictures = controls.map(({ filename }, number) => {
      const title = controls.length > 1 ? t("controlNumber", { n: number + 1 }) : t("controlImage");
      const src = imageUrl(this.#run, filename, LARGE_PIXELS);
      return el("img", { src, alt: title, title, draggable: false, decoding: "async" });
    });
    const one = pictures.length === 1 ? pictures[0] : el("div", {}, ...pictures);
    one.classList.add("edit-trainer-control");
    const large = el("img", { class: "edit-trainer-large", draggable: false, decoding: "async" });
    const openRow = () => {
      const row = this.#rows.find((other) => other.index === index);
      if (row) openViewer(this.#run, row, view.shown.step);
    };
    const picture = el(
      "button",
      { class: "edit-trainer-picture", type: "button", title: t("openFullSize"), on: { click: openRow } },
      large,
    );
    const strip = el("div", { class: "edit-trainer-strip" });
    const caption = el("p", { class: "edit-trainer-prompt", textContent: prompt, title: prompt });
    const element = el("div", { class: "edit-trainer-row" }, caption, one, picture, strip);
    /** @type {RowView} */
    const view = { element, large, strip, shown: generated[0], current: null };
    return view;
  }

  /** @param {GeneratedSample} sample */
  #thumbnail({ step, image }) {
    const title = t("atStep", { n: step });
    const img = el("img", {
      decoding: "async",
      draggable: false,
      width: 40,
      height: 40,
      "data-src": imageUrl(this.#run, image.filename, SMALL_PIXELS),
      alt: title,
    });
    this.#visibility.observe(img);
    const choose = () => this.#choose(this.#steps.indexOf(step));
    return el(
      "button",
      { class: "edit-trainer-small", type: "button", title, "data-step": step, on: { click: choose } },
      img,
    );
  }

  /** @param {IntersectionObserverEntry[]} entries */
  #load(entries) {
    for (const { target, isIntersecting } of entries) {
      const image = /** @type {HTMLImageElement} */ (target);
      this.#loaded.delete(image);
      if (isIntersecting && !image.hasAttribute("src")) image.src = image.dataset.src ?? "";
      if (isIntersecting || image.hasAttribute("src")) this.#loaded.add(image);
      image.toggleAttribute("data-seen", isIntersecting);
    }
    for (const image of this.#loaded) {
      if (this.#loaded.size <= MAX_LOADED) break;
      if (image.hasAttribute("data-seen")) continue;
      image.removeAttribute("src");
      this.#loaded.delete(image);
    }
  }
}
