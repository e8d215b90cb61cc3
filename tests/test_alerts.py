"""Alerts: rules of the project file, fired once and resolved once by however many servers, told to channels, silenced."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socketserver
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tunesmith.api.app import create_app, running
from tunesmith.cli import app
from tunesmith.cli.shared import guarded
from tunesmith.core.errors import ConfigError
from tunesmith.core.types import Interaction, Message
from tunesmith.flow.alerting import Alerting
from tunesmith.flow.project import load_project
from tunesmith.models.echo import EchoModel
from tunesmith.monitor.alerts import Alerts, Channel, Rule, next_state, silenced_until
from tunesmith.store.alerts import AlertLog
from tunesmith.store.interactions import InteractionLog
from tunesmith.store.store import Store
from waiting import until


@contextlib.contextmanager
def receiver(broken=0):
    """A server that takes webhooks: (its URL, what it got); the first `broken` are answered 500."""
    got = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            got.append(body)
            self.send_response(500 if len(got) <= broken else 200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", got
    finally:
        server.shutdown()
        server.server_close()


class Place:
    """A project whose rule is about errors of the last hour; requests are written to its log."""

    def __init__(self, folder, url, more=""):
        self.folder, self.n = folder, 0
        (folder / "tunesmith.yaml").write_text(
            f"""name: shop
sources: [{{path: rows.jsonl}}]
base: smollm2-135m
deploy: {{alias: bot}}
alerts:
  link: https://dash.example/{{alias}}
  channels: {{hook: {{webhook: "{url}"}}}}
  rules: [{{name: errors, metric: error_rate, above: 5%, alias: bot, least: 10, labels: {{team: shop}}{more}}}]
"""
        )
        self.store = Store.open(folder / ".tunesmith")

    def alerting(self, store=None):
        project = load_project(self.folder / "tunesmith.yaml")
        return Alerting(store or self.store, project.alerts, project.monitor, project.deploy.alias, self.folder / "tunesmith.yaml")

    def write(self, good, bad):
        log, rows = InteractionLog(self.store), []
        for status in [200] * good + [500] * bad:
            self.n += 1
            rows.append(Interaction(
                id=f"c{self.n}", created=time.time(), alias="bot", variant="v", messages=(Message(role="user", content="q"),), answer="a", status=status,
                error="" if status == 200 else "broken", finish_reason="stop", prompt_tokens=1, completion_tokens=1, first_token_s=0.1, total_s=0.2,
            ))  # fmt: skip

        async def write():
            await asyncio.gather(*map(log.write, rows))

        asyncio.run(write())
        log.close()


def kinds(got):
    return [body["kind"] for body in got]


@pytest.mark.slow
def test_an_alert_fires_once_and_is_resolved_once_whoever_looks(tmp_path):
    with receiver() as (url, got):
        place = Place(tmp_path, url)
        place.write(good=5, bad=4)
        assert place.alerting().look() == [], "nine requests are too few"
        place.write(good=5, bad=1)
        others = [place.alerting(Store.open(tmp_path / ".tunesmith")) for _ in range(4)]
        threads = [threading.Thread(target=other.look) for other in others for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert kinds(got) == ["fired"]
        assert (got[0]["rule"], got[0]["alias"], got[0]["context"], got[0]["link"]) == (
            "errors", "bot", {"requests": 15, "errors": 5}, "https://dash.example/bot",
        )  # fmt: skip
        assert "error_rate above 0.05" in got[0]["text"]
        place.write(good=200, bad=0)
        for other in others:
            other.look()
        assert kinds(got) == ["fired", "resolved"]
        for other in others:
            other.store.close()
        place.store.close()


@pytest.mark.slow
def test_a_running_server_looks_by_itself(tmp_path):
    with receiver() as (url, got):
        place = Place(tmp_path, url)
        with running(create_app({"echo": EchoModel()}, store=place.store, watch=(place.alerting().look, 0.02))):
            place.write(good=5, bad=10)
            until(lambda: kinds(got) == ["fired"])
            place.write(good=300, bad=0)
            until(lambda: kinds(got) == ["fired", "resolved"])
        place.store.close()


@pytest.mark.slow
def test_a_kill_between_the_change_and_the_telling_loses_nothing_and_doubles_nothing(tmp_path):
    """A process that looks is killed while the channel is told: the next one tells it, and no second alert is written."""
    with receiver(broken=0) as (url, got):
        place = Place(tmp_path, url)
        place.write(good=5, bad=10)
        place.store.close()
        pid = os.fork()
        if pid == 0:
            place.store = Store.open(tmp_path / ".tunesmith")
            alerting = place.alerting()
            alerting.deliver = lambda: os.kill(os.getpid(), 9)  # after the commit, before anybody was told
            alerting.look()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 9
        store = Store.open(tmp_path / ".tunesmith")
        again = place.alerting(store)
        assert (again.look(), kinds(got)) == ([], ["fired"])
        again.look()
        assert (kinds(got), len(AlertLog(store).events())) == (["fired"], 1)
        store.close()


@pytest.mark.slow
def test_what_a_channel_refuses_is_sent_again_under_the_same_id(tmp_path):
    with receiver(broken=1) as (url, got):
        place = Place(tmp_path, url)
        place.write(good=5, bad=10)
        place.alerting().look()
        (event,) = AlertLog(place.store).events()
        assert (event["tries"], event["outcome"], event["done"]) == (1, "OSError: status 500", None)
        assert event["due"] > time.time(), "not at once again"
        AlertLog(place.store).wait(event, 0.0)
        place.alerting().look()
        assert len({body["id"] for body in got}) == 1
        assert len(got) == 2
        place.store.close()


@pytest.mark.slow
def test_a_silence_holds_what_fires_and_forgets_what_is_over(tmp_path, capsys):
    config = ["--config", str(tmp_path / "tunesmith.yaml")]
    with receiver() as (url, got):
        place = Place(tmp_path, url)
        place.write(good=5, bad=10)
        assert guarded(app, ["monitor", "alerts", "silence", "--label", "team=shop", "--label", "rule=errors", "--for", "2h", *config]) == 0
        assert guarded(app, ["monitor", "alerts", "--json", *config]) == 3
        told = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
        assert (told["changes"][0]["kind"], told["silences"][0]["labels"], got) == ("fired", {"team": "shop", "rule": "errors"}, [])
        place.write(good=300, bad=0)
        place.alerting().look()
        silence = ["monitor", "alerts", "silence", "--label", "team=shop", "--label", "rule=errors"]
        assert guarded(app, [*silence, "--end", *config]) == 0
        place.alerting().look()
        assert got == [], "both were over before anybody was to be told"
        assert guarded(app, [*silence, *config]) == 0
        place.write(good=0, bad=300)
        place.alerting().look()
        assert guarded(app, [*silence, "--end", *config]) == 0
        place.alerting().look()
        assert kinds(got) == ["fired"], "what still fires is told when its silence ends"
        place.store.close()


@pytest.mark.slow
def test_every_channel_can_be_tested_and_mail_arrives(tmp_path, capsys):
    letters = []

    class Mail(socketserver.StreamRequestHandler):
        """As much of SMTP as one letter needs."""

        def handle(self):
            self.wfile.write(b"220 ready\r\n")
            while line := self.rfile.readline():
                word = line[:4].upper()
                self.wfile.write({b"DATA": b"354 go on\r\n", b"QUIT": b"221 bye\r\n"}.get(word, b"250 ok\r\n"))
                if word == b"DATA":
                    letter = b""
                    while (part := self.rfile.readline()) != b".\r\n":
                        letter += part
                    letters.append(letter.decode())
                    self.wfile.write(b"250 taken\r\n")
                if word == b"QUIT":
                    return

    mail = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mail)
    threading.Thread(target=mail.serve_forever, daemon=True).start()
    with receiver() as (url, got):
        place = Place(tmp_path, url)
        text = (tmp_path / "tunesmith.yaml").read_text()
        more = f'mail: {{email: {{to: [ops@example.org], host: 127.0.0.1, port: {mail.server_address[1]}, sender: bot@example.org, tls: none}}}}, chat: {{slack: "{url}"}}, log: {{log: true}}, '
        (tmp_path / "tunesmith.yaml").write_text(text.replace("channels: {", f"channels: {{{more}").replace("5%", "0.05"))
        assert guarded(app, ["monitor", "alerts", "test", "--json", "--config", str(tmp_path / "tunesmith.yaml")]) == 0, capsys.readouterr()
        assert sorted(map(sorted, got)) == sorted([["text"], sorted(["alias", "at", "id", "kind", "rule", "text"])])
        assert "To: ops@example.org" in letters[0]
        place.store.close()
    mail.shutdown()
    mail.server_close()
    assert guarded(app, ["monitor", "alerts", "test", "--config", str(tmp_path / "tunesmith.yaml")]) == 1, "nobody is there any longer"


def test_states_hold_and_silences_need_all_their_labels():
    rule = Rule(name="r", metric="error_rate", above=0.1, hold="5m")
    assert next_state(rule, "ok", 0, 0.2, 1000) == "pending"
    assert next_state(rule, "pending", 900, 0.2, 1000) == "pending"
    assert next_state(rule, "pending", 700, 0.2, 1000) == "firing"
    assert next_state(rule, "firing", 700, None, 1000) == "firing", "without a reading nothing changes"
    assert next_state(rule, "firing", 700, 0.1, 1000) == "ok"
    assert silenced_until({"a": "1", "b": "2"}, [({"a": "1"}, 50.0), ({"a": "1", "c": "3"}, 99.0), ({}, 20.0)], 10) == 50.0
    assert silenced_until({"a": "1"}, [({"a": "1"}, 5.0)], 10) is None


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Rule(name="r", metric="errors", above=1),
        lambda: Rule(name="r", metric="error_rate"),
        lambda: Rule(name="r", metric="drift", above=1),
        lambda: Rule(name="r", metric="p95_s", above=1, over="soon"),
        lambda: Channel(),
        lambda: Channel(webhook="ftp://x"),
        lambda: Channel(log=True, slack="http://x"),
        lambda: Alerts(rules=(Rule(name="r", metric="drift"),) * 2),
        lambda: Alerts(rules=(Rule(name="r", metric="drift", to=("pager",)),)),
    ],
)
def test_rules_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError):
        wrong()


def test_unknown_keys_of_a_rule_are_named_with_their_line(tmp_path):
    (tmp_path / "tunesmith.yaml").write_text("name: x\nsources: [{path: r}]\nbase: b\nalerts:\n  rules:\n    - {name: r, metrik: drift}\n")
    with pytest.raises(ConfigError, match="metric"):
        load_project(tmp_path / "tunesmith.yaml")
    (tmp_path / "tunesmith.yaml").write_text("name: x\nsources: [{path: r}]\nbase: b\nretrain: {when: {alerts: [errors]}}\n")
    with pytest.raises(ConfigError, match=r"no alert 'errors'"):
        load_project(tmp_path / "tunesmith.yaml")
