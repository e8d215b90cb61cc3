"""PDF → a text a page, by pdfium; knows nothing about scans: a page that is a picture is said to be one."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.core.load import need
from tunesmith.data.documents.pieces import MOST_CHARACTERS, MOST_PAGES, DocumentPiece, Unreadable, cleaned

_PASSWORD, _PICTURE = 4, 3  # pdfium's numbers of an error, and of a kind of object on a page
_TAIL = 1 << 14  # some programs write further bytes behind the end
_ENDS = tuple(".:;!?…。！？")
_BEGINS = re.compile(r"[-•*·–]\s|\(?\d{1,3}[.)]\s")
_lock = threading.Lock()  # pdfium is not made for several threads


def pages(path: Path) -> Iterator[DocumentPiece | Unreadable]:
    """The pages that have text, from 1; for a page without any that shows a picture, why it cannot be read."""
    pdfium = need("pypdfium2", extra="documents")
    _refuse_half(path)
    with _lock:
        document = _opened(pdfium, path)
        try:
            if len(document) > MOST_PAGES:
                raise Unreadable("too_large", f"it has {len(document)} pages, more than {MOST_PAGES}", "split it")
            length = 0
            for number in range(len(document)):
                piece = _page(pdfium, document, number)
                length += len(piece.text) if isinstance(piece, DocumentPiece) else 0
                if length > MOST_CHARACTERS:
                    raise Unreadable("too_large", f"it has more than {MOST_CHARACTERS} characters", "split it", number + 1)
                yield piece
        finally:
            document.close()


def _refuse_half(path: Path) -> None:
    """Raises Unreadable for a file without its end: pdfium would mend it, and give the pages that are left as if they were all."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        if b"%%EOF" not in file.read():
            raise Unreadable("damaged", "it ends in the middle, without the mark of its end", "save or fetch it again")


def _opened(pdfium: Any, path: Path) -> Any:
    try:
        return pdfium.PdfDocument(path)
    except pdfium.PdfiumError as error:
        if getattr(error, "err_code", None) == _PASSWORD:
            raise Unreadable("encrypted", "it needs a password", "save it without one") from error
        raise Unreadable("damaged", f"it is no whole PDF ({error})", "save or fetch it again") from error


def _page(pdfium: Any, document: Any, number: int) -> DocumentPiece | Unreadable:
    try:
        page = document[number]
        text = page.get_textpage().get_text_bounded()
        picture = not text.strip() and any(item.type == _PICTURE for item in page.get_objects())
    except pdfium.PdfiumError as error:
        return Unreadable("damaged", f"the page cannot be read ({error})", "save or fetch it again", number + 1)
    if picture:
        return Unreadable("no_text", "the page is a picture without text (a scan?)", "recognise its text first (OCR)", number + 1)
    return DocumentPiece(_unwrapped(cleaned(text.replace("\x02", "").replace("\ufffe", ""))), page=number + 1)


def _unwrapped(text: str) -> str:
    """Lines that only the width of the column ended, joined: those as long as most, before one that begins no item and no sentence."""
    lines = text.split("\n")
    longest = sorted(map(len, lines))[int(len(lines) * 0.9)] if lines else 0
    joined: list[str] = []
    wide = False
    for line in lines:
        goes_on = wide and line.strip() and not joined[-1].endswith(_ENDS) and not _BEGINS.match(line)
        if goes_on:
            joined[-1] += f" {line.strip()}"
        else:
            joined.append(line.strip())
        wide = longest > 0 and len(line) >= 0.7 * longest
    return "\n".join(joined)
