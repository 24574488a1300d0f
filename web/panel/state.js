// @ts-check

/**
 * @typedef {import("../lib/server.js").Snapshot} Snapshot
 * @typedef {import("../lib/server.js").Message} Message
 * @typedef {import("../lib/server.js").Sample} Sample
 * @typedef {import("../lib/server.js").ListName} ListName
 */

/** @type {readonly ListName[]} */
const LISTS = ["points", "samples", "checkpoints", "warnings", "validation"];

/** Measurements in a row above the lowest held-out loss, and its ratio to it, from which it has risen: as the trainer says it. */
const [PATIENCE, RISEN] = [4, 1.01];

/** Window of the exponential mean in steps. A judgement: long enough to show a trend in the loss of single batches. */
const SMOOTHING_STEPS = 50;

/** @typedef {Snapshot & {validation: import("../lib/server.js").Point[]}} Run */

/** State of one run, built from a snapshot and the messages that follow it. */
export class RunState {
  /** @type {Run | null} */
  run = null;
  /** Smoothed losses, one for each point. @type {number[]} */
  smoothed = [];

  /**
   * Replaces the state by a snapshot's.
   *
   * @param {Snapshot} snapshot
   * @returns {Run} The state's own copy.
   */
  reset(snapshot) {
    const run = {
      ...snapshot,
      points: [...snapshot.points],
      samples: [...snapshot.samples],
      checkpoints: [...snapshot.checkpoints],
      warnings: [...snapshot.warnings],
      validation: [...(snapshot.validation ?? [])],
    };
    this.run = run;
    this.smoothed = [];
    this.#smooth();
    return run;
  }

  /**
   * Merges a message. Returns false, and changes nothing, when an earlier message was missed and a snapshot is needed.
   *
   * @param {Message} message
   */
  merge(message) {
    const { from: starts, points, samples, checkpoints, warnings, validation = [], ...rest } = message;
    const added = { points, samples, checkpoints, warnings, validation };
    const from = { validation: 0, ...starts };
    let run = this.run;
    if (run === null || run.id !== message.id) {
      if (LISTS.some((name) => from[name] > 0)) return false;
      run = this.reset({ ...rest, points: [], samples: [], checkpoints: [], warnings: [], validation: [] });
    }
    for (const name of LISTS) if (from[name] > run[name].length) return false;
    for (const name of LISTS) {
      /** @type {unknown[]} */
      const list = run[name];
      for (const item of added[name].slice(list.length - from[name])) list.push(item);
    }
    Object.assign(run, rest);
    this.#smooth();
    return true;
  }

  /** Last smoothed loss; undefined before the first step. */
  get smoothedLoss() {
    return this.smoothed.at(-1);
  }

  /** Extends the exponential mean, whose window grows from one step to SMOOTHING_STEPS as the run goes on. */
  #smooth() {
    const points = this.run?.points ?? [];
    for (let index = this.smoothed.length; index < points.length; index++) {
      const previous = this.smoothed[index - 1] ?? points[0][1];
      const weight = Math.max(1 / SMOOTHING_STEPS, 1 / (1 + 0.15 * index));
      this.smoothed.push(previous + (points[index][1] - previous) * weight);
    }
  }
}

/**
 * Fraction of the progress bar, 0 to 1: steps once there are any, before that the current phase.
 *
 * @param {Snapshot} run
 */
export function progressFraction(run) {
  if (run.state === "finished") return 1;
  if (run.steps && (run.step || run.phase === "training" || run.state !== "running")) return run.step / run.steps;
  return run.total ? run.done / run.total : 0;
}

/**
 * Held-out losses at their lowest and at the last measurement; null for a run without any. `risen` is true when the
 * loss has been above its lowest for long.
 *
 * @param {Pick<Snapshot, "validation" | "best_step">} run
 */
export function heldOutLoss({ validation = [], best_step }) {
  const last = validation.at(-1);
  const best = validation.findLast(([step]) => step === best_step) ?? last;
  if (!last || !best) return null;
  const later = validation.filter(([step]) => step > best[0]).length;
  return { last: last[1], best: best[1], step: best[0], risen: later >= PATIENCE && last[1] >= RISEN * best[1] };
}

/**
 * True for a run folder's name that belongs to a node's run name: that name, or that name with a number behind it.
 *
 * @param {string} folder
 * @param {string} runName
 */
export function hasRunName(folder, runName) {
  return folder === runName || (folder.startsWith(`${runName}-`) && /^\d+$/.test(folder.slice(runName.length + 1)));
}

/**
 * @typedef {Pick<Sample, "step" | "image">} GeneratedSample
 * @typedef {{index: number, prompt: string, controls: Sample["control"][], generated: GeneratedSample[]}} SampleRow
 */

/**
 * Groups samples by prompt, in order of prompt and step, and collects the steps at which any was generated.
 *
 * @param {Sample[]} samples
 * @returns {{rows: SampleRow[], steps: number[]}}
 */
export function sampleRows(samples) {
  /** @type {Map<number, SampleRow>} */
  const rows = new Map();
  for (const { step, index, prompt, image, control, controls = [control] } of samples) {
    const row = rows.get(index) ?? { index, prompt, controls, generated: [] };
    row.generated.push({ step, image });
    rows.set(index, row);
  }
  const ordered = [...rows.values()].sort((a, b) => a.index - b.index);
  for (const row of ordered) row.generated.sort((a, b) => a.step - b.step);
  const steps = [...new Set(samples.map(({ step }) => step))].sort((a, b) => a - b);
  return { rows: ordered, steps };
}

/**
 * Finds the newest sample of a row at or before a step; the first one where all are later.
 *
 * @param {SampleRow} row
 * @param {number} step
 */
export function sampleAt(row, step) {
  return row.generated.findLast((sample) => sample.step <= step) ?? row.generated[0];
}
