/** The schedule of every region against the background's line, live; dragging a line or its dot sets its strength. */

import { app } from "../../../scripts/app.js";
import { css } from "../lib/colours.mjs";
import { leftAt, linesOf, wholeDenoise } from "../lib/curves.mjs";
import { asksForMore, mapFault } from "../lib/faults.mjs";
import { isFree, origin } from "../lib/graph.mjs";
import { formatTargets, round, withStrength } from "../lib/prompt.mjs";
import { t } from "./locale.mjs";
import { saying } from "./notices.mjs";
import { colouredRegions, layersOf, wordsOf } from "./regions.mjs";
import { addView, beginWith, element, refreshSoon, remember, setWidget } from "./view.mjs";

const STEPS = 20;
const SHARPNESS = 2;
const LEAST = 190; // pixels of height
const NEW = 40; // more than that, for a new node
const DRAG = 120; // pixels from strength 0 to 1: more than the lines are apart, so that every hundredth can be set
const REACH = 12; // pixels from a line that still mean it
const DOT = 4.5;
const DASH = 7;
const MARGIN = { left: 18, right: 8, top: 8, bottom: 16 };

/** Add the plot to an Asynchronous Timestep Map. */
export function addSchedule(node) {
  const body = element("div", "asyndm-schedule");
  const legend = element("div", "asyndm-legend");
  const canvas = element("canvas", "asyndm-plot", "", t("plot"));
  const note = element("div", "asyndm-note");
  body.append(legend, canvas, note);
  let shown = "";
  let written = "";
  let now = null;
  let hovered = -1;

  function refresh() {
    const layers = layersOf(node);
    const { lineOf, background, kept } = linesOf(STEPS, layers);
    const regions = colouredRegions(layers).map((region) => ({
      ...region,
      name: region.target === null ? t(region.name === "painted" ? "painted" : "allPixels") : region.name,
      line: lineOf(region),
      place: region.curve === "linear" ? null : strengthWidget(region),
    }));
    const size = [Math.round(canvas.clientWidth), Math.round(canvas.clientHeight)];
    const { color: ink, backgroundColor: paperColour } = getComputedStyle(body);
    now = {
      layers,
      regions,
      background,
      kept,
      whole: wholeDenoise(layers) || 1,
      size,
      ink,
      paperColour,
      plot: plotOf(size, wholeDenoise(layers) || 1, regions),
    };
    if (hovered >= regions.length) hovered = -1;
    const entries = regions.map(({ name, line, strength, colour, place }) => [name, line, strength, colour, place?.name]);
    const said = missing(layers.at(-1), regions);
    const texts = JSON.stringify([entries, said, layers.map(aboutLayer), now.kept, isShared(layers)]);
    const state = JSON.stringify([texts, size, ink, paperColour, hovered]);
    if (state === shown) return;
    shown = state;
    canvas.dataset.lines = JSON.stringify(regions.map(({ name, line }) => ({ name, line })));
    canvas.dataset.dots = JSON.stringify(now.plot.dots.map((dot) => dot && [dot.x / size[0], dot.y / size[1]]));
    if (texts !== written) {
      written = texts;
      legend.replaceChildren(...legendEntries());
      note.replaceChildren(...notes(said));
    }
    [...legend.children].forEach((entry, index) => entry.classList.toggle("asyndm-lit", index === hovered));
    if (size[0] && size[1]) paint(canvas, now, hovered);
  }

  /** What there is to connect or to choose before anything can be plotted; "" where nothing is missing. */
  function missing({ mask, map, mode }, regions) {
    if (regions.length || mode === "synchronous") return "";
    if (!mask) return t(origin(app.rootGraph, map, "regions") ? "regionsElsewhere" : "connectRegions");
    return t(wordsOf(mask).text === undefined ? "wordsLater" : "noRegions");
  }

  function notes(said) {
    const { layers, kept } = now;
    const fault = mapFault(layers);
    if (fault) return [saying("trouble", t(fault.key, fault.values))];
    if (said) return [said];
    const { mode, regionDenoise, backgroundDenoise: rest } = layers.at(-1);
    const texts = [];
    if (mode !== "asynchronous") texts.push(t(mode));
    else if (regionDenoise < 1 || rest < 1) texts.push(t("editing"));
    else if (!asksForMore(layers)) texts.push(t("level"));
    if (kept) texts.push(t(layers[0].knownPixels));
    if (isShared(layers)) texts.push(t("shared"));
    return texts.map((text) => element("div", "", text));
  }

  function legendEntries() {
    const { regions, background, kept, layers } = now;
    const level = background[0] === 0 && regions.every(({ denoise }) => denoise === 1);
    const made = regions.map((region, index) => {
      const parts = [];
      if (!level) parts.push(t("percent", { share: percent(region.denoise * now.whole) }));
      if (level || region.strength > 0) parts.push(region.strength.toFixed(2));
      const entry = legendEntry(region.name, css(region.colour), parts.join(" · "));
      entry.addEventListener("pointerenter", () => hover(index));
      entry.addEventListener("pointerleave", () => hover(-1));
      return entry;
    });
    if (!level) {
      const rest = layers.find(({ mode }) => mode === "asynchronous").backgroundDenoise;
      made.push(legendEntry(t("rest"), "currentColor", t("percent", { share: percent(rest) })));
    }
    if (kept) made.push(legendEntry(t("keptPixels"), "", ""));
    return made;
  }

  function hover(index) {
    if (index === hovered) return;
    hovered = index;
    canvas.style.cursor = now.regions[index]?.place ? "ns-resize" : "default";
    refresh();
  }

  /** Where the pointer is, in pixels of the canvas, whatever the zoom. */
  function at({ clientX, clientY }) {
    const box = canvas.getBoundingClientRect();
    const scale = canvas.clientWidth / box.width;
    return [(clientX - box.left) * scale, (clientY - box.top) * scale];
  }

  canvas.addEventListener("pointermove", (event) => {
    if (event.buttons === 0) hover(nearest(now, ...at(event)));
  });
  canvas.addEventListener("pointerleave", (event) => event.buttons === 0 && hover(-1));
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    const [x, from] = at(event);
    const index = nearest(now, x, from);
    if (!now.regions[index]?.place) return;
    hover(index);
    canvas.setPointerCapture(event.pointerId);
    const before = now.regions[index].strength;
    const move = (moved) => {
      const region = now.regions[index];
      if (region?.place) setStrength(region, round(before + (from - at(moved)[1]) / DRAG));
      refresh();
    };
    canvas.addEventListener("pointermove", move);
    canvas.addEventListener(
      "lostpointercapture",
      () => {
        canvas.removeEventListener("pointermove", move);
        remember();
        refreshSoon();
      },
      { once: true },
    );
  });

  new ResizeObserver(refreshSoon).observe(canvas);
  addView(node, "asyndm_schedule", body, refresh, LEAST);
  beginWith(node, 0, node.computeSize()[1] + NEW);
}

const percent = (denoise) => Math.round(100 * denoise);

/** Whether the maps are told the table of a whole run, so that several samplers share its clock. */
const isShared = (layers) => layers.some(({ map }) => origin(app.rootGraph, map, "sigmas"));

/** What the notes and the legend depend on. */
const aboutLayer = ({ mode, preset, knownPixels, lead, update, regionDenoise, backgroundDenoise: rest, followed }) => [
  mode, preset, knownPixels, lead, update, regionDenoise, rest, followed,
]; // prettier-ignore

/** Where the strength of a region is written: {node, name}, or null if another node gives it. */
function strengthWidget({ map, mask, target }) {
  const own = target !== null && mask ? wordsOf(mask).targets[target]?.strength : null;
  const place = own == null ? { node: map, name: "strength" } : { node: mask, name: "targets" };
  return isFree(app.rootGraph, place.node, place.name) ? place : null;
}

function setStrength({ place, target }, strength) {
  const value = place.name === "strength" ? strength : formatTargets(withStrength(wordsOf(place.node).targets, target, strength));
  setWidget(place.node, place.name, value);
}

/**
 * The plot's coordinates in pixels, and the dot of every region that can be dragged (null for the others). Noise is drawn
 * as a share of a whole run's: an edit starts lower. The dots lie side by side, so that regions on one line have their own.
 */
function plotOf([width, height], whole, regions) {
  const x = (share) => MARGIN.left + share * (width - MARGIN.left - MARGIN.right);
  const y = (left) => MARGIN.top + (1 - left * whole) * (height - MARGIN.top - MARGIN.bottom);
  const apart = Math.min(0.12, 0.6 / Math.max(regions.length, 1));
  const dots = regions.map(({ line, place }, index) => {
    const share = 0.5 + (index - (regions.length - 1) / 2) * apart;
    return place ? { x: x(share), y: y(leftAt(line, share)) } : null;
  });
  return { x, y, dots };
}

/** The index of the region that a point of the plot means: the nearest dot in reach, else the nearest line; or -1. */
function nearest({ regions, plot, size }, x, y) {
  const share = (x - MARGIN.left) / (size[0] - MARGIN.left - MARGIN.right);
  const byDot = plot.dots.map((dot) => (dot ? Math.hypot(dot.x - x, dot.y - y) : Infinity));
  const byLine = regions.map(({ line }) => Math.abs(plot.y(leftAt(line, share)) - y));
  for (const distances of [byDot, byLine]) {
    const least = Math.min(...distances);
    if (least <= REACH) return distances.indexOf(least);
  }
  return -1;
}

function legendEntry(name, colour, value) {
  const entry = element("span", "asyndm-entry");
  const swatch = element("span", colour ? "asyndm-swatch" : "asyndm-swatch asyndm-hollow");
  entry.style.setProperty("--colour", colour || "currentColor");
  entry.append(swatch, element("span", "asyndm-name", name, name), element("span", "asyndm-value", value));
  return entry;
}

function paint(canvas, { size, regions, background, kept, ink, paperColour, plot }, hovered) {
  const [width, height] = size;
  canvas.width = width * SHARPNESS;
  canvas.height = height * SHARPNESS;
  const draw = canvas.getContext("2d");
  draw.scale(SHARPNESS, SHARPNESS);
  const { x, y, dots } = plot;
  const [low, high] = [height - MARGIN.bottom, MARGIN.top];

  draw.strokeStyle = ink;
  draw.globalAlpha = 0.15;
  draw.lineWidth = 1;
  draw.beginPath();
  for (let tick = 0; tick <= 4; tick++) {
    draw.moveTo(x(tick / 4), low);
    draw.lineTo(x(tick / 4), high);
    draw.moveTo(x(0), low + ((high - low) * tick) / 4);
    draw.lineTo(x(1), low + ((high - low) * tick) / 4);
  }
  draw.stroke();

  draw.globalAlpha = 0.75;
  draw.fillStyle = ink;
  draw.font = "10px sans-serif";
  draw.textAlign = "center";
  draw.fillText(t("steps"), x(0.5), height - 4);
  draw.save();
  draw.translate(11, (low + high) / 2);
  draw.rotate(-Math.PI / 2);
  draw.fillText(t("noiseLeft"), 0, 0);
  draw.restore();

  const trace = (line) => line.forEach((q, step) => draw.lineTo(x(step / STEPS), y(1 - q / STEPS)));
  const stroke = (line, colour, wide) => {
    draw.strokeStyle = colour;
    draw.lineWidth = wide;
    draw.beginPath();
    trace(line);
    draw.stroke();
  };
  const faded = (index) => (hovered >= 0 && index !== hovered ? 0.3 : 1);
  regions.forEach(({ line, colour }, index) => {
    draw.globalAlpha = faded(index);
    draw.fillStyle = css(colour, index === hovered ? 0.25 : 0.12);
    draw.beginPath();
    trace(line);
    for (let step = STEPS; step >= 0; step--) draw.lineTo(x(step / STEPS), y(1 - background[step] / STEPS));
    draw.fill();
  });
  draw.lineJoin = "round";
  draw.globalAlpha = 0.7;
  stroke(background, ink, 1.5);
  if (kept) {
    draw.setLineDash([3, 3]);
    stroke(kept, ink, 1.5);
    draw.setLineDash([]);
  }
  regions.forEach(({ line, colour }, index) => {
    // Regions on one line take turns along it, so that each of them is seen.
    const same = regions.flatMap((other, n) => (other.line.every((q, step) => q === line[step]) ? [n] : []));
    if (same.length > 1 && index !== hovered) {
      draw.setLineDash([DASH, DASH * (same.length - 1)]);
      draw.lineDashOffset = -DASH * same.indexOf(index);
    }
    draw.globalAlpha = faded(index);
    stroke(line, css(colour), index === hovered ? 3.4 : 2.2);
    draw.setLineDash([]);
  });
  dots.forEach((dot, index) => {
    if (!dot) return;
    draw.globalAlpha = faded(index);
    draw.fillStyle = css(regions[index].colour);
    draw.strokeStyle = paperColour;
    draw.lineWidth = 1.5;
    draw.beginPath();
    draw.arc(dot.x, dot.y, index === hovered ? DOT + 1.5 : DOT, 0, 2 * Math.PI);
    draw.fill();
    draw.stroke();
  });
  draw.globalAlpha = 1;
  if (hovered >= 0) label(draw, regions[hovered], dots[hovered] ?? { x: x(0.5), y: y(leftAt(regions[hovered].line, 0.5)) }, size, { ink, paperColour });
}

/** The name and strength of a region, on a plate above its dot. */
function label(draw, { name, strength }, dot, [width], { ink, paperColour }) {
  const text = `${name.length > 24 ? `${name.slice(0, 23)}…` : name}  ${strength.toFixed(2)}`;
  draw.font = "11px sans-serif";
  draw.textAlign = "left";
  const wide = draw.measureText(text).width + 12;
  const left = Math.min(Math.max(dot.x - wide / 2, MARGIN.left), width - wide - 2);
  const top = dot.y > 40 ? dot.y - 30 : dot.y + 12;
  draw.fillStyle = paperColour;
  draw.strokeStyle = ink;
  draw.lineWidth = 1;
  draw.beginPath();
  draw.roundRect(left, top, wide, 18, 5);
  draw.fill();
  draw.globalAlpha = 0.4;
  draw.stroke();
  draw.globalAlpha = 1;
  draw.fillStyle = ink;
  draw.fillText(text, left + 6, top + 13);
}
