// @ts-check
import { COLUMN_FIELDS } from "../dataset/columns.js";

/**
 * @typedef {import("../lib/server.js").TrainingRequest} TrainingRequest
 * @typedef {import("../lib/server.js").Settings} Settings
 */

/**
 * Nodes to create, in columns from left to right, and links between them by node key and slot name.
 *
 * @typedef {{key: string, type: string, values?: Record<string, unknown>, size?: ComfyPoint}} PlannedNode
 * @typedef {[from: string, output: string, to: string, input: string]} PlannedLink
 * @typedef {{columns: PlannedNode[][], links: PlannedLink[]}} GraphPlan
 */

export const REQUEST_NODE = "EditTrainerLoadRequest";

/** Room for a dozen faults of 60 characters. @type {ComfyPoint} */
const NOTE_SIZE = [400, 260];

/** Sample prompts of a graph made from a parquet file, as in the first example workflow. */
const SAMPLES = 2;

/** Parameters that the embedded models learn with, from the first example workflow. */
const TINY_PARAMS = {
  batch_size: 8,
  cache_text_embeddings: true,
  learning_rate: 0.002,
  sample_every: 100,
  sample_height: 64,
  sample_width: 64,
  steps: 200,
};

/** Longest text taken for a request, in characters: the server's own limit is 4 MiB. */
const MAX_CHARS = 4 * 2 ** 20;

/**
 * Reads the JSON of a fine-tune request; null for any other text. Its values are not validated. `{ ... }`, with which
 * documentation stands for the parameters, is read as none.
 *
 * @param {string} text
 * @returns {Record<string, unknown> | null}
 */
export function readRequest(text) {
  if (text.length > MAX_CHARS || !text.trimStart().startsWith("{") || !text.includes("training_params")) return null;
  try {
    const data = JSON.parse(withoutDots(text));
    return "training_params" in data && !("nodes" in data) ? data : null;
  } catch {
    return null;
  }
}

/**
 * Replaces `{ ... }` by an empty object.
 *
 * @param {string} text
 */
export const withoutDots = (text) => text.replace(/\{\s*(\.\.\.|…)\s*\}/g, "{}");

/**
 * Takes what can be used of a request that is not valid yet.
 *
 * @param {Record<string, unknown>} data
 * @returns {TrainingRequest}
 */
export function draftRequest(data) {
  const params = /** @type {Record<string, unknown>} */ (isObject(data.training_params) ? data.training_params : {});
  const samples = Array.isArray(params.samples) ? params.samples.filter(isObject) : [];
  return {
    resource: String(data.resource ?? ""),
    base_model: String(data.base_model ?? ""),
    training_params: { ...params, samples },
  };
}

/** @param {unknown} value */
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/**
 * Plans the graph of a fine-tune request, with all values filled in.
 *
 * @param {TrainingRequest} request
 * @param {string} runName
 * @param {Settings | null} settings A run's settings; null leaves the settings node out.
 * @param {string} [gaps] What the request leaves open, for a note in the graph.
 * @returns {GraphPlan}
 */
export function requestPlan(request, runName, settings, gaps) {
  const params = { ...request.training_params, ...controlColumns(request.training_params) };
  const samples = (params.samples ?? []).map(({ prompt, ctrl_img_url }, index) => ({
    key: `sample ${index}`,
    type: "EditTrainerSample",
    values: { prompt, ctrl_img_url: oneText(ctrl_img_url) },
  }));
  const inputs = [
    { key: "dataset", type: "EditTrainerLoadDataset", values: { resource: request.resource, ...params, ...settings } },
    { key: "params", type: "EditTrainerParams", values: { ...settings, ...params } },
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
      [...(gaps ? [note(gaps)] : []), ...inputs, ...samples],
      [{ key: "train", type: "EditTrainerTrain", values: trainValues }],
      [{ key: "preview", type: "EditTrainerPreviewSamples" }],
    ],
    links,
  };
}

/**
 * Column inputs of a dataset node that name the control images of a request for several.
 *
 * @param {Record<string, unknown>} params
 */
function controlColumns({ control_image_columns: columns }) {
  if (!Array.isArray(columns)) return {};
  const fields = Object.keys(COLUMN_FIELDS).filter((field) => field.startsWith("control_image_column"));
  return Object.fromEntries(fields.map((field, index) => [field, columns[index] ?? ""]));
}

/**
 * Text of a sample's widget: a URL or path, or several as a JSON list.
 *
 * @param {unknown} urls
 */
const oneText = (urls) => (Array.isArray(urls) ? (urls.length > 1 ? JSON.stringify(urls) : (urls[0] ?? "")) : urls);

/**
 * A note, without Markdown: it quotes what a person wrote.
 *
 * @param {string} text
 */
const note = (text) => ({ key: "note", type: "Note", values: { text, "": text }, size: NOTE_SIZE });

/**
 * Plans the graph that trains on a parquet file: the samples draw its first captions on its first control images.
 *
 * @param {string} resource
 * @param {import("../lib/server.js").ParquetColumns} file
 * @param {string | null} tinyModel Embedded model to train; null leaves the base model and parameters as the nodes have
 *   them.
 * @returns {GraphPlan}
 */
export function datasetPlan(resource, file, tinyModel) {
  const captions = file.texts[file.guess.caption_column ?? ""] ?? [];
  const samples = captions.slice(0, SAMPLES).map((prompt) => ({ prompt, ctrl_img_url: "" }));
  const params = { ...file.guess, ...(tinyModel && TINY_PARAMS), samples };
  const runName = resource.replace(/\.parquet$/i, "");
  return requestPlan({ resource, base_model: tinyModel ?? "", training_params: params }, runName, null);
}

/**
 * Plans the nodes that a request node, under the key `request`, needs beside it to train.
 *
 * @param {unknown} baseModel What the request names.
 * @returns {GraphPlan}
 */
export function completionPlan(baseModel) {
  return {
    columns: [
      [
        { key: "model", type: "EditTrainerBaseModel", values: { base_model: baseModel } },
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
