/** ComfyUI's door to the web side: it only registers. Every node also works without any of it. */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { addCompare } from "./ui/compare.mjs";
import { clearErrors, showError } from "./ui/errors.mjs";
import { nodeBegins, promptBegins, receiveNotice } from "./ui/notices.mjs";
import { addOverlay, cameFromCache, receive, restore } from "./ui/overlay.mjs";
import { addPicker } from "./ui/picker.mjs";
import { addSchedule } from "./ui/schedule.mjs";
import { readSettings } from "./ui/settings.mjs";
import { onOpened, watchQueue } from "./ui/tabs.mjs";
import { refreshSoon } from "./ui/view.mjs";

const style = document.createElement("link");
style.rel = "stylesheet";
style.href = new URL("./asyndm.css", import.meta.url).href;
document.head.append(style);

const VIEWS = {
  AsynDM_CrossAttentionMask: addPicker,
  AsynDM_TimestepMap: addSchedule,
  AsynDM_KSampler: addOverlay,
  AsynDM_Apply: addOverlay,
  AsynDM_Compare: addCompare,
};

const EVENTS = [
  ["asyndm.frames", receive],
  ["asyndm.notice", receiveNotice],
  ["execution_start", promptBegins],
  ["execution_start", clearErrors],
  ["execution_cached", cameFromCache],
  ["executing", nodeBegins],
  ["execution_error", showError],
];
for (const [name, take] of EVENTS) api.addEventListener(name, ({ detail }) => take(detail));

app.registerExtension({
  name: "AsynDM",
  setup() {
    watchQueue();
    onOpened(refreshSoon);
    restore();
    api.addEventListener("graphChanged", refreshSoon);
    const theme = new MutationObserver(refreshSoon);
    for (const root of [document.documentElement, document.body]) {
      theme.observe(root, { attributes: true, attributeFilter: ["class", "style"] });
    }
  },
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name === "AsynDM_CrossAttentionMask") readSettings(nodeData);
  },
  nodeCreated(node) {
    VIEWS[node.comfyClass]?.(node);
  },
  afterConfigureGraph() {
    refreshSoon();
  },
});
