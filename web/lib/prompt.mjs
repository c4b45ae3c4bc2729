/**
 * The words of a prompt and the targets among them: what asyndm_core/words.py does, as far as the screen needs it.
 * Pure functions, no DOM. tests/web compares them with the Python side.
 */

const HAN = "々〆〇\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u{20000}-\u{323af}";
const HIRAGANA = "ぁ-ゟ";
const KATAKANA = "ァ-ヺー-ヿㇰ-ㇿｦ-ﾟ";
const UNSPACED = `${HAN}${HIRAGANA}${KATAKANA}가-힣\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff`;
const LETTERS = `(?:(?![${HAN}${HIRAGANA}${KATAKANA}])[\\p{L}\\p{N}])+`;
const EMBEDDING = "embedding:[^\\s,()]+";
const NUMBER = "[-+]?(?:\\d+(?:\\.\\d*)?|\\.\\d+)";
const TYPED_NUMBER = "[-+]?(?:[0-9０-９]+(?:[.．][0-9０-９]*)?|[.．][0-9０-９]+|nan|inf)";

const SYNTAX = new RegExp(`(?<kept>\\\\[()])|(?<open>\\()|:\\s*(?<weight>${NUMBER})\\s*(?=\\))|(?<close>\\))`, "g");
const STRENGTH = new RegExp(`^(?<text>.*\\S)\\s*[:：]\\s*(?<strength>${TYPED_NUMBER})$`, "is");
const COMMA = /[,，､、،\n]/;
const PIECE = new RegExp(
  `${EMBEDDING}|[${HAN}]|[${HIRAGANA}]+|[${KATAKANA}]+|${LETTERS}(?:(?:['’-]{1,2}|_+)${LETTERS})*|[^\\s\\p{L}\\p{N}\\p{M}]`,
  "gu",
);
const ATOM = new RegExp(`${EMBEDDING}|[${UNSPACED}]|\\p{Nd}+|(?:(?![${UNSPACED}]|\\p{Nd})[\\p{L}\\p{N}])+`, "giu");
const LOOSE = /[\s_()"“”„'‘’«»「」『』\\]+/g;
const ALL_LOOSE = /^[\s_()"“”„'‘’«»「」『』\\]+$/;
const ALNUM = /^[\p{L}\p{N}]+$/u;
const DIGITS = /^\p{Nd}+$/u;

const NO_CONTENT = /<[^<>:]*:[^<>]*>|__[\p{L}\p{N}_*/-]+?__|embedding:[^\s,()]+|depth of field/giu;
const ALTERNATIVES = /\{[^{}|]*\|[^{}]*\}/g;
const TAG = /^(?:(?:score|rating|source)_|\p{Nd}+mm$|[a-z]$)/u;
const ING = /[aeiouy].*ing$/;
const ARTICLES = new Set(["a", "an", "the"]);
const MOST_CHOSEN = 3;

/** Whether a piece is a word, not punctuation. */
const isWord = (text) => [...text].length > 1 || ALNUM.test(text);

/** The prompt without the syntax of weights; emphasised: [start, end) of what stood in brackets with a weight above 1. */
function plain(prompt) {
  let text = "";
  let at = 0;
  let weight = null;
  const opened = [];
  const emphasised = [];
  for (const { 0: match, index, groups } of prompt.matchAll(SYNTAX)) {
    text += prompt.slice(at, index);
    at = index + match.length;
    if (groups.kept) text += match[1];
    else if (groups.weight) weight = Number(groups.weight);
    else if (groups.open) opened.push(text.length);
    else if (opened.length) {
      const start = opened.pop();
      if (weight === null || weight > 1) emphasised.push([start, text.length]);
    }
    if (groups.close) weight = null;
  }
  return { text: text + prompt.slice(at), emphasised };
}

/** The prompt without the syntax of weights: "a (red fox:1.3)" -> "a red fox". Escaped brackets stay as brackets. */
export const plainText = (prompt) => plain(prompt).text;

/**
 * The words and punctuation of a plain text, in order. Of Chinese every character is a word, of Japanese kana a run.
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

/** Words as one phrase: with a space between them, but where they touch. */
const joined = (words) =>
  words.map(({ text, start }, n) => (n === 0 || words[n - 1].end === start ? text : ` ${text}`)).join("");

/**
 * The phrases that are followed where no target is typed: at most three things, emphasised ones first.
 * @param {string} prompt
 * @param {{[name: string]: Set<string>}} lists as the server sends them (asyndm_core/words.py has their meaning)
 */
export function contentPhrases(prompt, lists) {
  const { text: shown, emphasised } = plain(withoutAlternatives(prompt));
  const text = shown.replace(NO_CONTENT, (match) => ",".repeat(match.length));
  const things = [];
  const second = [];
  let run = [];
  let openedBy = "";
  const divides = (lower) =>
    lists.function.has(lower) ||
    lists.style.has(lower) ||
    lists.styleNoun.has(lower) ||
    TAG.test(lower) ||
    (ING.test(lower) && !lists.ingThing.has(lower));
  const isNumber = (word) => lists.number.has(word.toLowerCase()) || DIGITS.test(word);

  function close(divider) {
    const phrase = joined(run);
    if (run.some((word) => !isNumber(word.text)) && !divides(phrase.toLowerCase())) {
      const aside = lists.place.has(openedBy) || lists.styleNoun.has(divider);
      const strong = run.some((word) => emphasised.some(([start, end]) => start <= word.start && word.start < end));
      (aside ? second : things).push({ phrase, strong });
    }
    const passedOver = ARTICLES.has(divider) || lists.style.has(divider);
    if (run.length || !passedOver) openedBy = passedOver ? "" : divider;
    run = [];
  }

  let end = 0;
  for (const piece of [...pieces(text), { text: ".", start: text.length, end: text.length, word: false }]) {
    if (text.slice(end, piece.start).includes("\n")) close("\n");
    end = piece.end;
    if (!piece.word && ALL_LOOSE.test(piece.text)) continue;
    const lower = piece.text.toLowerCase();
    if (piece.word && piece.text !== "BREAK" && !divides(lower)) run.push(piece);
    else close(lower);
  }
  const chosen = things.length ? things : second;
  const ordered = [...chosen.filter(({ strong }) => strong), ...chosen.filter(({ strong }) => !strong)];
  return [...new Set(ordered.map(({ phrase }) => phrase))].slice(0, MOST_CHOSEN);
}

/** The prompt with commas in place of {red|blue}: which of them it will be is not known. */
function withoutAlternatives(prompt) {
  const next = prompt.replace(ALTERNATIVES, (match) => ",".repeat(match.length));
  return next === prompt ? prompt : withoutAlternatives(next);
}

/**
 * The targets as typed: words or phrases between commas or line breaks, each with an optional strength after a colon.
 * Nothing is refused here: problem says what the server would refuse ("range": strength not in [0, 1]; "twice").
 * @returns {{text: string, strength: number | null, problem: "range" | "twice" | null}[]}
 */
export function parseTargets(typed) {
  const targets = [];
  const known = new Set();
  for (const raw of typed.split(COMMA)) {
    const entry = raw.trim().replace(/\s+/g, " ");
    if (!entry) continue;
    const match = STRENGTH.exec(entry);
    const text = match ? match.groups.text : entry;
    const strength = match ? Number(match.groups.strength.normalize("NFKC")) : null;
    const inRange = strength === null || (strength >= 0 && strength <= 1);
    const problem = !inRange ? "range" : known.has(text.toLowerCase()) ? "twice" : null;
    known.add(text.toLowerCase());
    targets.push({ text, strength, problem });
  }
  return targets;
}

/** Targets as a person would type them: "rabbit, basketball:0.4". The inverse of parseTargets: numbers stay, wrong ones too. */
export function formatTargets(targets) {
  return targets.map(({ text, strength }) => (strength === null ? text : `${text}:${strength}`)).join(", ");
}

/** A strength as it is written down: in [0, 1], to 0.01. */
export const round = (strength) => Math.round(Math.min(1, Math.max(0, Number.isNaN(strength) ? 0 : strength)) * 100) / 100;

/** The runs of letters or digits of a plain text, and what parts each from the next. */
function atoms(text) {
  const found = [...text.matchAll(ATOM)].map((match) => ({
    text: match[0].toLowerCase(),
    start: match.index,
    end: match.index + match[0].length,
  }));
  const gaps = found.slice(1).map((atom, n) => text.slice(found[n].end, atom.start).replace(LOOSE, ""));
  return { found, gaps };
}

/** [start, end) of every occurrence of a phrase in a plain text: letters decide, as in words.py. */
function occurrences(text, phrase) {
  const wanted = plainText(phrase).trim();
  const { found: letters, gaps } = atoms(wanted);
  const places = [];
  if (!letters.length) {
    for (let at = wanted ? text.indexOf(wanted) : -1; at >= 0; at = text.indexOf(wanted, at + wanted.length)) {
      places.push([at, at + wanted.length]);
    }
    return places;
  }
  const there = atoms(text);
  for (let n = 0; n + letters.length <= there.found.length; n++) {
    const same = letters.every((atom, k) => there.found[n + k].text === atom.text) && gaps.every((gap, k) => there.gaps[n + k] === gap);
    if (same) places.push([there.found[n].start, there.found[n + letters.length - 1].end]);
  }
  return places;
}

/**
 * Which target each piece of a plain text belongs to: its index in targets, or -1. Where two claim a piece, the first
 * listed has it. lost tells for every target whether the text does not contain it.
 */
export function mark(plain, targets) {
  const found = pieces(plain);
  const owner = found.map(() => -1);
  const lost = targets.map((target, index) => {
    const places = occurrences(plain, target.text);
    found.forEach((piece, n) => {
      if (owner[n] < 0 && places.some(([start, end]) => piece.start < end && start < piece.end)) owner[n] = index;
    });
    return places.length === 0;
  });
  return { owner, lost };
}

/**
 * The targets (of parseTargets) that a prompt does not contain, in order: the server stops at them, or skips them.
 * @param {string} text the prompt as it is written, weights and all
 */
export function lostTargets(text, targets) {
  const { lost } = mark(plainText(text), targets);
  return targets.filter((_, index) => lost[index]);
}

/**
 * The phrase from piece a to piece b (either order). It goes over brackets and quotes, and ends before other punctuation:
 * the part on the side of a is taken.
 */
export function phraseBetween(promptPieces, a, b) {
  const step = a <= b ? 1 : -1;
  const words = [];
  for (let n = a; n !== b + step && promptPieces[n]; n += step) {
    if (promptPieces[n].word) words.push(promptPieces[n]);
    else if (!ALL_LOOSE.test(promptPieces[n].text)) break;
  }
  return joined(step > 0 ? words : words.reverse());
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
