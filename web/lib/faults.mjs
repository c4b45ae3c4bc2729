/** What would stop a run, as far as the graph tells before it. Pure functions, no DOM. */

import { planned, wholeDenoise } from "./curves.mjs";

/**
 * What asyndm_core/regions.py would refuse in a chain of timestep maps: {key, values} of lib/strings.mjs, or null.
 * @param {object[]} layers as of curves.planned, with preset, knownPixels, lead, update and followed (words are looked for)
 */
export function mapFault(layers) {
  const asynchronous = layers.filter(({ mode }) => mode === "asynchronous");
  const differs = (of, name) => new Set(of.map((layer) => layer[name])).size > 1;
  const what = differs(layers, "preset") ? "preset"
    : differs(layers, "knownPixels") ? "known_pixels"
    : differs(layers.filter(({ knownPixels }) => knownPixels === "ahead"), "lead") ? "lead"
    : differs(layers.filter(({ followed }) => followed), "update") ? "update"
    : differs(asynchronous, "backgroundDenoise") ? "background_denoise"
    : null; // prettier-ignore
  if (what) return { key: "disagree", values: { what } };
  if (layers[0]?.preset !== "paper") return null;
  const { knownPixels, lead } = layers[0];
  const noised = knownPixels === "noised" || (knownPixels === "ahead" && lead === 0);
  if (!noised && layers.some(({ mode }) => mode !== "synchronous")) return { key: "paperClean" };
  const regions = planned(layers);
  const whole = wholeDenoise(layers);
  const level = regions.every(({ denoise }) => denoise === 1) && asynchronous.every((l) => l.backgroundDenoise === whole);
  return level ? null : { key: "paperLevel" };
}

/** Whether any region of a chain can fall behind, or starts at another noise level: the stock sampler is not enough. */
export function asksForMore(layers) {
  const regions = planned(layers);
  const lags = regions.some(({ strength, curve }) => strength > 0 && curve !== "linear");
  return lags || layers.some((layer) => layer.mode === "asynchronous" && layer.regionDenoise !== layer.backgroundDenoise);
}
