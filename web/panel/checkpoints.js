// @ts-check
import { viewCenter } from "../graph/build.js";
import { addLoader } from "../graph/weights.js";
import { el, setText } from "../lib/dom.js";
import { exportCheckpoint } from "../lib/server.js";
import { count, messageOf, t } from "../lib/text.js";

/** @typedef {import("../lib/server.js").ExportedWeights} ExportedWeights */

/** Row of the panel that exports a checkpoint: to use it in the graph, or to copy the file's path. */
export class CheckpointRow {
  #run = "";

  constructor() {
    this.outcome = el("p", { class: "edit-trainer-message", role: "status", hidden: true });
    this.steps = el("select", { "aria-label": t("checkpointStep") });
    this.element = el(
      "div",
      { class: "edit-trainer-checkpoints", hidden: true },
      el("label", {}, t("checkpointStep"), this.steps),
      this.#button("useLora", use),
      this.#button("copyPath", copyPath),
      this.outcome,
    );
  }

  /**
   * Offers the checkpoints of a run. The chosen one stays; the newest is chosen otherwise.
   *
   * @param {string} run
   * @param {number[]} checkpoints
   * @param {number | null} [best] Step of the lowest held-out loss.
   */
  show(run, checkpoints, best) {
    const newest = this.steps.options[0]?.value;
    const chosen = run === this.#run && this.steps.value !== newest ? this.steps.value : "";
    if (run !== this.#run) this.#say("");
    this.#run = run;
    const steps = [...new Set(checkpoints)].sort((a, b) => b - a);
    const nameOf = (/** @type {number} */ step) => (step === best ? `${count(step)} · ${t("lowest")}` : count(step));
    this.steps.replaceChildren(...steps.map((step) => el("option", { value: String(step) }, nameOf(step))));
    if (chosen) this.steps.value = chosen;
    this.element.hidden = !steps.length;
  }

  /**
   * @param {string} label
   * @param {(weights: ExportedWeights) => Promise<string>} action Returns what to say.
   */
  #button(label, action) {
    const press = async () => {
      button.disabled = true;
      try {
        this.#say(await action(await exportCheckpoint(this.#run, Number(this.steps.value))));
      } catch (error) {
        this.#say(messageOf(error), true);
      } finally {
        button.disabled = false;
      }
    };
    const button = el("button", { class: "edit-trainer-button", type: "button", on: { click: press } }, t(label));
    return button;
  }

  /**
   * @param {string} text
   * @param {boolean} [isError]
   */
  #say(text, isError = false) {
    setText(this.outcome, text);
    this.outcome.hidden = !text;
    this.outcome.classList.toggle("edit-trainer-bad", isError);
  }
}

/** @param {ExportedWeights} weights */
async function use({ file, folder }) {
  await addLoader(file, viewCenter(), folder);
  return t("addedToGraph", { file });
}

/**
 * Copies the path. Pages that are not served by this machine or over HTTPS have no clipboard: they show it.
 *
 * @param {ExportedWeights} weights
 */
async function copyPath({ path }) {
  await navigator.clipboard?.writeText(path);
  return navigator.clipboard ? t("pathCopied", { path }) : path;
}
