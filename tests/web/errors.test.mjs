import assert from "node:assert/strict";
import { test } from "node:test";
import { raisedIn } from "../../web/lib/errors.mjs";

const frame = (path) => `  File "${path}", line 79, in positions\n    raise UnknownWordError(\n`;
const COMFY = frame("/ComfyUI/execution.py");

test("an error is the pack's where its innermost frame is in the pack's folder, on any system", () => {
  assert.ok(raisedIn("asyndm", [COMFY, frame("/ComfyUI/custom_nodes/asyndm/nodes/comfy/conditioning.py")]));
  assert.ok(raisedIn("asyndm", [COMFY, frame("C:\\ComfyUI\\custom_nodes\\asyndm\\asyndm_core\\tokens.py")]));
});

test("what others raise is not, also below a call from the pack", () => {
  assert.ok(!raisedIn("asyndm", [frame("/ComfyUI/custom_nodes/asyndm/nodes/apply.py"), frame("/ComfyUI/comfy/sample.py")]));
  assert.ok(!raisedIn("asyndm", [frame("/ComfyUI/custom_nodes/asyndm-extra/nodes.py")]));
  assert.ok(!raisedIn("asyndm", [COMFY]));
});

test("a report without a traceback is nobody's", () => {
  assert.ok(!raisedIn("asyndm", []));
  assert.ok(!raisedIn("asyndm", undefined));
  assert.ok(!raisedIn("asyndm", ["no frame"]));
});
