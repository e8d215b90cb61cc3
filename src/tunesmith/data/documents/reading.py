"""Files and folders of documents → their texts; every one that cannot be read is told at once, by name and page, before any work.

What a folder holds besides documents is counted, not read; a kind of document that nothing here reads is a fault like any other. `skip`
leaves out what it names: a file, a pattern (`*.doc`), or a page of a file (`manual.pdf#page=3`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from tunesmith.core.counted import counted
from tunesmith.core.errors import DataError, Fault, NotFound, TunesmithError, UsageError, nearest
from tunesmith.core.passages import SourceText
from tunesmith.core.types import address_of, place_of
from tunesmith.data.documents import html, office, pdf, plain
from tunesmith.data.documents.pieces import MOST_BYTES, MOST_CHARACTERS, DocumentPiece, Unreadable

Reader = Callable[[Path], Iterator[DocumentPiece | Unreadable]]
READERS: dict[str, Reader] = {
    **dict.fromkeys((".txt", ".text", ".md", ".markdown", ".rst"), plain.text),
    **dict.fromkeys((".csv", ".tsv"), plain.table),
    **dict.fromkeys((".html", ".htm", ".xhtml"), html.page),
    ".pdf": pdf.pages,
    **dict.fromkeys((".docx", ".docm"), office.word),
    **dict.fromkeys((".xlsx", ".xlsm", ".xls"), office.workbook),
}
# Documents that nothing here reads, and what to save them as.
_SAVED_AS = {
    **dict.fromkeys((".doc", ".rtf", ".odt", ".pages", ".epub", ".tex", ".wpd"), ".docx or .pdf"),
    **dict.fromkeys((".ppt", ".pptx", ".odp", ".key"), ".pdf"),
    **dict.fromkeys((".ods", ".xlsb", ".numbers"), ".xlsx"),
    **dict.fromkeys((".eml", ".msg", ".mht", ".mhtml"), ".html or .txt"),
}
_TEXT_KINDS = (plain.text, plain.table, html.page)
_BINARY = {b"%PDF-": "a PDF", b"PK\x03\x04": "an archive or an Office document", office.OLD_OFFICE: "an older Office document"}


class DocumentFile(NamedTuple):
    """A file, and what it is called wherever it is cited."""

    path: Path
    name: str


class Documents(NamedTuple):
    """What was read, how many files that was, and the names of those that were left aside: no documents, or skipped."""

    texts: list[SourceText]
    files: int
    aside: list[str]


def read(words: Sequence[str], home: Path, skip: Sequence[str] = ()) -> Documents:
    """The texts of files, and of all documents in folders (and in theirs); relative ones lie where the command runs, else in `home`.

    Raises NotFound for what is not there, UsageError for a `skip` that names nothing, DataError with all that cannot be read.
    """
    files, aside = _files(words, home)
    used: set[str] = set()
    left = [file for file in files if not _skipped(file.name, skip, used)]
    aside += [file.name for file in files if file not in left]
    texts, faults = [], []
    for file in left:
        for piece in _pieces(file):
            address = address_of(file.name, piece.page)
            if isinstance(piece, DocumentPiece):
                texts.append(SourceText(source=file.name, text=piece.text, page=piece.page, part=piece.part))
            elif piece.page is None or not _skipped(address, skip, used):
                what = f"{piece.message}; {piece.remedy}" if piece.remedy else piece.message
                faults.append(Fault(where=place_of(file.name, piece.page), code=piece.code, message=what))
    if unused := [name for name in skip if name not in used]:
        raise UsageError(f"skip '{unused[0]}' names no document", allowed=_named(files), remedy=nearest(unused[0], [f.name for f in files]))
    if faults:
        bad = len({fault.where.partition(", page ")[0] for fault in faults})
        what = f"{bad} of {counted(len(left), 'document')} cannot be read" if len(left) > 1 else "the document cannot be read"
        raise DataError(what, faults=faults, remedy="mend them, or leave them out: --skip NAME (a page: --skip 'NAME#page=3')")
    if not any(text.text.strip() for text in texts):
        raise DataError("no document", where=", ".join(words), allowed=f"files that end in {', '.join(READERS)}, or folders with some")
    return Documents([text for text in texts if text.text.strip()], len(left), sorted(aside))


def _files(words: Sequence[str], home: Path) -> tuple[list[DocumentFile], list[str]]:
    """The files that words mean, each once and called as no other is, and the names of what folders hold besides."""
    files: dict[Path, str] = {}
    aside: list[str] = []
    for word in words:
        here, there = Path(word).expanduser(), home / Path(word).expanduser()
        place = here if here.exists() else there
        if place.is_dir():
            for path in sorted(_walk(place)):
                known = path.suffix.lower() in {*READERS, *_SAVED_AS} and not path.is_dir()
                name = _name(path, place, home)
                if known:
                    files.setdefault(path.resolve(), name)
                else:
                    aside.append(name)
        elif place.exists():
            files.setdefault(place.resolve(), _name(place, place, home))
        else:
            raise NotFound(f"no document '{word}'", where=str(place.parent), allowed="a file or a folder")
    names: dict[str, Path] = {}
    for path, name in files.items():
        if names.setdefault(name, path) != path:
            what = f"two documents are called '{name}': {names[name]} and {path}"
            raise UsageError(what, remedy="give the folder above both, or copy them into one folder")
    return [DocumentFile(path, name) for path, name in files.items()], aside


def _walk(folder: Path) -> Iterator[Path]:
    """The files below a folder, and links to folders, which are not followed; what begins with a point is a program's own."""
    for place, folders, names in os.walk(folder, onerror=_raised):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        yield from (Path(place) / name for name in [*names, *links] if not name.startswith((".", "~$")))


def _raised(error: OSError) -> None:
    raise NotFound(f"the folder cannot be read: {error.strerror}", where=str(error.filename), remedy="give the right to read it")


def _name(path: Path, given: Path, home: Path) -> str:
    """What a file is called: its path below the project, else below what was given; nothing else of this machine."""
    whole = path.absolute()  # a link is called as it is here
    for above in (home.absolute(), home.resolve()):
        if whole.is_relative_to(above) and ".." not in whole.parts:
            return whole.relative_to(above).as_posix()
    return path.name if path == given else path.relative_to(given.parent).as_posix()


def _skipped(name: str, skip: Sequence[str], used: set[str]) -> bool:
    fits = [word for word in skip if word == name or fnmatch(name, word) or (fnmatch(Path(name).name, word) and "#" not in word)]
    used.update(fits)
    return bool(fits)


def _named(files: Sequence[DocumentFile]) -> str:
    return ", ".join(file.name for file in files[:8]) + (", …" if len(files) > 8 else "")


def _pieces(file: DocumentFile) -> Iterator[DocumentPiece | Unreadable]:
    """What a reader gives of a file; what it raises, and a file without any text, as a fault."""
    try:
        reader = _reader(file.path)
        pieces, length = [], 0
        for piece in reader(file.path):
            length += len(piece.text) if isinstance(piece, DocumentPiece) else 0
            if length > MOST_CHARACTERS:
                raise Unreadable("too_large", f"it has more than {MOST_CHARACTERS} characters", "split it")
            pieces.append(piece)
    except Unreadable as error:
        yield error
        return
    except OSError as error:
        yield Unreadable("unreadable", f"it cannot be opened: {error.strerror or error}", "give the right to read it")
        return
    except (TunesmithError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001 - a damaged file makes a library raise anything; one in Rust panics past `Exception`
        yield Unreadable("damaged", f"it cannot be read ({type(error).__name__}: {str(error)[:200]})", "save or fetch it again")
        return
    yield from pieces
    if not any(isinstance(piece, Unreadable) or piece.text.strip() for piece in pieces):
        picture = file.path.suffix.lower() == ".pdf" and bool(pieces)
        yield Unreadable("no_text", "no page has text", "recognise its text first (OCR)") if picture else Unreadable("empty", "it is empty")


def _reader(path: Path) -> Reader:
    """Who reads a file. Raises Unreadable for one that nobody does, by its suffix, its size and its first bytes."""
    suffix = path.suffix.lower()
    if suffix in _SAVED_AS:
        raise Unreadable("unknown_kind", f"nothing here reads {suffix} files", f"save it as {_SAVED_AS[suffix]}")
    if suffix not in READERS:
        raise Unreadable("unknown_kind", f"nothing here reads files that end in '{suffix}'", f"allowed: {', '.join(READERS)}")
    if not path.is_file():
        raise Unreadable("unknown_kind", "it is no file")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise Unreadable("too_large", f"it has {size >> 20} MiB, more than {MOST_BYTES >> 20}", "split it")
    if size == 0:
        raise Unreadable("empty", "it is empty")
    with path.open("rb") as file:
        begin = file.read(1024)
    reader = READERS[suffix]
    kind = next((what for mark, what in _BINARY.items() if begin.startswith(mark)), None)
    if reader in _TEXT_KINDS and kind is not None:
        raise Unreadable("wrong_kind", f"it is {kind}, not {suffix}", "give it the suffix of what it is")
    if reader is pdf.pages and b"%PDF-" not in begin:
        raise Unreadable("wrong_kind", f"it is no PDF: it begins with {begin[:8]!r}", "give it the suffix of what it is")
    return reader
