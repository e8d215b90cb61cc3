"""Pictures of a project's pages for docs/pages.md, taken by a browser; knows nothing about what is on them.

`python -m benchmarks.page_pictures PROJECT_FOLDER [--out docs]`: the pages over that folder's store, on a free port.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from tunesmith.api.app import create_app, running
from tunesmith.core.progress import Silent
from tunesmith.flow.context import ProjectContext
from tunesmith.flow.project import load_project, open_store
from tunesmith.models.catalog import Catalog
from tunesmith.models.echo import EchoModel
from tunesmith.web.site import PageSite

# Name of the picture → path, width, colour scheme.
PICTURES = {
    "home": ("/", 1200, "light"),
    "rows": ("/data/latest", 1200, "dark"),
    "compared": ("/evaluation/compare?a=run:zero-shot&b=run:tuned", 1200, "light"),
    "review": ("/review", 390, "light"),
    "deployment": ("/deployments/credit-entities", 390, "dark"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("project", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    asked = parser.parse_args()
    folder = asked.project.resolve()
    file = folder / "tunesmith.yaml"
    project = load_project(file)
    store = open_store(project, folder)
    site = PageSite(file, ProjectContext(project, folder, store, Catalog(), Silent()))
    from playwright.sync_api import sync_playwright

    with running(create_app({"echo": EchoModel()}, store=store, site=site)) as url, sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (path, width, scheme) in PICTURES.items():
            page = opened.new_context(viewport={"width": width, "height": 820}, color_scheme=scheme).new_page()
            page.goto(url.removesuffix("/v1") + path)
            page.screenshot(path=str(asked.out / f"pages-{name}.png"))
            print(asked.out / f"pages-{name}.png", flush=True)
            page.context.close()
        opened.close()
    store.close()


if __name__ == "__main__":
    main()
