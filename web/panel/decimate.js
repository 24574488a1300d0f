/**
 * A curve of any length as at most `columns` vertical strokes: `[{x, least, most, begin, last}]`, where x is a column and
 * the values are those of the points that fall into it. `points` are [step, value] in order of step; `values`, where
 * given, take the place of theirs.
 */
export function decimate(points, first, last, columns, values = null) {
  const strokes = [];
  const scale = (columns - 1) / Math.max(1, last - first);
  let stroke = null;
  for (let index = 0; index < points.length; index++) {
    const point = points[index];
    const value = values === null ? point[1] : values[index];
    const x = Math.round((point[0] - first) * scale);
    if (stroke === null || stroke.x !== x) {
      stroke = { x, least: value, most: value, begin: value, last: value };
      strokes.push(stroke);
    } else {
      if (value < stroke.least) stroke.least = value;
      if (value > stroke.most) stroke.most = value;
      stroke.last = value;
    }
  }
  return strokes;
}

/** The index of the point whose step is nearest. `points` is not empty. */
export function nearest(points, step) {
  let [low, high] = [0, points.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < step) low = middle + 1;
    else high = middle;
  }
  return low > 0 && step - points[low - 1][0] < points[low][0] - step ? low - 1 : low;
}

/** Three to six round values between two bounds; powers and halves of ten when `log`. */
export function ticks(least, most, log) {
  if (log) {
    const found = [];
    for (let power = Math.floor(Math.log10(least)); power <= Math.log10(most); power++) {
      for (const factor of [1, 2, 5]) {
        const value = factor * 10 ** power;
        if (value >= least && value <= most) found.push(value);
      }
    }
    return found.length <= 6 ? found : found.filter((value) => /^1/.test(value.toExponential()));
  }
  const rough = (most - least) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const found = [];
  for (let index = Math.ceil(least / step); index * step <= most; index++) found.push(index * step);
  return found;
}
