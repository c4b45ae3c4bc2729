/** A run on its node: what the model believes the picture to be, the regions, who lags; live, and afterwards by step. */

import { app } from "../../../scripts/app.js";
import { css, regionColour } from "../lib/colours.mjs";
import { asksForMore } from "../lib/faults.mjs";
import { edges, heatPixels, imagePixels, isDone, ownerPixels, progressPixels, restingFrame, withMessage } from "../lib/frames.mjs";
import { allNodes, isOff, nodeByExecId, origin, samplesWith, source, valueOf } from "../lib/graph.mjs";
import { keep, keptRuns } from "./kept.mjs";
import { t } from "./locale.mjs";
import { noticesOf, saying } from "./notices.mjs";
import { layersOf } from "./regions.mjs";
import { settings } from "./settings.mjs";
import { isHere, openTab, tabOf } from "./tabs.mjs";
import { addView, beginWith, element, refreshSoon } from "./view.mjs";

const SHARPNESS = 2;
const WIDE = 300; // of a new node, so that both panels fit side by side
let runs = new Map();
let cached = null; // the last prompt with nodes that were not executed: {tab, nodes}

/** Take in some frames of a run, as the server sent them. */
export function receive(message) {
  runs = withMessage(runs, { ...message, tab: tabOf(message.prompt) });
  const run = [...runs.values()].at(-1);
  if (isDone(run)) keep(run);
  refreshSoon();
}

/** Take in the runs from before the page was loaded anew. */
export async function restore() {
  const before = await keptRuns();
  runs = new Map([...before.map((run) => [`${run.tab ?? run.workflow} ${run.node}`, run]), ...runs]);
  refreshSoon();
}

/** Some nodes of a prompt are not executed: what they made is still there. */
export function cameFromCache({ nodes, prompt_id }) {
  cached = { tab: tabOf(prompt_id) ?? openTab(), nodes };
  refreshSoon();
}

/** The newest run of a node in the workflow tab that is open, or undefined. */
function runOf(node) {
  return [...runs.values()].findLast((run) => isHere(run) && nodeByExecId(app.rootGraph, run.node) === node);
}

const isCached = (node) =>
  cached?.tab === openTab() && cached.nodes.some((execId) => nodeByExecId(app.rootGraph, execId) === node);

/** The node with the widget sampler_name that a sampler goes by: itself, or what feeds its socket for one; or undefined. */
function chooserOf(sampler) {
  const socket = sampler.inputs?.find(({ type }) => type === "SAMPLER");
  const nodes = [sampler, socket && origin(app.rootGraph, sampler, socket.name)?.node];
  return nodes.find((node) => node?.widgets?.some(({ name }) => name === "sampler_name"));
}

/** What would stop the runs of a node's timestep map, in itself or in the samplers that get its model: sentences. */
function troubles(node) {
  const map = source(app.rootGraph, node, "timestep_map", "AsynDM_TimestepMap");
  const needed = map !== null && asksForMore(layersOf(map));
  const samplers = allNodes(app.rootGraph).filter(
    (other) => !isOff(other) && chooserOf(other) && samplesWith(app.rootGraph, other, node),
  );
  const unfit = samplers.map(chooserOf).flatMap((chooser) => {
    const name = valueOf(app.rootGraph, chooser, "sampler_name");
    const listed = chooser.widgets.find((widget) => widget.name === "sampler_name").options?.values;
    const refused = needed && settings.samplers && !settings.samplers.has(name);
    const unlisted = chooser === node && Array.isArray(listed) && !listed.includes(name);
    return name !== undefined && (refused || unlisted) ? [name] : [];
  });
  return [...new Set(unfit)].map((sampler) => t("badSampler", { sampler }));
}

/** Add the view to a node that has the widget preview. */
export function addOverlay(node) {
  const body = element("div", "asyndm-run");
  const legend = element("div", "asyndm-legend");
  const panels = element("div", "asyndm-panels");
  const tint = tintSwitch();
  const picture = panel(tint);
  const progress = panel(progressKey());
  const scrubber = element("div", "asyndm-scrubber");
  const slider = element("input", "asyndm-slider", "", t("goThrough"));
  const track = element("div", "asyndm-track");
  const peak = element("span", "asyndm-peak", "", t("mostBehind"));
  const caption = element("span", "asyndm-step");
  const note = element("div", "asyndm-note");
  const lines = element("div", "asyndm-lines");
  Object.assign(slider, { type: "range", min: "0", step: "1" });
  slider.setAttribute("aria-label", t("step"));
  picture.canvas.title = t("lookAlone");
  panels.append(picture.figure, progress.figure);
  track.append(slider, peak);
  scrubber.append(track, caption);
  body.append(legend, panels, scrubber, note, lines);

  let shown = "";
  let run;
  let at = null; // index of the frame that was chosen, null: the newest, and after the run where most is behind
  let lit = -1;
  let alone = false; // the pointer is on the picture

  function refresh() {
    const before = run?.run;
    const on = valueOf(app.rootGraph, node, "preview") !== false;
    run = on ? runOf(node) : undefined;
    if (run?.run !== before) [at, lit] = [null, -1];
    const sizes = [picture, progress].map(({ canvas }) => [canvas.clientWidth, canvas.clientHeight]);
    const said = [troubles(node), noticesOf(node)];
    const untinted = alone || tint.getAttribute("aria-pressed") === "false";
    const state = JSON.stringify([on, run?.run, run?.frames.length, at, lit, untinted, sizes, said, isCached(node)]);
    if (state === shown) return;
    shown = state;
    for (const part of [legend, panels, scrubber]) part.hidden = !run;
    note.textContent = on ? noteText() : "";
    lines.replaceChildren(...said.flatMap((texts, n) => texts.map((text) => saying(n ? "notice" : "trouble", text))));
    body.hidden = !on && !lines.childElementCount;
    delete body.dataset.step;
    if (!run) return;
    if (run.run !== before) legend.replaceChildren(...run.legend.map(entry));
    const last = run.frames.length - 1;
    const rest = isDone(run) ? restingFrame(run.frames) : last;
    const frame = run.frames[at ?? rest];
    slider.max = String(last);
    slider.value = String(at ?? rest);
    peak.hidden = !isDone(run) || run.frames[rest].behind === 0;
    peak.style.setProperty("--place", String(last ? rest / last : 0));
    caption.textContent = t("stepOf", { step: frame.step + 1, steps: run.steps });
    body.dataset.step = String(frame.step);
    tint.hidden = !frame.image;
    paint(picture, frame.owner, (draw, size) => paintPicture(draw, size, frame, untinted && frame.image));
    paint(progress, frame.progress, (draw, size) =>
      drawMap(draw, size, frame.progress, progressPixels(frame.progress, settings.progressColours), false),
    );
  }

  function noteText() {
    if (!run) return t(isCached(node) ? "fromCache" : "beforeRun");
    const { first, last, steps, batch } = run;
    const said = batch > 1 ? [t("firstOf", { count: batch })] : [];
    if (first > 0 || last < steps - 1) said.push(t("partOf", { first: first + 1, last: last + 1, steps }));
    return said.join(" ");
  }

  const colours = () => run.legend.map((_, index) => regionColour(index, settings.colours));

  function entry({ name: text, heat }, index) {
    const name = heat === null && text === "painted" ? t("painted") : heat === null && text === "all pixels" ? t("allPixels") : text;
    const made = element("span", "asyndm-entry", "", t("showWhere", { name }));
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

  function paintPicture(draw, size, frame, untinted) {
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
    } else if (!untinted) {
      drawMap(draw, size, owner, ownerPixels(owner, colours(), 0.4), false);
      drawEdges(draw, size, owner, colours().map((colour) => css(colour)), (index) => index);
    }
  }

  slider.addEventListener("input", () => {
    const chosen = Number(slider.value);
    at = !isDone(run) && chosen === run.frames.length - 1 ? null : chosen;
    refresh();
  });
  tint.addEventListener("click", () => {
    tint.setAttribute("aria-pressed", String(tint.getAttribute("aria-pressed") === "false"));
    refresh();
  });
  for (const [event, value] of [["pointerenter", true], ["pointerleave", false]]) {
    picture.canvas.addEventListener(event, () => {
      alone = value;
      refresh();
    });
  }
  new ResizeObserver(refreshSoon).observe(panels);
  beginWith(node, WIDE, 0);
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

/** The switch between the picture with its regions and the picture alone. */
function tintSwitch() {
  const made = element("button", "asyndm-switch", "", t("regionsSwitch"));
  made.setAttribute("aria-pressed", "true");
  made.append(element("span", "asyndm-tick"), t("regions"));
  return made;
}

/** What the colours of the progress map mean. */
function progressKey() {
  const key = element("span", "asyndm-key");
  const colours = settings.progressColours.slice(1, 129).reverse();
  const stops = [0, 32, 64, 96, 127].map((n) => css(colours[n]));
  const scale = element("span", "asyndm-scale");
  scale.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
  key.append(t("levelKey"), scale, t("behind"));
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
