"""A path, a folder, a pattern, a URL or a query → items (a line of JSON or an object) with their place; knows nothing about their meaning.

JSONL, JSON, CSV, TSV, Parquet, Arrow (Hugging Face `save_to_disk`), Kiln runs, plain text, each also as .gz or .zst where it is text; URLs
through fsspec (https://, s3://, hf:// …), fetched to a temporary file first; SQL through SQLAlchemy. All but a JSON array is streamed.
"""

from __future__ import annotations

import codecs
import glob
import itertools
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tunesmith.core.errors import ConfigError, DataError, NotFound, SourceUnavailable
from tunesmith.core.load import need
from tunesmith.core.rows import Line, open_read, read_lines, read_whole
from tunesmith.core.seal import check_folder
from tunesmith.core.types import digest
from tunesmith.data.csv_table import Broken, read_table

PACKED = (".gz", ".zst")
MANIFEST = "source.manifest"  # of a folder that `data.fetched` wrote
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class Unread(NamedTuple):
    """An item that could not even be read: a stable code and a message."""

    code: str
    message: str


class SourceItem(NamedTuple):
    """One input row before it is understood: its line (or its number) in the file, a JSON line, an object or why it is unread, and the byte
    of the unpacked file that its line begins at, where it is one."""

    number: int
    data: bytes | dict[str, Any] | Unread
    offset: int | None = None


def read_items(
    path: str, query: str = "", by_paragraph: bool = False, encoding: str = "utf-8"
) -> Iterator[tuple[str, Iterator[SourceItem]]]:
    """For each file that `path` means: its name and its items; with a `query`, `path` is a database URL and the name is the URL without
    its password. Text files are one item each, or one for each paragraph.

    Raises NotFound, SourceUnavailable, or DataError for what cannot be read."""
    if query:
        yield _query(path, query)
    elif "://" in path:
        yield from _remote(path, by_paragraph)
    elif named := _kept_names(Path(path)):
        for name, shown in named.items():
            file = Path(path) / name
            yield shown, _sound(shown, _reader(file, by_paragraph)(file))
    else:
        for file in files(path):
            yield str(file), _sound(file, in_utf8(file, encoding, _reader(file, by_paragraph)))


def _kept_names(folder: Path) -> dict[str, str]:
    """File → the name its rows are known by, of a folder that `data.fetched` wrote; empty for any other."""
    if not (folder / MANIFEST).is_file():
        return {}
    return dict(msgspec.json.decode((check_folder(folder) / MANIFEST).read_bytes())["files"])


# Parameters of an address that let somebody in, and change with each address that is given out (S3, Google Cloud, Azure, others).
_SECRET = re.compile(
    r"(.*[_.-])?(token|secret|password|passwd|pwd|api_?key|key|sig|signature|credentials?|auth|expires)|x-(amz|goog)-.*"
    r"|awsaccesskeyid|googleaccessid|s[vtekripb]|spr|sdd|ske|sks|skt|skv|skoid|sktid",
    re.IGNORECASE,
)

_NAMED = re.compile(r"q-[0-9a-f]{12}")  # a query as a public name has it


def public_name(url: str) -> str:
    """A URL without what may be a secret: user, password and query. Of the query a digest stays, without which two addresses that differ
    there alone would give their rows the same origins; what its name says to be a key or a signature is no part of it. A path is what it
    is."""
    if "://" not in url:
        return url
    protocol, mark, rest = url.partition("://")
    address, _, query = rest.partition("?")
    host, slash, place = address.partition("/")
    parts = [part for part in query.split("&") if part and not _SECRET.fullmatch(part.partition("=")[0])]
    named = f"?q-{digest(parts, size=6)}" if parts else ""
    named = f"?{query}" if _NAMED.fullmatch(query) else named
    return f"{protocol}{mark}{host.rpartition('@')[2]}{slash}{place}{named}"


def without_secrets(text: str) -> str:
    """A message whose URLs are named in public."""
    return re.sub(r"[a-z][\w+.-]*://[^\s'\"<>]+", lambda url: public_name(url[0]), text)


def _sound(file: Path | str, items: Iterator[SourceItem]) -> Iterator[SourceItem]:
    """The items; a file that is damaged inside (packed data that ends too early, a broken column) is a DataError."""
    try:
        yield from items
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"the file is damaged: {error}", where=str(file), remedy="fetch or make it again") from error


def in_utf8(file: Path, encoding: str, read: Callable[[Path], Iterator[SourceItem]]) -> Iterator[SourceItem]:
    """The items of a text file in another encoding, read from a copy in UTF-8. Raises ConfigError for an unknown encoding, DataError for
    bytes that are none of it."""
    try:
        name = codecs.lookup(encoding).name
    except LookupError as error:
        raise ConfigError(
            f"no encoding '{encoding}'",
            where="encoding",
            allowed="a name that Python knows, such as utf-16, cp1252, shift_jis, gb18030",
        ) from error
    if name in ("utf-8", "utf-8-sig", "ascii") or _suffix(file) in (".parquet", ".arrow"):
        yield from read(file)
        return
    with tempfile.TemporaryDirectory(prefix="tunesmith-") as folder:
        copy = Path(folder) / (file.stem if file.suffix.lower() in PACKED else file.name)
        decoder = codecs.getincrementaldecoder(name)()
        with open_read(file) as source, copy.open("wb") as target:
            try:
                while block := source.read(1 << 20):
                    target.write(decoder.decode(block).encode("utf-8", "surrogatepass"))
                target.write(decoder.decode(b"", final=True).encode("utf-8", "surrogatepass"))
            except UnicodeError as error:
                raise DataError(
                    f"the file is not {encoding}: {getattr(error, 'reason', error)}", where=str(file), remedy="name its encoding"
                ) from error
        yield from read(copy)


def _reader(file: Path, by_paragraph: bool) -> Callable[[Path], Iterator[SourceItem]]:
    return _paragraphs if by_paragraph and _suffix(file) in TEXT else READERS[_suffix(file)]


def files(path: str) -> list[Path]:
    """The readable files that `path` means, sorted; of a folder its text files only when it has no others.

    Raises NotFound when there is none, DataError for a folder without any."""
    place = Path(path).expanduser()
    if place.is_dir():
        matches = sorted(file for file in place.rglob("*") if file.is_file() and _suffix(file) in READERS and not _is_notice(file))
        # beside files of rows a text is about them (README.md); alone the texts are the rows
        matches = [file for file in matches if _suffix(file) not in TEXT] or matches
        if not matches:
            held = ", ".join(sorted(file.name for file in place.iterdir())[:5]) or "nothing"
            raise DataError(f"this folder has no rows in it; it has {held}", where=path, allowed="files ending in " + ", ".join(READERS))
        return matches
    if glob.has_magic(path) and not place.exists():
        matches = [Path(name) for name in sorted(glob.glob(str(place), recursive=True)) if Path(name).is_file()]
        if not matches:
            raise NotFound("no file fits the pattern", where=path, remedy="patterns start at the current folder; ** reaches into folders")
        return matches
    if not place.exists():
        raise NotFound("no such file", where=path, remedy=f"check the path; the current folder is {Path.cwd()}")
    if _suffix(place) not in READERS:
        raise DataError(f"files that end in '{place.suffix}' cannot be read", where=path, allowed=", ".join(READERS))
    return [place]


def _suffix(file: Path) -> str:
    return Path(file.stem).suffix.lower() if file.suffix.lower() in PACKED else file.suffix.lower()


def is_text(path: str) -> bool:
    """Whether a file's name says that it is plain text."""
    return _suffix(Path(path)) in TEXT


def _is_notice(file: Path) -> bool:
    """Files that Hugging Face data sets carry beside their rows."""
    return file.name in ("dataset_info.json", "state.json", "dataset_dict.json", "dataset_infos.json")


def _remote(url: str, by_paragraph: bool) -> Iterator[tuple[str, Iterator[SourceItem]]]:
    with tempfile.TemporaryDirectory(prefix="tunesmith-") as folder:
        for shown, local in download(url, Path(folder)):
            yield shown, _sound(shown, _reader(local, by_paragraph)(local))
            local.unlink()


def download(url: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """Fetch the files of a URL (or a pattern of URLs) into `folder`, one by one: the public name of each and where it lies now.

    Raises NotFound, SourceUnavailable, or DataError for a file that could not be read.
    """
    import fsspec

    try:
        filesystem, place = fsspec.core.url_to_fs(url)
        names = sorted(filesystem.glob(place)) if glob.has_magic(place.partition("?")[0]) else [place]
        if not names:
            raise NotFound("no file fits the pattern", where=public_name(url))
        protocol = url.split("://")[0]
        for number, name in enumerate(names):
            shown = public_name(name if "://" in name else f"{protocol}://{name}")
            suffixes = "".join(Path(name.split("?")[0]).suffixes[-2:])
            local = folder / f"{number:04d}{suffixes}"
            if _suffix(local) not in READERS:
                raise DataError(f"files that end in '{suffixes}' cannot be read", where=shown, allowed=", ".join(READERS))
            with filesystem.open(name, "rb") as source, local.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            yield shown, local
    except (OSError, ImportError, ValueError) as error:
        raise SourceUnavailable(
            f"cannot be read: {without_secrets(str(error))}",
            where=public_name(url),
            remedy="check the address, the network and the credentials of its service",
        ) from error


def _query(url: str, query: str) -> tuple[str, Iterator[SourceItem]]:
    import sqlalchemy

    try:
        engine = sqlalchemy.create_engine(url)
    except (sqlalchemy.exc.ArgumentError, ImportError) as error:
        raise DataError(f"not a database URL: {error}", where=url, allowed="such as sqlite:///rows.db or postgresql+psycopg://…") from error

    def rows() -> Iterator[SourceItem]:
        try:
            with engine.connect() as connection:
                result = connection.execution_options(stream_results=True, yield_per=1_000).execute(sqlalchemy.text(query))
                for number, row in enumerate(result.mappings(), start=1):
                    yield SourceItem(number, dict(row))
        except sqlalchemy.exc.SQLAlchemyError as error:
            raise DataError(
                f"the query failed: {without_secrets(str(error).splitlines()[0])}", where=name, remedy="try it in the database's own tool"
            ) from error

    name = engine.url.render_as_string(hide_password=True)
    return name, rows()


def _jsonl(file: Path) -> Iterator[SourceItem]:
    """The lines; a file that holds one JSON array is read as its elements, one that holds one object over many lines as that object."""
    lines = read_lines(file)
    first = next(lines, None)
    if first is None:
        return
    if first.data.startswith(LFS_POINTER):
        raise DataError("this is a pointer to a file in Git LFS, not the file", where=str(file), remedy="git lfs pull")
    if first.data.startswith(b"[") or first.data == b"{":
        yield from _array(file)
        return
    for line in itertools.chain([first], lines):
        yield SourceItem(line.number, line.data if line.whole else _too_long(len(line.data)), line.offset)


def _too_long(length: int) -> Unread:
    return Unread("line_too_long", f"the line is longer than {length:,} bytes: one row a line?")


def _array(file: Path) -> Iterator[SourceItem]:
    data = read_whole(file)
    try:
        rows = msgspec.json.decode(data.removeprefix(b"\xef\xbb\xbf"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(
            f"not valid JSON: {error}", where=str(file), allowed="a JSON array of objects, or one object on each line"
        ) from error
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], start=1):
        yield SourceItem(
            number, row if isinstance(row, dict) else Unread("not_an_object", f"expected a JSON object, got {type(row).__name__}")
        )


def _csv(file: Path) -> Iterator[SourceItem]:
    """The rows of a table (see `csv_table`)."""
    for number, row in read_table(file, "\t" if _suffix(file) == ".tsv" else None):
        yield SourceItem(number, Unread(*row) if isinstance(row, Broken) else dict(row))


def _parquet(file: Path) -> Iterator[SourceItem]:
    pa, pq = need("pyarrow", extra="data"), need("pyarrow.parquet", extra="data")
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as opened:
            yield from _records(opened.iter_batches(batch_size=5_000))
    except (pa.ArrowException, *_DAMAGED) as error:
        raise _not_readable(file, "Parquet", error) from error


def _arrow(file: Path) -> Iterator[SourceItem]:
    pa, ipc = need("pyarrow", extra="data"), need("pyarrow.ipc", extra="data")
    try:
        with pa.memory_map(os.fspath(file)) as source:
            try:
                batches = ipc.open_stream(source)
            except pa.ArrowInvalid:
                opened = ipc.open_file(source)
                batches = (opened.get_batch(i) for i in range(opened.num_record_batches))
            yield from _records(batches)
    except (pa.ArrowException, *_DAMAGED) as error:
        raise _not_readable(file, "Arrow", error) from error


# what Arrow raises on damaged bytes beside its own: of lengths that are none, of texts that are no UTF-8, of names that are not there
_DAMAGED = (OSError, ValueError, KeyError, IndexError, MemoryError, OverflowError, NotImplementedError)


def _not_readable(file: Path, kind: str, error: BaseException) -> DataError:
    reason = str(error).split("\n", 1)[0] or type(error).__name__
    remedy = "copy or download it again; where another program wrote it, write it again there"
    return DataError(f"not a whole {kind} file: {reason}", where=str(file), remedy=remedy)


_MOST_BATCH_BYTES = 1 << 29


def _records(batches: Any) -> Iterator[SourceItem]:
    """Rows of Arrow batches. Texts that Tunesmith keeps as JSON are opened; nulls that stand for 'absent' are left out.

    Every batch is validated first: offsets of a damaged file point anywhere, and Arrow follows them to the end of the process.
    """
    number = 0
    for batch in batches:
        batch.validate(full=True)
        if batch.nbytes > _MOST_BATCH_BYTES:
            raise DataError(f"{batch.num_rows} rows after row {number} unpack to {batch.nbytes:,} bytes", allowed=f"{_MOST_BATCH_BYTES:,}")
        opened = [name for name in batch.schema.names if name in ("messages", "tools", "meta", "preferred", "non_preferred")]
        own = b"tunesmith" in (batch.schema.metadata or {})
        opened += ["answer"] if own and "answer" in batch.schema.names else []  # elsewhere an answer is text, whatever it looks like
        for row in batch.to_pylist():
            number += 1
            texts = {name: _opened(row.pop(name)) for name in opened if isinstance(row[name], str)}  # a null in JSON text is meant
            yield SourceItem(number, {**without_planted(row), **texts})


def without_planted(value: Any) -> Any:
    """A value without the nulls that Arrow gives each struct for the keys that other rows have, at any depth."""
    if isinstance(value, dict):
        return {key: without_planted(item) for key, item in value.items() if item is not None}
    return [without_planted(item) for item in value] if isinstance(value, list) else value


def _opened(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text


def _text(file: Path) -> Iterator[SourceItem]:
    """The whole file as one row. Raises DataError for JSON lines under the name of a text: one row would be made of many."""
    data = read_whole(file)
    lines = data.split(b"\n", 3)[:3]
    if lines[0].lstrip().startswith(b"{") and all(_is_object(line) for line in lines if line.strip()):
        raise DataError(
            "the file is called a text and holds JSON, one object a line",
            where=str(file),
            remedy=f"call it {file.stem}.jsonl; to read its paragraphs as text: format: paragraphs",
        )
    yield SourceItem(1, _said(data), 0)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(msgspec.json.decode(line), dict)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def _paragraphs(file: Path) -> Iterator[SourceItem]:
    """A row for each run of lines between blank ones."""
    paragraph: list[Line] = []
    for line in read_lines(file):
        if paragraph and line.number > paragraph[-1].number + 1:
            yield _paragraph(paragraph)
            paragraph = []
        paragraph.append(line)
    if paragraph:
        yield _paragraph(paragraph)


def _paragraph(lines: list[Line]) -> SourceItem:
    return SourceItem(lines[0].number, _said(b"\n".join(line.data for line in lines)), lines[0].offset)


def _said(data: bytes) -> dict[str, Any] | Unread:
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as wrong:
        return Unread("invalid_utf8", f"byte {wrong.start} ({data[wrong.start]:#04x}) is not UTF-8: convert the file to UTF-8")
    return {"text": text} if text else Unread("no_text", "there is no text in it")


TEXT = (".txt", ".md")
READERS: dict[str, Callable[[Path], Iterator[SourceItem]]] = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json", ".kiln"), _jsonl),
    **dict.fromkeys((".csv", ".tsv"), _csv),
    ".parquet": _parquet,
    ".arrow": _arrow,
    **dict.fromkeys(TEXT, _text),
}
