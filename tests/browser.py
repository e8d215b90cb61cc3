"""Pages as a browser shows them: what is wrong with one at a given width and in a colour scheme."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# Texts on the ground that they really stand on (WCAG 2.2: 4.5, large ones 3), tables without a caption, plots whose text is too small.
_LOOK = """() => {
  const faults = [];
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  if (wide > 1) faults.push(`runs ${wide} px over the edge`);
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const parsed = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255]; };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const ground = (element) => { const layers = [];
    for (let e = element; e; e = e.parentElement) layers.unshift(parsed(getComputedStyle(e).backgroundColor));
    return layers.reduce((below, top) => over(top, below), [255, 255, 255, 1]); };
  const light = ([r, g, b]) => { const [x, y, z] = [r, g, b].map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z; };
  document.querySelectorAll('details').forEach((d) => { d.open = true; });
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const parent = node.parentElement, words = node.textContent.trim();
    if (!words || parent.closest('title, style') || !parent.getClientRects().length) continue;
    const style = getComputedStyle(parent), back = ground(parent);
    const [one, other] = [light(over(parsed(parent.closest('svg') ? style.fill : style.color), back)), light(back)].sort((a, b) => b - a);
    const contrast = (one + 0.05) / (other + 0.05), big = parseFloat(style.fontSize) >= 24;
    if (contrast < (big ? 3 : 4.5)) faults.push(`contrast ${contrast.toFixed(2)}: ${words.slice(0, 40)}`);
  }
  for (const table of document.querySelectorAll('table')) if (!table.caption?.textContent.trim()) faults.push('a table without a caption');
  for (const text of document.querySelectorAll('svg text')) {
    const svg = text.ownerSVGElement, scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
    const size = parseFloat(getComputedStyle(text).fontSize) * scale, box = text.getBBox();
    if (size < 10.5) faults.push(`plot text of ${size.toFixed(1)} px: ${text.textContent}`);
    if (box.x < -1 || box.x + box.width > svg.viewBox.baseVal.width + 1) faults.push(`plot text is cut: ${text.textContent}`);
  }
  return faults;
}"""


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium; skips where there is none."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-background-networking"])
        yield opened
        opened.close()


def faults(opened: Any, path: Path, *, width: int, scheme: str, picture: Path | None = None) -> list[str]:
    """What is wrong with the page: what the console says, what it tried to fetch, overflow, contrast, captions, text of plots."""
    page = opened.new_context(offline=True, viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("requestfailed", lambda request: complaints.append(request.url))
    page.goto(path.as_uri())
    complaints += page.evaluate(_LOOK)
    if picture is not None:
        page.screenshot(path=str(picture), full_page=True)
    page.close()
    return complaints
