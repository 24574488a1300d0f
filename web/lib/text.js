// @ts-check

/** @type {Record<string, string>} */
let texts = {};
let language = "en";

/**
 * Chooses the language of all texts. A text that the language lacks is shown in English.
 *
 * @param {Record<string, {editTrainer?: Record<string, string>}>} translations ComfyUI's answer to `/i18n`.
 * @param {string} [locale]
 */
export function setLanguage(translations, locale) {
  language = locale || "en";
  texts = { ...translations.en?.editTrainer, ...translations[language]?.editTrainer };
}

/**
 * Looks up a text and fills in its `{name}` placeholders.
 *
 * @param {string} key
 * @param {Record<string, unknown>} [values]
 */
export function t(key, values = {}) {
  const text = texts[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (placeholder, name) => (name in values ? String(values[name]) : placeholder));
}

/**
 * Finds the text of what was thrown.
 *
 * @param {unknown} error
 */
export const messageOf = (error) => (error instanceof Error ? error.message : String(error));

/**
 * Formats a duration as `1:02:03`, or as `4:05` below an hour.
 *
 * @param {number} seconds
 */
export function duration(seconds) {
  const total = Math.max(0, Math.round(seconds));
  const [hours, minutes, rest] = [Math.floor(total / 3600), Math.floor(total / 60) % 60, total % 60];
  const pad = (/** @type {number} */ number) => String(number).padStart(2, "0");
  return hours ? `${hours}:${pad(minutes)}:${pad(rest)}` : `${minutes}:${pad(rest)}`;
}

/**
 * Formats the time of day `seconds` from now, with the weekday unless that is today.
 *
 * @param {number} seconds
 * @param {Date} [now]
 */
export function timeOfDay(seconds, now = new Date()) {
  const then = new Date(now.getTime() + seconds * 1000);
  /** @type {Intl.DateTimeFormatOptions} */
  const options = { hour: "2-digit", minute: "2-digit" };
  if (then.toDateString() !== now.toDateString()) options.weekday = "short";
  return then.toLocaleTimeString(language, options);
}

/**
 * Formats a loss with four significant digits.
 *
 * @param {number | null | undefined} value
 */
export function loss(value) {
  return value === null || value === undefined || Number.isNaN(value) ? "–" : value.toPrecision(4);
}

/**
 * Formats the duration of a step as `1.42 s/step`, or as `3.10 steps/s` below a second.
 *
 * @param {number | null} seconds
 */
export function speed(seconds) {
  if (!seconds) return "–";
  return seconds < 1
    ? t("stepsPerSecond", { n: (1 / seconds).toFixed(2) })
    : t("secondsPerStep", { n: seconds.toFixed(2) });
}

/**
 * Formats bytes of memory as `12.3 / 24.0 GiB`.
 *
 * @param {[used: number, total: number]} bytes
 */
export function memory(bytes) {
  const [used, total] = bytes.map((number) => (number / 2 ** 30).toFixed(1));
  return `${used} / ${total} GiB`;
}

/**
 * Formats an integer with the language's digit grouping.
 *
 * @param {number} number
 */
export function count(number) {
  return number.toLocaleString(language);
}

/**
 * Counts things in words: `1 row`, `2 rows`.
 *
 * @param {"row" | "column" | "captionEdited"} thing
 * @param {number} number
 */
export function counted(thing, number) {
  return t(number === 1 ? `${thing}One` : `${thing}Many`, { n: count(number) });
}

/**
 * Says how many rows are left out and captions edited; nothing for none.
 *
 * @param {number} leftOut
 * @param {number} edited
 */
export function editLines(leftOut, edited) {
  const lines = [];
  if (leftOut) lines.push(t("leftOut", { n: count(leftOut) }));
  if (edited) lines.push(counted("captionEdited", edited));
  return lines;
}
