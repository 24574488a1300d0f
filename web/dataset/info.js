import { el, keepFromGraph, setText } from "../lib/dom.js";
import { ask, tell } from "../lib/server.js";
import { count, t } from "../lib/text.js";
import { makeRoom, widgetOf } from "../graph/nodes.js";

const ROWS = 3;
const MIN_HEIGHT = 100;
const WAIT = 350;
const FIELDS = { caption_column: "text", control_image_column: "image", image_column: "image" };
const infos = new Map();

/** Under a dataset node's widgets: how many rows, the first of them, and a place to choose or drop a parquet. */
export function addInfo(node) {
  const line = el("p", { role: "status" });
  const file = el("input", { type: "file", accept: ".parquet", hidden: true, on: { change: () => send(file.files[0]) } });
  const choose = el("button", { class: "edit-trainer-button", type: "button", on: { click: () => file.click() } }, t("chooseFile"));
  const first = el("div", { class: "edit-trainer-first" });
  const element = el("section", { class: "edit-trainer edit-trainer-info" }, el("header", {}, line, choose, file), first);
  keepFromGraph(element);
  const options = { serialize: false, hideOnZoom: false, margin: 6, getMinHeight: () => MIN_HEIGHT };
  node.addDOMWidget("rows", "edit-trainer-info", element, options).serialize = false;
  const info = { line, first, element, found: null, timer: 0, request: 0 };
  infos.set(node, info);

  const resource = widgetOf(node, "resource");
  for (const widget of [resource, ...Object.keys(FIELDS).map((name) => widgetOf(node, name))]) widget.named?.(widget.label ?? widget.name);
  resource.offers?.(async () => (await ask("/parquets")).map((value) => ({ value })));
  resource.onChoice = (value, done) => {
    clearTimeout(info.timer);
    info.timer = setTimeout(() => look(node, true), done ? 0 : WAIT);
  };
  for (const [name, kind] of Object.entries(FIELDS)) {
    const widget = widgetOf(node, name);
    widget.offers?.(async () => offered(info.found, kind));
    widget.onChoice = () => draw(node);
  }

  // A file that is dropped anywhere on the node, in both renderers.
  node.onDragOver = (event) => [...(event.dataTransfer?.items ?? [])].some((item) => item.kind === "file");
  node.onDragDrop = (event) => {
    const parquet = [...(event.dataTransfer?.files ?? [])].find(({ name }) => name.toLowerCase().endsWith(".parquet"));
    if (!parquet) return false;
    send(parquet);
    return true;
  };

  async function send(parquet) {
    if (!parquet) return;
    setText(line, t("uploading", { name: parquet.name }));
    try {
      const { name } = await tell("/upload", { name: parquet.name }, parquet);
      resource.value = name;
      for (const field of Object.keys(FIELDS)) widgetOf(node, field).value = "";
      await look(node, true);
    } catch (error) {
      fault(info, error.message);
    }
    file.value = "";
  }

  const removed = node.onRemoved;
  node.onRemoved = function (...args) {
    clearTimeout(info.timer);
    infos.delete(node);
    return removed?.apply(this, args);
  };
  fault(info, "");
  setText(line, t("dropParquet"));
  makeRoom(node);
}

/** Look at the parquet that a loaded node names, and change nothing in it. */
export function refreshInfo(node) {
  makeRoom(node);
  return look(node, false);
}

async function look(node, guess) {
  const info = infos.get(node);
  const resource = widgetOf(node, "resource").value.trim();
  const request = ++info.request;
  const found = resource ? await ask("/columns", { resource }).catch((error) => ({ error: error.message })) : null;
  if (request !== info.request || !infos.has(node)) return;
  info.found = found?.error || !found ? null : { ...found, resource };
  const empty = Object.keys(FIELDS).filter((field) => !widgetOf(node, field).value);
  if (guess && info.found) for (const field of empty) widgetOf(node, field).value = found.guess[field] ?? "";
  if (found?.error) fault(info, found.error);
  draw(node);
}

function offered(found, kind) {
  const fits = (name) => found.kinds[name] === kind || found.kinds[name] === "either";
  const names = Object.keys(found?.columns ?? {});
  return names
    .map((value) => ({ value, note: found.columns[value], fits: fits(value) }))
    .sort((a, b) => Number(b.fits) - Number(a.fits));
}

function fault(info, message) {
  info.line.classList.toggle("edit-trainer-bad", Boolean(message));
  setText(info.line, message);
  info.first.replaceChildren();
}

function draw(node) {
  const info = infos.get(node);
  const { found } = info;
  const value = (field) => widgetOf(node, field).value;
  for (const field of Object.keys(FIELDS)) {
    const { element } = widgetOf(node, field);
    const missing = Boolean(found && value(field) && !(value(field) in found.columns));
    element?.toggleAttribute("data-fault", missing);
  }
  if (!found) {
    if (!widgetOf(node, "resource").value.trim()) {
      fault(info, "");
      setText(info.line, t("dropParquet"));
    }
    return;
  }
  info.line.classList.remove("edit-trainer-bad");
  const columns = Object.keys(found.columns).length;
  setText(info.line, t("rowsAndColumns", { rows: count(found.rows), columns: count(columns) }));
  const chosen = ["control_image_column", "image_column"].map(value);
  const wanted = JSON.stringify([found.resource, value("images_root"), chosen]);
  if (info.wanted === wanted) drawRows(info, found, value, chosen);
  else showRows(node, wanted, chosen);
}

async function showRows(node, wanted, chosen) {
  const info = infos.get(node);
  info.wanted = wanted;
  const { found } = info;
  const query = [["resource", found.resource], ["images_root", widgetOf(node, "images_root").value]];
  const columns = chosen.filter((name) => name in found.columns).map((name) => ["column", name]);
  const pictures = await ask("/first_rows", [...query, ...columns]).catch(() => ({}));
  if (info.wanted !== wanted || !infos.has(node)) return;
  info.pictures = pictures;
  drawRows(info, found, (field) => widgetOf(node, field).value, chosen);
}

function drawRows(info, found, value, chosen) {
  const rows = Array.from({ length: Math.min(ROWS, found.rows) }, (_, row) => {
    const images = chosen.map((name) =>
      el("img", { alt: "", draggable: false, title: name, src: info.pictures?.[name]?.[row] ?? undefined }),
    );
    const text = found.texts[value("caption_column")]?.[row] ?? "";
    return el("figure", {}, ...images, el("figcaption", { title: text }, text));
  });
  info.first.replaceChildren(...rows);
}
