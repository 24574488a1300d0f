// @ts-check
import { app } from "../../../scripts/app.js";
import { addNode, extendLastStep, undoable } from "./build.js";
import { nextDrawing } from "./nodes.js";

/** Loader node and its input, by the folder that the file is in. @type {Record<string, [type: string, input: string]>} */
const LOADERS = { loras: ["LoraLoaderModelOnly", "lora_name"], diffusion_models: ["UNETLoader", "unet_name"] };

/**
 * Adds the node that loads a file of weights to the graph on display.
 *
 * @param {string} file
 * @param {Iterable<number>} pos
 * @param {string} [folder] One of ComfyUI's model folders.
 */
export async function addLoader(file, pos, folder = "loras") {
  const [type, input] = LOADERS[folder];
  await app.refreshComboInNodes();
  const node = undoable(() => addNode(type, pos, { [input]: file }));
  await extendLastStep([node], nextDrawing);
}
