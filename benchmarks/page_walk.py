"""The whole circle walked in a browser, by clicks and keys alone, on a copy of a project's folder such as a demo's: import → review →
train → compare → deploy → A/B → feedback → harvest.

`python -m benchmarks.page_walk PROJECT_FOLDER [--out FOLDER]`. Prints a line a step with its seconds, what axe finds on each page that was
met (`ratio walk_serious`), and what the console said; `--out` keeps a picture of each step. The job is trained by a real worker on the
project's base.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness import ratio
from tunesmith.api.app import running
from tunesmith.api.serve import application
from tunesmith.deploy.processes import Processes
from tunesmith.flow.jobs import worker
from tunesmith.web.site import PageSite

MOST_MS = 900_000  # what a step may take: one of them trains
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "brown", "violet")


def rows_file(folder: Path) -> Path:
    """A small table whose columns no format knows: questions and answers about boxes, one of them wrong."""
    file = folder / "boxes.jsonl"
    lines = [{"ask": f"Which colour has box {i} of shelf {i % 5}?", "reply": f"Box {i} is {COLOURS[i % len(COLOURS)]}."} for i in range(40)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return file


@contextmanager
def served(project: Path) -> Iterator[str]:
    """The project as `tunesmith serve` serves it, with one worker for jobs; gives its address."""
    with application(project / "tunesmith.yaml", ["--serve.port=0"], print, names={}, pages=PageSite) as at:
        store = at.store
        with Processes(worker.MODULE, worker.place(store), 1, store.layout.workers_log, stdin=store.url), running(at.app) as url:
            yield url.removesuffix("/v1")


class Walk:
    """One browser page, the steps that were walked, and what was wrong on the way."""

    def __init__(self, page: Any, url: str, out: Path | None) -> None:
        from axe_playwright_python.sync_playwright import Axe

        self.page, self.url, self.out, self._axe = page, url, out, Axe()
        self.serious: list[str] = []
        self.said: list[str] = []
        page.on("console", lambda message: self.said.append(f"{page.url}: {message.text}"))
        page.on("dialog", lambda dialog: dialog.accept())
        page.set_default_timeout(MOST_MS)
        self._count = 0

    def step(self, name: str, walk: Callable[[], None]) -> None:
        """Walk it, say how long it took, look at the page where it ends."""
        begun = time.perf_counter()
        walk()
        self._count += 1
        wrong = self.page.locator(".error .what")
        if wrong.count():
            raise AssertionError(f"{name}: {self.page.url}: {wrong.first.inner_text()}")
        print(f"{self._count:2}. {name}: {time.perf_counter() - begun:.1f} s, {self.page.url.removeprefix(self.url)}", flush=True)
        found = [fault for fault in self._axe.run(self.page).response["violations"] if fault["impact"] in ("serious", "critical")]
        self.serious += [f"{self.page.url}: {fault['id']}: {fault['nodes'][0]['html'][:160]}" for fault in found]
        if self.out is not None:
            self.page.screenshot(path=str(self.out / f"{self._count:02}-{name.split()[0]}.png"), full_page=True)

    def click(self, text: str, *, role: str = "button") -> None:
        """Click what is called so; a page that follows is there when this returns."""
        self.page.get_by_role(role, name=text, exact=False).first.click()
        self.page.wait_for_load_state("load")

    def to(self, name: str) -> None:
        """Go to a page by its name in the navigation."""
        self.page.get_by_label("Pages").get_by_role("link", name=name, exact=True).click()
        self.page.wait_for_load_state("load")

    def fill(self, **fields: str) -> None:
        """Type into fields by their ids."""
        for name, text in fields.items():
            self.page.locator(f"#{name}").fill(text)

    def there(self, text: str) -> None:
        """Wait until a text is on the page, or an error is."""
        self.page.get_by_text(text).or_(self.page.locator(".error .what")).filter(visible=True).first.wait_for()


def walk(at: Walk, file: Path, project: Path) -> None:
    """The steps."""
    page, known = at.page, dict[str, str]()

    def imported() -> None:
        at.to("Data")
        page.locator("#file").set_input_files(str(file))
        at.click("Look at its rows")
        at.there("the format is not recognised")
        at.fill(map="prompt=ask, response=reply")
        at.click("Look again")
        at.there("Which colour has box 0")
        at.click("Make a version of all rows")
        at.there("40 rows came in")
        known["version"] = page.url.partition("/data/")[2].partition("?")[0]

    def reviewed() -> None:
        at.click("Review", role="link") if page.locator("main a:text-is('Review')").count() == 0 else page.locator(
            "main a:text-is('Review')"
        ).click()
        at.there("0 of 40 judged")
        page.keyboard.press("a")
        at.there("1 of 40 judged")
        page.keyboard.press("r")
        at.there("2 of 40 judged")
        page.keyboard.press("e")
        page.keyboard.press("Control+A")
        page.keyboard.type("It is blue, on the lowest shelf.")
        page.keyboard.press("Control+Enter")
        at.there("3 of 40 judged")
        at.click("into a new version")
        at.there("2 rows changed or taken out")

    def divided() -> None:
        at.fill(test="0.3", validation="0.1", at_least_train="12")
        page.locator("#divide form button").click()
        at.there("Held-out rows that repeat a training row")
        page.locator("h1 a").nth(1).click()
        at.there("Train on train")
        known["split"] = page.url.partition("/data/")[2].partition("?")[0]

    def ordered() -> None:
        at.click("Train on train", role="link")
        page.locator("#validation").select_option(f"{known['split']}:validation")
        at.fill(settings="n_epochs=1 max_length=256", suffix="boxes")
        at.click("Order the job")
        at.there("Asked for")

    def trained() -> None:
        failed = page.locator(".warn[role=alert]")
        page.get_by_text("which clients can ask for by that name").or_(failed).filter(visible=True).first.wait_for()
        if failed.count():
            raise AssertionError(f"the job failed: {failed.first.inner_text()}")
        known["model"] = page.locator("#live code").first.inner_text()
        page.get_by_role("button", name="Cancel").wait_for(state="hidden")

    def measured(model: str) -> None:
        at.to("Evaluation")
        at.fill(model=model, data=f"{known['split']}:test", limit="4")
        at.click("Measure")
        at.there("Values")

    def compared() -> None:
        at.to("Evaluation")
        choices = page.locator("#a option")
        texts = [choices.nth(i).inner_text() for i in range(choices.count())]
        base = next(text for text in texts if known["base"] in text and ":test" in text)
        tuned = next(text for text in texts if known["model"][:60] in text)
        page.locator("#a").select_option(label=base)
        page.locator("#b").select_option(label=tuned)
        at.click("Compare")
        at.there("Row by row")

    def deployed() -> None:
        at.to("Deployments")
        at.fill(alias="boxes", model=known["base"], reason="the base, to begin with")
        at.click("Deploy")
        at.there("Who answers")

    def tried() -> None:
        page.locator("#control").select_option(index=0)
        at.fill(treatment=known["model"], metrics="thumbs latency", why="is it worth it?")
        at.click("Begin")
        at.there("It cannot tell yet")

    def asked() -> None:
        at.to("Playground")
        page.locator("#a").select_option("boxes")
        page.locator("#b").select_option("")
        at.fill(max_tokens="8")
        page.locator("#prompt").fill("Which colour has box 3 of shelf 3?")
        page.keyboard.press("Control+Enter")
        page.get_by_role("link", name="in the log").first.click()
        at.there("Where it comes from")
        page.locator("#nearest table, #nearest .none").first.wait_for()

    def corrected() -> None:
        at.click("Bad")
        at.there("thumbs")
        page.keyboard.press("e")
        page.keyboard.press("Control+A")
        page.keyboard.type("Box 3 is yellow.")
        page.keyboard.press("Control+Enter")
        at.there("Kept: correction")

    def ended() -> None:
        at.to("Deployments")
        page.get_by_role("link", name="boxes", exact=True).click()
        page.locator("button", has_text="End it").first.click()
        at.there("The experiment has ended")

    def harvested() -> None:
        at.to("Monitoring")
        page.get_by_label("Monitoring", exact=True).get_by_role("link", name="Feedback").click()
        at.click("Look first", role="link")
        at.there("What would be proposed")
        at.click("Propose rows")
        at.there("1 of the kind correction")

    def look_at(path: str) -> Callable[[], None]:
        def look() -> None:
            page.goto(at.url + path)

        return look

    at.step("home", look_at("/"))
    known["base"] = page.locator("#served-title ~ .scroll tbody th").last.inner_text()
    at.step("import of a file whose columns are asked for", imported)
    at.step("review by keys, and the verdicts as a version", reviewed)
    at.step("divide, leakage", divided)
    at.step("job ordered", ordered)
    at.step("trained by a worker", trained)
    at.step("base measured", lambda: measured(known["base"]))
    at.step("tuned measured", lambda: measured(known["model"]))
    at.step("compare", compared)
    at.step("deploy", deployed)
    at.step("experiment begun", tried)
    at.step("question asked, its way back to the rows", asked)
    at.step("feedback: thumbs and a correction", corrected)
    at.step("experiment ended", ended)
    at.step("harvest into review", harvested)
    for path in (
        "/jobs/run",
        "/decision",
        "/monitoring",
        "/monitoring/watch",
        "/monitoring/drift",
        "/monitoring/alerts",
        "/monitoring/log",
    ):
        at.step(path.strip("/").replace("/", "-"), look_at(path))
    if (project / "report").is_dir():
        at.step("evaluation-run", look_at("/evaluation/run"))
    at.step("settings", look_at("/settings"))


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("project", type=Path)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(words)
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as name:
        project = Path(name) / "project"
        shutil.copytree(asked.project, project)
        if asked.out is not None:
            asked.out.mkdir(parents=True, exist_ok=True)
        with served(project) as url, sync_playwright() as playwright:
            arguments = ["--no-sandbox", "--disable-background-networking"]
            opened = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
            at = Walk(opened.new_context(viewport={"width": 1440, "height": 900}).new_page(), url, asked.out)
            try:
                walk(at, rows_file(Path(name)), project)
            except Exception:
                print(f"stopped at {at.page.url}:\n{at.page.locator('main').inner_text()[:1500]}", flush=True)
                raise
            finally:
                print("\n".join([*at.serious, *at.said]), flush=True)
            opened.close()
    ratio("walk_serious", len(at.serious))


if __name__ == "__main__":
    main()
