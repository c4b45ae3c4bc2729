/** The frames of a run as the server sends them (asyndm_core/live.py), and as pixels. Pure functions, no DOM. */

const LEVEL = 128; // of asyndm_core/live.py: less is behind

/** Bytes of a base64 string. */
export function bytes(base64) {
  const text = atob(base64);
  return Uint8ClampedArray.from({ length: text.length }, (_, n) => text.charCodeAt(n));
}

/**
 * A frame with its maps apart, each as {width, height, data}.
 * @param {{step: number, planes: Object<string, number[]>, data: string}} packed as it came
 * @returns {{step, image, owner, progress, heat, behind}} image: RGB bytes, or undefined where the model has no preview;
 *   owner: index of the region + 1; progress: see asyndm_core/live.py; heat: one map for each word; behind: how far the
 *   pixels are behind, all together
 */
export function unpacked({ step, planes, data }) {
  const all = bytes(data);
  let from = 0;
  const take = (shape) => {
    const count = shape.reduce((a, b) => a * b, 1);
    from += count;
    return all.subarray(from - count, from);
  };
  const frame = { step, heat: [] };
  for (const [name, shape] of Object.entries(planes)) {
    const [height, width] = name === "heat" ? shape.slice(1) : shape;
    if (name !== "heat") frame[name] = { width, height, data: take(shape) };
    else frame.heat = Array.from({ length: shape[0] }, () => ({ width, height, data: take([height, width]) }));
  }
  frame.behind = frame.progress.data.reduce((sum, value) => sum + Math.max(LEVEL - value, 0), 0);
  return frame;
}

/** Whether the last step of a run, or of a sampler's part of it, is among its frames. */
export const isDone = ({ frames, steps, last = steps - 1 }) => frames.at(-1)?.step === last;

/** The index of the frame to rest on: where most is behind, or the last where nothing ever is. */
export function restingFrame(frames) {
  const most = Math.max(...frames.map(({ behind }) => behind));
  return most > 0 ? frames.findIndex(({ behind }) => behind === most) : frames.length - 1;
}

/**
 * The runs that are remembered, by workflow tab and node, with a message taken in. A new run takes the place of the old.
 * @param {Map<string, object>} runs the longest silent first
 * @param {object} message as it came: about the run, and its new frames; with the tab that it was queued in, if known
 * @param {number} limit how many runs are remembered
 */
export function withMessage(runs, { frames, ...about }, limit = 8) {
  const key = `${about.tab ?? about.workflow} ${about.node}`;
  const before = runs.get(key);
  const kept = before?.run === about.run ? before.frames : [];
  const others = [...runs].filter(([other]) => other !== key).slice(1 - limit);
  return new Map([...others, [key, { ...about, frames: [...kept, ...frames.map(unpacked)] }]]);
}

/** A map of RGB bytes as RGBA pixels, opaque. */
export function imagePixels({ data }) {
  const out = new Uint8ClampedArray((data.length / 3) * 4).fill(255);
  for (let from = 0, to = 0; from < data.length; from += 3, to += 4) out.set(data.subarray(from, from + 3), to);
  return out;
}

/** Regions as RGBA pixels, each in its owner's colour. */
export function ownerPixels({ data }, colours, opacity) {
  const out = new Uint8ClampedArray(data.length * 4);
  data.forEach((value, n) => {
    if (value > 0 && colours[value - 1]) out.set([...colours[value - 1], 255 * opacity], n * 4);
  });
  return out;
}

/** A heat map as RGBA pixels: the colour, as opaque as it is hot. */
export function heatPixels({ data }, colour, opacity) {
  const out = new Uint8ClampedArray(data.length * 4);
  data.forEach((value, n) => out.set([...colour, value * opacity], n * 4));
  return out;
}

/** A progress map as RGBA pixels, in the colours of a palette of 256. */
export function progressPixels({ data }, palette) {
  const out = new Uint8ClampedArray(data.length * 4);
  data.forEach((value, n) => out.set([...palette[value], 255], n * 4));
  return out;
}

/** The edges between regions: [index of the region, x0, y0, x1, y1] in pixels of the map. The border is no edge. */
export function edges({ width, height, data }) {
  const found = [];
  const at = (x, y) => data[y * width + x];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const here = at(x, y);
      if (x + 1 < width && at(x + 1, y) !== here) found.push([(here || at(x + 1, y)) - 1, x + 1, y, x + 1, y + 1]);
      if (y + 1 < height && at(x, y + 1) !== here) found.push([(here || at(x, y + 1)) - 1, x, y + 1, x + 1, y + 1]);
    }
  }
  return found;
}
