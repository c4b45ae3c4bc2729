/** The prompt as words to click, and the targets with their strengths. The value is the text of the widget targets. */

import { app } from "../../../scripts/app.js";
import { css } from "../lib/colours.mjs";
import { isFree } from "../lib/graph.mjs";
import { formatTargets, mark, phraseBetween, pieces, plainText, toggled, withStrength } from "../lib/prompt.mjs";
import { t } from "./locale.mjs";
import { noticesOf, saying } from "./notices.mjs";
import { scheduleOf, skipsLost, wordsOf } from "./regions.mjs";
import { addView, beginWith, element, refreshSoon, remember, setWidget } from "./view.mjs";

const STEP = 0.05;
const LEAST = 100; // pixels of height: two lines of the prompt and a target
const NEW = 60; // more than that, for a new node

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
    const skips = skipsLost(node);
    const said = noticesOf(node);
    const state = JSON.stringify([words, colours, strength, free, skips, said]);
    if (state === shown) return;
    shown = state;
    const plain = plainText(words.text ?? "");
    now = { ...words, found: pieces(plain), colours, strength, free, ...mark(plain, words.targets) };
    now.skips = skips;
    if (sliding !== null) {
      fill(sliding.row, now.targets[sliding.index], now);
      return;
    }
    prompt.replaceChildren(...promptParts());
    list.replaceChildren(...(now.automatic || now.replaced ? [] : now.targets.map(targetRow)));
    note.replaceChildren(...notes(), ...said.map((text) => saying("notice", text)));
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
    const trouble = target.problem ?? (now.missing.includes(target) ? "lost" : null);
    row.classList.toggle("asyndm-lost", trouble !== null);
    const name = element("span", "asyndm-name", target.text, target.text);
    row.append(element("span", "asyndm-swatch"), name);
    if (trouble) row.append(element("span", "asyndm-trouble", t(trouble), t(trouble)));
    else {
      const bar = element("span", "asyndm-bar", "", t("strengthBar"));
      bar.append(element("span", "asyndm-level"));
      bar.addEventListener("pointerdown", (event) => startSliding(event, bar, row, index));
      const nudge = (by) => () => change(withStrength(now.targets, index, strengthOf(now.targets[index], now) + by));
      row.append(button("less", "−", nudge(-STEP)), bar, button("more", "+", nudge(STEP)));
      row.append(element("span", "asyndm-value"));
      row.append(button("reset", "↺", () => change(withStrength(now.targets, index, null))));
      fill(row, target, now);
    }
    row.append(button("remove", "✕", () => change(toggled(now.targets, target.text))));
    return row;
  }

  /** A button of a target's row. what: its name in the style sheet and among the strings. */
  function button(what, text, act) {
    const made = element("button", `asyndm-button asyndm-${what}`, text, t(what));
    made.setAttribute("aria-label", t(what));
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

  function notes() {
    if (now.replaced) return [t("paintedAlone")];
    if (now.text === undefined) return [t("textLater")];
    if (!now.text.trim() && !now.targets.length) return [t("writePrompt")];
    if (now.missing.length) return [lostNote()];
    if (!now.free) return [t("targetsElsewhere")];
    if (!now.automatic) return [];
    const names = now.targets.map((target) => target.text).join(", ");
    return [names ? t("chosen", { names }) : t("noneFound")];
  }

  /** What becomes of the targets that the prompt does not contain, and a button that removes them. */
  function lostNote() {
    const lost = now.missing.map(({ text }) => text);
    const drop = element("button", "asyndm-drop", t("removeLost"), lost.join(", "));
    drop.addEventListener("click", () => change(now.targets.filter(({ text }) => !lost.includes(text))));
    const parts = [t(now.skips ? "willSkip" : "willStop", { names: lost.join(", ") }), ...(now.free ? [" ", drop] : [])];
    return saying(now.skips ? "notice" : "trouble", ...parts);
  }

  addView(node, "asyndm_picker", body, refresh, LEAST);
  beginWith(node, 0, node.computeSize()[1] + NEW);
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
