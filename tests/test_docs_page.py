"""/docs: OpenAPI whose examples work when sent, and a page that needs nothing from elsewhere."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import httpx
import pytest

from app.settings import Settings
from tests.running import RunningServer, running_server

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def needs_browser(test: Callable[..., None]) -> Callable[..., None]:
    skip = pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")
    return cast("Callable[..., None]", pytest.mark.browser(skip(test)))


@pytest.fixture(scope="module")
def openapi(client: httpx.Client) -> dict[str, Any]:
    document: dict[str, Any] = client.get("/openapi.json").json()
    return document


def test_every_route_is_described(openapi: dict[str, Any]) -> None:
    """The document has the service's routes, and none of the framework's validation errors."""
    assert sorted(openapi["paths"]) == ["/healthz", "/metrics", "/predict", "/predict/batch", "/readyz"]
    assert "HTTPValidationError" not in str(openapi)


def test_every_error_has_the_one_schema(openapi: dict[str, Any]) -> None:
    """Each documented error is problem+json with the schema Problem."""
    for path, operations in openapi["paths"].items():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    schema = response["content"]["application/problem+json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/Problem"}, (path, status)
    assert "code" in openapi["components"]["schemas"]["Problem"]["required"]


@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
def test_json_examples_work_when_sent(client: httpx.Client, openapi: dict[str, Any], path: str) -> None:
    """The JSON that /docs shows is answered with 200."""
    content = openapi["paths"][path]["post"]["requestBody"]["content"]
    answer = client.post(path, json=content["application/json"]["example"])
    assert answer.status_code == 200, answer.text
    assert {"multipart/form-data"} <= set(content)


def test_the_example_picture_can_be_fetched_and_sent(client: httpx.Client, example_jpeg: bytes) -> None:
    """The picture that the printed curl sends is served here."""
    picture = client.get("/static/example.jpg")
    assert (picture.headers["Content-Type"], picture.content) == ("image/jpeg", example_jpeg)
    assert client.post("/predict", content=picture.content).status_code == 200


def test_the_root_leads_to_the_page(client: httpx.Client) -> None:
    """Who opens the bare address is led to /docs."""
    answer = client.get("/")
    assert answer.status_code == 307
    assert client.get(answer.headers["Location"]).status_code == 200


def test_the_page_loads_nothing_from_elsewhere(client: httpx.Client) -> None:
    """Everything /docs names is served from here, under a policy that forbids the rest."""
    page = client.get("/docs")
    assert page.headers["Content-Security-Policy"].startswith("default-src 'self'")
    names = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(names) >= 4
    for name in names:
        assert not name.startswith(("http:", "https:", "//"))
        assert client.get(f"/{name}").status_code == 200


@pytest.fixture(scope="module")
def prefixed() -> Iterator[RunningServer]:
    with running_server(Settings(backend="null", port=0, log_level="error", root_path="/models/resnet")) as server:
        yield server


@contextmanager
def opened_page(address: str) -> Iterator[Page]:
    """/docs in a browser that may only talk to the service; a complaint of the page fails the test."""
    from playwright.sync_api import sync_playwright

    requested: list[str] = []
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"],
        )
        page = browser.new_page()
        page.on("request", lambda request: requested.append(request.url))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("dialog", lambda dialog: complaints.append("a script of somebody's ran"))
        page.goto(f"{address}/docs")
        yield page
        browser.close()
    assert all(url.startswith((address, "data:", "blob:")) for url in requested), requested
    assert complaints == []


@needs_browser
def test_try_it_out_works_in_a_browser(null_server: RunningServer) -> None:
    """A person opens /docs, presses Execute, and sees a prediction; no request leaves for another host."""
    with opened_page(null_server.address) as page:
        page.get_by_text("Classify one image").click()
        page.get_by_role("button", name="Execute").click()
        page.locator(".live-responses-table .response").wait_for()
        status = page.locator(".live-responses-table tbody .response-col_status").first.inner_text()
        shown = page.locator(".live-responses-table").first.inner_text()
    assert status.startswith("200")
    assert "probability" in shown


@needs_browser
def test_the_pages_curl_names_the_address_that_serves(null_server: RunningServer) -> None:
    """The command at the top of the page can be pasted, whatever port the service has."""
    with opened_page(null_server.address) as page:
        page.get_by_text("With curl").wait_for()
        shown = page.locator(".description code").first.inner_text().strip()
    assert shown == f"curl -sS --data-binary @photo.jpg {null_server.address}/predict"


@needs_browser
def test_the_page_says_what_serves_and_warns(null_server: RunningServer) -> None:
    """The page names the model and shows its warnings, as text whatever is in them."""
    hostile = "<img src=x onerror=alert(1)>"
    pooled = null_server.app.state.classifier.pool.default
    honest = pooled.model
    pooled.model = dataclasses.replace(honest, warnings=(hostile,))
    try:
        with opened_page(null_server.address) as page:
            page.get_by_text("Serving null (00000000) on none").wait_for()
            assert page.locator("#warnings li").all_inner_texts() == [hostile]
    finally:
        pooled.model = honest


@needs_browser
def test_a_label_is_text_whatever_is_in_it(null_server: RunningServer) -> None:
    """Labels come from a checkpoint that anybody may have made: on the page they are letters, and run nothing."""
    hostile = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    pooled = null_server.app.state.classifier.pool.default
    honest = pooled.model
    pooled.model = dataclasses.replace(honest, labels=(hostile,) * honest.class_count)
    try:
        with opened_page(null_server.address) as page:
            page.get_by_text("Classify one image").click()
            page.get_by_role("button", name="Execute").click()
            page.locator(".live-responses-table .response").wait_for()
            assert hostile in page.locator(".live-responses-table").first.inner_text()
            assert page.locator("img[src=x]").count() == 0
    finally:
        pooled.model = honest


@needs_browser
def test_a_problems_type_leads_to_its_row(null_server: RunningServer) -> None:
    """Opened in a browser, a problem's type shows the row of its code, marked, and nothing is loaded from elsewhere."""
    problem = httpx.post(f"{null_server.address}/predict", content=b"text").json()
    with opened_page(null_server.address) as page:
        page.goto(null_server.address + problem["type"])
        row = page.locator("tr:target")
        assert "unsupported_image_format" in row.inner_text()
        assert "convert it" in row.inner_text()


def test_the_page_works_behind_a_prefix(prefixed: RunningServer) -> None:
    """Behind a proxy that strips a prefix, the page finds its files and sends its requests under that prefix."""
    with httpx.Client(base_url=prefixed.address) as client:
        servers = client.get("/openapi.json").json()["servers"]
        assert servers == [{"url": "/models/resnet"}]
        assert client.get("/").headers["Location"] == "/models/resnet/docs"
        assert client.post("/predict", content=client.get("/static/example.jpg").content).status_code == 200
