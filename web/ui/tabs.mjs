/**
 * Which workflow tab queued which prompt. Tabs may hold copies of one workflow, with the same ids, so every tab gets a
 * name of its own here; it outlives a reload of the page, as the tabs do.
 */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const STORE = "asyndm.tabs";
const MOST = 100; // prompts that are remembered
const names = new WeakMap();
const before = JSON.parse(sessionStorage.getItem(STORE) ?? "{}");
const paths = new Map(Object.entries(before.paths ?? {})); // of tabs of the page before it was loaded anew: path -> name
const prompts = new Map(Object.entries(before.prompts ?? {})); // prompt id -> name of its tab
let queueing = null;

function nameOf(workflow) {
  if (!workflow) return null;
  if (!names.has(workflow)) {
    names.set(workflow, paths.get(workflow.path) ?? `${Date.now()}.${Math.random()}`);
    paths.delete(workflow.path);
  }
  return names.get(workflow);
}

const manager = () => app.extensionManager?.workflow;

/** The name of the tab that is open, or null. */
export const openTab = () => nameOf(manager()?.activeWorkflow);

/** The name of the tab that queued a prompt, or null where none of this page did. */
export const tabOf = (prompt) => prompts.get(prompt) ?? queueing;

/** Whether the tab that is open queued a prompt; by the workflow's id where it is not known who did. */
export function isHere({ tab, prompt, workflow }) {
  const from = tab ?? tabOf(prompt);
  const sameId = !workflow || !app.rootGraph.id || workflow === app.rootGraph.id;
  return sameId && (!from || from === openTab());
}

/** Call back whenever another tab has been opened. (The graph of a tab is there before it counts as open.) */
export function onOpened(callback) {
  manager()?.$onAction?.(({ name, after }) => name === "openWorkflow" && after(() => callback()));
}

/** Remember from now on who queues what. */
export function watchQueue() {
  const queue = api.queuePrompt;
  api.queuePrompt = async function (...args) {
    const tab = openTab();
    queueing = tab;
    try {
      const answer = await queue.apply(this, args);
      if (answer?.prompt_id) prompts.set(answer.prompt_id, tab);
      if (prompts.size > MOST) prompts.delete(prompts.keys().next().value);
      return answer;
    } finally {
      queueing = null;
    }
  };
  window.addEventListener("pagehide", () => {
    const open = (manager()?.openWorkflows ?? []).map((workflow) => [workflow.path, nameOf(workflow)]);
    const kept = { paths: Object.fromEntries(open), prompts: Object.fromEntries(prompts) };
    sessionStorage.setItem(STORE, JSON.stringify(kept));
  });
}
