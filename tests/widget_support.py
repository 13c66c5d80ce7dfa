"""The browser's side of a widget in tests without a browser: a comm that records, and messages as a page sends them."""

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import comm.base_comm
import PIL.Image

RED = PIL.Image.new("RGB", (64, 64), (220, 40, 40))


class Recorder(comm.base_comm.BaseComm):
    """A comm that keeps a widget's messages as JSON carries them, and the names of the threads that sent them."""

    def __init__(self, **keys: Any) -> None:
        self.custom: list[tuple[dict[str, Any], list[bytes]]] = []
        self.threads: set[str] = set()
        super().__init__(**keys)

    def publish_msg(self, msg_type: str, data=None, metadata=None, buffers=None, **keys: Any) -> None:
        if data and data.get("method") == "custom":
            self.threads.add(threading.current_thread().name)
            content = json.loads(json.dumps(data["content"], allow_nan=False))
            self.custom.append((content, [bytes(each) for each in buffers or []]))


def recorder(widget: Any) -> Recorder:
    return widget.comm


def browser_says(widget: Any, content: dict[str, Any], *buffers: bytes) -> None:
    widget._handle_custom_msg(content, [memoryview(each) for each in buffers])


def updates(widget: Any) -> list[tuple[dict[str, Any], list[bytes]]]:
    return [(content, buffers) for content, buffers in recorder(widget).custom if content["kind"] == "update"]


def eventually(condition: Callable[[], object]) -> None:
    """Waits for a condition, two minutes at most."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
