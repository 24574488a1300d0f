const LISTS = ["points", "samples", "checkpoints", "warnings"];
const SMOOTHING_STEPS = 50;

/** A run as the server tells it: a snapshot whole, then messages that carry only what is new. */
export class RunState {
  run = null;
  smoothed = [];

  /** Take a whole snapshot. */
  reset(snapshot) {
    this.run = { ...snapshot };
    for (const list of LISTS) this.run[list] = [...snapshot[list]];
    this.smoothed = [];
    this.#smooth();
  }

  /** Take a message in. False when something before it is missing: a snapshot is needed. */
  merge(message) {
    if (message.id !== this.run?.id) {
      if (LISTS.some((list) => message.from[list] > 0)) return false;
      this.reset({ ...message, ...Object.fromEntries(LISTS.map((list) => [list, []])) });
    }
    if (LISTS.some((list) => message.from[list] > this.run[list].length)) return false;
    for (const list of LISTS) {
      const known = this.run[list].length - message.from[list];
      for (const item of message[list].slice(known)) this.run[list].push(item);
    }
    const { from, ...rest } = message;
    for (const list of LISTS) delete rest[list];
    Object.assign(this.run, rest);
    this.#smooth();
    return true;
  }

  /** The last loss, smoothed. */
  get smoothedLoss() {
    return this.smoothed.at(-1);
  }

  /** An exponential mean that looks back further the longer the run is. */
  #smooth() {
    const points = this.run.points;
    for (let index = this.smoothed.length; index < points.length; index++) {
      const before = index ? this.smoothed[index - 1] : points[0][1];
      const weight = Math.max(1 / SMOOTHING_STEPS, 1 / (1 + 0.15 * index));
      this.smoothed.push(before + (points[index][1] - before) * weight);
    }
  }
}

/** Samples as rows: `{index, prompt, control, drawn: [{step, image}]}`, in order, and all steps at which one was drawn. */
export function sampleRows(samples) {
  const rows = new Map();
  const steps = new Set();
  for (const { step, index, prompt, image, control } of samples) {
    if (!rows.has(index)) rows.set(index, { index, prompt, control, drawn: [] });
    rows.get(index).drawn.push({ step, image });
    steps.add(step);
  }
  const ordered = [...rows.values()].sort((a, b) => a.index - b.index);
  for (const row of ordered) row.drawn.sort((a, b) => a.step - b.step);
  return { rows: ordered, steps: [...steps].sort((a, b) => a - b) };
}
