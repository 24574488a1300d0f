// @ts-check
import { app } from "../../../scripts/app.js";
import { refreshInfo } from "../dataset/info.js";
import { fetchColumns, parseRequest, uploadDataset } from "../lib/server.js";
import { t } from "../lib/text.js";
import { addPlan, freePosition, isOnDisplay } from "./build.js";
import { completionPlan, datasetPlan, draftRequest, readRequest, requestPlan, withoutDots } from "./request.js";

const TINY_MODEL = "tiny/flux-kontext";
/** Embedded model for several control images. */
const TINY_MODEL_OF_SEVERAL = "tiny/qwen-image-edit-plus";
/** Distance of a node's completion from it, in graph coordinates. */
const GAP = 40;

/**
 * Adds the graph of a fine-tune request.
 *
 * @param {import("../lib/server.js").TrainingRequest} request
 * @param {Iterable<number>} pos Top left corner.
 * @param {{runName?: string, settings?: import("../lib/server.js").Settings | null, gaps?: string}} [options] `gaps`
 *   says what the request leaves open.
 */
export function addRequestGraph(request, pos, { runName = "edit-lora", settings = null, gaps } = {}) {
  return addTrainingGraph(requestPlan(request, runName, settings, gaps), pos);
}

/**
 * @param {import("./request.js").GraphPlan} plan Has a dataset and a Train node.
 * @param {Iterable<number>} pos
 */
async function addTrainingGraph(plan, pos) {
  const nodes = await addPlan(plan, pos, { fill: ({ dataset }) => refreshInfo(dataset) });
  if (isOnDisplay(nodes.train)) app.canvas.centerOnNode(nodes.train);
  return nodes;
}

/** Adds a graph that trains on a parquet file yet to be chosen, below the others. */
export function addEmptyGraph() {
  const samples = [{ prompt: "", ctrl_img_url: "" }];
  return addRequestGraph({ resource: "", base_model: "", training_params: { samples } }, freePosition());
}

/**
 * Adds the graph of a request's JSON. Where the request is not valid, the graph has a note with every fault, and what
 * the nodes cannot take is left at their defaults.
 *
 * @param {string} text
 * @param {Iterable<number>} pos
 */
export async function addRequestText(text, pos) {
  const draft = readRequest(text);
  /** @type {string | undefined} */
  let gaps;
  const request = await parseRequest(withoutDots(text)).catch((error) => {
    if (!draft) throw error;
    gaps = `${t("requestGaps")}\n\n${error.message}`;
    return withKnownModel(draftRequest(draft));
  });
  await addRequestGraph(request, pos, { gaps });
}

/**
 * Adds a base model, a Train node and a preview beside a request node, and connects all four.
 *
 * @param {ComfyNode} node
 * @param {string} text The request's JSON.
 */
export async function completeRequestNode(node, text) {
  const pos = [node.pos[0] + node.size[0] + GAP, node.pos[1]];
  await addPlan(completionPlan(readRequest(text)?.base_model), pos, { existing: { request: node } });
}

/**
 * Uploads a parquet file and adds a graph that trains on it.
 *
 * @param {File} parquet
 * @param {Iterable<number>} pos
 */
export async function addParquet(parquet, pos) {
  const resource = await uploadDataset(parquet);
  const file = await fetchColumns(resource);
  const tinyModel = file.guess.control_image_column_2 ? TINY_MODEL_OF_SEVERAL : TINY_MODEL;
  await addTrainingGraph(datasetPlan(resource, file, onlyTinyModels() ? tinyModel : null), pos);
}

/**
 * A request whose base model is one that can be chosen.
 *
 * @param {import("../lib/server.js").TrainingRequest} request
 */
function withKnownModel(request) {
  const known = modelOptions("base_model").includes(request.base_model);
  return known || !onlyTinyModels() ? request : { ...request, base_model: TINY_MODEL };
}

/** True if a new base-model node would have nothing on the disk to train but the embedded models. */
function onlyTinyModels() {
  const [chosen] = modelOptions("base_model", "default");
  return chosen?.startsWith("tiny/") || modelOptions("transformer").length < 2;
}

/**
 * Options of one of the base-model node's menus, or its default alone.
 *
 * @param {string} name
 * @param {"options" | "default"} [part]
 * @returns {string[]}
 */
function modelOptions(name, part = "options") {
  const input = window.LiteGraph.registered_node_types.EditTrainerBaseModel?.nodeData?.input;
  const [values, options] = input?.required?.[name] ?? input?.optional?.[name] ?? [];
  const found = part === "options" && Array.isArray(values) ? values : options?.[part];
  return [found ?? []].flat();
}
