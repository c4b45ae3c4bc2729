/** What the server says of a node's last run, until the next one. Pure functions, no DOM. */

/**
 * The notices by node, with one taken in: a new run's take the place of the old, and nothing is said twice.
 * @param {Map<string, {prompt: string, tab: string | null, workflow?: string, texts: string[]}>} notices
 * @param {{node: string, prompt: string, text: string, tab: string | null, workflow?: string}} notice as it came, with the tab
 *   of its prompt, and the id of the workflow that was in it
 */
export function withNotice(notices, { node, prompt, text, tab = null, workflow }) {
  const key = `${tab} ${workflow} ${node}`;
  const before = notices.get(key);
  const texts = before?.prompt === prompt ? before.texts : [];
  if (texts.includes(text)) return notices;
  return new Map([...notices, [key, { node, prompt, tab, workflow, texts: [...texts, text] }]]);
}

/** The notices without those of earlier prompts of the nodes that run now. */
export function withoutOld(notices, prompt, runsNow) {
  return new Map([...notices].filter(([, notice]) => notice.prompt === prompt || !runsNow(notice)));
}
