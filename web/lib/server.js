import { api } from "../../../scripts/api.js";

const ROOT = "/edit_trainer";

/** Decoded JSON of one of the pack's routes. Throws an Error with the server's message. */
export async function ask(path, query = {}, options = {}) {
  const answer = await api.fetchApi(`${ROOT}${path}${search(query)}`, options);
  const data = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(data.error ?? `${answer.status} ${answer.statusText}`);
  return data;
}

/** `ask` with POST. */
export const tell = (path, query = {}, body = undefined) => ask(path, query, { method: "POST", body });

/** The address of a route, for an <img>. */
export const address = (path, query = {}) => api.apiURL(`${ROOT}${path}${search(query)}`);

/** The address of a run's picture, as a thumbnail of at most `px` pixels on a side, or whole. */
export function picture(run, file, px = undefined) {
  return address(`/archive/${encodeURIComponent(run)}/${encodeURIComponent(file)}`, px ? { px } : {});
}

function search(query) {
  const text = new URLSearchParams(query).toString();
  return text ? `?${text}` : "";
}
