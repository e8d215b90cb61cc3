"""How quick, small and usable the pages are: rows of large versions over HTTP, script and style, axe, live curves; into docs/pages.md.

`python -m benchmarks pages`, or `python -m benchmarks.pages [--rows 1000000,10000000]`. Prints `ratio page_p95_ms_1m`, `page_p95_ms_10m`,
`page_kb`, `axe_serious`, `curve_lag_ms` and `curve_100k_ms`. Versions are made of row groups as an import writes them.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import sqlalchemy as sa

from benchmarks.harness import ratio, table, write_section
from tunesmith.api.app import create_app, running
from tunesmith.core.deployment import Variant
from tunesmith.core.experiment import ExperimentMetric, ExperimentPlan
from tunesmith.core.model_ref import ModelRef
from tunesmith.core.progress import Silent
from tunesmith.core.rows import BATCH_ROWS, write_parquet
from tunesmith.core.types import Example, Message, canonical
from tunesmith.data.version import SEAL, DatasetVersion
from tunesmith.flow.context import ProjectContext
from tunesmith.flow.feedback import said_of
from tunesmith.flow.project import load_project, open_store
from tunesmith.models.catalog import Catalog
from tunesmith.models.echo import EchoModel
from tunesmith.store.deployments import Deployments
from tunesmith.store.experiments import Experiments
from tunesmith.store.jobs import JobRequest, Jobs
from tunesmith.store.store import Store
from tunesmith.store.tables import job_events, jobs
from tunesmith.web.page import assets
from tunesmith.web.site import PageSite

HEADLINES = ("page_p95_ms_1m", "page_p95_ms_10m", "page_kb", "axe_serious", "curve_lag_ms", "curve_100k_ms")
LOOKS, SEED, POINTS = 100, 11, 100_000
PAGES = (
    "/",
    "/data",
    "/data/{version}",
    "/data/{version}/all/0",
    "/review?data={small}",
    "/jobs",
    "/jobs/{job}",
    "/evaluation",
    "/decision",
)
PAGES += ("/playground", "/deployments", "/deployments/bot", "/monitoring", "/monitoring/log", "/monitoring/log/{request}", "/settings")
PAGES += ("/data/{small}/leakage", "/data/{small}/ledger", "/data/{small}/all/0/tokens", "/jobs/new?from={job}", "/jobs/new", "/jobs/run")
PAGES += ("/monitoring/feedback?propose=1", "/monitoring/watch", "/monitoring/drift", "/monitoring/alerts", "/nowhere")


def make_version(root: Path, rows: int) -> str:
    """A version of so many rows, each row group with other ids and origins; returns its id."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw, name = random.Random(SEED), f"{rows:024x}"
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 9))) for _ in range(4000)]
    folder = root / name
    folder.mkdir(parents=True)
    one = folder / "one.parquet"
    write_parquet(one, (_example(draw, words, i) for i in range(BATCH_ROWS)))
    group = pq.read_table(one)
    with pq.ParquetWriter(
        folder / "all.parquet", group.schema, compression="zstd", compression_level=3, write_page_checksum=True
    ) as writer:
        for start in range(0, rows, BATCH_ROWS):
            places = range(start, start + BATCH_ROWS)
            for column, texts in (("id", [f"{i:024x}" for i in places]), ("origin", [f"rows.jsonl:{i + 1}" for i in places])):
                group = group.set_column(
                    group.schema.get_field_index(column), group.schema.field(column), pa.array(texts, pa.large_string())
                )
            writer.write_table(group)
    one.unlink()
    version = DatasetVersion(id=name, recipe={"step": "import"}, counts={"all": rows}, digests={}, created=time.time())
    (folder / SEAL).write_bytes(canonical(version))
    return name


def _example(draw: random.Random, words: list[str], i: int) -> Example:
    asked, answer = (" ".join(draw.choices(words, k=length)) for length in (24, 10))
    return Example(
        id=f"{i:024x}",
        messages=(Message(role="user", content=asked), Message(role="assistant", content=answer)),
        label=f"label {i % 7}",
        origin=f"rows.jsonl:{i + 1}",
    )


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, Store]]:
    """The pages of a project in that folder on a free port."""
    file = folder / "tunesmith.yaml"
    rules = "alerts: {rules: [{name: errors, metric: error_rate, above: 0.05, over: 15m}]}\n"
    file.write_text(f"name: large\nsources: [{{path: rows.jsonl}}]\nbase: smollm2-135m\n{rules}")
    store = open_store(project := load_project(file), folder)
    site = PageSite(file, ProjectContext(project, folder, store, Catalog(), Silent()))
    with running(create_app({"echo": EchoModel()}, store=store, site=site)) as url:
        yield url.removesuffix("/v1"), store
    store.close()


def looks(url: str, version: str, rows: int) -> dict[str, float]:
    """Milliseconds of pages at random places, and of the first answer of searches for rare words."""
    draw = random.Random(SEED)
    with httpx.Client(base_url=url, timeout=60) as client:
        client.get(f"/data/{version}").raise_for_status()
        begun = time.process_time()
        paged = [_ms(client, f"/data/{version}?at={draw.randrange(rows)}") for _ in range(LOOKS)]
        cpu_ms = (time.process_time() - begun) * 1000 / LOOKS
        searched = [_ms(client, f"/data/{version}?q=zq{draw.choice('abcdefgh')}&at={draw.randrange(rows // 2)}") for _ in range(LOOKS // 4)]
    p50, p95, search_p95 = (float(np.quantile(times, q)) for times, q in ((paged, 0.5), (paged, 0.95), (searched, 0.95)))
    return {"p50": p50, "p95": p95, "search_p95": search_p95, "cpu": cpu_ms}


def _ms(client: httpx.Client, path: str) -> float:
    begun = time.perf_counter()
    client.get(path).raise_for_status()
    return (time.perf_counter() - begun) * 1000


def a_job(store: Store) -> str:
    """A running job that has reported nothing."""
    asked = JobRequest(
        model="base", training_file="file-1", validation_file=None, suffix=None, seed=1, metadata=None, integrations=None,
        method={"type": "supervised", "supervised": {"hyperparameters": {}}}, extras={}, priority=0, fingerprint="",
    )  # fmt: skip
    number = str(Jobs(store).create(asked, base="base", project="default")["id"])
    with store.writing() as connection:
        connection.execute(sa.update(jobs).where(jobs.c.id == number).values(status="running"))
    return number


def traffic(url: str, store: Store) -> str:
    """A deployed name with an experiment, and a request of which people said something; returns its id."""
    ref, plan = ModelRef(base="smollm2-135m"), ExperimentPlan(control="a", treatment="b", metrics=(ExperimentMetric(name="thumbs"),))
    Deployments(store).put("bot", [Variant(name=name, model=ref, weight=0.5) for name in "ab"], strategy="split", reason="to be seen")
    Experiments(store).open("bot", plan, layer="bot", share=1.0, reason="", by="")
    body = {"model": "echo", "messages": [{"role": "user", "content": "What is there?"}]}
    request = str(httpx.post(f"{url}/v1/chat/completions", json=body).raise_for_status().json()["id"])
    for kind, value in (("thumbs", "down"), ("correction", "Rows.")):
        said_of(store, request, kind=kind, value=value, by="ann")
    return request


def report_steps(store: Store, job: str, steps: range) -> None:
    """What training would report of these steps."""
    fixed = {"created": time.time(), "job": job, "level": "info", "type": "metrics"}
    rows = [{**fixed, "id": f"ftevent-{i}", "key": f"step:{i}", "message": f"Step {i}", "data": _figures(i)} for i in steps]
    with store.writing() as connection:
        for start in range(0, len(rows), 2000):
            connection.execute(sa.insert(job_events), rows[start : start + 2000])


def _figures(step: int) -> dict[str, float]:
    return {"step": step, "total_steps": POINTS, "train_loss": 2.0 / (1 + step / 500) + 0.001 * ((step * 7919) % 100)}


def curves(opened: Any, url: str, store: Store, job: str) -> tuple[float, float]:
    """(milliseconds until a reported step is drawn, the median of ten; milliseconds to draw 100,000 points)."""
    page = opened.new_page(viewport={"width": 1440, "height": 900})
    report_steps(store, job, range(1, 3))
    page.goto(f"{url}/jobs/{job}")
    box = "document.querySelector('[data-curve]').dataset"
    _until(page, f"{box}.points === '2'")
    lags = []
    for step in range(3, 13):
        time.sleep(random.Random(step).random())
        report_steps(store, job, range(step, step + 1))
        begun = time.perf_counter()
        _until(page, f"Number({box}.points) >= {step}")
        lags.append((time.perf_counter() - begun) * 1000)
    report_steps(store, job, range(13, POINTS + 1))
    _until(page, f"Number({box}.points) >= {POINTS}")
    page.reload()
    _until(page, f"Number({box}.points) >= {POINTS}")
    drawn = float(page.evaluate(f"{box}.drawnMs"))
    page.close()
    return float(np.median(lags)), drawn


def _until(page: Any, expression: str, most_s: float = 300.0) -> None:
    """Wait in small steps: the pages' policy lets no script be made of text, which is how Playwright waits by itself."""
    end = time.monotonic() + most_s
    while not page.evaluate(expression):
        if time.monotonic() > end:
            raise TimeoutError(expression)
        time.sleep(0.01)


def serious(opened: Any, url: str, names: dict[str, str]) -> list[str]:
    """Serious and critical findings of axe on every page, light and dark, wide and narrow."""
    from axe_playwright_python.sync_playwright import Axe

    axe, faults = Axe(), []
    for width, scheme in ((1440, "light"), (390, "dark")):
        context = opened.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page = context.new_page()
        for path in PAGES:
            page.goto(url + path.format(**names))
            page.wait_for_timeout(200)
            found = [fault for fault in axe.run(page).response["violations"] if fault["impact"] in ("serious", "critical")]
            faults += [f"{path} {width} {scheme}: {fault['id']}: {fault['nodes'][0]['html'][:160]}" for fault in found]
        context.close()
    return faults


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", default="1000000,10000000")
    sizes = [int(size) for size in parser.parse_args(words or []).rows.split(",")]
    with tempfile.TemporaryDirectory() as name:
        folder, lines, rows = Path(name), [], []
        names = {"small": make_version(folder / ".tunesmith" / "datasets", BATCH_ROWS)}
        for size in sizes:
            names["version"] = make_version(folder / ".tunesmith" / "datasets", size)
        with served(folder) as (url, store):
            for size in sizes:
                found = looks(url, f"{size:024x}", size)
                rows.append([f"{size:,}", *(f"{found[key]:.0f}" for key in ("p50", "p95", "cpu", "search_p95"))])
                lines.append(ratio(f"page_p95_ms_{size // 1_000_000}m", found["p95"]))
            lines.append(ratio("page_kb", sum(len(content) for content, _ in assets().values()) / 1000))
            names |= {"job": a_job(store), "request": traffic(url, store)}
            lines += in_browser(url, store, names)
    head = [
        "rows of the version",
        "page, ms (median)",
        "page, ms (p95)",
        "page, CPU ms (client and server)",
        "first answer of a search, ms (p95)",
    ]
    told = re.sub(r"^", "    ", "\n".join(line for line in lines), flags=re.M)
    write_section("pages", "Measured", f"{table(head, rows)}\n\n{told}", Path("docs/pages.md"))


def in_browser(url: str, store: Store, names: dict[str, str]) -> list[str]:
    """The headlines that a browser tells."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-background-networking"]
        opened = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        faults = serious(opened, url, names)
        print("\n".join(faults), flush=True)
        lag, drawn = curves(opened, url, store, names["job"])
        opened.close()
    return [ratio("axe_serious", len(faults)), ratio("curve_lag_ms", lag), ratio("curve_100k_ms", drawn)]


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
