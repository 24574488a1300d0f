// @ts-check
import { el } from "../lib/dom.js";
import { fetchPushContents, pushRun } from "../lib/server.js";
import { count, t } from "../lib/text.js";
import { confirmForm } from "./ask.js";

/** Name of a repository on the hub, as an input's pattern. */
const REPO = "[\\w.\\-]+/[\\w.\\-]+";

/**
 * Asks where to push a run to, and shows what would be sent. Resolves to what happens with the answer: to null when the
 * dialog is closed, and nothing is sent.
 *
 * @param {string} run
 * @returns {Promise<{repo: string, push: () => Promise<string>} | null>} `push` resolves to the address of the result.
 */
export async function askPush(run) {
  const { step, files } = await fetchPushContents(run);
  const repo = el("input", { type: "text", required: true, pattern: REPO, placeholder: `owner/${run}`, autofocus: true });
  const isPrivate = el("input", { type: "checkbox", checked: true });
  const confirmed = await confirmForm(
    t("pushRun"),
    el("p", {}, t("pushQuestion", { run, n: count(step) })),
    el("ul", { class: "edit-trainer-files" }, ...files.map((file) => el("li", {}, file))),
    el("label", {}, t("pushRepo"), repo),
    el("label", { class: "edit-trainer-check" }, isPrivate, t("pushPrivate")),
  );
  if (!confirmed) return null;
  return { repo: repo.value, push: () => pushRun(run, repo.value, isPrivate.checked) };
}
