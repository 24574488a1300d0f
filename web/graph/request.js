// @ts-check

/**
 * @typedef {import("../lib/server.js").TrainingRequest} TrainingRequest
 * @typedef {import("../lib/server.js").Settings} Settings
 */

/**
 * Nodes to create, in columns from left to right, and links between them by node key and slot name.
 *
 * @typedef {{key: string, type: string, values?: Record<string, unknown>}} PlannedNode
 * @typedef {[from: string, output: string, to: string, input: string]} PlannedLink
 * @typedef {{columns: PlannedNode[][], links: PlannedLink[]}} GraphPlan
 */

export const REQUEST_NODE = "EditTrainerLoadRequest";

/** Longest text taken for a request, in characters: the server's own limit is 4 MiB. */
const MAX_CHARS = 4 * 2 ** 20;

/**
 * Recognizes the JSON of a fine-tune request. Its values are not validated.
 *
 * @param {string} text
 */
export function isRequest(text) {
  if (text.length > MAX_CHARS || !text.trimStart().startsWith("{") || !text.includes("training_params")) return false;
  try {
    const data = JSON.parse(text);
    return "training_params" in data && !("nodes" in data);
  } catch {
    return false;
  }
}

/**
 * Plans the graph of a fine-tune request, with all values filled in.
 *
 * @param {TrainingRequest} request
 * @param {string} runName
 * @param {Settings | null} settings A run's settings; null leaves the settings node out.
 * @returns {GraphPlan}
 */
export function requestPlan(request, runName, settings) {
  const params = request.training_params;
  const samples = (params.samples ?? []).map((values, index) => ({
    key: `sample ${index}`,
    type: "EditTrainerSample",
    values,
  }));
  const inputs = [
    { key: "dataset", type: "EditTrainerLoadDataset", values: { resource: request.resource, ...params, ...settings } },
    { key: "params", type: "EditTrainerParams", values: params },
    { key: "model", type: "EditTrainerBaseModel", values: { base_model: request.base_model } },
    ...(settings ? [{ key: "settings", type: "EditTrainerSettings", values: settings }] : []),
  ];
  const trainValues = { run_name: runName, ...(settings && { seed: settings.seed }) };
  /** @type {PlannedLink[]} */
  const links = inputs.map(({ key }) => [key, key, "train", key]);
  samples.forEach(({ key }, index) => {
    links.push([key, "samples", samples[index + 1]?.key ?? "train", "samples"]);
  });
  links.push(["train", "run", "preview", "run"]);
  return {
    columns: [
      [...inputs, ...samples],
      [{ key: "train", type: "EditTrainerTrain", values: trainValues }],
      [{ key: "preview", type: "EditTrainerPreviewSamples" }],
    ],
    links,
  };
}

/**
 * Plans the nodes that a request node, under the key `request`, needs beside it to train.
 *
 * @returns {GraphPlan}
 */
export function completionPlan() {
  return {
    columns: [
      [
        { key: "model", type: "EditTrainerBaseModel" },
        { key: "train", type: "EditTrainerTrain" },
      ],
      [{ key: "preview", type: "EditTrainerPreviewSamples" }],
    ],
    links: [
      ["request", "base_model", "model", "base_model"],
      ["request", "dataset", "train", "dataset"],
      ["request", "params", "train", "params"],
      ["request", "samples", "train", "samples"],
      ["model", "model", "train", "model"],
      ["train", "run", "preview", "run"],
    ],
  };
}
