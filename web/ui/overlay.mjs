/** A run on its node: what the model believes the picture to be, the regions, who lags; live, and afterwards by step. */

import { app } from "../../../scripts/app.js";
import { css, regionColour } from "../lib/colours.mjs";
import { edges, heatPixels, imagePixels, ownerPixels, progressPixels, withMessage } from "../lib/frames.mjs";
import { nodeByExecId, valueOf } from "../lib/graph.mjs";
import { settings } from "./settings.mjs";
import { addView, element, refreshSoon } from "./view.mjs";

const SHARPNESS = 2;
const WIDE = 300; // of a new node, so that both panels fit side by side
let runs = new Map();

/** Take in some frames of a run, as the server sent them. */
export function receive(message) {
  runs = withMessage(runs, message);
  refreshSoon();
}

/** The newest run of a node in the workflow that is open, or undefined. */
function runOf(node) {
  const here = ({ workflow }) => !workflow || !app.rootGraph.id || workflow === app.rootGraph.id;
  return [...runs.values()].findLast((run) => here(run) && nodeByExecId(app.rootGraph, run.node) === node);
}

/** Add the view to a node that has the widget preview. */
export function addOverlay(node) {
  const body = element("div", "asyndm-run");
  const legend = element("div", "asyndm-legend");
  const panels = element("div", "asyndm-panels");
  const picture = panel("picture, regions");
  const progress = panel(progressKey());
  const scrubber = element("div", "asyndm-scrubber");
  const slider = element("input", "asyndm-slider", "", "Go through the steps of the run");
  const caption = element("span", "asyndm-step");
  const note = element("div", "asyndm-note");
  Object.assign(slider, { type: "range", min: "0", step: "1" });
  slider.setAttribute("aria-label", "Step");
  panels.append(picture.figure, progress.figure);
  scrubber.append(slider, caption);
  body.append(legend, panels, scrubber, note);

  let shown = "";
  let run;
  let at = null; // index of the frame that was chosen, null: the newest
  let lit = -1;

  function refresh() {
    const before = run?.run;
    const on = valueOf(app.rootGraph, node, "preview") !== false;
    run = on ? runOf(node) : undefined;
    if (run?.run !== before) [at, lit] = [null, -1];
    const sizes = [picture, progress].map(({ canvas }) => [canvas.clientWidth, canvas.clientHeight]);
    const state = JSON.stringify([on, run?.run, run?.frames.length, at, lit, sizes]);
    if (state === shown) return;
    shown = state;
    body.hidden = !on;
    for (const part of [legend, panels, scrubber]) part.hidden = !run;
    note.textContent = noteText();
    if (!run) return;
    if (run.run !== before) legend.replaceChildren(...run.legend.map(entry));
    const last = run.frames.length - 1;
    const frame = run.frames[at ?? last];
    slider.max = String(last);
    slider.value = String(at ?? last);
    caption.textContent = `step ${frame.step + 1} of ${run.steps}`;
    body.dataset.step = String(frame.step);
    paint(picture, frame.owner, (draw, size) => paintPicture(draw, size, frame));
    paint(progress, frame.progress, (draw, size) =>
      drawMap(draw, size, frame.progress, progressPixels(frame.progress, settings.progressColours), false),
    );
  }

  function noteText() {
    if (!run) return "The run is shown here while it samples: regions, and who lags.";
    return run.batch > 1 ? `The first of ${run.batch} pictures.` : "";
  }

  const colours = () => run.legend.map((_, index) => regionColour(index, settings.colours));

  function entry({ name }, index) {
    const made = element("span", "asyndm-entry", "", `Show where ${name} is`);
    made.tabIndex = 0;
    made.style.setProperty("--colour", css(regionColour(index, settings.colours)));
    made.append(element("span", "asyndm-swatch"), element("span", "asyndm-name", name));
    const light = (value) => () => {
      lit = value;
      refresh();
    };
    for (const event of ["pointerenter", "focus"]) made.addEventListener(event, light(index));
    for (const event of ["pointerleave", "blur"]) made.addEventListener(event, light(-1));
    return made;
  }

  function paintPicture(draw, size, frame) {
    const { owner, image } = frame;
    if (image) drawMap(draw, size, image, imagePixels(image), true);
    if (lit >= 0) {
      draw.fillStyle = "rgba(0, 0, 0, 0.6)";
      draw.fillRect(0, 0, ...size);
      const heat = frame.heat[run.legend[lit].heat];
      const own = { ...owner, data: owner.data.map((value) => (value === lit + 1 ? value : 0)) };
      if (heat) drawMap(draw, size, heat, heatPixels(heat, colours()[lit], 1), true);
      else drawMap(draw, size, own, ownerPixels(own, colours(), 0.8), false);
      drawEdges(draw, size, own, ["#fff"], () => 0);
    } else {
      drawMap(draw, size, owner, ownerPixels(owner, colours(), 0.4), false);
      drawEdges(draw, size, owner, colours().map((colour) => css(colour)), (index) => index);
    }
  }

  slider.addEventListener("input", () => {
    const chosen = Number(slider.value);
    at = chosen === run.frames.length - 1 ? null : chosen;
    refresh();
  });
  new ResizeObserver(refreshSoon).observe(panels);
  if (node.size[0] < WIDE) node.setSize([WIDE, node.size[1]]);
  addView(node, "asyndm_run", body, refresh);
}

/** A canvas with a caption under it. */
function panel(title) {
  const figure = element("figure", "asyndm-panel");
  const canvas = element("canvas", "asyndm-map");
  const caption = element("figcaption", "asyndm-caption");
  caption.append(title);
  figure.append(canvas, caption);
  return { figure, canvas };
}

/** What the colours of the progress map mean. */
function progressKey() {
  const key = element("span", "asyndm-key");
  const colours = settings.progressColours.slice(1, 129).reverse();
  const stops = [0, 32, 64, 96, 127].map((n) => css(colours[n]));
  const scale = element("span", "asyndm-scale");
  scale.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
  key.append("level", scale, "behind");
  return key;
}

/** Paint a panel at its size on the screen; map gives the proportions. */
function paint({ canvas }, map, drawInto) {
  canvas.style.aspectRatio = `${map.width} / ${map.height}`;
  const size = [canvas.clientWidth * SHARPNESS, canvas.clientHeight * SHARPNESS];
  if (!size[0] || !size[1]) return;
  [canvas.width, canvas.height] = size;
  drawInto(canvas.getContext("2d"), size);
}

/** Draw the pixels of a map over the whole canvas. */
function drawMap(draw, size, { width, height }, pixels, smooth) {
  const small = new OffscreenCanvas(width, height);
  small.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
  draw.imageSmoothingEnabled = smooth;
  draw.imageSmoothingQuality = "high";
  draw.drawImage(small, 0, 0, ...size);
}

/** Draw the outlines of regions, each in the style of its index. */
function drawEdges(draw, [wide, high], owner, styles, styleOf) {
  draw.lineWidth = 1.5 * SHARPNESS;
  draw.lineCap = "square";
  const found = edges(owner);
  styles.forEach((style, number) => {
    draw.strokeStyle = style;
    draw.beginPath();
    for (const [index, x0, y0, x1, y1] of found) {
      if (styleOf(index) !== number) continue;
      draw.moveTo((x0 * wide) / owner.width, (y0 * high) / owner.height);
      draw.lineTo((x1 * wide) / owner.width, (y1 * high) / owner.height);
    }
    draw.stroke();
  });
}
