/**
 * The words of a prompt and the targets among them: what asyndm_core/tokens.py does, as far as the screen needs it.
 * Pure functions, no DOM. tests/web compares them with the Python side.
 */

const WEIGHT = /:\s*[-+]?(?:\d+(?:\.\d*)?|\.\d+)\s*(?=\))/g;
const PIECE = /embedding:[^\s,()]+|[\p{L}\p{N}]+(?:['’-]{1,2}[\p{L}\p{N}]+)*|[^\s\p{L}\p{N}\p{M}]/gu;
const STRENGTH = /^(.*\S)\s*:\s*([-+]?(?:\d+(?:\.\d*)?|\.\d+|nan|inf))$/i;
const ALNUM = /^[\p{L}\p{N}]+$/u;

/** Whether a piece is a word, not punctuation. */
const isWord = (text) => [...text].length > 1 || ALNUM.test(text);

/** The prompt without the syntax of weights: "a (red fox:1.3)" -> "a red fox". Escaped brackets stay as brackets. */
export function plainText(prompt) {
  const bare = prompt.replaceAll("\\(", "\0").replaceAll("\\)", "\x01").replace(WEIGHT, "");
  return bare.replaceAll("(", "").replaceAll(")", "").replaceAll("\0", "(").replaceAll("\x01", ")");
}

/**
 * The words and punctuation of a plain text, in order.
 * @returns {{text: string, start: number, end: number, word: boolean}[]} offsets count in the plain text
 */
export function pieces(plain) {
  return [...plain.matchAll(PIECE)].map((match) => ({
    text: match[0],
    start: match.index,
    end: match.index + match[0].length,
    word: isWord(match[0]),
  }));
}

/**
 * The phrases that are chosen where no target is typed: runs of words between function words and punctuation.
 * @param {string} prompt
 * @param {{functionWords: Set<string>, styleWords: Set<string>, placeWords: Set<string>}} lists as the server sends them
 */
export function contentPhrases(prompt, lists) {
  const phrases = [];
  const places = [];
  let run = [];
  let openedBy = "";
  for (const { text, word } of [...pieces(plainText(prompt)), { text: ".", word: false }]) {
    const lower = text.toLowerCase();
    if (word && text !== "BREAK" && !lists.functionWords.has(lower) && !lists.styleWords.has(lower)) {
      run.push(text);
      continue;
    }
    if (run.length) {
      (lists.placeWords.has(openedBy) ? places : phrases).push(run.join(" "));
      openedBy = "";
    }
    run = [];
    if (!["a", "an", "the"].includes(lower)) openedBy = lower;
  }
  return [...new Set(phrases.length ? phrases : places)];
}

/**
 * The targets as typed: words or phrases between commas or line breaks, each with an optional strength after a colon.
 * Nothing is refused here: problem says what the server would refuse ("range": strength not in [0, 1]; "twice").
 * @returns {{text: string, strength: number | null, problem: "range" | "twice" | null}[]}
 */
export function parseTargets(typed) {
  const targets = [];
  const known = new Set();
  for (const raw of typed.split(/[,\n]/)) {
    const entry = raw.trim().replace(/\s+/g, " ");
    if (!entry) continue;
    const match = STRENGTH.exec(entry);
    const text = match ? match[1] : entry;
    const strength = match ? Number(match[2]) : null;
    const inRange = strength === null || (strength >= 0 && strength <= 1);
    const problem = !inRange ? "range" : known.has(text.toLowerCase()) ? "twice" : null;
    known.add(text.toLowerCase());
    targets.push({ text, strength, problem });
  }
  return targets;
}

/** Targets as a person would type them: "rabbit, basketball:0.4". The inverse of parseTargets, strengths to 0.01. */
export function formatTargets(targets) {
  return targets.map(({ text, strength }) => (strength === null ? text : `${text}:${round(strength)}`)).join(", ");
}

/** A strength as it is written down: in [0, 1], to 0.01. */
export const round = (strength) => Math.round(Math.min(1, Math.max(0, Number.isNaN(strength) ? 0 : strength)) * 100) / 100;

/** The first piece of every occurrence of a phrase among the pieces of a prompt; case does not matter. */
export function occurrences(promptPieces, phrase) {
  const wanted = pieces(plainText(phrase)).map((piece) => piece.text.toLowerCase());
  const found = [];
  for (let start = 0; wanted.length && start + wanted.length <= promptPieces.length; start++) {
    if (wanted.every((text, n) => promptPieces[start + n].text.toLowerCase() === text)) found.push(start);
  }
  return { starts: found, length: wanted.length };
}

/**
 * Which target each piece belongs to: its index in targets, or -1. Where two claim a piece, the first listed has it.
 * lost tells for every target whether the prompt does not contain it.
 */
export function mark(promptPieces, targets) {
  const owner = promptPieces.map(() => -1);
  const lost = targets.map((target, index) => {
    const { starts, length } = occurrences(promptPieces, target.text);
    for (const start of starts) {
      for (let n = start; n < start + length; n++) if (owner[n] < 0) owner[n] = index;
    }
    return starts.length === 0;
  });
  return { owner, lost };
}

/**
 * The targets (of parseTargets) that a prompt does not contain, in order: the server stops at them, or skips them.
 * @param {string} text the prompt as it is written, weights and all
 */
export function lostTargets(text, targets) {
  const { lost } = mark(pieces(plainText(text)), targets);
  return targets.filter((_, index) => lost[index]);
}

/**
 * The phrase from piece a to piece b (either order). It ends before punctuation, which cannot be part of a target:
 * the part on the side of a is taken.
 */
export function phraseBetween(promptPieces, a, b) {
  const step = a <= b ? 1 : -1;
  const words = [];
  for (let n = a; n !== b + step && promptPieces[n]?.word; n += step) words.push(promptPieces[n].text);
  return (step > 0 ? words : words.reverse()).join(" ");
}

/** targets with the phrase made a target (last) or, if it is one, unmade. */
export function toggled(targets, phrase) {
  const lower = phrase.toLowerCase();
  const rest = targets.filter((target) => target.text.toLowerCase() !== lower);
  return rest.length < targets.length ? rest : [...targets, { text: phrase, strength: null, problem: null }];
}

/** targets with the strength of one of them (by index) changed; null takes the timestep map's strength. */
export function withStrength(targets, index, strength) {
  return targets.map((target, n) => (n === index ? { ...target, strength: strength === null ? null : round(strength) } : target));
}
