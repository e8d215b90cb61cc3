"""The public face: few names, loaded late, each with an example that runs here on a tiny model."""

from __future__ import annotations

import doctest
import inspect
import json
import pkgutil
import random
import subprocess
import sys
from pathlib import Path

import openai
import pytest

import tiny
import tunesmith
from tunesmith import python

WORDS = ["agreement", "bank", "entities", "sentence", "credit", "holdings", "amended", "signed", "ohio", "york", "june", "dated"]
FUNCTIONS = sorted((getattr(python, name) for name in tunesmith.__all__ if hasattr(python, name)), key=lambda f: f.__code__.co_firstlineno)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder, rng, lines = tmp_path_factory.mktemp("notebook"), random.Random(0), []
    for i in range(60):
        said = " ".join(rng.sample(WORDS, 4))
        lines.append({"messages": [{"role": "user", "content": said}, {"role": "assistant", "content": said if i % 2 else "no"}]})
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder, tiny.model(tmp_path_factory.mktemp("base"), context=192)  # too short for the general abilities


@pytest.mark.slow
def test_every_example_says_what_it_shows(here, monkeypatch):
    folder, base = here
    monkeypatch.chdir(folder)
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for function in FUNCTIONS:
        (example,) = finder.find(
            inspect.unwrap(function), function.__name__, globs={"tunesmith": tunesmith, "openai": openai, "BASE": str(base)}
        )
        assert example.examples, f"{function.__name__} has no example"
        runner.run(example)
    assert runner.summarize().failed == 0


@pytest.mark.slow
def test_a_run_of_a_notebook_is_that_of_the_command_line(here, monkeypatch, capsys):
    from tunesmith.cli import app
    from tunesmith.cli.shared import guarded

    folder, base = here
    monkeypatch.chdir(folder)
    tunesmith.init("rows.jsonl", "other.yaml", base=str(base), name="other")
    trained = tunesmith.finetune("other.yaml", {"train.epochs": 1, "train.batch_size": 8})
    code = guarded(app, ["train", "-c", "other.yaml", "--train.epochs", "1", "--train.batch_size", "8", "--json"])
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (code, again["cached"], again["artifact"]) == (0, True, trained["artifact"])
    assert tunesmith.ask(f"{base}+{trained['artifact']}", "who signed it?", max_tokens=3) is not None
    with pytest.raises(tunesmith.TunesmithError, match=r"did you mean 'train\.epochs'"):
        tunesmith.plan("other.yaml", {"epochs": 1})


def test_the_names_are_few_and_none_is_a_package_of_ours():
    assert len(tunesmith.__all__) <= 15
    assert dir(tunesmith) == tunesmith.__all__ == sorted(tunesmith.__all__)
    assert all(getattr(tunesmith, name) is not None for name in tunesmith.__all__)
    assert not {module.name for module in pkgutil.iter_modules(tunesmith.__path__)} & set(tunesmith.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tunesmith.nothing  # noqa: B018 raises


def test_every_name_is_documented():
    page = (Path(__file__).parents[1] / "docs" / "python.md").read_text()
    assert [name for name in tunesmith.__all__ if name != "__version__" and name not in page] == []


def test_importing_loads_nothing():
    code = "import sys; before = set(sys.modules); import tunesmith; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['tunesmith', 'tunesmith._version']"
