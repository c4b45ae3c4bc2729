/**
 * The schedules of asyndm_core/curves.py and clock.py, for one pixel: a state counts down to the end of the track.
 * Pure functions. tests/web compares them with the Python side to 1e-6.
 */

const linear = (state, rest, strength, track) => state - (state - track.end) / rest;

/** The curves by their names in the widget: (state, rest, strength, track) -> the next state. */
export const CURVES = {
  quadratic: (state, rest, strength, track) =>
    linear(state, rest, strength, track) + strength * ((track.unit / track.intervals) * (rest - 1)),
  "piecewise linear": (state, rest, strength, track) =>
    Math.min(state - (1 - strength) * track.unit, track.end + (1 + strength) * (track.unit * (rest - 1))),
  exponential: (state, rest, strength, track) => {
    const straight = (1 - strength) * track.unit;
    const bend = Math.expm1(1 / track.intervals) / Math.expm1(rest / track.intervals);
    return state - straight - (state - track.end - straight * rest) * bend;
  },
  linear,
};

/**
 * The progress of a pixel that follows one curve all the time, at every step: N + 1 numbers from 0 to N.
 * @param {number} steps N >= 1
 * @param {string} curve a name of CURVES; strength in [0, 1]
 * @param {boolean} paper as the paper preset counts: regions lag from one interval before the first step
 * @param {number} denoise in [0, 1]: where the pixel starts; 0 is kept as it is
 */
export function progressLine(steps, curve, strength, paper = false, denoise = 1) {
  if (denoise === 0) return Array(steps + 1).fill(steps);
  const anchor = paper ? -1 : 0;
  const track = { end: 0, unit: 1, intervals: paper ? steps : Math.max(steps - 1, 1) };
  let state = denoise === 1 ? steps - 1 - anchor : Math.max(steps * denoise - 1, 0);
  const line = [];
  for (let step = anchor; step < steps; step++) {
    if (step >= 0) line.push(steps - 1 - state);
    const rest = steps - 1 - step;
    const moved = rest <= 1 ? track.end : CURVES[curve](state, rest, strength, track);
    state = Math.min(Math.max(moved, track.end), state);
  }
  return [...line, steps];
}

/** What is left of the schedule, in [0, 1], at a share of the run in [0, 1]; straight between the steps. */
export function leftAt(line, share) {
  const steps = line.length - 1;
  const position = Math.min(Math.max(share, 0), 1) * steps;
  const low = Math.min(Math.floor(position), steps - 1);
  return 1 - (line[low] + (line[low + 1] - line[low]) * (position - low)) / steps;
}

/** The greatest denoise of a chain's layers: where the run as a whole starts. */
export const wholeDenoise = (layers) => Math.max(...layers.flatMap((layer) => [layer.regionDenoise, layer.backgroundDenoise]));

/** A denoise as a share of the greatest of a chain's layers; 1 where the run changes nothing at all. */
function shareOf(denoise, layers) {
  const whole = wholeDenoise(layers);
  return whole > 0 ? denoise / whole : 1;
}

/** Where the background starts, as a share of the run's denoise: 1 unless a layer is asynchronous and says otherwise. */
export function backgroundDenoise(layers) {
  const layer = layers.find(({ mode }) => mode === "asynchronous");
  return layer ? shareOf(layer.backgroundDenoise, layers) : 1;
}

/**
 * The regions of a chain of timestep maps, first listed first, as asyndm_core/regions.py makes its plan.
 * @param {{targets: {text: string, strength: number | null}[], curve: string, strength: number, mode: string,
 *   painted: boolean, maskMode: string, regionDenoise: number, backgroundDenoise: number}[]} layers the earliest first
 * @returns {{name: string, curve: string, strength: number, denoise: number, layer: number, target: number | null}[]}
 *   denoise: share of the run's; target: which of its layer's targets it is (null: the painted mask, or all pixels)
 */
export function planned(layers) {
  return layers.flatMap(({ targets, curve, strength, mode, painted, maskMode, regionDenoise }, layer) => {
    const denoise = mode === "concave" ? 1 : shareOf(regionDenoise, layers);
    const of = (name, k, target = null) => ({ name, curve, strength: k, denoise, layer, target });
    if (mode === "synchronous") return [];
    const words = painted && maskMode === "replace" ? [] : targets;
    const own = words.map((target, index) => of(target.text, target.strength ?? strength, index));
    if (mode === "concave") return [of("all pixels", own.length ? Math.max(...own.map((r) => r.strength)) : strength)];
    const mask = painted && maskMode !== "limit" ? [of("painted", strength)] : [];
    return [...own, ...mask];
  });
}

/**
 * What a chain does over its steps, as asyndm_core/run.py has it: lineOf (a region of planned -> its line), the background's
 * line, and the line of pixels that an inpainting mask keeps, null where that is the background's.
 */
export function linesOf(steps, layers) {
  const { knownPixels, lead, preset } = layers[0];
  const known = layers.some(({ mode }) => mode !== "synchronous") ? knownPixels : "noised";
  const paper = preset === "paper";
  const [first, ...others] = planned(layers);
  const uniform = first?.name === "all pixels" && !others.length;
  const even = uniform ? progressLine(steps, first.curve, first.strength, paper) : progressLine(steps, "linear", 0);
  const ahead = known === "ahead" && lead > 0 ? even.map((q) => Math.min(q + lead * steps, steps)) : null;
  const line = (curve, strength, preceded, denoise) => {
    if (!ahead) return progressLine(steps, curve, strength, preceded, denoise);
    return progressLine(steps, curve, strength, preceded).map((q, step) => q * denoise + ahead[step] * (1 - denoise));
  };
  return {
    lineOf: ({ curve, strength, denoise }) => line(curve, strength, paper, denoise),
    background: line("linear", 0, false, backgroundDenoise(layers)),
    kept: known === "clean" ? Array(steps + 1).fill(steps) : ahead,
  };
}
