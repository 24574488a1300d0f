// @ts-check
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { choiceWidget } from "./dataset/choice.js";
import { addInfo, refreshInfo, rereadInfos } from "./dataset/info.js";
import { addEmptyGraph } from "./graph/add.js";
import { addRequestButton, dropParquet, paste } from "./graph/paste.js";
import { addModelInfo, showLinkedModels, showModelInfo } from "./model/info.js";
import { callBefore, fitToWidgets } from "./graph/nodes.js";
import { followPalette } from "./graph/palette.js";
import { showSuccessor } from "./graph/successor.js";
import { addStyles } from "./lib/dom.js";
import { setLanguage } from "./lib/text.js";
import { keepNotesWidget, onExecuted, onExecuting, onExecutionError, showRunNotes } from "./notes/node.js";
import { showRequestFaults } from "./notes/request.js";
import { addPanel, onMessage, showAllRuns } from "./panel/node.js";
import { runsTab } from "./runs_tab/sidebar.js";

const VERSION = "0.2.0";
const PACK = "EditTrainer";
const MESSAGE = "edit_trainer.run";
const NOTES = "edit_trainer.notes";
const ADD_GRAPH = "EditTrainer.AddGraph";

/**
 * What a node does with the values it is given, by class: when a workflow is opened, and when the node is pasted,
 * restored by undo, or comes with a subgraph or template.
 *
 * @type {Record<string, (node: ComfyNode) => unknown>}
 */
const REFRESH = {
  EditTrainerTrain: (node) => fitToWidgets(node),
  EditTrainerLoadDataset: refreshInfo,
  EditTrainerBaseModel: showModelInfo,
  EditTrainerLoadRequest: showRequest,
};

/** @param {ComfyNode} node */
function showRequest(node) {
  showLinkedModels(node);
  showRequestFaults(node);
}

// Registered before anything is awaited: ComfyUI's page warns about messages that have no listener.
api.addEventListener(MESSAGE, (event) => onMessage(event.detail));
api.addEventListener(NOTES, ({ detail }) => showRunNotes(detail.node_id, detail.notes));
api.addEventListener("executing", ({ detail }) => onExecuting(detail));
api.addEventListener("executed", ({ detail }) => {
  if (onExecuted(detail).some(({ level }) => level === "info")) rereadInfos();
});
api.addEventListener("execution_error", ({ detail }) => onExecutionError(detail));

app.registerExtension({
  name: "edit_trainer",
  aboutPageBadges: [{ label: `edit-trainer v${VERSION}`, url: "https://registry.comfy.org/nodes/edit-trainer", icon: "pi pi-images" }],

  commands: [
    {
      id: ADD_GRAPH,
      label: "Add a graph that trains an edit LoRA",
      menubarLabel: "Add training graph",
      icon: "pi pi-images",
      function: addEmptyGraph,
    },
  ],
  menuCommands: [{ path: ["Extensions", "Edit Trainer"], commands: [ADD_GRAPH] }],

  async init() {
    const styled = addStyles(new URL("./style.css", import.meta.url).href);
    const response = await api.fetchApi("/i18n").catch(() => null);
    setLanguage(response?.ok ? await response.json() : {}, app.extensionManager.setting.get("Comfy.Locale"));
    await styled;
  },

  async setup() {
    api.addEventListener("reconnected", showAllRuns);
    document.addEventListener("paste", paste, true);
    addEventListener("drop", dropParquet, true);
    app.extensionManager.registerSidebarTab(runsTab());
    followPalette();
  },

  getCustomWidgets: () => ({ EDIT_TRAINER_CHOICE: choiceWidget }),

  nodeCreated(node) {
    if (node.comfyClass?.startsWith(PACK)) showSuccessor(node);
    if (node.comfyClass === "EditTrainerTrain") addPanel(node);
    if (node.comfyClass === "EditTrainerLoadDataset") addInfo(node);
    if (node.comfyClass === "EditTrainerBaseModel") addModelInfo(node);
    if (node.comfyClass === "EditTrainerLoadRequest") addRequestButton(node, () => showRequest(node));
    if (node.comfyClass?.startsWith(PACK)) keepNotesWidget(node);
    const refresh = REFRESH[node.comfyClass ?? ""];
    if (refresh) callBefore(node, "onConfigure", () => refresh(node));
  },

  afterConfigureGraph: showAllRuns,
});
