"""What every widget gets from its line and its frame, shown by the smallest one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser.conftest import Bridge
from browser.counter import Counter
from playwright.sync_api import Page, Route, expect

ROOT = Path(__file__).parents[2]
CORS = {"Access-Control-Allow-Origin": "*"}  # the page has no address of its own


def serve(route: Route) -> None:
    path = ROOT / route.request.url.removeprefix("http://widgets.test/")
    route.fulfill(body=path.read_text(), content_type="text/javascript", headers=CORS)


@pytest.fixture
def counter(bare_page: Page, mounted: Callable[[Callable[[], Any]], Bridge]) -> Bridge:
    bare_page.route("http://widgets.test/**", serve)
    return mounted(Counter)


def test_the_smallest_widget_counts_from_both_sides(counter: Bridge):
    page, output = counter.page, counter.page.locator("output")
    counter.until(lambda: output.text_content() == "0")
    expect(page.get_by_role("region", name="Counter")).to_be_visible()
    page.get_by_role("button", name="Add one").click()
    counter.until(lambda: output.text_content() == "1")
    counter.widget.add(41)
    counter.until(lambda: output.text_content() == "42")
    counter.widget._line.settle()
    assert counter.widget._line.mimebundle()["text/plain"] == "A counter at 42"


def test_an_error_in_a_handler_is_shown(counter: Bridge):
    counter.widget.add = None  # what a person broke in a notebook
    counter.page.get_by_role("button", name="Add one").click()
    counter.until(lambda: counter.page.get_by_role("alert").is_visible())
    expect(counter.page.get_by_role("alert")).to_contain_text("TypeError: 'NoneType' object is not callable")


def test_a_silent_kernel_is_told_and_its_answer_ends_that(counter: Bridge):
    page, lamp = counter.page, counter.page.locator(".chm-lamp")
    counter.until(lambda: lamp.text_content() == "Ready")
    counter.alive = False
    page.get_by_role("button", name="Add one").click()
    expect(lamp).to_have_text("Disconnected: the kernel does not answer")
    expect(page.get_by_role("alert")).to_have_text(
        "The kernel has not answered: it is busy with another cell, or gone. "
        "Where it is busy, the request waits for it."
    )
    counter.alive = True
    counter.until(lambda: lamp.text_content() == "Ready")
    counter.until(lambda: not page.get_by_role("alert").is_visible())
