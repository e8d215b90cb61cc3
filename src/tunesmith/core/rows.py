"""JSONL and Parquet as streams, lines with their place; knows nothing about formats of rows.

Messages are kept in Parquet as JSON text, because nested Arrow structs merge schemas and plant nulls into tool calls.
"""

from __future__ import annotations

import gzip
import io
import itertools
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import msgspec

from tunesmith.core.atomic import atomic_file
from tunesmith.core.errors import DataError, Fault, NotFound
from tunesmith.core.load import need
from tunesmith.core.seal import checked
from tunesmith.core.types import Document, Example, Labelled, Message, Preference, canonical

T = TypeVar("T")
Row = Example | Preference | Labelled | Document

MAX_LINE_BYTES = 64 * 1024 * 1024
MAX_WHOLE_BYTES = 1 << 30  # of a packed file that is read at once
MOST_UNPACKED, SMALL_BYTES = 200, 1 << 28  # a packed file may unpack to so many times its size, and to so many bytes always
BATCH_ROWS, BATCH_BYTES = 5_000, 16 * 1024 * 1024  # of a row group: what is read at one time
_UTF8_BOM = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """One line without its end. `number` counts from 1, `offset` is its first byte in the (unpacked) file, `whole` is False
    when it was longer than `MAX_LINE_BYTES` and only its beginning is here."""

    number: int
    offset: int
    data: bytes
    whole: bool = True


def open_read(path: str | Path) -> IO[bytes]:
    """The bytes of a file, unpacked when it ends in .gz or .zst.

    Raises NotFound for a missing file and DataError for a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(
            "this is a folder, not a file", where=str(path), remedy="name the files in it, or a pattern such as 'folder/*.jsonl'"
        )
    if not path.exists():
        raise NotFound("no such file", where=str(path), remedy="check the path; relative paths start at the current folder")
    if path.suffix == ".gz":
        return io.BufferedReader(_Unpacked(gzip.GzipFile(path, "rb"), path), 1 << 17)
    if path.suffix == ".zst":
        return io.BufferedReader(_Unpacked(_Zstd(path), path), 1 << 17)
    return path.open("rb")


def read_whole(path: str | Path) -> bytes:
    """All bytes of a file that `open_read` opens. Raises DataError where a packed one has more than `MAX_WHOLE_BYTES`."""
    with open_read(path) as stream:
        if type(stream) is not io.BufferedReader or not isinstance(stream.raw, _Unpacked):
            return stream.read()
        data = stream.read(MAX_WHOLE_BYTES + 1)
    if len(data) > MAX_WHOLE_BYTES:
        what = f"the packed file has more than {MAX_WHOLE_BYTES:,} bytes and must be read at once"
        raise DataError(what, where=str(path), remedy="write one row a line (.jsonl), or unpack it first")
    return data


class _Unpacked(io.RawIOBase):
    """Packed bytes as they are unpacked, until they are many more than any rows are: a bomb raises EOFError, as a damaged file does."""

    def __init__(self, inner: gzip.GzipFile | _Zstd, path: Path) -> None:
        self._inner, self._left = inner, max(SMALL_BYTES, MOST_UNPACKED * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._inner.readinto(buffer)
        self._left -= count or 0
        if self._left < 0:
            raise EOFError(f"it unpacks to more than {MOST_UNPACKED} times its size")
        return count or 0

    def close(self) -> None:
        self._inner.close()
        super().close()


class _Zstd(io.RawIOBase):
    """The bytes of a Zstandard file. Its own reader takes a file that was cut for one that ends; this one raises EOFError."""

    def __init__(self, path: Path) -> None:
        self._zstd = need("zstandard", extra="data")
        self._file, self._rest = path.open("rb"), b""
        self._frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            packed = (self._frame.unused_data if self._frame is not None and self._frame.eof else b"") or self._file.read(1 << 17)
            if not packed:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError("the file ends in the middle of its packed data")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = self._zstd.ZstdDecompressor().decompressobj()
            try:
                self._rest = self._frame.decompress(packed)
            except self._zstd.ZstdError as error:
                raise EOFError(str(error)) from error
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def read_lines(path: str | Path) -> Iterator[Line]:
    """The lines of a UTF-8 text file that are not blank, as bytes. A byte order mark is taken off.

    Raises NotFound, or DataError for a folder, UTF-16 or UTF-32 text and a damaged archive.
    """
    number = offset = 0
    with open_read(path) as stream:
        try:
            while data := stream.readline(MAX_LINE_BYTES):
                number, start, whole = number + 1, offset, True
                offset += len(data)
                if number == 1:
                    refuse_utf16(data, path)
                    data = data.removeprefix(_UTF8_BOM)
                if len(data) >= MAX_LINE_BYTES and not data.endswith(b"\n"):
                    whole = False
                    while rest := stream.readline(MAX_LINE_BYTES):
                        offset += len(rest)
                        if rest.endswith(b"\n"):
                            break
                data = data.strip(b" \t\r\n")
                if data:
                    yield Line(number, start, data, whole)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(
                f"the archive is damaged after line {number}: {error}", where=str(path), remedy="fetch or pack the file again"
            ) from error


def refuse_utf16(first: bytes, path: str | Path) -> None:
    """Raise DataError when a file that begins so is UTF-16 or UTF-32 text."""
    if first[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\x00" in first[:4]:
        raise DataError(
            "the file is UTF-16 or UTF-32 text (or not text at all)",
            where=f"{path}:1",
            allowed="UTF-8",
            remedy=f"name the source's encoding: utf-16, or: iconv -f UTF-16 -t UTF-8 '{path}' > converted",
        )


def read_jsonl(path: str | Path, kind: type[T]) -> Iterator[T]:
    """Every line of a file as a `kind`; for files that Tunesmith wrote itself.

    Raises DataError at the first line that is none: such a file is damaged.
    """
    decoder = msgspec.json.Decoder(kind)
    for line in read_lines(checked(Path(path))):
        try:
            yield decoder.decode(line.data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            fault = Fault(f"{path}:{line.number}", "not_a_record", f"{error}; expected a {kind.__name__}")
            raise DataError("the file is damaged", faults=[fault], where=str(path), remedy="make it again") from error


def write_jsonl(path: str | Path, rows: Iterable[Any]) -> int:
    """Write one canonical JSON line for each row, packed when the name ends in .gz, and return how many. Whole or absent."""
    count = 0
    with atomic_file(path) as raw:
        # mtime=0: the same rows give the same bytes
        stream: IO[bytes] = gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) if str(path).endswith(".gz") else raw  # type: ignore[assignment]
        for row in rows:
            stream.write(canonical(row))
            stream.write(b"\n")
            count += 1
        if stream is not raw:
            stream.close()
    return count


_TEXT_COLUMNS: dict[type, tuple[str, ...]] = {
    Example: ("id", "messages", "tools", "reference", "group", "label", "meta", "origin"),
    Preference: ("id", "messages", "preferred", "non_preferred", "tools", "group", "meta", "origin"),
    Labelled: ("id", "messages", "answer", "tools", "group", "meta", "origin"),
    Document: ("id", "text", "group", "meta", "origin"),
}
_BOOL_COLUMNS: dict[type, tuple[str, ...]] = {Example: ("parallel_tool_calls",), Labelled: ("desirable",)}
_KINDS = {kind.__name__.encode(): kind for kind in _TEXT_COLUMNS}
_JSON_COLUMNS: dict[str, msgspec.json.Decoder[Any]] = {
    "messages": msgspec.json.Decoder(tuple[Message, ...]),
    "preferred": msgspec.json.Decoder(Message),
    "non_preferred": msgspec.json.Decoder(Message),
    "answer": msgspec.json.Decoder(Message),
    "tools": msgspec.json.Decoder(tuple[dict[str, Any], ...]),
    "meta": msgspec.json.Decoder(dict[str, Any]),
}


# A checksum a page: a flipped bit is an error and not another row, also where no digest stands beside the file.
_PACKED: dict[str, Any] = {"compression": "zstd", "compression_level": 3, "write_page_checksum": True}


def write_parquet(path: str | Path, rows: Iterable[Row], *, batch: int = BATCH_ROWS) -> int:
    """Write rows (one kind a file) as Parquet (zstd), a row group each `batch` rows or BATCH_BYTES; returns how many.

    Raises DataError when the kinds are mixed. No rows give a file of Examples without rows.
    """
    pa, pq = need("pyarrow", extra="data"), need("pyarrow.parquet", extra="data")
    rows = iter(rows)
    first = next(rows, None)
    kind = type(first) if first is not None else Example
    schema, count = _schema(pa, kind), 0
    with atomic_file(path) as stream, pq.ParquetWriter(stream, schema, **_PACKED) as writer:
        for cells in _batches(kind, itertools.chain([first], rows) if first is not None else (), batch, path):
            columns = dict(zip(schema.names, map(list, zip(*cells, strict=True)), strict=True))
            writer.write_table(pa.Table.from_pydict(columns, schema=schema))
            count += len(cells)
    return count


def _batches(kind: type, rows: Iterable[Row], most: int, path: str | Path) -> Iterator[list[tuple[Any, ...]]]:
    """The cells of each row, so many rows or bytes at a time."""
    names = (*_TEXT_COLUMNS[kind], *_BOOL_COLUMNS.get(kind, ()))
    batch: list[tuple[Any, ...]] = []
    size = 0
    for row in rows:
        if type(row) is not kind:
            both = f"{kind.__name__} and {type(row).__name__}"
            raise DataError(f"rows of two kinds cannot share a file: {both}", where=str(path), remedy="write them to two files")
        cells = tuple(_cell(name, getattr(row, name)) for name in names)
        batch.append(cells)
        size += sum(len(cell) for cell in cells if type(cell) is str)
        if len(batch) >= most or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def read_parquet(path: str | Path) -> Iterator[Row]:
    """The rows of a file that `write_parquet` wrote, batch by batch.

    Raises NotFound, or DataError when it is not such a file.
    """
    pa = need("pyarrow", extra="data")
    with open_read(checked(Path(path))) as stream:
        opened, kind = open_parquet(stream, path)
        tables = opened.iter_batches(batch_size=2_000)
        while True:
            try:
                rows = list(decoded_rows(kind, next(tables)))
            except StopIteration:
                return
            except (pa.ArrowException, OSError, ValueError, TypeError) as error:
                raise damaged_parquet(path, error) from error
            yield from rows


def damaged_parquet(path: str | Path, error: Exception) -> DataError:
    """The error about a file of rows that cannot be read to its end."""
    return DataError(f"the file is damaged: {str(error) or type(error).__name__}", where=str(path), remedy="make it again")


def open_parquet(stream: IO[bytes], path: str | Path) -> tuple[Any, type]:
    """The opened file (pyarrow's `ParquetFile`) and the kind of its rows. Raises DataError when `write_parquet` did not write it."""
    pa, pq = need("pyarrow", extra="data"), need("pyarrow.parquet", extra="data")
    try:
        opened = pq.ParquetFile(stream, page_checksum_verification=True)
        kind = _KINDS.get((opened.schema_arrow.metadata or {}).get(b"tunesmith", b""))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"not a Parquet file: {error}", where=str(path)) from error
    if kind is None:
        raise DataError(
            "a Parquet file, but not one of Tunesmith's rows", where=str(path), remedy="tunesmith data import reads foreign files"
        )
    return opened, kind


def decoded_rows(kind: type, table: Any) -> Iterator[Row]:
    """The rows of that kind in a record batch or table of such a file."""
    names = table.schema.names
    columns = [_values(name, column.to_pylist()) for name, column in zip(names, table.columns, strict=True)]
    for values in zip(*columns, strict=True):
        yield kind(**{name: value for name, value in zip(names, values, strict=True) if value is not None})


def _schema(pa: Any, kind: type) -> Any:
    fields = [pa.field(name, pa.large_string()) for name in _TEXT_COLUMNS[kind]]
    fields += [pa.field(name, pa.bool_()) for name in _BOOL_COLUMNS.get(kind, ())]
    return pa.schema(fields, metadata={"tunesmith": kind.__name__})


def _cell(name: str, value: Any) -> Any:
    if name not in _JSON_COLUMNS:
        return value
    return canonical(value).decode() if value else None


def _values(name: str, cells: list[Any]) -> list[Any]:
    decoder = _JSON_COLUMNS.get(name)
    return cells if decoder is None else [None if cell is None else decoder.decode(cell) for cell in cells]
