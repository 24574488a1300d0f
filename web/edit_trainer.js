import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { choiceWidget } from "./dataset/choice.js";
import { addInfo, refreshInfo } from "./dataset/info.js";
import { addRequestButton, pasteRequest } from "./graph/paste.js";
import { addModelInfo, showModelInfo } from "./model/info.js";
import { makeRoom } from "./graph/nodes.js";
import { el } from "./lib/dom.js";
import { t, useTexts } from "./lib/text.js";
import { addPanel, onMessage, showAll } from "./panel/node.js";
import { runsTab } from "./runs_tab/sidebar.js";

const MESSAGE = "edit_trainer.run";

// Before anything is waited for: ComfyUI's page warns of messages of a run that nobody listens to yet.
api.addEventListener(MESSAGE, (event) => onMessage(event.detail));

app.registerExtension({
  name: "edit_trainer",

  async init() {
    document.head.append(el("link", { rel: "stylesheet", href: new URL("./style.css", import.meta.url).href }));
    const answer = await api.fetchApi("/i18n").catch(() => null);
    useTexts(answer?.ok ? await answer.json() : {}, app.extensionManager.setting.get("Comfy.Locale"));
  },

  async setup() {
    api.addEventListener("reconnected", showAll);
    document.addEventListener("paste", pasteRequest, true);
    app.extensionManager.registerSidebarTab(runsTab());
  },

  getCustomWidgets: () => ({ EDIT_TRAINER_CHOICE: choiceWidget }),

  nodeCreated(node) {
    if (node.comfyClass === "EditTrainerTrain") addPanel(node);
    if (node.comfyClass === "EditTrainerLoadDataset") addInfo(node);
    if (node.comfyClass === "EditTrainerBaseModel") addModelInfo(node);
    if (node.comfyClass === "EditTrainerLoadRequest") addRequestButton(node);
  },

  loadedGraphNode(node) {
    if (node.comfyClass === "EditTrainerTrain") makeRoom(node);
    if (node.comfyClass === "EditTrainerLoadDataset") refreshInfo(node);
    if (node.comfyClass === "EditTrainerBaseModel") showModelInfo(node);
  },

  afterConfigureGraph: showAll,
});
