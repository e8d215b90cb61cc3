"""The pages over one real store and one real server: who may see them, what they show, and that whatever stands in rows stays text."""

from __future__ import annotations

import re
from contextlib import closing, contextmanager

import httpx
import msgspec
import pytest

import browser
from tunesmith.api.app import create_app, running
from tunesmith.cli import app
from tunesmith.cli.shared import guarded
from tunesmith.core.deployment import Variant
from tunesmith.core.experiment import ExperimentMetric, ExperimentPlan
from tunesmith.core.model_ref import ModelRef
from tunesmith.core.progress import Silent
from tunesmith.core.row_kinds import identified
from tunesmith.core.types import Example, Message
from tunesmith.data import version as versions
from tunesmith.data.ledger import Ledger
from tunesmith.deploy.serve_config import ServeConfig
from tunesmith.flow.context import ProjectContext
from tunesmith.flow.project import load_project, open_store
from tunesmith.models.catalog import Catalog
from tunesmith.models.echo import EchoModel
from tunesmith.models.resolve import Models
from tunesmith.store.deployments import Deployments
from tunesmith.store.experiments import Experiments
from tunesmith.store.jobs import JobRequest, Jobs
from tunesmith.store.keys import Keys
from tunesmith.store.sessions import Sessions
from tunesmith.store.store import Store
from tunesmith.web.page import assets
from tunesmith.web.site import PageSite
from waiting import until

HOSTILE = [
    "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">",
    "{{ 7 * 7 }} {% raw %} ${7*7} <%= 7*7 %>",
    "\x1b[31mred\x1b[0m \x1b]0;owned\x07",
    "مرحبا بالعالم \u202e txet desrever",
    "y" * 480_000,  # about the longest that an import takes
    "'\"><svg onload=alert(1)> &lt;b&gt; javascript:alert(1)",
]
BROWSER = {"accept": "text/html"}


@contextmanager
def served(folder, port=0):
    file = folder / "tunesmith.yaml"
    project = load_project(file)
    store = open_store(project, folder)
    context = ProjectContext(project, folder, store, Catalog(), Silent())
    models = Models(store, context.catalog, home=folder, upstreams={"near": EchoModel, "far": EchoModel})
    site = PageSite(file, context)
    with running(
        create_app({"echo": EchoModel(), "also echo": EchoModel()}, store=store, models=models, site=site), ServeConfig(port=port)
    ) as url:
        yield url.removesuffix("/v1"), store
    store.close()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with a version of rows that would break a page, and of the version before it."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "tunesmith.yaml").write_text(
        "name: hostile\nsources: [{path: rows.jsonl}]\nbase: smollm2-135m\nsplit: {semantic: {action: off}}\n"
    )
    rows = [
        identified(
            Example(
                id="",
                messages=(Message(role="user", content=f"question {i} {HOSTILE[i % 6]}"), Message(role="assistant", content=f"answer {i} {HOSTILE[(i + 1) % 6]}")),
                label=HOSTILE[i % 2], origin=f"rows.jsonl:{i + 1}",
            )
        )
        for i in range(12)
    ]  # fmt: skip
    ledger = Ledger()
    for row in [*rows, msgspec.structs.replace(rows[0], origin="rows.jsonl:13")]:
        ledger.enter(row.origin, row.id)
    root = folder / ".tunesmith" / "datasets"
    first = versions.freeze(
        root, {"all": [*rows, msgspec.structs.replace(rows[0], origin="rows.jsonl:13")]}, {"step": "import"}, ledger=ledger
    )
    ledger.mark("rows.jsonl:13", "duplicate_of", "exact_duplicates", HOSTILE[0], other="rows.jsonl:1")
    versions.freeze(root, {"all": rows}, {"step": "clean"}, ledger=ledger, parent=first.id, note=HOSTILE[1])
    return folder


@pytest.fixture(scope="module")
def site(project):
    with served(project) as (url, _), httpx.Client(base_url=url, headers=BROWSER, timeout=60) as client:
        yield client


def links(html: str) -> list[str]:
    return re.findall(r'href="(/[^"]*)"', html)


@pytest.mark.slow
def test_every_page_that_a_link_leads_to_is_whole_and_has_nothing_inline(site):
    seen, waiting = set(), ["/"]
    while waiting:
        path = waiting.pop()
        if path in seen or path.startswith("/static") or path.endswith("/tokens") or len(seen) > 40:  # the base need not be here
            continue
        seen.add(path)
        answer = site.get(path.replace("&amp;", "&"), follow_redirects=True)
        assert answer.status_code == 200, (path, answer.text[-800:])
        if not answer.headers["content-type"].startswith("text/html"):
            continue
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=\"|\sstyle=|javascript:[^a]", answer.text), path
        assert "49" not in re.findall(r"\{\{[^}]*\}\} (\d+)", answer.text)
        waiting += links(answer.text)
    assert {"/", "/data"} <= seen
    assert any(re.fullmatch(r"/data/[0-9a-f]+/[a-z]+/\d+", path) for path in seen)


@pytest.mark.slow
def test_hostile_rows_are_text_and_a_long_cell_is_there_whole(site):
    page = site.get("/data/latest").text
    assert "&lt;script&gt;" in page
    assert "{{ 7 * 7 }}" in page
    assert len(page) < 200_000
    number = next(i for i in range(12) if "y" * 2000 in site.get(f"/data/latest/all/{i}").text)
    assert "480,0" in site.get(f"/data/latest/all/{number}").text
    assert "y" * 480_000 in site.get(f"/data/latest/all/{number}/text").text


def test_words_labels_and_the_ledger_are_found(site):
    assert site.get("/data/latest?q=QUESTION 7 ").text.count("<tr><td") == 1
    assert "No row fits" in site.get("/data/latest?q=nothing like that").text
    assert site.get("/data/latest", params={"q": HOSTILE[5]}).text.count("<tr><td") >= 2
    assert site.get("/data/latest", params={"label": HOSTILE[0]}).text.count("<tr><td") == 6
    assert "duplicate of" in site.get("/data/latest/ledger?fate=duplicate_of").text


def test_what_is_not_there_says_so_to_people_and_to_programs(site):
    lost = site.get("/nowhere")
    assert (lost.status_code, lost.headers["content-type"][:9]) == (404, "text/html")
    assert site.get("/nowhere", headers={"accept": "application/json"}).json()["error"]["message"] == "Unknown URL"
    assert site.get("/v1/nowhere").json()["error"]["message"] == "Unknown URL"
    unknown = site.get("/data/0123456789ab")
    assert unknown.status_code == 404
    assert "no data version &#39;0123456789ab&#39;" in unknown.text


def test_the_first_page_says_what_the_command_says(site, project, capsys):
    assert guarded(app, ["status", "--circle", "--config", str(project / "tunesmith.yaml")]) == 0
    said = capsys.readouterr().out
    assert "data        12 rows, 1 left out" in said
    assert "12 rows, 1 left out" in site.get("/").text
    assert "next: train a model" in said
    assert "Next: train a model" in site.get("/").text


def test_only_our_own_pages_may_post(site):
    for headers in ({}, {"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}):
        assert site.post("/signout", headers=headers).status_code == 403
    assert site.post("/signout", headers={"sec-fetch-site": "same-origin"}).status_code == 303
    assert site.get("/", headers={"host": "evil.example"}).status_code == 403


@pytest.mark.slow
def test_a_key_signs_in_its_scopes_decide_and_its_end_ends_the_session(tmp_path, project):
    (tmp_path / "tunesmith.yaml").write_text("name: keyed\nsources: [{path: rows.jsonl}]\nbase: smollm2-135m\n")
    own = {"sec-fetch-site": "same-origin"}
    with closing(Store.open(tmp_path / ".tunesmith")) as before:
        (reader, secret), (_, other) = (
            Keys(before).create("reader", scopes=["read"]),
            Keys(before).create("elsewhere", project="other", scopes=["read", "serve"]),
        )
    with served(tmp_path) as (url, store), httpx.Client(base_url=url, headers=BROWSER, timeout=60) as client:
        led = client.get("/data")
        assert (led.status_code, led.headers["location"]) == (303, "/signin?next=/data")
        assert client.get("/static/style.css").status_code == 200
        assert client.post("/signin", data={"key": "sk-wrong"}, headers=own).status_code == 403
        there = client.post("/signin", data={"key": secret, "next": "//evil.example/"}, headers=own)
        assert there.headers["location"] == "/"
        cookie = there.headers["set-cookie"].lower()
        assert all(word in cookie for word in ("httponly", "samesite=strict", "path=/"))
        assert secret not in cookie
        assert client.get("/data").status_code == 200
        assert client.get("/settings").status_code == 403
        assert client.get("/playground").status_code == 403
        assert "/playground" not in client.get("/").text
        token = client.cookies["tunesmith_session"]
        client.post("/signout", headers=own)
        assert client.get("/data", headers={"cookie": f"tunesmith_session={token}"}).status_code == 303
        client.post("/signin", data={"key": other}, headers=own)
        assert client.get("/data").status_code == 403  # the folder's data is of the project `default`
        client.post("/signin", data={"key": secret}, headers=own)
        Keys(store).revoke(reader["id"])
        assert Sessions(store).recognised(client.cookies["tunesmith_session"]) is None


OWN = {"sec-fetch-site": "same-origin"}


def posted(site, path, **form):
    """The page that a post leads to."""
    answer = site.post(path, headers=OWN, follow_redirects=True, **form)
    if answer.url.path.startswith("/errands/"):  # the page of work that takes longer
        waited = answer.url.path
        answer = until(lambda: (seen := site.get(waited, follow_redirects=True)).url.path != waited and seen)
    assert answer.status_code == 200, answer.text.partition('class="what"')[2][:800]
    return answer


@pytest.mark.slow
def test_a_file_is_brought_looked_at_kept_divided_judged_and_taught_by_posts_alone(site):
    lines = [{"question": f"How long is rope {i} of {HOSTILE[1]}?", "answer": f"{i} metres, {'long ' * (i % 7)}"} for i in range(40)]
    lines.append(lines[0])
    file = ("../.rows ?*.jsonl", b"\n".join(map(msgspec.json.encode, lines)))
    first = posted(site, "/data/import", files={"file": file}, data={"format": "auto"})
    assert "the keys are [&#39;answer&#39;, &#39;question&#39;]" in first.text
    assert "import/rows_.jsonl" in first.text  # no path, no pattern
    columns = {"map": "prompt=question, response=answer", "format": "auto"}
    assert "How long is rope 0" in posted(site, "/data/import/rows_.jsonl", data=columns).text
    kept = posted(site, "/data/import/rows_.jsonl", data={"keep": "1", **columns})
    version = kept.url.path.rpartition("/")[2]
    assert "41 rows came in" in kept.text
    assert site.post("/data/import/tunesmith.yaml", data={"keep": "1"}, headers=OWN).status_code == 404
    near = site.get(f"/data/{version}/leakage").text
    assert "2 rows in all" in near
    divided = posted(site, f"/data/{version}/split", data={"test": "20 %", "at_least_train": "12"})
    assert divided.url.path.endswith("/leakage")
    assert "Held-out rows that repeat a training row" in divided.text
    split = divided.url.path.split("/")[2]
    page = site.get(f"/review?data={version}&as=ann").text
    verdict = {"data": version, "as": "ann", "row": field(page, "row"), "seen": field(page, "seen"), "action": "edit", "answer": "short"}
    assert "Put 1 verdict into a new version" in posted(site, "/review", data=verdict).text
    assert "2 rows changed" in posted(site, "/review/apply", data={"data": version}).text
    form = site.get(f"/jobs/new?data={split}:train").text
    assert f'value="{split}:train" selected' in form
    job = posted(site, "/jobs", data={"data": f"{split}:train", "model": "smollm2-135m", "settings": "n_epochs=2"})
    assert job.url.path.startswith("/jobs/ftjob-")
    number = job.url.path.rpartition("/")[2]
    assert "n_epochs=2" in site.get(f"/jobs/new?from={number}").text
    again = posted(site, "/jobs", data={"from": number, "settings": "n_epochs=3"})
    assert number not in again.url.path
    assert re.search(r"<dt>n epochs</dt><dd>3</dd>", again.text)
    wrong = site.post("/jobs", data={"from": number, "settings": "epochs=3"}, headers=OWN)
    assert (wrong.status_code, "n_epochs" in wrong.text) == (400, True)
    sealed = site.post("/jobs", data={"data": f"{split}:test", "model": "smollm2-135m"}, headers=OWN)
    assert (sealed.status_code, "sealed rows" in sealed.text) == (400, True)
    for each in (number, again.url.path.rpartition("/")[2]):
        posted(site, f"/jobs/{each}/cancel")


@pytest.mark.slow
def test_a_model_is_deployed_measured_compared_in_traffic_corrected_and_its_correction_harvested(site, project):
    (project / "rows.jsonl").write_bytes(
        msgspec.json.encode({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    )
    posted(site, "/deployments", data={"alias": "rope", "model": "near", "reason": HOSTILE[0]})
    page = site.get("/deployments/rope").text
    assert "&lt;script&gt;" in page
    begun = {"control": "near", "treatment": "far", "metrics": "thumbs latency", "seen": field(page, "seen")}
    trial = posted(site, "/deployments/rope/experiment", data=begun).text
    assert "far against near" in trial
    assert "somebody has changed" in site.post("/deployments/rope/experiment/end", data={"seen": field(page, "seen")}, headers=OWN).text
    ended = posted(site, "/deployments/rope/experiment/end", data={"variant": "far", "seen": field(trial, "seen")}).text
    assert "promoted &#39;far&#39;" in ended
    measured = posted(site, "/evaluation", data={"model": "echo", "data": "latest", "limit": "4"})
    assert "4 rows" in measured.text
    asked = site.post("/v1/chat/completions", json={"model": "echo", "messages": [{"role": "user", "content": "How long is it?"}]})
    request = f"/monitoring/log/{asked.json()['id']}"
    said = posted(site, f"{request}/feedback", data={"kind": "thumbs", "value": "down", "by": "ann"})
    assert "thumbs" in said.text
    posted(site, f"{request}/feedback", data={"kind": "correction", "value": HOSTILE[0], "by": "ann"})
    assert site.post(f"{request}/feedback", data={"kind": "score", "value": "many"}, headers=OWN).status_code == 400
    assert "No training row is known" in site.get(f"{request}/nearest").text
    listed = site.get("/monitoring/feedback?propose=1").text
    assert "&lt;script&gt;" in listed
    assert "What would be proposed" in listed
    proposed = posted(site, "/monitoring/feedback/harvest", data={})
    assert proposed.url.path == "/review"
    assert "1 of the kind correction" in proposed.text


def test_quality_drift_and_alerts_say_what_they_need_and_silences_begin_and_end(site, project):
    assert "No answer has a score yet" in site.get("/monitoring/watch?alias=rope").text
    assert "Not enough chats yet" in site.get("/monitoring/drift?alias=rope").text
    assert "No rules yet" in site.get("/monitoring/alerts").text
    file = project / "tunesmith.yaml"
    before = file.read_text()
    file.write_text(f"{before}alerts: {{rules: [{{name: errors, metric: error_rate, above: 0.5, over: 1h}}]}}\n")
    posted(site, "/monitoring/alerts/look")
    assert "error_rate above 0.5" in site.get("/monitoring/alerts").text
    assert "rule=errors" in posted(site, "/monitoring/alerts/silence", data={"labels": "rule=errors", "for": "30m"}).text
    assert site.post("/monitoring/alerts/silence", data={"labels": "errors", "for": "30m"}, headers=OWN).status_code == 400
    assert "has ended" in posted(site, "/monitoring/alerts/silence", data={"labels": "rule=errors", "end": "1"}).text
    file.write_text(before)


def test_settings_are_written_where_they_stand_from_what_the_page_showed_alone(site, project, capsys):
    file = project / "tunesmith.yaml"
    before = file.read_text()
    file.write_text(f"# ours\n{before}serve:\n  log: {{sample: 1.0}}  # all of them\n")
    page = site.get("/settings").text
    change = {"key": "log.retention_days", "value": "30", "seen": field(page, "seen")}
    assert "serve.log.retention_days is 30" in posted(site, "/settings/serve", data=change).text
    assert "log: {sample: 1.0, retention_days: 30}  # all of them\n" in file.read_text()
    late = site.post("/settings/serve", data=change, headers=OWN)
    assert "somebody has changed" in late.text
    hook = posted(site, "/settings/webhooks", data={"url": "https://hooks.example/a", "events": ""}).text
    assert "whsec_" in hook
    posted(site, "/settings/webhooks", data={"url": "https://hooks.example/a", "end": "1"})
    assert "hooks.example" not in site.get("/settings").text
    assert guarded(app, ["set", "serve.log.retention_days", "0", "--config", str(file)]) == 2
    assert "more than 0" in capsys.readouterr().err
    assert guarded(app, ["set", "serve.log.retention_days", "7", "--config", str(file)]) == 0
    assert file.read_text().startswith("# ours\n")
    assert "retention_days: 7" in file.read_text()
    file.write_text(before)


def test_work_that_the_server_no_longer_knows_is_said_and_how_to_go_on(site):
    lost = site.get("/errands/0123")
    assert lost.status_code == 404
    assert "start it again" in lost.text


def test_script_and_style_are_small(site):
    assert sum(len(content) for content, _ in assets().values()) <= 150_000


def field(html: str, name: str) -> str:
    return re.search(rf'name="{name}" value="([^"]*)"', html)[1]


def test_of_two_people_under_one_name_neither_loses_an_edit(site):
    own = {"sec-fetch-site": "same-origin"}
    first, second = (site.get("/review?as=ann").text for _ in range(2))
    body = {"data": "latest", "as": "ann", "row": field(first, "row"), "action": "edit", "comment": ""}
    assert site.post("/review", data={**body, "seen": field(first, "seen"), "answer": "the first"}, headers=own).status_code == 303
    late = site.post("/review", data={**body, "seen": field(second, "seen"), "answer": "the second"}, headers=own)
    assert late.status_code == 409
    assert "the first" in late.text
    assert "\nthe second</textarea>" in late.text
    again = site.post("/review", data={**body, "seen": field(late.text, "seen"), "answer": "the second"}, headers=own)
    assert again.status_code == 303
    unseen = field(site.get("/review?as=bob").text, "seen")
    assert site.post("/review", data={**body, "as": "bob", "seen": unseen, "answer": "b"}, headers=own).status_code == 303
    assert "judged by 2 others" in site.get("/review?as=cid").text


def test_a_deployment_changes_only_from_the_version_that_the_page_showed(site, project):
    own, ref = {"sec-fetch-site": "same-origin"}, ModelRef(base="smollm2-135m")
    with closing(Store.open(project / ".tunesmith")) as store:
        for names in (["a"], ["a", "b"]):
            Deployments(store).put(
                "bot", [Variant(name=name, model=ref, weight=1 / len(names)) for name in names], strategy="split" if names[1:] else "one"
            )
        page = site.get("/deployments/bot").text
        stale = {"variant": "b", "seen": str(int(field(page, "seen")) - 1)}
        assert "somebody has changed &#39;bot&#39; meanwhile" in site.post("/deployments/bot/promote", data=stale, headers=own).text
        assert site.post("/deployments/bot/promote", data={"variant": "b", "seen": field(page, "seen")}, headers=own).status_code == 303
        assert [each.name for each in Deployments(store).in_force()["bot"].variants] == ["b"]
        Deployments(store).put("bot", [Variant(name=name, model=ref, weight=0.5) for name in "ab"], strategy="split")
        metrics = (ExperimentMetric(name="thumbs"),)
        Experiments(store).open(
            "bot", ExperimentPlan(control="a", treatment="b", metrics=metrics), layer="bot", share=1.0, reason="", by=""
        )
        assert "b against a" in site.get("/deployments/bot").text


def test_a_job_has_its_curve_its_log_and_can_be_stopped(site, project):
    own = {"sec-fetch-site": "same-origin"}
    asked = JobRequest(
        model="base", training_file="file-1", validation_file=None, suffix=None, seed=1, metadata=None, integrations=None,
        method={"type": "supervised", "supervised": {"hyperparameters": {}}}, extras={}, priority=0, fingerprint="",
    )  # fmt: skip
    with closing(Store.open(project / ".tunesmith")) as store:
        job = Jobs(store).create(asked, base="base", project="default")["id"]
        lease = Jobs(store).lease(seconds=60)
        lease.begin()
        said = [{"key": f"step:{i}", "message": HOSTILE[0], "type": "metrics", "data": {"step": i, "train_loss": 3.0 / i}} for i in (1, 2)]
        lease.write(said)
    page = site.get(f"/jobs/{job}").text
    assert "&lt;script&gt;" in page
    assert "<script>document" not in page
    curve = site.get(f"/jobs/{job}/curve.json?kind=loss").json()
    assert (curve["names"], curve["steps"], curve["values"], curve["ended"]) == (["train_loss"], [1, 2], [[3.0, 1.5]], False)
    assert site.get(f"/jobs/{job}/curve.json?kind=loss&after={curve['after']}").json()["steps"] == []
    assert site.post(f"/jobs/{job}/pause", headers=own).status_code == 303
    assert f"tunesmith jobs resume {job}" in site.get("/").text
    assert site.post(f"/jobs/{job}/cancel", headers=own).status_code == 303
    assert "job_status" not in site.post(f"/jobs/{job}/resume", headers=own).text
    assert "is cancelled" in site.post(f"/jobs/{job}/resume", headers=own).text


def test_the_playground_says_that_a_model_is_compared_with_itself(site):
    asked = {"a": "echo", "b": "also echo", "prompt": HOSTILE[0], "system": "", "max_tokens": "20", "temperature": "0"}
    answer = site.post("/playground", data=asked, headers={"sec-fetch-site": "same-origin"}).text
    assert "this compares a model with itself" in answer
    assert "&lt;script&gt;" in answer
    assert "<script>document" not in answer


@pytest.fixture(scope="module")
def opened():
    with browser.browser() as chromium:
        yield chromium


@pytest.mark.slow
def test_a_page_that_is_open_while_the_server_restarts_says_so_and_sends_what_was_written_afterwards(project, opened):
    with served(project) as (url, _):
        page = opened.new_page()
        page.goto(f"{url}/review?as=eve")
        page.fill("#answer", "written while all was well")
    page.click("button[value=accept]")
    page.get_by_text("It is sent as soon as the server is back").wait_for()
    assert page.input_value("#answer") == "written while all was well"
    with served(project, int(url.rpartition(":")[2])):
        page.get_by_text(re.compile("^1 of .* judged as eve")).wait_for()
        page.close()


@pytest.mark.slow
def test_in_a_browser_rows_stay_text_and_no_page_has_a_serious_fault(site, opened):
    from axe_playwright_python.sync_playwright import Axe

    axe, serious = Axe(), {}
    for path, width, scheme in [
        ("/", 390, "dark"),
        ("/data/latest", 1440, "light"),
        ("/review", 768, "dark"),
    ]:
        page = opened.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
        said = []
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on("dialog", lambda dialog, said=said: said.append(dialog.message))
        page.goto(f"{site.base_url}{path}".replace("//", "/").replace(":/", "://"))
        assert said == []
        assert "owned" not in page.title()
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 1
        found = [fault for fault in axe.run(page).response["violations"] if fault["impact"] in ("serious", "critical")]
        serious |= {(path, fault["id"]): [node["html"][:200] for node in fault["nodes"]][:3] for fault in found}
        page.context.close()
    assert serious == {}
