"""Documents of every kind become texts with their places; all that cannot be read is told at once, with what to do."""

from __future__ import annotations

import zipfile

import pytest

from document_parts import archive, docx, pdf, xlsx
from tunesmith.core.errors import DataError, NotFound, UsageError
from tunesmith.data.documents import reading
from tunesmith.data.documents.reading import read

HTML = """<!doctype html><html><head><title>Pump</title><style>p {}</style></head><body>
<nav><a href=x>Home</a> <a href=y>Help</a></nav><h2>Care  <em>and</em>
more</h2><p>Rinse the
filter.<br>Then dry it.</p><ul><li>once</li><li>twice<ul><li>deep</li></ul></ul>
<pre>a
  b</pre><script>no()</script><table><caption>Prices</caption><tr><th>name</th><th>price</th></tr><tr><td>seal</td><td>3</td></tr></table>
&amp; done &uuml;</body></html>"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "manuals" / "sub").mkdir(parents=True)
    return tmp_path


def put(folder, name, data):
    path = folder / "manuals" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def only(folder, name, data):
    put(folder, name, data)
    return [(text.source, text.page, text.part, text.text) for text in read([f"manuals/{name}"], folder).texts]


def test_every_kind_is_read_with_its_places(folder):
    made = pdf(
        ["The pump is wet, so that the wor-", "ker dries it with a cloth of", "cotton. And so on.", "- one", "- two"], [], ["Order (4711)"]
    )
    name = "manuals/a b.pdf"
    one, three = only(folder, "a b.pdf", made)
    assert one == (name, 1, "", "The pump is wet, so that the worker dries it with a cloth of cotton. And so on.\n- one\n- two")
    assert three == (name, 3, "", "Order (4711)")
    words = docx(("h1", "Pump"), "Wet  paint.", ("h2", "Care"), [["part", "price"], ["seal", "3"]], "Ünd &lt;so&gt;")
    ((_, page, part, text),) = only(folder, "b.docx", words)
    assert (page, part, text) == (None, "", "# Pump\n\nWet paint.\n\n## Care\n\npart: seal; price: 3\n\nÜnd <so>")
    book = xlsx(
        {
            "A & B".replace("&", "&amp;"): [["name", "price"], ["seal", 3.0], ["", ""], ["hose", 2.5]],
            "Notes": [["just words", ""], ["x", 1]],
        }
    )
    assert only(folder, "c.xlsx", book) == [
        ("manuals/c.xlsx", None, "sheet A & B", "name: seal; price: 3\nname: hose; price: 2.5"),
        ("manuals/c.xlsx", None, "sheet Notes", "just words\nx | 1"),
    ]
    ((*_, text),) = only(folder, "d.html", HTML)
    assert text == (
        "# Pump\n\nHome Help\n\n## Care and more\n\nRinse the filter.\nThen dry it.\n\n- once\n- twice\n\n- deep\n\na\n  b\n\nPrices\n\n"
        "name: seal; price: 3\n\n& done ü"
    )
    assert only(folder, "e.md", "\ufeff# T\r\n\r\nx \r\n") == [("manuals/e.md", None, "", "# T\n\nx")]
    assert only(folder, "f.csv", 'name;price\nseal;3\n"a;b";\n')[0][3] == "name: seal; price: 3\nname: a;b"
    assert only(folder, "g.txt", "ü".encode("utf-16"))[0][3] == "ü"
    assert only(folder, "h.htm", "<meta charset=iso-8859-1><p>caf\xe9 \x93so\x94".encode("latin-1"))[0][3] == "café “so”"
    put(folder, ".hidden.pdf", "x")
    put(folder, "logo.png", b"\x89PNG")
    documents = read(["manuals"], folder)
    assert (documents.files, documents.aside) == (8, ["manuals/logo.png"])
    assert {text.source for text in read([str(folder / "manuals")], folder / "manuals" / "sub").texts} == {f"manuals/{n}" for n in (
        "a b.pdf", "b.docx", "c.xlsx", "d.html", "e.md", "f.csv", "g.txt", "h.htm")}  # fmt: skip


def bomb():
    """An archive that says what it unpacks to, 300 MiB."""
    return said_to_hold(archive({"word/document.xml": "x"}), 300 << 20)


def lying():
    """An archive whose directory says that a part is small."""
    return said_to_hold(archive({"word/document.xml": "x" * 5_000_000}), 10)


def said_to_hold(made, size):
    data = bytearray(made)
    for mark, at in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        place = data.index(mark) + at
        data[place : place + 4] = size.to_bytes(4, "little")
    return bytes(data)


def far(cells):
    """A workbook with a cell far outside, and one there that is only coloured."""
    return xlsx({"A": [["x"]]}, cells)


DOCTYPE = '<!DOCTYPE x [<!ENTITY a "aaaaaaaa">]>'
BAD = {
    "locked.pdf": (lambda: pdf(["a"], password=True), "locked.pdf: it needs a password; save it without one [encrypted]"),
    "scan.pdf": (lambda: pdf(["a"], None, ["b"]), "scan.pdf, page 2: the page is a picture without text"),
    "blank.pdf": (lambda: pdf([]), "no page has text"),
    "cut.pdf": (lambda: b"%PDF-1.7\n" + b"\xff" * 500 + b"%%EOF", "it is no whole PDF"),
    "half.pdf": (lambda: pdf(["a"], ["b"])[:-700], "it ends in the middle"),
    "page.pdf": (lambda: "<html>Not found</html>", "it is no PDF: it begins with b'<html>No'; give it the suffix of what it is [wrong_kind]"),
    "empty.pdf": (lambda: b"", "it is empty [empty]"),
    "blank.txt": (lambda: " \n\n", "it is empty [empty]"),
    "old.doc": (lambda: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "nothing here reads .doc files; save it as .docx or .pdf [unknown_kind]"),
    "slides.pptx": (lambda: archive({"ppt/presentation.xml": "x"}), "save it as .pdf"),
    "locked.docx": (lambda: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600, "it has a password"),
    "book.docx": (lambda: xlsx({"A": [["x"]]}), "it is a workbook, not a Word document"),
    "words.docx": (lambda: "just words", "it is no .docx file: it begins with b'just wor'"),
    "cut.docx": (lambda: docx("a")[:-40], "it is no whole archive"),
    "broken.docx": (lambda: docx(body="<w:p>"), "a part of it is no XML"),
    "deep.docx": (lambda: docx(body="<w:sdt><w:sdtContent>" * 4000 + "</w:sdtContent></w:sdt>" * 4000), "nested too deeply"),
    "bomb.docx": (bomb, "it unpacks to 300 MiB, more than 256; split it, or leave it out [too_large]"),
    "lying.docx": (lying, "it is no whole archive (Bad CRC-32"),
    "entities.docx": (lambda: archive({"word/document.xml": f"<?xml version='1.0'?>{DOCTYPE}<x>&a;</x>"}), "declares a document type"),
    "wide.docx": (lambda: archive({"word/document.xml": f"{DOCTYPE}<x/>".encode("utf-16")}), "declares a document type"),
    "far.xlsx": (lambda: far('<row r="1048576"><c r="XFD1048576"><v>1</v></c></row>'), "reach to row 1048576 and column 16384"),
    "farther.xlsx": (lambda: far('<row r="9"><c s="1" r = \'b10000000000003\'><v>1</v></c></row>'), "stands at 'b10000000000003', which is no place of a sheet"),
    "counted.xlsx": (lambda: far(f'<row r="1048576">{"<c><v>1</v></c>" * 30}</row>'), "reach to row 1048576 and column 30"),
    "cut.xlsx": (lambda: xlsx({"A": [["x"]]})[:300], "it is no whole archive"),
    "words.xlsx": (lambda: docx("a"), "it is a Word document, not a workbook"),
    "hidden.xlsx": (lambda: archive({"xl/workbook.xml": "<x/>", "xl/s.bin": '\ufeff <worksheet><c r="A1"><v/></c><c r="XFD9999"><v/></c></worksheet>'}),
                    "reach to row 9999 and column 16384"),
    "new.xls": (lambda: xlsx({"A": [["x"]]}), "it is no .xls file: it begins with b'PK"),
    "cut.xls": (lambda: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600, "it is no whole workbook"),
    "nothing.xlsx": (lambda: xlsx({"A": []}), "it is empty [empty]"),
    "latin.txt": (lambda: b"a\nb\ncaf\xe9", "byte 0xe9 in line 3 is not UTF-8; convert it to UTF-8 [wrong_encoding]"),
    "zip.md": (lambda: archive({"a": "b"}), "it is an archive or an Office document, not .md"),
    "binary.txt": (lambda: b"a\0b" * 9, "it holds binary data"),
    "deep.html": (lambda: "<div>" * 50_000, "nested more than 1000 deep"),
    "charset.html": (lambda: "<meta charset=klingon><p>a", "nobody knows its charset 'klingon'"),
    "broken.csv": (lambda: 'a,b\n1,2\n"x,3\n4,5\n', "line 3: a quote that opens in this line is never closed"),
    "short.csv": (lambda: "a,b\n1\n", "line 2: the row has 1 cells, the header 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_one_that_cannot_be_read_is_one_clear_error(name, folder):
    make, words = BAD[name]
    put(folder, name, make())
    with pytest.raises(DataError) as caught:
        read([f"manuals/{name}"], folder)
    assert words in str(caught.value)
    assert f"manuals/{name}" in str(caught.value)
    assert "the document cannot be read" in str(caught.value)


def test_a_folder_tells_all_of_them_at_once_and_how_to_go_on(folder):
    for name in ("locked.pdf", "scan.pdf", "old.doc"):
        put(folder, f"sub/{name}", BAD[name][0]())
    put(folder, "good.md", "words")
    with pytest.raises(DataError) as caught:
        read(["manuals"], folder)
    assert [fault.where for fault in caught.value.faults] == [
        "manuals/sub/locked.pdf",
        "manuals/sub/old.doc",
        "manuals/sub/scan.pdf, page 2",
    ]
    assert "3 of 4 documents cannot be read" in str(caught.value)
    assert "--skip NAME" in caught.value.remedy
    documents = read(["manuals"], folder, skip=["*.doc", "manuals/sub/locked.pdf", "manuals/sub/scan.pdf#page=2"])
    assert [(text.source, text.page) for text in documents.texts] == [
        ("manuals/good.md", None),
        ("manuals/sub/scan.pdf", 1),
        ("manuals/sub/scan.pdf", 3),
    ]
    assert documents.aside == ["manuals/sub/locked.pdf", "manuals/sub/old.doc"]
    with pytest.raises(UsageError, match=r"'god\.md' names no document"):
        read(["manuals"], folder, skip=["god.md"])


def test_what_is_no_document_is_told(folder):
    with pytest.raises(NotFound, match="no document 'manual'"):
        read(["manual"], folder)
    with pytest.raises(DataError, match=r"no document\n  allowed: files that end in \.txt"):
        read(["manuals"], folder)
    path = put(folder, "a.md", "x")
    assert len(read(["manuals/a.md", str(path), "manuals"], folder).texts) == 1, "a file that is named twice is one document"
    other = folder / "other" / "manuals"
    other.mkdir(parents=True)
    (other / "a.md").write_text("y")
    with pytest.raises(UsageError, match=r"two documents are called 'manuals/a\.md'"):
        read([str(folder / "manuals"), str(other)], folder / "manuals" / "sub")


def test_cells_without_a_value_reach_nowhere(folder):
    coloured = '<row r="1048576"><c r="XFD1048576" s="1"/></row>'
    assert only(folder, "c.xlsx", xlsx({"A": [["x", "y"], ["a", 1]]}, coloured))[0][3] == "x: a; y: 1"


def test_what_looks_like_tags_in_scripts_is_no_depth(folder):
    script = "<script>" + "for (i = 0; i<n; i++) s += '<div>';" * 2_000 + "</SCRIPT><!-- " + "<div>" * 2_000 + " -->"
    assert only(folder, "s.html", f"<body>{script}<p>{'<b>x</b>' * 2_000}")[0][3] == "x" * 2_000
    with pytest.raises(DataError, match="nested more than"):
        only(folder, "d.html", f"{script}{'<i>' * 1_001}x")


def test_links_to_folders_are_named_and_not_followed(folder):
    put(folder, "a.md", "x")
    (folder / "manuals" / "again").symlink_to(folder / "manuals")
    (folder / "manuals" / "gone.pdf").symlink_to(folder / "nothing.pdf")
    with pytest.raises(DataError, match=r"gone\.pdf: it is no file"):
        read(["manuals"], folder)
    assert read(["manuals"], folder, skip=["gone.pdf"]).aside == ["manuals/again", "manuals/gone.pdf"]


def test_sizes_are_bounded(folder, monkeypatch):
    put(folder, "long.txt", "word " * 100)
    monkeypatch.setattr(reading, "MOST_CHARACTERS", 400)
    with pytest.raises(DataError, match="more than 400 characters"):
        read(["manuals"], folder)
    monkeypatch.setattr(reading, "MOST_BYTES", 400)
    with pytest.raises(DataError, match="MiB, more than"):
        read(["manuals"], folder)


def test_the_archives_of_the_tests_are_archives(folder):
    assert zipfile.ZipFile(put(folder, "a.docx", docx("a"))).testzip() is None
