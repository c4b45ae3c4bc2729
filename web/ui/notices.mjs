/** The lines under a view: what would stop the run, and what the server said of the last one. */

import { app } from "../../../scripts/app.js";
import { nodeByExecId, samplesWith } from "../lib/graph.mjs";
import { withNotice, withoutOld } from "../lib/notices.mjs";
import { isHere, tabOf } from "./tabs.mjs";
import { element, refreshSoon } from "./view.mjs";

let notices = new Map();
let running = null;

/** Take in a notice, as the server sent it. */
export function receiveNotice(message) {
  const tab = tabOf(message.prompt);
  const workflow = isHere({ tab }) ? app.rootGraph.id : undefined;
  notices = withNotice(notices, { ...message, tab, workflow });
  refreshSoon();
}

/** A prompt begins. */
export function promptBegins({ prompt_id }) {
  running = prompt_id;
}

/** A node begins to run: what was said of its earlier run is over, or of that of the node that gave it its model. */
export function nodeBegins(execId) {
  if (execId == null || !isHere({ prompt: running })) return;
  const begins = nodeByExecId(app.rootGraph, execId);
  const runsNow = (notice) => isHere(notice) && samplesWith(app.rootGraph, begins, nodeByExecId(app.rootGraph, notice.node));
  notices = withoutOld(notices, running, runsNow);
  refreshSoon();
}

/** What was said of the last run of a node. */
export function noticesOf(node) {
  const own = (notice) => isHere(notice) && nodeByExecId(app.rootGraph, notice.node) === node;
  return [...notices.values()].filter(own).flatMap(({ texts }) => texts);
}

/** One line: a mark, then a sentence. kind: "trouble" (the run would stop) or "notice". */
export function saying(kind, ...said) {
  const made = element("div", `asyndm-line-${kind}`);
  made.setAttribute("role", kind === "trouble" ? "alert" : "status");
  const text = element("span", "asyndm-said");
  text.append(...said);
  made.append(element("span", "asyndm-sign", kind === "trouble" ? "!" : "i"), text);
  return made;
}
