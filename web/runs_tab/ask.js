// @ts-check
import { el, showDialog } from "../lib/dom.js";
import { t } from "../lib/text.js";

/**
 * Asks a question in a dialog. Resolves to the answer, or to null when the dialog is closed.
 *
 * @param {string} question
 * @param {string} action Text of the button that answers.
 * @param {{number?: number}} [options] `number` asks for a whole number above it, and offers twice as much.
 * @returns {Promise<string | null>}
 */
export async function ask(question, action, { number } = {}) {
  const field =
    number === undefined ? null : el("input", { type: "number", min: number + 1, value: 2 * number, required: true });
  const confirmed = await confirmForm(action, el("label", {}, el("p", {}, question), field));
  return confirmed ? (field?.value ?? "yes") : null;
}

/**
 * Shows a form in a dialog. Resolves to true when it is answered, and to false when the dialog is closed.
 *
 * @param {string} action Text of the button that answers.
 * @param {...HTMLElement} content
 * @returns {Promise<boolean>}
 */
export function confirmForm(action, ...content) {
  const cancel = el(
    "button",
    { class: "edit-trainer-button", type: "button", on: { click: () => dialog.close() } },
    t("cancel"),
  );
  const answer = el("button", { class: "edit-trainer-button", value: "yes" }, action);
  const buttons = el("div", { class: "edit-trainer-buttons" }, cancel, answer);
  const form = el("form", { method: "dialog" }, ...content, buttons);
  const dialog = el("dialog", { class: "edit-trainer edit-trainer-ask", "aria-label": action }, form);
  showDialog(dialog);
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      resolve(dialog.returnValue === "yes");
      dialog.remove();
    });
  });
}
