/** What Python decides for the screen too: word lists and colours, sent with the node's definition. */

export const settings = {
  colours: [[128, 128, 128]],
  progressColours: Array.from({ length: 256 }, () => [128, 128, 128]),
  functionWords: new Set(),
  styleWords: new Set(),
  placeWords: new Set(),
};

/** Take the settings from the definition of the node Cross-Attention Mask. */
export function readSettings(nodeData) {
  const sent = nodeData.input?.required?.targets?.[1]?.asyndm;
  if (!sent) return;
  settings.colours = sent.colours;
  settings.progressColours = sent.progress_colours;
  settings.functionWords = new Set(sent.function_words);
  settings.styleWords = new Set(sent.style_words);
  settings.placeWords = new Set(sent.place_words);
}
