// @ts-check
import { api } from "../../../scripts/api.js";

/**
 * @typedef {[step: number, loss: number]} Point
 * @typedef {{filename: string, subfolder: string, type: string}} ImageFile
 * @typedef {{step: number, index: number, prompt: string, image: ImageFile, control: ImageFile, controls?: ImageFile[]}}
 *   Sample
 * @typedef {"points" | "samples" | "checkpoints" | "warnings" | "validation"} ListName
 */

/**
 * Complete state of a run.
 *
 * @typedef {object} Snapshot
 * @property {string} id Differs between two runs of the same name.
 * @property {string} run Name of the run folder.
 * @property {string} workflow_id Id of the workflow that started it; empty when it has none.
 * @property {"running" | "finished" | "stopped" | "failed"} state
 * @property {string} status Last line of text, or the error of a failed run.
 * @property {string} plan
 * @property {string} phase
 * @property {number} done Units of the phase that are done, of `total`.
 * @property {number} total
 * @property {number} step
 * @property {number} steps
 * @property {number | null} seconds Mean duration of a step.
 * @property {number | null} seconds_left
 * @property {[used: number, total: number] | null} memory GPU memory in bytes.
 * @property {Point[]} points
 * @property {Sample[]} samples
 * @property {number[]} checkpoints
 * @property {string[]} warnings
 * @property {number | null} [resumed_at] Step from which it went on.
 * @property {Point[]} [validation] Held-out losses.
 * @property {number | null} [best_step] Step of the lowest of them.
 */

/**
 * Update of a run: its lists hold only new items, and `from` is the index in each list at which they start.
 *
 * @typedef {Snapshot & {node_id: string, from: Record<Exclude<ListName, "validation">, number> & {validation?: number}}}
 *   Message
 */

/**
 * One line of the list of runs.
 *
 * @typedef {object} RunSummary
 * @property {string} run
 * @property {Snapshot["state"]} state
 * @property {string} base_model
 * @property {number} step
 * @property {number} steps
 * @property {number | null} loss
 * @property {number | null} smoothed Smoothed loss.
 * @property {string | null} thumbnail File name of the newest sample.
 * @property {string | null} lora File name in the LoRA folder.
 */

/**
 * A fine-tune request and a run's settings: widget values by name.
 *
 * @typedef {{ctrl_img_url: string | string[], prompt: string}} SamplePrompt
 * @typedef {Record<string, unknown> & {samples?: SamplePrompt[]}} TrainingParams
 * @typedef {{resource: string, base_model: string, training_params: TrainingParams}} TrainingRequest
 * @typedef {Record<string, unknown>} Settings
 */

/** @typedef {Snapshot & RunSummary & {request: TrainingRequest, settings: Settings, workflow: object | null}} SavedRun */

/**
 * Contents of a parquet file. `columns` maps names to types, `kinds` says what each column can serve as, `guess` maps
 * inputs of a dataset node to columns, and `texts` holds the first rows of text columns.
 *
 * @typedef {object} ParquetColumns
 * @property {Record<string, string>} columns
 * @property {Record<string, string>} kinds
 * @property {Record<string, string>} guess
 * @property {number} rows
 * @property {Record<string, string[]>} texts
 */

/** @typedef {Record<string, string> | [name: string, value: string][]} Query */

const ROOT = "/edit_trainer";

/**
 * Reads the state of the last run of a node; null when it has none.
 *
 * @param {string | number} nodeId
 * @returns {Promise<Snapshot | null>}
 */
export const fetchLiveRun = (nodeId) => fetchJson(`/runs/${encodeURIComponent(nodeId)}`);

/**
 * Asks the run of a node to stop, or to generate samples, after the current step.
 *
 * @param {string | number} nodeId
 * @param {"stop" | "sample"} action
 */
export const controlRun = (nodeId, action) => postJson(`/runs/${encodeURIComponent(nodeId)}/${action}`);

/**
 * Lists the runs in the output folder, newest first.
 *
 * @returns {Promise<RunSummary[]>}
 */
export const fetchSavedRuns = () => fetchJson("/archive");

/**
 * Reads one run of the output folder.
 *
 * @param {string} name
 * @returns {Promise<SavedRun>}
 */
export const fetchSavedRun = (name) => fetchJson(`/archive/${encodeURIComponent(name)}`);

/**
 * File of weights in one of ComfyUI's model folders.
 *
 * @typedef {{file: string, folder: "loras" | "diffusion_models", path: string}} ExportedWeights
 */

/**
 * Exports the weights of a run's checkpoint to ComfyUI's model folders.
 *
 * @param {string} run
 * @param {number} step
 * @returns {Promise<ExportedWeights>}
 */
export const exportCheckpoint = (run, step) => postJson(`/archive/${encodeURIComponent(run)}/export`, { step: String(step) });

/**
 * Deletes a run. Resolves to whether it is in the system's bin.
 *
 * @param {string} run
 * @returns {Promise<boolean>}
 */
export const deleteRun = async (run) => (await postJson(`/archive/${encodeURIComponent(run)}/delete`)).in_bin;

/**
 * Step and files of what a push of a run to the Hugging Face hub would send.
 *
 * @param {string} run
 * @returns {Promise<{step: number, files: string[]}>}
 */
export const fetchPushContents = (run) => fetchJson(`/push/${encodeURIComponent(run)}`);

/**
 * Pushes a run to a repository on the Hugging Face hub. Resolves to its address.
 *
 * @param {string} run
 * @param {string} repo
 * @param {boolean} isPrivate
 * @returns {Promise<string>}
 */
export async function pushRun(run, repo, isPrivate) {
  const query = { repo, private: isPrivate ? "1" : "0" };
  return (await postJson(`/push/${encodeURIComponent(run)}`, query)).url;
}

/**
 * URL of one of a run's images: full size, or a thumbnail of at most `pixels` on a side.
 *
 * @param {string} run
 * @param {string} file
 * @param {number} [pixels]
 */
export function imageUrl(run, file, pixels) {
  const route = `/archive/${encodeURIComponent(run)}/${encodeURIComponent(file)}`;
  return routeUrl(route, pixels ? { px: String(pixels) } : {});
}

/**
 * URL of one of the pack's routes.
 *
 * @param {string} route
 * @param {Query} query
 */
export const routeUrl = (route, query) => api.apiURL(`${ROOT}${route}${queryString(query)}`);

/**
 * Lists the parquet files in the input folder.
 *
 * @returns {Promise<string[]>}
 */
export const fetchParquets = () => fetchJson("/parquets");

/**
 * Describes the columns of a parquet file.
 *
 * @param {string} resource
 * @returns {Promise<ParquetColumns>}
 */
export const fetchColumns = (resource) => fetchJson("/columns", { resource });

/**
 * Reads thumbnails of a parquet's first rows, as data URLs by column. An image that cannot be shown is null.
 *
 * @param {string} resource
 * @param {string} imagesRoot
 * @param {string[]} columns
 * @returns {Promise<Record<string, (string | null)[]>>}
 */
export function fetchFirstRows(resource, imagesRoot, columns) {
  const names = columns.map((name) => /** @type {[string, string]} */ (["column", name]));
  return fetchJson("/first_rows", [["resource", resource], ["images_root", imagesRoot], ...names]);
}

/**
 * Checks what is chosen in a dataset node.
 *
 * @param {Record<string, string>} inputs Values by input, without those that are linked.
 * @returns {Promise<import("../notes/text.js").Note[]>}
 */
export const fetchDatasetNotes = async (inputs) => (await fetchJson("/dataset_notes", inputs)).notes;

/**
 * Describes in a few lines which weights a base-model node will load.
 *
 * @param {string} baseModel
 * @param {string} transformer
 * @param {string[]} connected Which of `clip` and `vae` are connected.
 * @returns {Promise<string[]>}
 */
export async function fetchModelInfo(baseModel, transformer, connected) {
  const names = connected.map((name) => /** @type {[string, string]} */ (["connected", name]));
  const query = /** @type {Query} */ ([["base_model", baseModel], ["transformer", transformer], ...names]);
  return (await fetchJson("/base_model", query)).lines;
}

/**
 * Uploads a parquet or a zip of pictures to the input folder. Returns the name it was given there.
 *
 * @param {File} file
 * @returns {Promise<string>}
 */
export const uploadDataset = async (file) => (await postJson("/upload", { name: file.name }, file)).name;

/**
 * Packs a zip of pictures in the input folder. Returns the name of the parquet there.
 *
 * @param {string} path
 * @param {string} [caption] For all pairs; without it each has its own.
 * @returns {Promise<string>}
 */
export async function packPictures(path, caption = "") {
  return (await postJson("/pack", {}, JSON.stringify({ path, caption }))).parquet;
}

/**
 * Validates the JSON of a fine-tune request. Returns it with all defaults filled in.
 *
 * @param {string} text
 * @returns {Promise<TrainingRequest>}
 */
export const parseRequest = async (text) => (await postJson("/request", {}, text)).request;

/**
 * Checks the JSON of a fine-tune request.
 *
 * @param {string} text
 * @returns {Promise<import("../notes/text.js").Note[]>}
 */
export const fetchRequestNotes = async (text) => (await postJson("/request_notes", {}, text)).notes;

/**
 * Fetches JSON from one of the pack's routes. Throws an Error with the server's message.
 *
 * @param {string} route
 * @param {Query} [query]
 * @param {RequestInit} [options]
 */
export async function fetchJson(route, query = {}, options = {}) {
  const response = await api.fetchApi(`${ROOT}${route}${queryString(query)}`, options);
  const data = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(data.error ?? `${response.status} ${response.statusText}`);
  if (data?.error) throw new Error(data.error);
  return data;
}

/**
 * Posts to one of the pack's routes and returns its JSON. Throws an Error with the server's message.
 *
 * @param {string} route
 * @param {Query} [query]
 * @param {BodyInit} [body]
 */
export const postJson = (route, query = {}, body = undefined) => fetchJson(route, query, { method: "POST", body });

/** @param {Query} query */
function queryString(query) {
  const text = new URLSearchParams(query).toString();
  return text ? `?${text}` : "";
}
