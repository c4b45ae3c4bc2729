import assert from "node:assert/strict";
import { test } from "node:test";

import * as frames from "../../web/lib/frames.mjs";

const base64 = (...values) => Buffer.from(values).toString("base64");

/** A frame of 2 x 1 pixels, with the heat of two words at 1 x 1. */
const packed = (step) => ({
  step,
  planes: { image: [1, 2, 3], owner: [1, 2], progress: [1, 2], heat: [2, 1, 1] },
  data: base64(1, 2, 3, 4, 5, 6, 0, 2, 128, 7, 250, 9),
});

const message = (run, steps, more = {}) => ({ run, node: "3:7", workflow: "w", legend: [], frames: steps.map(packed), ...more });

test("a frame comes apart into its maps", () => {
  const { step, image, owner, progress, heat } = frames.unpacked(packed(4));
  assert.equal(step, 4);
  const list = ({ width, height, data }) => [width, height, ...data];
  assert.deepEqual(list(image), [2, 1, 1, 2, 3, 4, 5, 6]);
  assert.deepEqual(list(owner), [2, 1, 0, 2]);
  assert.deepEqual(list(progress), [2, 1, 128, 7]);
  assert.deepEqual(heat.map(list), [[1, 1, 250], [1, 1, 9]]);
});

test("a frame without a preview and without attention", () => {
  const frame = frames.unpacked({ step: 0, planes: { owner: [1, 1], progress: [1, 1] }, data: base64(1, 128) });
  assert.equal(frame.image, undefined);
  assert.deepEqual(frame.heat, []);
  assert.deepEqual([...frame.owner.data, ...frame.progress.data], [1, 128]);
});

test("frames of one run come together, a new run begins anew", () => {
  let runs = frames.withMessage(new Map(), message("a", [0, 1]));
  runs = frames.withMessage(runs, message("a", [2]));
  runs = frames.withMessage(runs, message("b", [0], { node: "4" }));
  const steps = () => [...runs.values()].map((run) => [run.run, ...run.frames.map((frame) => frame.step)]);
  assert.deepEqual(steps(), [["a", 0, 1, 2], ["b", 0]]);
  runs = frames.withMessage(runs, message("c", [0]));
  assert.deepEqual(steps(), [["b", 0], ["c", 0]]);
  runs = frames.withMessage(runs, message("d", [0], { workflow: "another" }));
  assert.deepEqual(steps(), [["b", 0], ["c", 0], ["d", 0]]);
});

test("runs of two tabs with one workflow are kept apart", () => {
  let runs = frames.withMessage(new Map(), message("a", [0], { tab: "one" }));
  runs = frames.withMessage(runs, message("b", [0], { tab: "two" }));
  runs = frames.withMessage(runs, message("a", [1], { tab: "one" }));
  assert.deepEqual([...runs.values()].map((run) => [run.tab, run.run, run.frames.length]), [["two", "b", 1], ["one", "a", 2]]);
});

test("it rests where the most is behind, and where nothing ever is, on the last", () => {
  const of = (...behind) => behind.map((value) => ({ behind: value }));
  assert.equal(frames.restingFrame(of(0, 3, 9, 9, 0)), 2);
  assert.equal(frames.restingFrame(of(0, 0, 0)), 2);
  assert.equal(frames.unpacked({ step: 0, planes: { owner: [1, 1], progress: [1, 3] }, data: base64(0, 100, 255, 127) }).behind, 29);
  assert.equal(frames.isDone({ steps: 3, frames: [{ step: 0 }, { step: 2 }] }), true);
  assert.equal(frames.isDone({ steps: 4, frames: [{ step: 0 }, { step: 2 }] }), false);
  assert.equal(frames.isDone({ steps: 4, last: 2, frames: [{ step: 0 }, { step: 2 }] }), true);
});

test("only some runs are remembered, the newest", () => {
  let runs = new Map();
  for (let n = 0; n < 20; n++) runs = frames.withMessage(runs, message(`run ${n}`, [0], { node: String(n) }), 3);
  assert.deepEqual([...runs.values()].map((run) => run.node), ["17", "18", "19"]);
  runs = frames.withMessage(runs, message("run 17", [1], { node: "17" }), 3);
  assert.deepEqual([...runs.values()].map((run) => run.node), ["18", "19", "17"]);
});

test("maps become pixels", () => {
  const map = (...data) => ({ width: data.length, height: 1, data: Uint8ClampedArray.from(data) });
  const colours = [[10, 20, 30], [40, 50, 60]];
  assert.deepEqual([...frames.imagePixels(map(1, 2, 3, 4, 5, 6))], [1, 2, 3, 255, 4, 5, 6, 255]);
  assert.deepEqual([...frames.ownerPixels(map(0, 1, 2, 3), colours, 1)], [0, 0, 0, 0, 10, 20, 30, 255, 40, 50, 60, 255, 0, 0, 0, 0]);
  assert.deepEqual([...frames.heatPixels(map(0, 200), [1, 2, 3], 0.5)], [1, 2, 3, 0, 1, 2, 3, 100]);
  assert.deepEqual([...frames.progressPixels(map(1, 0), colours)], [40, 50, 60, 255, 10, 20, 30, 255]);
});

test("edges lie between regions, not at the border", () => {
  const owner = { width: 2, height: 2, data: [1, 1, 0, 2] };
  assert.deepEqual(frames.edges(owner), [[0, 0, 1, 1, 1], [0, 1, 1, 2, 1], [1, 1, 1, 1, 2]]);
  assert.deepEqual(frames.edges({ ...owner, data: [3, 3, 3, 3] }), []);
});
