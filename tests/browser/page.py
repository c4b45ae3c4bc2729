"""ComfyUI's page as the tests use it: load, look, click, run."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from comfy_process import Server
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).resolve().parents[2]
ARTEFACTS = ROOT / "artefacts" / "browser"
SECONDS = 60
KNOWN = re.compile(
    r"huggingface|user\.css|userdata|comfy\.templates\.json|ComfyApp graph accessed|legacy queue/history|open_maskeditor"
    r"|ERR_NAME_NOT_RESOLVED|WebGL|GPU stall|Canvas2D: Multiple readback|beforeunload"
)
"""Messages of ComfyUI's own page."""

HELPERS = """
window.testing = {
  find(type) { return testing.all().find((node) => node.type === type) },
  all(graph = app.rootGraph) { return graph.nodes.flatMap((n) => n.subgraph ? [n, ...testing.all(n.subgraph)] : [n]) },
  box(node) {
    const element = document.querySelector(`[data-node-id="${node.id}"]`)
    return element && LiteGraph.vueNodesMode ? [element.offsetWidth, element.offsetHeight] : [...node.size]
  },
  widget(type, name) { return testing.find(type)?.widgets.find((w) => w.name === name) },
  set(type, name, value) {
    const widget = testing.widget(type, name)
    widget.value = value
    widget.callback?.(value, app.canvas, testing.find(type))
    app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState?.()
  },
}
"""


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """A window of 1600 x 1000 that reaches this machine only."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--window-size=1600,1000",
        "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    driver.set_script_timeout(4 * SECONDS)
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """The frontend in a window. Every wait is for something that is seen to happen."""

    def __init__(self, driver: webdriver.Chrome, server: Server) -> None:
        self.driver, self.server = driver, server

    # --- the page ---

    def js(self, code: str, *args: Any) -> Any:
        """The value of a function body, run in the page; ``arguments`` are JSON or elements."""
        return self.driver.execute_script(code, *args)

    def wait(self, code: str, *args: Any, seconds: float = SECONDS) -> None:
        """Wait until an expression is truthy."""
        wanted = f"return Boolean({code})"
        WebDriverWait(self.driver, seconds, 0.05).until(lambda _: self.js(wanted, *args), f"never: {code}")

    def set_setting(self, name: str, value: Any) -> None:
        """Change a setting of the user for good."""
        self.settled("return app.extensionManager.setting.set(arguments[0], arguments[1])", name, value)

    def settled(self, code: str, *args: Any) -> Any:
        """The value of a promise that a function body returns; what it throws is raised."""
        wrapped = f"""
            const done = arguments[arguments.length - 1];
            (async function () {{ {code} }}).apply(null, arguments).then(
                (value) => done({{ value: value === undefined ? null : value }}),
                (error) => done({{ error: String(error && error.stack || error) }}))"""
        result = self.driver.execute_async_script(wrapped, *args)
        assert "error" not in result, result["error"]
        return result["value"]

    def use_renderer(self, name: str) -> None:
        """Open the page, with the classic canvas or with Nodes 2.0."""
        self.open()
        self.set_setting("Comfy.VueNodes.Enabled", name == "nodes2")
        self.open()
        assert self.js("return Boolean(LiteGraph.vueNodesMode)") == (name == "nodes2")

    def open(self) -> None:
        """Load the page anew and wait until its graph is there."""
        self.driver.get(self.server.url)
        self.wait(
            "window.app?.isGraphReady && app.vueAppReady && app.extensionManager?.workflow?.activeWorkflow"
            " && LiteGraph.registered_node_types.AsynDM_Apply"
        )
        self.js(HELPERS)

    def complaints(self) -> list[str]:
        """Warnings and errors of the console since the last time that ComfyUI's own page does not make."""
        entries = self.driver.get_log("browser")
        return [e["message"] for e in entries if e["level"] in ("SEVERE", "WARNING") and not KNOWN.search(e["message"])]

    def screenshot(self, name: str) -> Path:
        """Save what is seen."""
        ARTEFACTS.mkdir(parents=True, exist_ok=True)
        path = ARTEFACTS / (re.sub(r"[^\w-]+", "_", name).strip("_") + ".png")
        self.driver.save_screenshot(str(path))
        return path

    # --- the graph ---

    def new_workflow(self) -> None:
        """An empty graph."""
        self.load({"nodes": [], "links": [], "version": 0.4, "last_node_id": 0, "last_link_id": 0})

    def load(self, workflow: dict) -> None:
        """Open a workflow in the tab that is open, and show all of it."""
        self.settled(
            "await app.loadGraphData(arguments[0], true, true, app.extensionManager.workflow.activeWorkflow)", workflow
        )
        self.frames()
        self.fit()

    def new_tab(self, workflow: dict) -> None:
        """Open a workflow in a tab of its own, beside those that are open."""
        self.settled("await app.loadGraphData(arguments[0], true, true, 'copy')", workflow)
        self.frames()

    def next_tab(self) -> None:
        """Go to the next of the open tabs."""
        before = self.js("return app.extensionManager.workflow.activeWorkflow.path")
        self.settled("await app.extensionManager.command.execute('Workspace.NextOpenedWorkflow')")
        self.wait("app.extensionManager.workflow.activeWorkflow.path !== arguments[0]", before)
        self.frames()

    def fit(self, *types: str) -> None:
        """Show all of the graph at a size that can be clicked, or the nodes of the given types only."""
        self.js(
            """
            const nodes = testing.all().filter((n) => !arguments[0].length || arguments[0].includes(n.type))
            if (!nodes.length || nodes.some((n) => n.graph !== app.canvas.graph)) return
            const left = Math.min(...nodes.map((n) => n.pos[0])), top = Math.min(...nodes.map((n) => n.pos[1])) - 40
            const wide = Math.max(...nodes.map((n) => n.pos[0] + n.size[0])) - left
            const high = Math.max(...nodes.map((n) => n.pos[1] + n.size[1])) - top
            const scale = Math.min(1, (innerWidth - 160) / wide, (innerHeight - 160) / high)
            app.canvas.ds.scale = scale
            app.canvas.ds.offset = [90 / scale - left, 80 / scale - top]
            app.canvas.setDirty(true, true)
            """,
            list(types),
        )
        self.frames()

    def frames(self, count: int = 3) -> None:
        """Wait until the page has been painted a few times, and the layout does not move any more."""
        self.settled(
            """
            const frame = () => new Promise((go) => requestAnimationFrame(go))
            const boxes = () => JSON.stringify([...document.querySelectorAll('.asyndm')].map((e) => e.getBoundingClientRect()))
            for (let quiet = 0, n = 0, last = ''; quiet < arguments[0] && n < 300; n++) {
              await frame()
              const now = boxes()
              quiet = now === last ? quiet + 1 : 0
              last = now
            }
            """,
            count,
        )

    def add(self, node_type: str, x: float = 0, y: float = 0) -> str:
        """Add a node; returns its id."""
        added = self.js(
            """
            const node = LiteGraph.createNode(arguments[0])
            node.pos = [arguments[1], arguments[2]]
            app.canvas.graph.add(node)
            app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState?.()
            return String(node.id)
            """,
            node_type, x, y,
        )  # fmt: skip
        self.frames()
        return added

    def value(self, node_type: str, name: str) -> Any:
        """The value of a widget of the first node of a type."""
        return self.js("return testing.widget(arguments[0], arguments[1])?.value", node_type, name)

    def set(self, node_type: str, name: str, value: Any) -> None:
        """Change a widget, as typing would."""
        self.js("testing.set(arguments[0], arguments[1], arguments[2])", node_type, name, value)
        self.frames()

    def saved(self) -> dict:
        """The workflow as it would be saved."""
        return json.loads(self.js("return JSON.stringify(app.rootGraph.serialize())"))

    def prompt(self) -> dict:
        """The prompt as it would be sent."""
        return self.settled("return (await app.graphToPrompt()).output")

    def run(self) -> None:
        """Queue the graph and wait for its end; the test fails where the run does."""
        result = self.run_to_end()
        assert result[0] == "execution_success", result

    def run_to_end(self) -> list:
        """Queue the graph and wait for its end, whichever: the name and the detail of the server's last event."""
        result = self.settled(
            """
            const api = window.comfyAPI.api.api
            const ends = ['execution_success', 'execution_error', 'execution_interrupted']
            const end = new Promise((go) => {
              for (const name of ends) api.addEventListener(name, (e) => go([name, e.detail]), { once: true })
            })
            if (!(await app.queuePrompt(0, 1))) return ['rejected', app.extensionManager.lastNodeErrors]
            return await end
            """
        )
        self.frames()
        return result

    # --- the views ---

    def elements(self, selector: str) -> list[WebElement]:
        """All elements of a CSS selector."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def element(self, selector: str) -> WebElement:
        """The first element of a CSS selector, waited for."""
        self.wait("document.querySelector(arguments[0])", selector)
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def word(self, text: str, number: int = 0) -> WebElement:
        """A word of the picker's prompt."""
        self.wait("[...document.querySelectorAll('.asyndm-word')].some((e) => e.textContent === arguments[0])", text)
        return [e for e in self.elements(".asyndm-word") if e.text == text][number]

    def mouse(self) -> ActionChains:
        """A chain of what a hand does, quickly."""
        return ActionChains(self.driver, duration=40)

    def click(self, element: WebElement) -> None:
        """Click the middle of an element, as a mouse does."""
        self.mouse().move_to_element(element).click().perform()
        self.frames()

    def size(self, element: WebElement) -> tuple[float, float]:
        """Width and height of an element as it is seen, whatever the zoom of the canvas."""
        return tuple(self.js("const box = arguments[0].getBoundingClientRect(); return [box.width, box.height]", element))

    def click_at(self, element: WebElement, x: float, y: float = 0.5) -> None:
        """Click a point of an element, in shares of its width and height."""
        wide, high = self.size(element)
        offset = round((x - 0.5) * (wide - 2)), round((y - 0.5) * (high - 2))
        self.mouse().move_to_element_with_offset(element, *offset).click().perform()
        self.frames()

    def drag(self, element: WebElement, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Drag from one point of an element to another, in shares of its width and height."""
        wide, high = self.size(element)
        offset = [(round((x - 0.5) * wide), round((y - 0.5) * high)) for x, y in (start, end)]
        chain = self.mouse().move_to_element_with_offset(element, *offset[0]).click_and_hold()
        middle = [round((a + b) / 2) for a, b in zip(*offset, strict=True)]
        chain.move_to_element_with_offset(element, *middle).move_to_element_with_offset(element, *offset[1]).release().perform()
        self.frames()

    def keys(self, *sequence: str) -> None:
        """Press a key with the ones before it held down, with the canvas in focus."""
        self.js("document.activeElement?.blur(); app.canvas.canvas.focus()")
        chain = self.mouse()
        for held in sequence[:-1]:
            chain.key_down(held)
        chain.send_keys(sequence[-1])
        for held in sequence[:-1]:
            chain.key_up(held)
        chain.perform()
        self.frames()
