import assert from "node:assert/strict";
import { test } from "node:test";

import { allNodes, chain, chainWith, isFree, isOff, nodeByExecId, samplesWith, source, valueOf } from "../../web/lib/graph.mjs";

/** A graph of ComfyUI's form from nodes [id, type, widgets, links to inputs {name: [id, slot]}]. */
function makeGraph(entries, extra = {}) {
  const links = new Map();
  const graph = { nodes: [], links, getLink: (id) => links.get(id), ...extra };
  graph.getNodeById = (id) => graph.nodes.find((node) => node.id === String(id)) ?? null;
  for (const [id, type, widgets = {}, inputs = {}, more = {}] of entries) {
    const node = { id: String(id), type, graph, ...more };
    node.widgets = Object.entries(widgets).map(([name, value]) => ({ name, value }));
    node.inputs = [...new Set([...Object.keys(widgets), ...Object.keys(inputs)])].map((name) => {
      if (!inputs[name]) return { name, link: null };
      const link = links.size + 1;
      links.set(link, { origin_id: inputs[name][0], origin_slot: inputs[name][1] ?? 0 });
      return { name, link };
    });
    graph.nodes.push(node);
  }
  return graph;
}

const text = (graph, id) => valueOf(graph, graph.getNodeById(id), "text");

test("own text, primitives, reroutes, unknown sources", () => {
  const graph = makeGraph([
    [1, "PrimitiveStringMultiline", { value: "a boat" }],
    [2, "Reroute", {}, { "": [1] }],
    [3, "AsynDM_CrossAttentionMask", { text: "own" }],
    [4, "AsynDM_CrossAttentionMask", { text: "hidden" }, { text: [2] }],
    [5, "SomeWriter", { value: "not this" }],
    [6, "AsynDM_CrossAttentionMask", { text: "hidden" }, { text: [5] }],
  ]);
  assert.equal(text(graph, 3), "own");
  assert.equal(text(graph, 4), "a boat");
  assert.equal(text(graph, 6), undefined);
  assert.equal(isFree(graph, graph.getNodeById(3), "text"), true);
  assert.equal(isFree(graph, graph.getNodeById(4), "text"), false);
});

test("a ring of reroutes ends", () => {
  const graph = makeGraph([
    [1, "Reroute", {}, { in: [2] }],
    [2, "Reroute", {}, { in: [1] }],
    [3, "AsynDM_CrossAttentionMask", { text: "own" }, { text: [1] }],
  ]);
  assert.equal(text(graph, 3), "own");
});

test("through the face of a subgraph, inwards and outwards", () => {
  const inner = makeGraph([[1, "AsynDM_CrossAttentionMask", { text: "" }, { text: [-10, 1] }]], {
    inputNode: { id: "-10" },
    inputs: [{ name: "clip" }, { name: "prompt" }],
    outputs: [{ linkIds: [9] }],
  });
  inner.links.set(9, { origin_id: 1, origin_slot: 1 });
  const root = makeGraph([
    [3, "PrimitiveString", { value: "linked" }],
    [4, "uuid", { prompt: "promoted" }, {}, { subgraph: inner }],
    [7, "AsynDM_TimestepMap", {}, { regions: [4, 0] }],
  ]);
  const mask = inner.nodes[0];
  assert.equal(valueOf(root, mask, "text"), "promoted");
  assert.equal(source(root, root.getNodeById(7), "regions", "AsynDM_CrossAttentionMask"), mask);
  assert.equal(nodeByExecId(root, "4:1"), mask);
  assert.equal(nodeByExecId(root, "4:2"), null);
  assert.equal(nodeByExecId(root, "9"), null);
  assert.deepEqual(allNodes(root).map((node) => node.id), ["3", "4", "1", "7"]);
  const host = root.getNodeById(4);
  root.links.set(50, { origin_id: 3, origin_slot: 0 });
  host.inputs[0].link = 50;
  assert.equal(valueOf(root, mask, "text"), "linked");
});

test("what is bypassed is passed through, what is muted is not there", () => {
  const off = (mode) => ({ mode, outputs: [{ type: "MASK" }, { type: "ASYNDM_TIMESTEP_MAP" }] });
  const build = (mode) => {
    const graph = makeGraph([
      [1, "AsynDM_TimestepMap"],
      [2, "AsynDM_TimestepMap", {}, { regions: [9], previous: [1] }, off(mode)],
      [3, "AsynDM_TimestepMap", {}, { previous: [2, 1] }],
    ]);
    const types = { regions: "ASYNDM_REGIONS", previous: "ASYNDM_TIMESTEP_MAP" };
    for (const node of graph.nodes) for (const input of node.inputs) input.type = types[input.name];
    return chain(graph, graph.getNodeById(3)).map(({ map }) => map.id);
  };
  assert.deepEqual(build(0), ["1", "2", "3"]);
  assert.deepEqual(build(4), ["1", "3"]);
  assert.deepEqual(build(2), ["3"]);
  assert.deepEqual([0, 2, 4, undefined].map((mode) => isOff({ mode })), [false, true, true, false]);
});

test("which samplers sample with a node's model", () => {
  const graph = makeGraph([
    [1, "AsynDM_Apply"],
    [2, "LoraLoader", {}, { model: [1] }],
    [3, "KSampler", {}, { model: [2] }],
    [4, "CFGGuider", {}, { model: [1] }],
    [5, "SamplerCustomAdvanced", {}, { guider: [4] }],
    [6, "KSampler", {}, { latent_image: [3] }],
  ]);
  const types = { model: "MODEL", guider: "GUIDER", latent_image: "LATENT" };
  for (const node of graph.nodes) for (const input of node.inputs) input.type = types[input.name];
  const apply = graph.getNodeById(1);
  assert.deepEqual(graph.nodes.filter((node) => samplesWith(graph, node, apply)).map(({ id }) => id), ["1", "2", "3", "4", "5"]);
  assert.equal(samplesWith(graph, null, null), false);
});

test("chains of timestep maps", () => {
  const graph = makeGraph([
    [1, "AsynDM_CrossAttentionMask", { text: "a" }],
    [2, "AsynDM_CrossAttentionMask", { text: "b" }],
    [3, "AsynDM_TimestepMap", {}, { regions: [1, 1] }],
    [4, "AsynDM_TimestepMap", {}, { regions: [2, 1], previous: [3] }],
    [5, "AsynDM_TimestepMap", {}, {}],
  ]);
  const ids = (layers) => layers.map(({ map, mask }) => [map.id, mask?.id]);
  assert.deepEqual(ids(chain(graph, graph.getNodeById(4))), [["3", "1"], ["4", "2"]]);
  assert.deepEqual(ids(chainWith(graph, graph.getNodeById(1))), [["3", "1"], ["4", "2"]]);
  assert.deepEqual(ids(chain(graph, graph.getNodeById(5))), [["5", undefined]]);
  assert.deepEqual(chainWith(graph, graph.getNodeById(5)), []);
});
