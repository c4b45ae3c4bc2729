"""The browser that queued the running prompt: which node it shows, and how it is told something."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from comfy_execution.utils import get_executing_context


class Browser(NamedTuple):
    """A browser that waits for a running prompt. server: ComfyUI's. client: the browser's id. prompt: the prompt's, or None."""

    server: Any
    client: str
    prompt: str | None

    def send(self, event: str, message: dict[str, Any]) -> None:
        """Tell this browser, and no other."""
        self.server.send_sync(event, message, self.client)


def waiting_browser() -> Browser | None:
    """The browser that queued the running prompt; None without a server or such a browser."""
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    client = getattr(server, "client_id", None)
    if client is None:
        return None
    context = get_executing_context()
    return Browser(server, client, context.prompt_id if context else None)


def display_node(hidden: Any) -> str | None:
    """The id of the node that shows what a node with these hidden inputs (unique_id, dynprompt) does.

    None where a node is executed outside of ComfyUI's executor: it has no id then.
    """
    return None if hidden is None else hidden.dynprompt.get_display_node_id(hidden.unique_id)
