/** The words of the views in the language that ComfyUI is set to. (A change of it loads the workflow anew, views too.) */

import { app } from "../../../scripts/app.js";
import { translated } from "../lib/strings.mjs";

/** What a key of lib/strings.mjs says, with values for its {names}. */
export const t = (key, values) => translated(app.extensionManager?.setting?.get("Comfy.Locale"), key, values);
