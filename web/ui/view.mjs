/** A piece of our own on a node: one DOM widget, last in the node, that shows values and keeps none. */

import { app } from "../../../scripts/app.js";
import { isOff } from "../lib/graph.mjs";
import { keepRun } from "./regions.mjs";

const views = new Set();
let count = 0;
let waiting = false;

/** Bring all views up to date, once, before the next frame. */
export function refreshSoon() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    for (const { node, refresh } of views) if (node.graph) refresh();
  });
}

/** Call more after a callback of this one node, whatever was there before. */
function after(node, name, more) {
  const before = node[name];
  node[name] = function (...args) {
    const result = before?.apply(this, args);
    more.apply(this, args);
    return result;
  };
}

/** A new element with a class and, if given, text and a tooltip. */
export function element(tag, className, text = "", title = "") {
  const made = document.createElement(tag);
  made.className = className;
  if (text) made.textContent = text;
  if (title) made.title = title;
  if (tag === "button") made.type = "button";
  return made;
}

/**
 * Put a body on a node. refresh repaints it from the graph; it is called whenever the graph may have changed.
 *
 * least: the height in pixels that the body gets at least; it gets what room the node has left, scrolls in it, and never
 * makes the node grow over its neighbours. Without, the node grows with its body.
 */
export function addView(node, name, body, refresh, least = null) {
  const frame = element("div", least === null ? "asyndm" : "asyndm asyndm-within");
  frame.append(body);
  if (least !== null) frame.style.setProperty("--least", `${least}px`);
  frame.tabIndex = -1;
  frame.dataset.testid = name;
  frame.addEventListener("keydown", (event) => event.stopPropagation());
  frame.addEventListener("pointerdown", (event) => event.button === 0 && event.stopPropagation());
  let height = least ?? 40;
  let off = false;
  const widget = node.addDOMWidget(name, `${name}#${count++}`, frame, {
    serialize: false,
    hideOnZoom: false,
    hideInPanel: true,
    socketless: true,
    getValue: () => "",
    setValue: () => {},
    getMinHeight: () => height,
    getMaxHeight: () => (least === null ? height : undefined),
    onDraw: () => {
      if (frame.classList.toggle("asyndm-off", isOff(node)) !== off) refreshSoon();
      off = isOff(node);
    },
  });
  widget.serialize = false;
  if (least !== null) {
    height += 2 * widget.margin;
    after(node, "onConfigure", () => makeRoom(node));
  } else {
    new ResizeObserver(() => {
      if (!body.isConnected || (body.offsetHeight === 0 && !body.hidden)) return;
      const wanted = body.hidden ? 0 : Math.ceil(body.offsetHeight) + 2 * widget.margin;
      if (wanted === height) return;
      height = wanted;
      makeRoom(node);
    }).observe(body);
  }

  const view = { node, refresh };
  views.add(view);
  after(node, "onAdded", () => views.add(view));
  after(node, "onRemoved", () => views.delete(view));
  after(node, "onConfigure", refreshSoon);
  after(node, "onConnectionsChange", refreshSoon);
  after(node, "onExecuted", (output) => {
    if (output?.asyndm?.[0]) keepRun(node, output.asyndm[0]);
    refreshSoon();
  });
  for (const other of node.widgets) if (other !== widget) after(other, "callback", refreshSoon);
  refreshSoon();
  return widget;
}

/** Make a node that is to be new this high at least: on the classic canvas nodes begin with the room that they need. */
export function beginWith(node, width, height) {
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
}

/** On the classic canvas a node does not grow by itself when a view in it does. */
function makeRoom(node) {
  const needed = node.computeSize()[1];
  if (!window.LiteGraph.vueNodesMode && node.size[1] < needed) node.setSize([node.size[0], needed]);
  node.graph?.setDirtyCanvas(true, true);
}

/** Set a widget of a node as if a person had. */
export function setWidget(node, name, value) {
  const widget = node.widgets.find((entry) => entry.name === name);
  widget.value = value;
  widget.callback?.(value, app.canvas, node);
  node.graph?.setDirtyCanvas(true, true);
}

/** Make the change so far one step of undo. */
export function remember() {
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
}
