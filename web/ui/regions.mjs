/** The regions that a graph asks for now, in the order and colours of the pictures. */

import { app } from "../../../scripts/app.js";
import { regionColour } from "../lib/colours.mjs";
import { backgroundDenoise, planned } from "../lib/curves.mjs";
import { chain, chainWith, origin, valueOf } from "../lib/graph.mjs";
import { contentPhrases, parseTargets } from "../lib/prompt.mjs";
import { settings } from "./settings.mjs";

const lastRuns = new WeakMap();

/** Keep what a node said of its last run: values that other nodes make are known only then. */
export const keepRun = (node, said) => lastRuns.set(node, said);

/** What a node said of its last run, or undefined. */
export const lastRun = (node) => lastRuns.get(node);

const value = (node, name) => valueOf(app.rootGraph, node, name) ?? lastRun(node)?.[name];

/**
 * Text and targets of a Cross-Attention Mask now.
 * text undefined: another node makes it and the graph has not run. replaced: the painted mask is the only region.
 */
export function wordsOf(mask) {
  const text = value(mask, "text");
  const typed = value(mask, "targets") ?? "";
  const painted = origin(app.rootGraph, mask, "mask") !== null;
  const maskMode = value(mask, "mask_mode") ?? "limit";
  const automatic = typed.trim() === "";
  const found = automatic && text !== undefined ? contentPhrases(text, settings) : [];
  const targets = automatic ? found.map((phrase) => ({ text: phrase, strength: null, problem: null })) : parseTargets(typed);
  return { text, targets, automatic, painted, maskMode, replaced: painted && maskMode === "replace" };
}

function layer({ map, mask }) {
  const { targets, painted, maskMode, replaced } = mask
    ? wordsOf(mask)
    : { targets: [], painted: false, maskMode: "limit", replaced: false };
  return {
    targets: replaced ? [] : targets,
    curve: value(map, "curve") ?? "quadratic",
    strength: Number(value(map, "strength") ?? 0.7),
    mode: value(map, "mode") ?? "asynchronous",
    painted,
    maskMode,
    regionDenoise: Number(value(map, "region_denoise") ?? 1),
    backgroundDenoise: Number(value(map, "background_denoise") ?? 1),
  };
}

/** Where the background of a chain starts, as a share of the run's denoise. */
export const backgroundOf = (map) => backgroundDenoise(chain(app.rootGraph, map).map(layer));

/** The regions of the chain that ends at an Asynchronous Timestep Map, each with its colour and its two nodes. */
export function regionsOf(map) {
  const layers = chain(app.rootGraph, map);
  return coloured(layers);
}

function coloured(layers) {
  return planned(layers.map(layer)).map((region, index) => ({
    ...region,
    ...layers[region.layer],
    colour: regionColour(index, settings.colours),
  }));
}

/** For the targets of a Cross-Attention Mask: their colours, and the strength of those that have none of their own. */
export function scheduleOf(mask, count) {
  const layers = chainWith(app.rootGraph, mask);
  const own = coloured(layers).filter((region) => region.mask === mask && region.target !== null);
  const map = layers.find((entry) => entry.mask === mask)?.map;
  const strength = map ? value(map, "strength") : undefined;
  const colours = Array.from(
    { length: count },
    (_, index) => own.find((region) => region.target === index)?.colour ?? regionColour(index, settings.colours),
  );
  return { colours, strength: typeof strength === "number" ? strength : null };
}
