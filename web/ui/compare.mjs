/** Two pictures, one over the other, with a line between them that follows the pointer or the slider. */

import { api } from "../../../scripts/api.js";
import { t } from "./locale.mjs";
import { lastRun } from "./regions.mjs";
import { addView, element } from "./view.mjs";

/** Add the slider to an AsynDM Compare. */
export function addCompare(node) {
  const body = element("div", "asyndm-compare");
  const stage = element("div", "asyndm-stage");
  const [a, b] = ["a", "b"].map((name) => element("img", `asyndm-picture asyndm-picture-${name}`));
  const names = ["A", "B"].map((name) => element("span", `asyndm-letter asyndm-letter-${name.toLowerCase()}`, name));
  const line = element("div", "asyndm-line");
  const slider = element("input", "asyndm-slider", "", t("fromAToB"));
  const note = element("div", "asyndm-note");
  Object.assign(slider, { type: "range", min: "0", max: "100", step: "any", value: "50" });
  slider.setAttribute("aria-label", t("fromAToB"));
  stage.append(a, b, ...names, line);
  body.append(stage, slider, note);
  for (const picture of [a, b]) picture.draggable = false;
  let shown;

  function refresh() {
    const run = lastRun(node);
    for (const part of [stage, slider]) part.hidden = !run;
    if (run === shown && note.textContent) return;
    shown = run;
    note.textContent = noteText(run);
    if (!run) return;
    a.src = url(run.a);
    b.src = url(run.b);
  }

  const place = () => body.style.setProperty("--place", `${slider.value}%`);
  slider.addEventListener("input", place);
  stage.addEventListener("pointermove", ({ clientX }) => {
    const { left, width } = stage.getBoundingClientRect();
    slider.value = String((100 * (clientX - left)) / width);
    place();
  });
  place();
  if (node.size[0] < 360) node.setSize([360, node.size[1]]);
  addView(node, "asyndm_compare", body, refresh);
}

const url = (file) => api.apiURL(`/view?${new URLSearchParams(file)}`);

function noteText(run) {
  if (!run) return t("afterRun");
  return run.batch > 1 ? t("firstOf", { count: run.batch }) : t("movePointer");
}
