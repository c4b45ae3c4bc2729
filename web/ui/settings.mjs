/** What Python decides for the screen too: word lists, colours and samplers, sent with the node's definition. */

export const settings = {
  samplers: null, // the names of those that have a formula for every pixel
  colours: [[128, 128, 128]],
  progressColours: Array.from({ length: 256 }, () => [128, 128, 128]),
  words: Object.fromEntries(["function", "number", "style", "styleNoun", "place", "ingThing"].map((name) => [name, new Set()])),
};

/** Take the settings from the definition of the node Cross-Attention Mask. */
export function readSettings(nodeData) {
  const sent = nodeData.input?.required?.targets?.[1]?.asyndm;
  if (!sent) return;
  settings.samplers = new Set(sent.samplers);
  settings.colours = sent.colours;
  settings.progressColours = sent.progress_colours;
  settings.words = Object.fromEntries(Object.entries(sent.words).map(([name, words]) => [name, new Set(words)]));
}
