"""Word documents (.docx) and workbooks (.xlsx, .xlsm, .xls) → texts; knows nothing about their looks.

Both are archives of XML: what they would unpack to is measured first, as is how far the cells of a sheet reach, which a reader would hold.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.core.load import need
from tunesmith.data.documents.html import text_of
from tunesmith.data.documents.pieces import MOST_BYTES, Piece, Unreadable, table_lines

OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # how Microsoft's older files begin, and newer ones with a password
_ARCHIVE = b"PK\x03\x04"
_MOST_CELLS = 20_000_000
_MAIN = {"word/document.xml": "a Word document", "xl/workbook.xml": "a workbook", "ppt/presentation.xml": "a presentation"}
_CELL = re.compile(rb"""<(?:\w+:)?(?:c|row)\s[^>]{0,400}?\br=["']([A-Z]{0,3})(\d{1,7})["']""")
_READ = 1 << 20
_MENDED = "open it in its program and save it again"


def word(path: Path) -> Iterator[Piece]:
    """The text of a Word document with its headings, lists, tables and notes; it has no pages of its own."""
    mammoth = need("mammoth", extra="documents")
    _measured(path, "word/document.xml")
    with path.open("rb") as file:
        styles = "p[style-name='Title'] => h1:fresh\np[style-name='Subtitle'] => h2:fresh"
        pictures = mammoth.images.img_element(lambda _: {"src": ""})  # nothing of them is opened
        try:
            found = mammoth.convert_to_html(file, style_map=styles, convert_image=pictures)
        except RecursionError as error:
            raise Unreadable("too_deep", "its parts are nested too deeply", _MENDED) from error
    yield Piece(text_of(found.value))


def workbook(path: Path) -> Iterator[Piece]:
    """The sheets of a workbook, a line a row. Raises Unreadable for one with a password."""
    calamine = need("python_calamine", extra="documents")
    if path.suffix.lower() != ".xls":
        _measured(path, "xl/workbook.xml")
    try:
        book = calamine.CalamineWorkbook.from_path(path)
        # a chart's sheet has no cells
        for name in (sheet.name for sheet in book.sheets_metadata if sheet.typ == calamine.SheetTypeEnum.WorkSheet):
            rows = [[_cell(value) for value in row] for row in book.get_sheet_by_name(name).to_python(skip_empty_area=True)]
            yield Piece("\n".join(table_lines(rows)), part=f"sheet {name}")
    except calamine.PasswordError as error:
        raise Unreadable("encrypted", "it needs a password", "save it without one") from error
    except calamine.CalamineError as error:
        raise Unreadable("damaged", f"it is no whole workbook ({error})", _MENDED) from error


def _cell(value: Any) -> str:
    """A value as its program shows it: a whole number without a point, a day without midnight."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value).removesuffix(" 00:00:00")


def _measured(path: Path, main: str) -> None:
    """Raises Unreadable for a file that is no such archive, has a password, or unpacks to more than a reader should hold."""
    with path.open("rb") as file:
        begin = file.read(len(OLD_OFFICE))
    if begin == OLD_OFFICE:
        raise Unreadable("encrypted", "it has a password, or is of an older kind than its suffix says", "save it anew without a password")
    if not begin.startswith(_ARCHIVE):
        raise Unreadable("wrong_kind", f"it is no {path.suffix} file: it begins with {begin[:8]!r}", "give it the suffix of what it is")
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            if main not in names:
                other = next((what for name, what in _MAIN.items() if name in names), "another archive")
                raise Unreadable("wrong_kind", f"it is {other}, not {_MAIN[main]}", "give it the suffix of what it is")
            _bounded(archive)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError, zlib.error) as error:
        raise Unreadable("damaged", f"it is no whole archive ({error})", _MENDED) from error


def _bounded(archive: zipfile.ZipFile) -> None:
    said = sum(member.file_size for member in archive.infolist())
    if said > MOST_BYTES:
        raise Unreadable("too_large", f"it unpacks to {said >> 20} MiB, more than {MOST_BYTES >> 20}", "split it, or leave it out")
    left = MOST_BYTES
    for member in archive.infolist():
        if member.filename.endswith((".xml", ".rels")):
            left -= _read(archive, member, left)


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, left: int) -> int:
    """The bytes of a member, which may be more than it says. Raises Unreadable for too many, or for what no such file has."""
    size, last, rows, columns = 0, b"", 0, 0
    with archive.open(member) as stream:
        while data := stream.read(_READ):
            size += len(data)
            if size > left:
                raise Unreadable("too_large", f"it unpacks to more than {MOST_BYTES >> 20} MiB", "split it, or leave it out")
            if b"<!DOCTYPE" in last + data:
                raise Unreadable("damaged", f"its part {member.filename} declares a document type, which no such file does", _MENDED)
            if member.filename.startswith("xl/worksheets/"):
                for column, row in _CELL.findall(last + data):
                    rows, columns = max(rows, int(row)), max(columns, _column(column))
                if rows * columns > _MOST_CELLS:
                    what = f"the cells of {member.filename} reach to row {rows} and column {columns}: more than {_MOST_CELLS} places"
                    raise Unreadable("too_large", what, "remove what stands far outside")
            last = data[-512:]
    return size


def _column(letters: bytes) -> int:
    number = 0
    for letter in letters:
        number = 26 * number + letter - 64
    return number
