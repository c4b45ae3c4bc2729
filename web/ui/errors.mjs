/** The sentence of an error in sight at once: where the frontend lists errors in its side panel, it names only the node. */

import { app } from "../../../scripts/app.js";
import { raisedIn } from "../lib/errors.mjs";
import { nodeByExecId } from "../lib/graph.mjs";

const FOLDER = decodeURIComponent(new URL(import.meta.url).pathname.split("/").at(-3));
const toasts = [];

/** Show an error of the pack until it is closed or the next run starts; others, and the older dialog, show theirs. */
export function showError({ node_id, node_type, exception_message, traceback }) {
  if (!app.extensionManager.setting.get("Comfy.RightSidePanel.ShowErrorsTab") || !raisedIn(FOLDER, traceback)) return;
  const summary = nodeByExecId(app.rootGraph, node_id)?.title ?? node_type;
  toasts.push({ severity: "error", summary, detail: exception_message.trim() });
  app.extensionManager.toast.add(toasts.at(-1));
}

/** Take away what an earlier run had to say. */
export function clearErrors() {
  for (const toast of toasts.splice(0)) app.extensionManager.toast.remove(toast);
}
