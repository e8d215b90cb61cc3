"""What every command shares: `--json`, progress, and the translation of errors into messages and exit codes."""

from __future__ import annotations

import errno
import functools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.core.terminal import printable

if TYPE_CHECKING:
    from tunesmith.core.errors import TunesmithError
    from tunesmith.core.progress import Progress

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, no progress.")]
file_option = Annotated[Path, typer.Option("--config", "-c", help="The project file.")]
AsWritten = Annotated[bool, typer.Option("--as-written", help="Look at the file as it is, not at the last run as it was made.")]
data_option = Annotated[
    str | None, typer.Option("--data", help="Rows in place of the project's sources: latest, a version, catalog:NAME, a file or a URL.")
]
plan_option = Annotated[Path | None, typer.Option("--plan", help="A plan's file, as tunesmith tune best writes it, in place of train:.")]
_INTERRUPTED = 130
_PLACES = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
# Words that a command does not know are overrides of the project file: --train.epochs 2
OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}


def emit(result: dict[str, Any], as_json: bool, text: str) -> None:
    """Print the result: the JSON object, or the words for people."""
    shown(json.dumps(result, default=str) if as_json else text)


def shown(text: str, *, err: bool = False) -> None:
    """Print a text, whoever wrote parts of it: a terminal obeys nothing in it."""
    typer.echo(printable(text), err=err)


@contextmanager
def told(as_json: bool) -> Iterator[Progress]:
    """The progress of one command: silent with `--json`, else on standard error."""
    from tunesmith.core.progress import Silent, Terminal

    if as_json:
        yield Silent()
    else:
        with Terminal() as terminal:
            yield terminal


def instead(data: str | None, config: Path, words: Sequence[str]) -> list[str]:
    """The overrides among the words, with `data` as the project's only source. A file of the command line is looked for where it runs."""
    if data is None:
        return list(words)
    here = config.resolve().parent != Path.cwd() and Path(data).exists()
    return ["--sources", json.dumps([{"path": str(Path(data).resolve()) if here else data}]), *words]


def planned(plan: Path | None) -> list[str]:
    """The override that puts a plan's file in place of the section `train:`; none without a file. Raises ConfigError with its line."""
    if plan is None:
        return []
    from tunesmith.flow.plan_file import plan_words

    return plan_words(plan)


@functools.cache
def _command(app: typer.Typer) -> Any:
    """The application as click has it; made once, which takes longer than a small command."""
    return typer.main.get_command(app)


def guarded(app: typer.Typer, words: Sequence[str]) -> int:
    """Run the command; every expected error becomes one clear message and its documented exit code."""
    from tunesmith.core.errors import TunesmithError
    from tunesmith.core.load import missing_extra

    as_json = "--json" in words
    try:
        result = _command(app)(list(words), standalone_mode=False)
    except TunesmithError as error:
        return _say(f"{error}{_meant(app, words, error)}", error.exit_code, as_json, type(error).__name__)
    except ModuleNotFoundError as error:
        missing = missing_extra(error)
        if missing is None:
            raise
        return _say(str(missing), missing.exit_code, as_json, type(missing).__name__)
    except KeyboardInterrupt:
        result = _INTERRUPTED
    except typer.Abort as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            stopped = "stopped at the question, which nobody answered with yes\n  to mend it: answer it, or say --yes beforehand"
            return _say(stopped, 2, as_json, "UsageError")
        result = _INTERRUPTED
    except BrokenPipeError:
        return 0  # the reader of a pipe went away, such as `| head`
    except OSError as error:
        if error.errno not in _PLACES:
            raise
        message = f"{error.filename or 'the disk'}: {error.strerror}\n  to mend it: check the path, its rights and the free space"
        return _say(message, 1, as_json, "StoreError")
    except Exception as error:
        click_message = getattr(error, "format_message", None)
        if click_message is None:
            raise
        usage = getattr(error, "ctx", None)
        hint = f"\n  to mend it: {usage.command_path} --help" if usage else ""
        return _say(click_message() + hint, 2, as_json, "UsageError")
    if result == _INTERRUPTED:  # Typer turns ctrl-C into this exit code by itself
        return _say("interrupted; what is finished is kept, run again to continue", _INTERRUPTED, as_json, "Interrupted")
    return result if isinstance(result, int) else 0


def _meant(app: typer.Typer, words: Sequence[str], error: TunesmithError) -> str:
    """The command's own option that was probably meant where the error is about a word that is no option and no key."""
    import re
    from difflib import SequenceMatcher, get_close_matches

    typed = {word.partition("=")[0] for word in words if word.startswith("--")}
    wrong = next((word for word in typed if word == error.where or f"'{word}'" in error.what), None)
    if wrong is None or not ("unknown" in error.what or "has no value" in error.what):
        return ""
    close = [option for option in get_close_matches(wrong, _options_of(app, words), n=1, cutoff=0.7) if option != wrong]
    key = re.search(r"did you mean '(.*)'", error.remedy)
    if not close or (key and SequenceMatcher(None, wrong, f"--{key[1]}").ratio() >= SequenceMatcher(None, wrong, close[0]).ratio()):
        return ""
    return f"\n  to mend it: did you mean '{close[0]}'?"


def _options_of(app: typer.Typer, words: Sequence[str]) -> list[str]:
    """The options of the command that the words name."""
    command: Any = typer.main.get_command(app)
    for word in words:
        command = getattr(command, "commands", {}).get(word, command)
    return [option for parameter in command.params for option in parameter.opts if option.startswith("--")]


def _say(message: str, code: int, as_json: bool, kind: str) -> int:
    if as_json:
        typer.echo(json.dumps({"error": {"type": kind, "message": message, "exit_code": code}}))
    shown(message, err=True)
    return code
