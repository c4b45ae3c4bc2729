/** The prompt as words to click, and the targets with their strengths. The value is the text of the widget targets. */

import { app } from "../../../scripts/app.js";
import { css } from "../lib/colours.mjs";
import { isFree } from "../lib/graph.mjs";
import { formatTargets, mark, phraseBetween, pieces, plainText, toggled, withStrength } from "../lib/prompt.mjs";
import { scheduleOf, wordsOf } from "./regions.mjs";
import { addView, element, refreshSoon, remember, setWidget } from "./view.mjs";

const STEP = 0.05;
const PROBLEMS = { range: "strength is not in 0 to 1", twice: "listed twice" };

/** Add the picker to a Cross-Attention Mask. */
export function addPicker(node) {
  const body = element("div", "asyndm-picker");
  const prompt = element("div", "asyndm-prompt");
  const list = element("div", "asyndm-targets");
  const note = element("div", "asyndm-note");
  body.append(prompt, list, note);

  let shown = "";
  let now = null;
  let picking = null;
  let lastPiece = null;
  let sliding = null;

  const change = (targets, done = true) => {
    setWidget(node, "targets", formatTargets(targets));
    if (done) remember();
    refresh();
  };

  function refresh() {
    const words = wordsOf(node);
    const { colours, strength } = scheduleOf(node, words.targets.length);
    const free = isFree(app.rootGraph, node, "targets");
    const state = JSON.stringify([words, colours, strength, free]);
    if (state === shown) return;
    shown = state;
    const found = pieces(plainText(words.text ?? ""));
    now = { ...words, found, colours, strength, free, ...mark(found, words.targets) };
    if (sliding !== null) {
      fill(sliding.row, now.targets[sliding.index], now);
      return;
    }
    prompt.replaceChildren(...promptParts());
    list.replaceChildren(...(now.automatic || now.replaced ? [] : now.targets.map(targetRow)));
    note.textContent = noteText();
  }

  // --- the prompt ---

  function promptParts() {
    const plain = plainText(now.text ?? "");
    const parts = [];
    let at = 0;
    let group = null;
    now.found.forEach((piece, index) => {
      const owner = now.replaced ? -1 : now.owner[index];
      const gap = document.createTextNode(plain.slice(at, piece.start));
      at = piece.end;
      if (owner >= 0 && group?.owner === owner) {
        group.span.append(gap, word(piece, index, owner));
        return;
      }
      parts.push(gap);
      group = null;
      if (owner >= 0) {
        const span = element("span", now.automatic ? "asyndm-mark asyndm-auto" : "asyndm-mark");
        span.style.setProperty("--colour", css(now.colours[owner]));
        span.style.setProperty("--tint", css(now.colours[owner], 0.3));
        span.append(word(piece, index, owner));
        parts.push(span);
        group = { owner, span };
      } else {
        parts.push(piece.word ? word(piece, index, owner) : document.createTextNode(piece.text));
      }
    });
    return [...parts, document.createTextNode(plain.slice(at))];
  }

  function word(piece, index, owner) {
    if (!piece.word) return document.createTextNode(piece.text);
    const button = element("button", "asyndm-word", piece.text);
    button.dataset.piece = String(index);
    button.setAttribute("aria-pressed", String(owner >= 0 && !now.automatic));
    button.disabled = !now.free || now.replaced;
    button.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      picking = { from: event.shiftKey && lastPiece !== null ? lastPiece : index, to: index };
      showPicking();
    });
    button.addEventListener("pointerenter", () => {
      if (!picking) return;
      picking.to = index;
      showPicking();
    });
    button.addEventListener("click", (event) => {
      if (event.detail === 0) choose(event.shiftKey && lastPiece !== null ? lastPiece : index, index); // by keyboard
    });
    return button;
  }

  function showPicking() {
    const [low, high] = picking ? [Math.min(picking.from, picking.to), Math.max(picking.from, picking.to)] : [1, 0];
    for (const button of prompt.querySelectorAll("button")) {
      const piece = Number(button.dataset.piece);
      button.classList.toggle("asyndm-picking", piece >= low && piece <= high);
    }
  }

  /** End of a click or of a drag over words: the phrase becomes a target, or stops being one. */
  function choose(from, to) {
    lastPiece = to;
    const owner = from === to ? now.owner[to] : -1;
    const phrase = owner >= 0 ? now.targets[owner].text : phraseBetween(now.found, from, to);
    if (phrase) change(toggled(now.automatic ? [] : now.targets, phrase));
  }

  prompt.addEventListener("pointerup", () => {
    if (!picking) return;
    const { from, to } = picking;
    picking = null;
    showPicking();
    choose(from, to);
  });
  body.addEventListener("pointerleave", () => {
    picking = null;
    showPicking();
  });

  // --- the targets ---

  function targetRow(target, index) {
    const row = element("div", "asyndm-target");
    row.dataset.target = target.text;
    row.style.setProperty("--colour", css(now.colours[index]));
    const lost = now.text !== undefined && now.lost[index];
    const trouble = target.problem ? PROBLEMS[target.problem] : lost ? "not in the prompt" : "";
    row.classList.toggle("asyndm-lost", Boolean(trouble));
    const name = element("span", "asyndm-name", target.text, target.text);
    row.append(element("span", "asyndm-swatch"), name);
    if (trouble) row.append(element("span", "asyndm-trouble", trouble));
    else {
      const bar = element("span", "asyndm-bar", "", "Strength: drag, or use the buttons");
      bar.append(element("span", "asyndm-level"));
      bar.addEventListener("pointerdown", (event) => startSliding(event, bar, row, index));
      const nudge = (by) => () => change(withStrength(now.targets, index, strengthOf(now.targets[index], now) + by));
      row.append(button("−", "Less strength", nudge(-STEP)), bar, button("+", "More strength", nudge(STEP)));
      row.append(element("span", "asyndm-value"));
      const reset = button("↺", "Use the strength of Asynchronous Timestep Map", () =>
        change(withStrength(now.targets, index, null)),
      );
      reset.classList.add("asyndm-reset");
      row.append(reset);
      fill(row, target, now);
    }
    row.append(button("✕", "No longer a target", () => change(toggled(now.targets, target.text))));
    return row;
  }

  function button(text, title, act) {
    const made = element("button", "asyndm-button", text, title);
    made.setAttribute("aria-label", title);
    made.disabled = !now.free;
    made.addEventListener("click", act);
    return made;
  }

  function startSliding(event, bar, row, index) {
    if (event.button !== 0 || !now.free) return;
    bar.setPointerCapture(event.pointerId);
    sliding = { row, index };
    const slide = ({ clientX }) => {
      const { left, width } = bar.getBoundingClientRect();
      change(withStrength(now.targets, index, (clientX - left) / width), false);
    };
    const end = () => {
      bar.removeEventListener("pointermove", slide);
      sliding = null;
      shown = "";
      remember();
      refreshSoon();
    };
    bar.addEventListener("pointermove", slide);
    bar.addEventListener("lostpointercapture", end, { once: true });
    slide(event);
  }

  function noteText() {
    if (now.replaced) return "The painted mask is the only region: words are not looked for.";
    if (now.text === undefined) return "Another node makes the prompt: its words are shown after a run.";
    if (!now.text.trim()) return "Write a prompt, then click the words that must come out right.";
    if (!now.free) return "Another node gives the targets.";
    if (!now.automatic) return "";
    const names = now.targets.map((target) => target.text).join(", ");
    return names
      ? `Chosen automatically: ${names}. Click words (or drag over several) to choose yourself.`
      : "No content word was found: click the words that must come out right.";
  }

  addView(node, "asyndm_picker", body, refresh);
}

/** The strength of a target: its own, else the timestep map's; 0.7, the widget's default, where neither is known. */
const strengthOf = (target, now) => target.strength ?? now.strength ?? 0.7;

function fill(row, target, now) {
  const strength = strengthOf(target, now);
  row.querySelector(".asyndm-level").style.width = `${100 * strength}%`;
  row.querySelector(".asyndm-value").textContent = strength.toFixed(2);
  row.classList.toggle("asyndm-inherited", target.strength === null);
  row.querySelector(".asyndm-reset").style.visibility = target.strength === null ? "hidden" : "visible";
}
