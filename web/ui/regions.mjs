/** The regions that a graph asks for now, in the order and colours of the pictures. */

import { app } from "../../../scripts/app.js";
import { regionColour } from "../lib/colours.mjs";
import { planned } from "../lib/curves.mjs";
import { chain, chainWith, origin, valueOf } from "../lib/graph.mjs";
import { contentPhrases, lostTargets, parseTargets } from "../lib/prompt.mjs";
import { settings } from "./settings.mjs";

const lastRuns = new WeakMap();

/** Keep what a node said of its last run: values that other nodes make are known only then. */
export const keepRun = (node, said) => lastRuns.set(node, said);

/** What a node said of its last run, or undefined. */
export const lastRun = (node) => lastRuns.get(node);

const value = (node, name) => valueOf(app.rootGraph, node, name) ?? lastRun(node)?.[name];

/**
 * Text and targets of a Cross-Attention Mask now.
 * text undefined: another node makes it and the graph has not run. missing: the targets that it lacks. replaced: the painted mask is the only region.
 */
export function wordsOf(mask) {
  const text = value(mask, "text");
  const typed = value(mask, "targets") ?? "";
  const painted = origin(app.rootGraph, mask, "mask") !== null;
  const maskMode = value(mask, "mask_mode") ?? "limit";
  const automatic = typed.trim() === "";
  const found = automatic && text !== undefined ? contentPhrases(text, settings.words) : [];
  const targets = automatic ? found.map((phrase) => ({ text: phrase, strength: null, problem: null })) : parseTargets(typed);
  const missing = automatic || text === undefined ? [] : lostTargets(text, targets);
  return { text, targets, missing, automatic, painted, maskMode, replaced: painted && maskMode === "replace" };
}

/** Whether a Cross-Attention Mask goes on without the targets that the prompt does not contain, instead of an error. */
export const skipsLost = (mask) => value(mask, "lost_targets") === "skip";

function layer({ map, mask }) {
  const nothing = { targets: [], missing: [], painted: false, maskMode: "limit", replaced: false };
  const { targets, missing, painted, maskMode, replaced } = mask ? wordsOf(mask) : nothing;
  const indexed = targets.map((target, index) => ({ ...target, index }));
  const found = replaced ? [] : indexed.filter(({ problem, index }) => problem === null && !missing.includes(targets[index]));
  return {
    map,
    mask,
    targets: found,
    followed: found.length > 0,
    update: mask ? value(mask, "update") : undefined,
    curve: value(map, "curve") ?? "quadratic",
    strength: Number(value(map, "strength") ?? 0.7),
    mode: value(map, "mode") ?? "asynchronous",
    preset: value(map, "preset") ?? "default",
    knownPixels: value(map, "known_pixels") ?? "noised",
    lead: Number(value(map, "lead") ?? 0),
    painted,
    maskMode,
    regionDenoise: Number(value(map, "region_denoise") ?? 1),
    backgroundDenoise: Number(value(map, "background_denoise") ?? 1),
  };
}

/** The chain of timestep maps that ends at an Asynchronous Timestep Map, as curves.planned reads it. */
export const layersOf = (map) => chain(app.rootGraph, map).map(layer);

/** The regions of such a chain, each with its colour, its two nodes, and the index of its target in the widget. */
export function colouredRegions(layers) {
  return planned(layers).map((region, index) => ({
    ...region,
    map: layers[region.layer].map,
    mask: layers[region.layer].mask,
    target: region.target === null ? null : layers[region.layer].targets[region.target].index,
    colour: regionColour(index, settings.colours),
  }));
}

/** For the targets of a Cross-Attention Mask: their colours, and the strength of those that have none of their own. */
export function scheduleOf(mask, count) {
  const layers = chainWith(app.rootGraph, mask);
  const own = colouredRegions(layers.map(layer)).filter((region) => region.mask === mask && region.target !== null);
  const map = layers.find((entry) => entry.mask === mask)?.map;
  const strength = map ? value(map, "strength") : undefined;
  const colours = Array.from(
    { length: count },
    (_, index) => own.find((region) => region.target === index)?.colour ?? regionColour(index, settings.colours),
  );
  return { colours, strength: typeof strength === "number" ? strength : null };
}
