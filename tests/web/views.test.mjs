import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { test } from "node:test";

import { asksForMore, mapFault } from "../../web/lib/faults.mjs";
import { withNotice, withoutOld } from "../../web/lib/notices.mjs";
import { STRINGS, translated } from "../../web/lib/strings.mjs";

const UI = new URL("../../web/ui/", import.meta.url);

test("all languages say the same things, with the same values in them", () => {
  const values = (text) => [...text.matchAll(/\{\w+\}/g)].map(([name]) => name).sort();
  for (const [language, said] of Object.entries(STRINGS)) {
    assert.deepEqual(Object.keys(said), Object.keys(STRINGS.en), language);
    for (const [key, text] of Object.entries(said)) {
      assert.ok(text.trim(), `${language}: ${key}`);
      assert.deepEqual(values(text), values(STRINGS.en[key]), `${language}: ${key}`);
    }
  }
  for (const language of ["zh", "ja"]) {
    const same = Object.keys(STRINGS.en).filter((key) => STRINGS[language][key] === STRINGS.en[key]);
    assert.deepEqual(same, [], `not translated to ${language}`);
  }
});

test("every string is used, and the views hold no sentence of their own", () => {
  const sources = readdirSync(UI).map((name) => readFileSync(new URL(name, UI), "utf8"));
  const code = sources.join("\n").replace(/\/\*[\s\S]*?\*\/|\/\/.*/g, "");
  const faults = readFileSync(new URL("../../web/lib/faults.mjs", import.meta.url), "utf8");
  const written = new Set([...`${code}\n${faults}`.matchAll(/["'](\w+)["']/g)].map(([, text]) => text));
  const byMode = ["concave", "synchronous", "clean", "ahead"];
  const problems = ["range", "twice"];
  const unused = Object.keys(STRINGS.en).filter((key) => ![...written, ...byMode, ...problems].includes(key));
  assert.deepEqual(unused, []);
  const sentences = [...code.matchAll(/"([^"\n]*[A-Za-z]{3,} [a-z]+ [^"\n]*)"/g)].map(([, text]) => text);
  assert.deepEqual(sentences.filter((text) => !/asyndm-|rgba|sans-serif/.test(text)), []);
});

test("the language of a locale, English where the pack does not speak it", () => {
  assert.equal(translated("en", "stepOf", { step: 3, steps: 20 }), "step 3 of 20");
  assert.equal(translated("zh-TW", "rest"), STRINGS.zh.rest);
  for (const other of ["fr", undefined, null, ""]) assert.equal(translated(other, "rest"), "the rest");
  assert.equal(translated("ja", "showWhere", { name: "$& {name}" }), "$& {name} の位置を表示");
});

test("notices are a run's: a new run's take their place, and none is said twice", () => {
  const notice = (node, prompt, text, tab = "t") => ({ node, prompt, text, tab });
  const said = (notices) => [...notices.values()].map(({ node, tab, texts }) => [tab, node, ...texts]);
  let notices = new Map();
  for (const text of ["one", "two", "one"]) notices = withNotice(notices, notice("3:7", "a", text));
  assert.deepEqual(said(notices), [["t", "3:7", "one", "two"]]);
  notices = withNotice(notices, notice("4", "a", "four"));
  notices = withNotice(notices, notice("4", "a", "another tab's", "u"));
  notices = withNotice(notices, notice("3:7", "b", "one"));
  assert.deepEqual(said(notices), [["t", "3:7", "one"], ["t", "4", "four"], ["u", "4", "another tab's"]]);
  assert.deepEqual(said(withoutOld(notices, "b", () => true)), [["t", "3:7", "one"]]);
  assert.deepEqual(said(withoutOld(notices, "c", ({ node }) => node === "4")), [["t", "3:7", "one"]]);
});

test("a chain that Python refuses is known before the run, and no other", () => {
  const { chains } = JSON.parse(readFileSync(new URL("./refusals.json", import.meta.url), "utf8"));
  assert.ok(chains.some(({ refused }) => !refused));
  for (const { layers, refused, idle } of chains) {
    const fault = mapFault(layers);
    assert.equal(fault !== null, refused !== "", `${JSON.stringify(layers)}: ${refused}`);
    if (fault?.values) assert.ok(refused.includes(` ${fault.values.what} `), refused);
    if (!refused) assert.equal(asksForMore(layers), !idle, JSON.stringify(layers));
  }
});
