/** The schedule of every region against the background's line, live; dragging a line sets its strength. */

import { app } from "../../../scripts/app.js";
import { css } from "../lib/colours.mjs";
import { leftAt, progressLine, strengthThrough } from "../lib/curves.mjs";
import { isFree, valueOf } from "../lib/graph.mjs";
import { formatTargets, withStrength } from "../lib/prompt.mjs";
import { backgroundOf, regionsOf, wordsOf } from "./regions.mjs";
import { addView, element, refreshSoon, remember, setWidget } from "./view.mjs";

const STEPS = 20;
const SHARPNESS = 2;
const MARGIN = { left: 18, right: 6, top: 6, bottom: 16 };

/** Add the plot to an Asynchronous Timestep Map. */
export function addSchedule(node) {
  const body = element("div", "asyndm-schedule");
  const legend = element("div", "asyndm-legend");
  const canvas = element("canvas", "asyndm-plot", "", "Noise that is left, over the steps. Drag a line to set its strength.");
  body.append(legend, canvas);
  let shown = "";
  let regions = [];

  function refresh() {
    const paper = valueOf(app.rootGraph, node, "preset") === "paper";
    regions = regionsOf(node).map((region) => ({
      ...region,
      line: progressLine(STEPS, region.curve, region.strength, paper, region.denoise),
      paper,
    }));
    const width = Math.round(canvas.clientWidth);
    const height = Math.round(canvas.clientHeight);
    const ink = getComputedStyle(body).color;
    const entries = regions.map(({ name, curve, strength, denoise, colour }) => [name, curve, strength, denoise, colour]);
    const background = progressLine(STEPS, "linear", 0, false, backgroundOf(node));
    const state = JSON.stringify([entries, background[0], width, height, ink, paper]);
    if (state === shown) return;
    shown = state;
    canvas.dataset.lines = JSON.stringify(regions.map(({ name, line }) => ({ name, line })));
    legend.replaceChildren(...regions.map(legendEntry));
    if (!regions.length) legend.textContent = "No region lags: the stock sampler.";
    if (width && height) paint(canvas, width, height, regions, background, ink);
  }

  function at(event) {
    const box = canvas.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * canvas.clientWidth;
    const y = ((event.clientY - box.top) / box.height) * canvas.clientHeight;
    const share = (x - MARGIN.left) / (canvas.clientWidth - MARGIN.left - MARGIN.right);
    const left = 1 - (y - MARGIN.top) / (canvas.clientHeight - MARGIN.top - MARGIN.bottom);
    return { share: Math.min(Math.max(share, 0.05), 0.95), left };
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    const { share, left } = at(event);
    const index = nearest(regions, share, left);
    if (index < 0) return;
    canvas.setPointerCapture(event.pointerId);
    const move = (moved) => {
      const point = at(moved);
      const region = regions[index];
      if (region) setStrength(region, strengthThrough(point.share, point.left, STEPS, region.curve, region.paper, region.denoise));
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
  addView(node, "asyndm_schedule", body, refresh);
}

/** Where the strength of a region is written: {node, name}, or null if another node gives it. */
function strengthWidget({ map, mask, target }) {
  const own = target !== null && mask ? wordsOf(mask).targets[target]?.strength : null;
  const place = own == null ? { node: map, name: "strength" } : { node: mask, name: "targets" };
  return isFree(app.rootGraph, place.node, place.name) ? place : null;
}

function setStrength(region, strength) {
  const place = strengthWidget(region);
  if (!place) return;
  const value = place.name === "strength" ? strength : formatTargets(withStrength(wordsOf(place.node).targets, region.target, strength));
  setWidget(place.node, place.name, value);
}

/** The index of the line nearest to a point, among those that can be dragged; -1 if there is none. */
function nearest(regions, share, left) {
  const distances = regions.map((region) =>
    region.curve === "linear" || !strengthWidget(region) ? Infinity : Math.abs(leftAt(region.line, share) - left),
  );
  const best = Math.min(...distances);
  return Number.isFinite(best) ? distances.indexOf(best) : -1;
}

function legendEntry({ name, strength, colour }) {
  const entry = element("span", "asyndm-entry");
  entry.style.setProperty("--colour", css(colour));
  entry.append(element("span", "asyndm-swatch"), element("span", "asyndm-name", name, name), element("span", "asyndm-value", strength.toFixed(2)));
  return entry;
}

function paint(canvas, width, height, regions, background, ink) {
  canvas.width = width * SHARPNESS;
  canvas.height = height * SHARPNESS;
  const draw = canvas.getContext("2d");
  draw.scale(SHARPNESS, SHARPNESS);
  const wide = width - MARGIN.left - MARGIN.right;
  const high = height - MARGIN.top - MARGIN.bottom;
  const x = (share) => MARGIN.left + share * wide;
  const y = (left) => MARGIN.top + (1 - left) * high;

  draw.strokeStyle = ink;
  draw.globalAlpha = 0.15;
  draw.lineWidth = 1;
  draw.beginPath();
  for (let tick = 0; tick <= 4; tick++) {
    draw.moveTo(x(tick / 4), y(0));
    draw.lineTo(x(tick / 4), y(1));
    draw.moveTo(x(0), y(tick / 4));
    draw.lineTo(x(1), y(tick / 4));
  }
  draw.stroke();

  draw.globalAlpha = 0.75;
  draw.fillStyle = ink;
  draw.font = "10px sans-serif";
  draw.textAlign = "center";
  draw.fillText("steps", x(0.5), height - 4);
  draw.save();
  draw.translate(11, y(0.5));
  draw.rotate(-Math.PI / 2);
  draw.fillText("noise left", 0, 0);
  draw.restore();
  draw.globalAlpha = 1;

  const trace = (line) => line.forEach((q, step) => draw.lineTo(x(step / STEPS), y(1 - q / STEPS)));
  for (const { line, colour } of regions) {
    draw.fillStyle = css(colour, 0.12);
    draw.beginPath();
    trace(line);
    for (let step = STEPS; step >= 0; step--) draw.lineTo(x(step / STEPS), y(1 - background[step] / STEPS));
    draw.fill();
  }
  draw.lineJoin = "round";
  draw.strokeStyle = ink;
  draw.globalAlpha = 0.7;
  draw.lineWidth = 1.5;
  draw.beginPath();
  trace(background);
  draw.stroke();
  draw.globalAlpha = 1;
  regions.forEach(({ line, colour }, index) => {
    // Of regions on the same line, the earlier is drawn wider, so that each of them is seen.
    const same = regions.slice(index + 1).filter((other) => other.line.every((q, step) => q === line[step])).length;
    draw.strokeStyle = css(colour);
    draw.lineWidth = 2.2 * (1 + same);
    draw.beginPath();
    trace(line);
    draw.stroke();
  });
}
