// @ts-check
import { app } from "../../../scripts/app.js";
import { callBefore, findNode, fitToWidgets } from "../graph/nodes.js";
import { el, shieldFromGraph } from "../lib/dom.js";
import { t } from "../lib/text.js";
import { advancedInput, showInput } from "./folded.js";
import { NoteList } from "./list.js";
import { noteText } from "./text.js";

/** @typedef {import("./text.js").Note} Note */

const OUTPUT = "edit_trainer_notes";
const PACK = "EditTrainer";
const WIDGET = "notes";
const PADDING = 8;
/** Distance of a widget's element from the node's edges. */
const MARGIN = 6;
/** Padding and border of an element that the list is embedded in, as in the style sheet. */
const BOX_EDGE = 9;
/** Pause in which a node may show a failure by itself. */
const SETTLE_MS = 400;

/**
 * Notes of a node, by what they are about: what is chosen in it, and its last run.
 *
 * @typedef {object} Notes
 * @property {NoteList} list
 * @property {boolean} embedded True if the node has a place for the list.
 * @property {boolean} kept True if the widget of the list stays in the node when there are no notes.
 * @property {Note[]} inputs
 * @property {Note[]} run
 */

/** @type {Map<ComfyNode, Notes>} */
const allNotes = new Map();

/**
 * Gives a node's notes a place in one of its elements. Returns the list to put there.
 *
 * @param {ComfyNode} node
 */
export function embedNotes(node) {
  return notesOf(node, true).list;
}

/**
 * Gives a node the widget for its notes before there are any, on pages whose Vue nodes draw no widget that is added
 * after a value or link of the node has changed: those that do not yet bind a widget to its node's id.
 *
 * @param {ComfyNode} node
 */
export function keepNotesWidget(node) {
  if (!node.widgets?.length || node.widgets.some((widget) => "setNodeId" in widget)) return;
  const notes = notesOf(node, false);
  if (notes.embedded) return;
  placeWidget(node, notes.list, true);
  notes.kept = true;
  draw(node, notes);
}

/**
 * Shows notes in a node, in place of those before about the same.
 *
 * @param {ComfyNode} node
 * @param {"inputs" | "run"} about
 * @param {Note[]} notes
 */
export function setNotes(node, about, notes) {
  if (!notes.length && !allNotes.get(node)?.[about].length) return;
  const state = notesOf(node, false);
  state[about] = notes;
  draw(node, state);
}

/**
 * Shows the notes that a node of the pack gives with its output, or sends when it fails.
 *
 * @param {string} nodeId
 * @param {Note[]} [notes]
 */
export function showRunNotes(nodeId, notes) {
  const node = packNode(nodeId);
  if (node && notes) setNotes(node, "run", notes);
}

/**
 * Shows the notes of a node that was executed, and returns them; those of level "info" say what it has written.
 *
 * @param {{node: string, output?: Record<string, any>}} executed
 * @returns {Note[]}
 */
export function onExecuted({ node, output }) {
  const notes = output?.[OUTPUT];
  showRunNotes(node, notes);
  return notes ?? [];
}

/**
 * Shows why a node of the pack failed, unless the node says so already.
 *
 * @param {{node_id: string, exception_message: string}} failure
 */
export function onExecutionError({ node_id, exception_message }) {
  const [node, text] = [packNode(node_id), exception_message.trim()];
  if (!node || allNotes.get(node)?.run.some(({ level }) => level === "error")) return;
  setTimeout(() => {
    const says = node.widgets?.some(({ element }) => element?.textContent?.includes(text));
    if (node.graph && !says) setNotes(node, "run", [{ level: "error", text }]);
  }, SETTLE_MS);
}

/**
 * Removes what a node says of its last run, as it begins again. A node that ComfyUI has cached keeps it.
 *
 * @param {string | null} nodeId
 */
export function onExecuting(nodeId) {
  const node = nodeId && packNode(nodeId);
  if (node) setNotes(node, "run", []);
}

/** @param {string} id */
function packNode(id) {
  const node = findNode(app.rootGraph ?? app.graph, String(id));
  return node?.comfyClass?.startsWith(PACK) ? node : undefined;
}

/**
 * @param {ComfyNode} node
 * @param {boolean} embedded
 */
function notesOf(node, embedded) {
  let notes = allNotes.get(node);
  if (!notes) {
    const width = () => node.size[0] - 2 * MARGIN - (embedded ? 2 * BOX_EDGE : 0);
    const list = new NoteList(width, (growth) => resize(node, growth));
    notes = { list, embedded, kept: false, inputs: [], run: [] };
    allNotes.set(node, notes);
    callBefore(node, "onRemoved", () => allNotes.delete(node));
  }
  return notes;
}

/**
 * @param {ComfyNode} node
 * @param {Notes} notes
 */
function draw(node, { list, embedded, kept, inputs, run }) {
  const labelOf = (/** @type {string} */ field) => {
    const widget = node.widgets?.find(({ name }) => name === field);
    return widget?.label ?? field;
  };
  const lines = [...inputs, ...run].map((note) => {
    const text = noteText(note, labelOf);
    const input = advancedInput(node, note, text);
    const label = input && t("showInput", { field: labelOf(input.name) });
    return { level: note.level, text, action: label ? { label, press: () => showInput(node, input) } : undefined };
  });
  const texts = lines.map(({ text }) => text);
  if (kept) hideWidget(node, list, !lines.length);
  else if (!embedded) placeWidget(node, list, lines.length > 0);
  list.show(lines.filter(({ text }, index) => texts.indexOf(text) === index));
}

/**
 * Takes back the room of notes that are gone, and gives the others enough.
 *
 * @param {ComfyNode} node
 * @param {number} growth
 */
function resize(node, growth) {
  if (!node.graph) return;
  const [width, height] = node.size;
  if (growth < 0) node.setSize([width, height + growth]);
  fitToWidgets(node);
  app.canvas.setDirty(true, true);
}

/**
 * Adds a widget for the list, or removes it when there is nothing to say.
 *
 * @param {ComfyNode} node
 * @param {NoteList} list
 * @param {boolean} needed
 */
function placeWidget(node, list, needed) {
  const widget = widgetOf(node, list);
  if (needed === Boolean(widget)) return;
  if (widget) {
    node.removeWidget(widget);
    return;
  }
  const element = el("div", { class: "edit-trainer-notes-box" }, list.element);
  shieldFromGraph(element);
  const getMinHeight = () => list.height + PADDING;
  const options = { serialize: false, hideOnZoom: false, margin: MARGIN, getMinHeight };
  node.addDOMWidget(WIDGET, "edit-trainer-notes", element, options).serialize = false;
}

/**
 * @param {ComfyNode} node
 * @param {NoteList} list
 * @param {boolean} hidden
 */
function hideWidget(node, list, hidden) {
  const widget = widgetOf(node, list);
  if (!widget?.element) return;
  widget.hidden = hidden;
  widget.element.hidden = hidden;
}

/**
 * @param {ComfyNode} node
 * @param {NoteList} list
 */
function widgetOf(node, list) {
  return node.widgets?.find(({ name, element }) => name === WIDGET && element?.contains(list.element));
}
