"""A ComfyUI to test against, and a server process of it with the pack as its custom node."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = Path("~/comfy/ComfyUI").expanduser()
PACK = "ComfyUI-AsynDM"
START_SECONDS, RUN_SECONDS = 240, 240


def comfyui_path() -> Path | None:
    """The ComfyUI to test against, or None. UsageError if COMFYUI_PATH is set to something else."""
    named = os.environ.get("COMFYUI_PATH")
    path = Path(named).expanduser() if named else DEFAULT
    if (path / "comfy" / "samplers.py").is_file() and (path / "nodes.py").is_file():
        return path
    if named:
        raise pytest.UsageError(f"COMFYUI_PATH is {named}, but there is no ComfyUI (no comfy/samplers.py, nodes.py).")
    return None


@dataclass(frozen=True)
class Server:
    """A running server: where it answers, what it has written to its log, and its process."""

    url: str
    log_file: Path
    pid: int

    @property
    def log(self) -> str:
        """The log so far."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str) -> bytes:
        """The body of a GET request."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return answer.read()

    def json(self, path: str) -> Any:
        """The same, read as JSON."""
        return json.loads(self.get(path))

    def post(self, prompt: dict) -> dict:
        """The answer to /prompt: with prompt_id where it was queued, with node_errors where it was refused."""
        body = json.dumps({"prompt": prompt}).encode()
        request = urllib.request.Request(self.url + "/prompt", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as refusal:
            return json.loads(refusal.read())

    def run(self, prompt: dict) -> dict:
        """Queue a prompt, wait for it, and return its outputs by node id; the test fails where the run does."""
        answer = self.post(prompt)
        assert not answer.get("node_errors") and "prompt_id" in answer, answer
        end = time.monotonic() + RUN_SECONDS
        while time.monotonic() < end:
            entry = self.json(f"/history/{answer['prompt_id']}").get(answer["prompt_id"])
            if entry and entry["status"]["completed"]:
                return entry["outputs"]
            assert not entry or entry["status"]["status_str"] != "error", entry["status"]
            time.sleep(0.3)
        pytest.fail(f"The run took more than {RUN_SECONDS} s. The log ends with:\n{self.log[-2000:]}")

    def image(self, entry: dict) -> np.ndarray:
        """A picture of a run's outputs, uint8 (H, W, 3)."""
        with Image.open(io.BytesIO(self.get("/view?" + urllib.parse.urlencode(entry)))) as picture:
            return np.asarray(picture.convert("RGB"))


@contextmanager
def start(
    comfyui: Path,
    base: Path,
    settings: dict[str, Any] | None = None,
    custom_nodes: Sequence[Path] = (),
    pack: Path | None = None,
) -> Iterator[Server]:
    """A server with the empty folder ``base`` as its base folder, and the user's ``settings``; it ends with the block.

    Its only picture to load is ComfyUI's own.

    custom_nodes: folders of node packs that it loads too. pack: a copy of this one under its own name, instead of this.
    """
    for folder in ("custom_nodes", "input", "models", "output", "temp", "user/default"):
        (base / folder).mkdir(parents=True)
    shutil.copy(comfyui / "input" / "example.png", base / "input")
    ours = {PACK: ROOT} if pack is None else {pack.name: pack}
    for name, folder in {**ours, **{other.name: other for other in custom_nodes}}.items():
        (base / "custom_nodes" / name).symlink_to(folder, target_is_directory=True)
    (base / "user/default/comfy.settings.json").write_text(json.dumps(settings or {}), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log_file = base / "server.log"
    command = [sys.executable, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port), "--disable-auto-launch"]
    command += ["--base-directory", str(base), "--database-url", "sqlite:///:memory:", "--disable-api-nodes"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, cwd=comfyui, stdout=log, stderr=subprocess.STDOUT, env=environment)
    running = Server(f"http://127.0.0.1:{port}", log_file, process.pid)
    try:
        _wait_until_it_answers(running, process)
        yield running
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_it_answers(server: Server, process: subprocess.Popen) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            server.get("/system_stats")
            return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"ComfyUI did not start. Its log ends with:\n{server.log[-3000:]}")
