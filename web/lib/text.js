let words = {};
let language = "en";

/** Take the texts of a language: `all` as ComfyUI's /i18n answers it. What a language lacks is said in English. */
export function useTexts(all, locale) {
  language = locale || "en";
  words = { ...all?.en?.editTrainer, ...all?.[language]?.editTrainer };
}

/** The text of a key, its `{name}`s filled in. */
export function t(key, values = {}) {
  return (words[key] ?? key).replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

/** `1:02:03`, or `4:05` below an hour. */
export function duration(seconds) {
  const total = Math.max(0, Math.round(seconds));
  const [hours, minutes, rest] = [Math.floor(total / 3600), Math.floor(total / 60) % 60, total % 60];
  const two = (number) => String(number).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}

/** The time of day in so many seconds, with the day when it is another one. */
export function clock(secondsFromNow) {
  const then = new Date(Date.now() + secondsFromNow * 1000);
  const day = then.toDateString() === new Date().toDateString() ? {} : { weekday: "short" };
  return then.toLocaleTimeString(language, { hour: "2-digit", minute: "2-digit", ...day });
}

/** A loss with four significant digits. */
export function loss(value) {
  return value === null || value === undefined || Number.isNaN(value) ? "–" : Number(value).toPrecision(4);
}

/** `1.42 s/step`, or `3.10 steps/s` for the fast. */
export function speed(seconds) {
  if (!seconds) return "–";
  return seconds < 1 ? t("stepsPerSecond", { n: (1 / seconds).toFixed(2) }) : t("secondsPerStep", { n: seconds.toFixed(2) });
}

/** `12.3 / 24.0 GiB` of [used, total] bytes. */
export function memory(pair) {
  const [used, total] = pair.map((bytes) => (bytes / 2 ** 30).toFixed(1));
  return `${used} / ${total} GiB`;
}

/** A whole number as the language writes it. */
export function count(number) {
  return number.toLocaleString(language);
}
