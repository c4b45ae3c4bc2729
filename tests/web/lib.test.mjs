import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { css, regionColour } from "../../web/lib/colours.mjs";
import { backgroundDenoise, leftAt, linesOf, planned, progressLine } from "../../web/lib/curves.mjs";
import * as prompt from "../../web/lib/prompt.mjs";

const golden = JSON.parse(readFileSync(new URL("./golden.json", import.meta.url), "utf8"));
const lists = Object.fromEntries(Object.entries(golden.words).map(([name, words]) => [name, new Set(words)]));

test("every schedule is Python's to 1e-6", () => {
  assert.ok(golden.schedules.length > 150);
  for (const { steps, curve, strength, paper, denoise, line } of golden.schedules) {
    const ours = progressLine(steps, curve, strength, paper, denoise);
    assert.equal(ours.length, line.length);
    ours.forEach((q, n) => assert.ok(Math.abs(q - line[n]) < 1e-6, `${curve} ${strength} N=${steps} ${paper} step ${n}: ${q} is not ${line[n]}`));
  }
});

test("regions of a chain are Python's", () => {
  for (const { layers, regions, background } of golden.plans) {
    assert.deepEqual(planned(layers).map(({ name, curve, strength, denoise }) => ({ name, curve, strength, denoise })), regions);
    assert.equal(backgroundDenoise(layers), background);
  }
  const [first, second] = planned(golden.plans[0].layers);
  assert.deepEqual([first.layer, first.target, second.target], [0, 0, 1]);
});

test("lines of pixels that lead are Python's", () => {
  for (const { layer, lines } of golden.leads) {
    const { lineOf, background, kept } = linesOf(20, [layer]);
    const ours = [...planned([layer]).map(lineOf), background, kept];
    assert.equal(ours.length, lines.length);
    ours.flat().forEach((q, n) => assert.ok(Math.abs(q - lines.flat()[n]) < 1e-5, `${layer.mode} ${layer.lead} at ${n}`));
    const noised = linesOf(20, [{ ...layer, knownPixels: "noised" }]);
    assert.equal(noised.kept, null);
    assert.deepEqual(noised.background, progressLine(20, "linear", 0, false, backgroundDenoise([layer])));
    assert.deepEqual(linesOf(20, [{ ...layer, knownPixels: "clean" }]).kept, Array(21).fill(20));
    assert.equal(linesOf(20, [{ ...layer, mode: "synchronous" }]).kept, null);
  }
});

test("what is left between the steps of a line", () => {
  const line = progressLine(20, "quadratic", 0.5);
  assert.equal(leftAt(line, 0), 1);
  assert.equal(leftAt(line, 1), 0);
  assert.equal(leftAt(line, 0.5), 1 - line[10] / 20);
  assert.ok(Math.abs(leftAt(line, 0.525) - (1 - (line[10] + line[11]) / 40)) < 1e-12);
});

test("colours are Python's", () => {
  golden.colours.palette.forEach((wanted, index) => {
    regionColour(index, golden.colours.table).forEach((byte, channel) => assert.ok(Math.abs(byte - wanted[channel]) <= 0.51));
  });
  assert.equal(css([1, 2, 3], 0.5), "rgba(1, 2, 3, 0.5)");
});

test("plain text, words and automatic targets are Python's", () => {
  for (const { prompt: text, plain, words, phrases } of golden.prompts) {
    assert.equal(prompt.plainText(text), plain);
    const found = prompt.pieces(plain);
    assert.deepEqual([...new Set(found.filter((piece) => piece.word).map((piece) => piece.text))], words);
    found.forEach((piece) => assert.equal(plain.slice(piece.start, piece.end), piece.text));
    assert.deepEqual(prompt.contentPhrases(text, lists), phrases);
  }
});

test("targets are found where Python finds them", () => {
  for (const { prompt: text, target, places } of golden.found) {
    const plain = prompt.plainText(text);
    const { owner, lost } = prompt.mark(plain, [{ text: target }]);
    const inside = (piece) => places.some(([start, end]) => piece.start < end && start < piece.end);
    assert.deepEqual(owner, prompt.pieces(plain).map((piece) => (inside(piece) ? 0 : -1)), `${target} in ${text}`);
    assert.deepEqual(lost, [places.length === 0], `${target} in ${text}`);
  }
});

test("typed targets are read as Python reads them", () => {
  for (const { typed, targets } of golden.typed) {
    const ours = prompt.parseTargets(typed);
    assert.deepEqual(ours.map(({ text, strength }) => ({ text, strength })), targets);
    assert.ok(ours.every((target) => target.problem === null));
    assert.deepEqual(prompt.parseTargets(prompt.formatTargets(ours)), ours);
  }
});

test("what the server would refuse is marked, not dropped", () => {
  assert.deepEqual(prompt.parseTargets("fox:1.5, hat, Hat, sun:nan").map((t) => t.problem), ["range", null, "twice", "range"]);
});

test("occurrences, phrases and lost words", () => {
  const plain = prompt.plainText("a Red fox and a (red fox:1.2), a red hat");
  const found = prompt.pieces(plain);
  const targets = prompt.parseTargets("red fox, red, wolf");
  const { owner, lost } = prompt.mark(plain, targets);
  assert.deepEqual(owner, [-1, 0, 0, -1, -1, 0, 0, -1, -1, 1, -1]);
  assert.deepEqual(lost, [false, false, true]);
  assert.equal(prompt.phraseBetween(found, 1, 2), "Red fox");
  assert.equal(prompt.phraseBetween(found, 2, 1), "Red fox");
  assert.equal(prompt.phraseBetween(found, 6, 10), "fox");
  assert.equal(prompt.phraseBetween(found, 10, 5), "a red hat");
});

test("a drag picks what is between: whole tags, Chinese without spaces, over brackets and quotes", () => {
  const picked = (text, from, to) => {
    const plain = prompt.plainText(text);
    const found = prompt.pieces(plain);
    const at = (word) => found.findIndex((piece) => piece.text === word);
    const phrase = prompt.phraseBetween(found, at(from), at(to));
    assert.deepEqual(prompt.lostTargets(text, prompt.parseTargets(phrase)), []);
    return phrase;
  };
  assert.equal(picked("1girl, orange_hair", "orange_hair", "orange_hair"), "orange_hair");
  assert.equal(picked("一只兔子在草地上", "兔", "子"), "兔子");
  assert.equal(picked("赤いきつねとcat 2匹", "赤", "いきつねと"), "赤いきつねと");
  assert.equal(picked("1girl, tracer \\(overwatch\\), hat", "tracer", "overwatch"), "tracer overwatch");
  assert.equal(picked("1girl, tracer \\(overwatch\\), hat", "tracer", "hat"), "tracer overwatch");
  assert.equal(picked('a "red" (fox:1.2)', "red", "fox"), "red fox");
});

test("targets that a prompt does not contain", () => {
  const targets = prompt.parseTargets("fox, wolf:0.4, red hat, hat");
  const lost = (text) => prompt.lostTargets(text, targets).map((target) => target.text);
  assert.deepEqual(lost("a (fox:1.2) with a red hat"), ["wolf"]);
  assert.deepEqual(lost("foxes, a hat that is red"), ["fox", "wolf", "red hat"]);
  assert.deepEqual(lost(""), ["fox", "wolf", "red hat", "hat"]);
  assert.deepEqual(prompt.lostTargets("a cat", []), []);
});

test("a click makes a target, another unmakes it", () => {
  const once = prompt.toggled(prompt.parseTargets("hat:0.4"), "red fox");
  assert.equal(prompt.formatTargets(once), "hat:0.4, red fox");
  assert.equal(prompt.formatTargets(prompt.toggled(once, "HAT")), "red fox");
  assert.equal(prompt.formatTargets(prompt.withStrength(once, 1, 0.333)), "hat:0.4, red fox:0.33");
  assert.equal(prompt.formatTargets(prompt.withStrength(once, 0, null)), "hat, red fox");
  assert.equal(prompt.formatTargets(prompt.withStrength(once, 0, 7)), "hat:1, red fox");
  const wrong = prompt.parseTargets("sea:7, boat:-.5, hat:0.333, sea");
  assert.equal(prompt.formatTargets(prompt.withStrength(wrong, 2, 0.666)), "sea:7, boat:-0.5, hat:0.67, sea");
});
