/**
 * Reading ComfyUI's graph: where an input comes from, through reroutes and the walls of subgraphs. Works on any object
 * of the graph's form, so that it is tested without a browser. Graphs and nodes are ComfyUI's own, never changed here.
 */

const DEPTH = 24;
const PASS = new Set(["Reroute"]);
const MUTED = 2;
const BYPASSED = 4;

/** The node of an execution id ("4:1" is node 1 in subgraph node 4), or null. */
export function nodeByExecId(rootGraph, execId) {
  let graph = rootGraph;
  let node = null;
  for (const part of String(execId).split(":")) {
    node = graph?.getNodeById(part) ?? graph?.getNodeById(Number(part)) ?? null;
    if (!node) return null;
    graph = node.subgraph;
  }
  return node;
}

/** All nodes of a graph and of the subgraphs in it. */
export function allNodes(graph, seen = new Set()) {
  if (!graph || seen.has(graph)) return [];
  seen.add(graph);
  return (graph.nodes ?? []).flatMap((node) => [node, ...allNodes(node.subgraph, seen)]);
}

const linkOf = (graph, id) => (id == null ? null : (graph.getLink?.(id) ?? graph.links?.[id] ?? null));

const widgetOf = (node, name) => node?.widgets?.find((widget) => widget.name === name);

/** Whether a node takes no part in a run: it is muted or bypassed. */
export const isOff = ({ mode }) => mode === MUTED || mode === BYPASSED;

/**
 * What feeds an input: {node, slot} of the output at the other end, {host, name} where it is a widget on the face of a
 * subgraph, or null where nothing is linked, or what is linked is muted. Nodes that are bypassed are passed through.
 */
export function origin(rootGraph, node, name, depth = 0) {
  const input = node?.inputs?.find((slot) => slot.name === name);
  const link = input && depth < DEPTH ? linkOf(node.graph, input.link) : null;
  return link ? outputOf(rootGraph, node.graph, link, depth) : null;
}

function outputOf(rootGraph, graph, link, depth) {
  if (graph.inputNode && String(link.origin_id) === String(graph.inputNode.id)) {
    const name = graph.inputs?.[link.origin_slot]?.name;
    const host = allNodes(rootGraph).find((node) => node.subgraph === graph);
    if (!host || name === undefined) return null;
    return origin(rootGraph, host, name, depth + 1) ?? { host, name };
  }
  const node = graph.getNodeById(link.origin_id);
  if (!node || node.mode === MUTED) return null;
  if (node.mode === BYPASSED) return origin(rootGraph, node, passed(node, link.origin_slot), depth + 1);
  if (PASS.has(node.type)) return origin(rootGraph, node, node.inputs?.[0]?.name, depth + 1);
  if (node.subgraph) {
    const inner = node.subgraph.outputs?.[link.origin_slot]?.linkIds?.[0];
    const next = linkOf(node.subgraph, inner);
    return next && depth < DEPTH ? outputOf(rootGraph, node.subgraph, next, depth + 1) : null;
  }
  return { node, slot: link.origin_slot };
}

/** The name of the input that a bypassed node hands on at an output: of the same place if its type is right, else the first. */
function passed({ inputs = [], outputs = [] }, slot) {
  const type = outputs[slot]?.type;
  return [inputs[slot], ...inputs].find((input) => input && input.type === type)?.name;
}

/**
 * The value of a widget of a node, also where it is linked to a primitive or to a subgraph's face.
 * undefined: another node makes it, so it is known only when the graph runs.
 */
export function valueOf(rootGraph, node, name) {
  const from = origin(rootGraph, node, name);
  if (!from) return widgetOf(node, name)?.value;
  if (from.host) return widgetOf(from.host, from.name)?.value;
  if (!/^Primitive/.test(from.node.type)) return undefined;
  return (widgetOf(from.node, "value") ?? from.node.widgets?.[0])?.value;
}

/** Whether the widget of a node may be set: it is there and nothing is linked to it. */
export const isFree = (rootGraph, node, name) => Boolean(widgetOf(node, name)) && origin(rootGraph, node, name) === null;

/** The node of a type that feeds an input, or null. */
export function source(rootGraph, node, name, type) {
  const from = origin(rootGraph, node, name);
  return from?.node?.type === type ? from.node : null;
}

/** The chain of Asynchronous Timestep Maps that ends at map, the earliest first, each with its Cross-Attention Mask. */
export function chain(rootGraph, map) {
  const layers = [];
  for (let node = map; node && layers.length < DEPTH; node = source(rootGraph, node, "previous", "AsynDM_TimestepMap")) {
    layers.unshift({ map: node, mask: source(rootGraph, node, "regions", "AsynDM_CrossAttentionMask") });
  }
  return layers;
}

/** Whether a sampler samples with the model that comes out of a node, patched on the way or not. */
export function samplesWith(rootGraph, sampler, node, depth = 0) {
  if (!sampler || !node || depth >= DEPTH) return false;
  if (sampler === node) return true;
  return (sampler.inputs ?? [])
    .filter(({ type }) => type === "MODEL" || type === "GUIDER")
    .some(({ name }) => samplesWith(rootGraph, origin(rootGraph, sampler, name)?.node, node, depth + 1));
}

/** The first chain of timestep maps that a Cross-Attention Mask is part of, or []. */
export function chainWith(rootGraph, mask) {
  const chains = allNodes(rootGraph)
    .filter((node) => node.type === "AsynDM_TimestepMap" && !isOff(node))
    .map((map) => chain(rootGraph, map))
    .filter((layers) => layers.some((layer) => layer.mask === mask));
  return chains.sort((a, b) => b.length - a.length)[0] ?? [];
}
