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
from xml.parsers import expat

from tunesmith.core.load import need
from tunesmith.data.documents.html import text_of
from tunesmith.data.documents.pieces import MOST_BYTES, DocumentPiece, Unreadable, table_lines

OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # how Microsoft's older files begin, and newer ones with a password
_ARCHIVE = b"PK\x03\x04"
_MOST_CELLS = 20_000_000
_MAIN = {"word/document.xml": "a Word document", "xl/workbook.xml": "a workbook", "ppt/presentation.xml": "a presentation"}
_CELL, _ROW = re.compile(r"([A-Za-z]{1,3})([0-9]{1,7})"), re.compile(r"()([0-9]{1,7})")
_READ = 1 << 20
_MENDED = "open it in its program and save it again"


def word(path: Path) -> Iterator[DocumentPiece]:
    """The text of a Word document with its headings, lists, tables and notes; it has no pages of its own."""
    mammoth = need("mammoth", extra="documents")
    _measured(path, "word/document.xml")
    with path.open("rb") as file:
        styles = "p[style-name='Title'] => h1:fresh\np[style-name='Subtitle'] => h2:fresh"
        pictures = mammoth.images.img_element(lambda _: {"src": ""})  # nothing of them is opened
        try:
            converted = mammoth.convert_to_html(file, style_map=styles, convert_image=pictures)
        except RecursionError as error:
            raise Unreadable("too_deep", "its parts are nested too deeply", _MENDED) from error
    yield DocumentPiece(text_of(converted.value))


def workbook(path: Path) -> Iterator[DocumentPiece]:
    """The sheets of a workbook, a line a row. Raises Unreadable for one with a password."""
    calamine = need("python_calamine", extra="documents")
    if path.suffix.lower() == ".xls":
        _refuse_other(path, OLD_OFFICE)
    else:
        _measured(path, "xl/workbook.xml")
    try:
        book = calamine.CalamineWorkbook.from_path(path)
        # a chart's sheet has no cells
        for name in (sheet.name for sheet in book.sheets_metadata if sheet.typ == calamine.SheetTypeEnum.WorkSheet):
            rows = [[_cell(value) for value in row] for row in book.get_sheet_by_name(name).to_python(skip_empty_area=True)]
            yield DocumentPiece("\n".join(table_lines(rows)), part=f"sheet {name}")
    except calamine.PasswordError as error:
        raise Unreadable("encrypted", "it needs a password", "save it without one") from error
    except calamine.CalamineError as error:
        raise Unreadable("damaged", f"it is no whole workbook ({error})", _MENDED) from error


def _cell(value: Any) -> str:
    """A value as its program shows it: a whole number without a point, a day without midnight."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value).removesuffix(" 00:00:00")


def _refuse_other(path: Path, mark: bytes) -> None:
    """Raises Unreadable for a file that does not begin as its kind does."""
    with path.open("rb") as file:
        begin = file.read(len(OLD_OFFICE))
    if begin == OLD_OFFICE != mark:
        raise Unreadable("encrypted", "it has a password, or is of an older kind than its suffix says", "save it anew without a password")
    if not begin.startswith(mark):
        raise Unreadable("wrong_kind", f"it is no {path.suffix} file: it begins with {begin[:8]!r}", "give it the suffix of what it is")


def _measured(path: Path, main: str) -> None:
    """Raises Unreadable for a file that is no such archive, has a password, or unpacks to more than a reader should hold."""
    _refuse_other(path, _ARCHIVE)
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
    declared = sum(member.file_size for member in archive.infolist())
    if declared > MOST_BYTES:
        raise Unreadable("too_large", f"it unpacks to {declared >> 20} MiB, more than {MOST_BYTES >> 20}", "split it, or leave it out")
    left = MOST_BYTES
    for member in archive.infolist():
        left -= _read(archive, member, left)


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, left: int) -> int:
    """The bytes of a member, which may be more than it says. Raises Unreadable for too many, or for what no such file has."""
    size, reach, markup = 0, _Reach(), member.filename.endswith((".xml", ".rels"))
    with archive.open(member) as stream:
        while data := stream.read(_READ):
            markup = markup or (not size and data.lstrip(b"\xef\xbb\xbf\xff\xfe \r\n\t\0").startswith(b"<"))  # whatever it is called
            size += len(data)
            if size > left:
                raise Unreadable("too_large", f"it unpacks to more than {MOST_BYTES >> 20} MiB", "split it, or leave it out")
            if markup:
                reach.take(data)
            if reach.cells > _MOST_CELLS:
                what = f"the cells of {member.filename} reach to row {reach.last[0]} and column {reach.last[1]}"
                raise Unreadable("too_large", f"{what}: more than {_MOST_CELLS} places", "remove what stands far outside")
    return size


class _Reach:
    """How far the cells of a sheet reach: a reader holds the whole rectangle. Other parts have no cells.

    A document type is refused, which no Office file declares: it could make a short text an endless one.
    """

    def __init__(self) -> None:
        self.first, self.last = (0, 0), (0, 0)
        self._row = self._column = 0
        self._parser = expat.ParserCreate()
        self._parser.StartElementHandler = self._start
        self._parser.StartDoctypeDeclHandler = self._refuse
        self._sheet: bool | None = None

    @property
    def cells(self) -> int:
        """How many places the rectangle has that holds every cell with a value."""
        return (self.last[0] - self.first[0] + 1) * (self.last[1] - self.first[1] + 1)

    def take(self, data: bytes) -> None:
        """Read on. Raises Unreadable for what is no XML."""
        try:
            self._parser.Parse(data, False)
        except expat.ExpatError as error:
            raise Unreadable("damaged", f"a part of it is no XML ({error})", _MENDED) from error

    def _refuse(self, *_: object) -> None:
        raise Unreadable("damaged", "a part of it declares a document type, which no Office file does", _MENDED)

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        name = tag.rpartition(":")[2]
        if self._sheet is None:
            self._sheet = name == "worksheet"
            if not self._sheet:
                self._parser.StartElementHandler = None
        elif name == "row":
            self._row, self._column = self._row + 1, 0
            self._move(_ROW, attributes)
        elif name == "c":
            self._row, self._column = max(self._row, 1), self._column + 1
            self._move(_CELL, attributes)
        elif name in ("v", "is"):
            first = self.first if self.first[0] else (self._row, self._column)
            self.first = min(first[0], self._row), min(first[1], self._column)
            self.last = max(self.last[0], self._row), max(self.last[1], self._column)

    def _move(self, pattern: re.Pattern[str], attributes: dict[str, str]) -> None:
        """Go where a row or a cell says that it stands, where it says so."""
        place = attributes.get("r")
        match = pattern.fullmatch(place) if place is not None else None
        if match is not None:
            self._row, self._column = int(match[2]), _column(match[1])
        elif place is not None:
            raise Unreadable("damaged", f"a row or a cell stands at '{place[:40]}', which is no place of a sheet", _MENDED)


def _column(letters: str) -> int:
    number = 0
    for letter in letters.upper():
        number = 26 * number + ord(letter) - 64
    return number
