"""HTML → text with Markdown's headings, list items and rows of tables a line each; knows nothing about where it comes from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.core.load import need
from tunesmith.data.documents.pieces import DocumentPiece, Unreadable, cleaned, table_lines
from tunesmith.data.documents.plain import decoded

_SILENT = frozenset({"script", "style", "template", "noscript", "svg", "head", "iframe", "object"})
_BLOCKS = frozenset(
    [
        "address",
        "article",
        "aside",
        "blockquote",
        "body",
        "caption",
        "center",
        "dd",
        "details",
        "dialog",
        "div",
        "dl",
        "dt",
        "fieldset",
        "figcaption",
        "figure",
        "footer",
        "form",
        "header",
        "hgroup",
        "hr",
        "legend",
        "main",
        "menu",
        "nav",
        "ol",
        "p",
        "pre",
        "section",
        "summary",
        "table",
        "ul",
    ]
)
_LEVELS = {f"h{level}": level for level in range(1, 7)}
_CHARSET = re.compile(rb"""<meta[^>]{0,200}charset\s*=\s*["']?\s*([\w-]{1,40})""", re.I)
_TOKEN = re.compile(rb"<!--|-->|<(/?)([a-zA-Z][a-zA-Z0-9]{0,15})")
# In these a `<` begins no tag until their end.
_RAW = {b"<!--": b"-->", b"<script": b"</script", b"<style": b"</style", b"<textarea": b"</textarea", b"<title": b"</title"}
# Tags that need no end do not nest, however many there are.
_UNENDED = frozenset(
    b"area base br col embed hr img input link meta source track wbr p li dt dd tr td th thead tbody tfoot option optgroup".split()
)
_DEEPEST = 1_000  # a parser's time grows with the depth; pages have some tens


def page(path: Path) -> Iterator[DocumentPiece]:
    """The text of a page. Raises Unreadable for one that is no text, or nested too deeply."""
    data = path.read_bytes()
    if _depth(data) > _DEEPEST:
        raise Unreadable("too_deep", f"its tags are nested more than {_DEEPEST} deep", "save it anew, or leave it out")
    named = _CHARSET.search(data[:4096])
    encoding = named[1].decode() if named is not None else "utf-8"
    try:
        markup = decoded(data, "cp1252" if encoding.lower() in ("iso-8859-1", "latin-1", "latin1") else encoding)  # as browsers read it
    except LookupError as error:
        raise Unreadable("wrong_encoding", f"nobody knows its charset '{encoding}'", "convert it to UTF-8") from error
    yield DocumentPiece(text_of(markup))


def _depth(data: bytes) -> int:
    deepest = depth = 0
    end: bytes | None = None
    for match in _TOKEN.finditer(data):
        token = match[0].lower()
        if end is not None:
            end = None if token == end else end
            continue
        end = _RAW.get(token)
        if match[2] is not None and end is None and token not in _RAW.values() and match[2].lower() not in _UNENDED:
            depth = max(0, depth + (-1 if match[1] else 1))
            deepest = max(deepest, depth)
    return deepest


def text_of(markup: str) -> str:
    """The words of a page, block by block."""
    tree = need("selectolax.lexbor", extra="documents").LexborHTMLParser(markup)
    walk = _Walk()
    title = tree.css_first("title")
    if title is not None and tree.css_first("h1") is None and title.text().strip():
        walk.lines.append(f"# {' '.join(title.text().split())}\n")
    if tree.body is not None:
        walk.block(tree.body)
    return cleaned(re.sub(r"\n{3,}", "\n\n", "\n".join(walk.lines)))


class _Walk:
    """A walk over a tree, without recursion but for tables."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._words: list[str] = []
        self._start = ""  # what the next line begins with
        self._as_it_is = 0

    def block(self, root: Any) -> None:
        """Take in all that is in a node."""
        node, entering = root, True
        while True:
            if entering:
                inside = self._enter(node)
                if inside and node.child is not None:
                    node = node.child
                    continue
            self._leave(node.tag)
            if node.mem_id == root.mem_id:
                self._end_line()
                return
            following = node.next
            node, entering = (following, True) if following is not None else (node.parent, False)

    def _enter(self, node: Any) -> bool:
        """Take in a node; False where nothing in it is to be walked."""
        tag = node.tag
        if tag == "-text":
            self._words.append(node.text_content if self._as_it_is else re.sub(r"\s+", " ", node.text_content or ""))
        elif tag == "br":
            self._words.append("\n")
        elif tag == "table" and node.css_first("table table") is None:
            self._end_line()
            self.lines += ["", *_table(node), ""]
            return False
        elif tag in _BLOCKS or tag == "tr":
            self._end_line()
            self.lines.append("")
        elif tag in _LEVELS:
            self._end_line()
            self._start = "#" * _LEVELS[tag] + " "
            self.lines.append("")
        elif tag == "li":
            self._end_line()
            self._start = "- "
        elif tag in ("td", "th"):
            self._words.append(" ")
        self._as_it_is += tag in ("pre", "textarea")
        return tag not in _SILENT

    def _leave(self, tag: str) -> None:
        if tag in _LEVELS:
            self._words = [" ".join("".join(self._words).split())]
        if tag in _BLOCKS or tag in _LEVELS or tag in ("li", "tr"):
            self._end_line()
            self.lines += [""] if tag in _BLOCKS or tag in _LEVELS else []
        self._as_it_is -= tag in ("pre", "textarea")

    def _end_line(self) -> None:
        words = "".join(self._words)
        line = words.strip("\n") if self._as_it_is else "\n".join(" ".join(part.split()) for part in words.split("\n")).strip()
        if line.strip():
            self.lines.append(self._start + line)
            self._start = ""
        self._words = []


def _table(node: Any) -> list[str]:
    rows = [[" ".join(cell.text(separator=" ").split()) for cell in row.css("td, th")] for row in node.css("tr")]
    caption = node.css_first("caption")
    return [*([caption.text().strip(), ""] if caption is not None else []), *table_lines(rows)]
