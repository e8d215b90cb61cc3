"""Small real documents: PDF, Word and workbooks, written byte by byte."""

from __future__ import annotations

import io
import zipfile

_RELATIONS = "http://schemas.openxmlformats.org/package/2006/relationships"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_TYPES = "application/vnd.openxmlformats-officedocument"


def pdf(*pages: list[str] | None, password: bool = False) -> bytes:
    """A page for each list of lines; None is a page that shows a picture. With `password` nobody can open it."""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    picture = b"<< /Type /XObject /Subtype /Image /Width 1 /Height 1 /ColorSpace /DeviceGray /BitsPerComponent 8 /Length 1 >>\nstream\n\x80\nendstream"
    objects.append(picture)
    kids = []
    for lines in pages:
        shown = " ".join(f"({_escaped(line)}) Tj T*" for line in lines or ())
        words = b"q 300 0 0 300 72 300 cm /I Do Q" if lines is None else f"BT /F 12 Tf 72 720 Td 14 TL {shown} ET".encode("cp1252")
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(words), words))
        resources = b"<< /Font << /F 3 0 R >> /XObject << /I 4 0 R >> >>"
        box = b"/MediaBox [0 0 612 792]"
        objects.append(b"<< /Type /Page /Parent 2 0 R %s /Resources %s /Contents %d 0 R >>" % (box, resources, len(objects)))
        kids.append(b"%d 0 R" % len(objects))
    objects[1] = b"<< /Type /Pages /Count %d /Kids [%s] >>" % (len(kids), b" ".join(kids))
    locked = (
        b"/Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O <%s> /U <%s> >> /ID [<00><00>]" % (b"11" * 32, b"22" * 32) if password else b""
    )
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % place for place in places)
    trailer = b"trailer << /Size %d /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, locked, len(out))
    return out + b"xref\n0 %d\n%s%s" % (len(objects) + 1, table, trailer)


def _escaped(line: str) -> str:
    return line.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")


def archive(parts: dict[str, str | bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, body in parts.items():
            file.writestr(name, body)
    return out.getvalue()


def _office(main: str, kind: str, parts: dict[str, str | bytes]) -> bytes:
    override = f'<Override PartName="/{main}" ContentType="{_TYPES}.{kind}.main+xml"/>'
    default = '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Default Extension="xml" ContentType="application/xml"/>'
    types = f'<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">{default}{override}</Types>'
    root = f'<Relationships xmlns="{_RELATIONS}"><Relationship Id="r" Type="{_OFFICE}/officeDocument" Target="{main}"/></Relationships>'
    return archive({"[Content_Types].xml": types, "_rels/.rels": root, **parts})


def docx(*paragraphs: tuple[str, str] | str | list[list[str]], body: str = "") -> bytes:
    """Paragraphs: words, (style, words), or rows of a table."""
    made = "".join(
        _table(one) if isinstance(one, list) else _paragraph(*(("", one) if isinstance(one, str) else one)) for one in paragraphs
    )
    space = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    document = f'<?xml version="1.0"?><w:document {space}><w:body>{made}{body}</w:body></w:document>'
    styles = "".join(f'<w:style w:type="paragraph" w:styleId="h{n}"><w:name w:val="heading {n}"/></w:style>' for n in (1, 2, 3))
    relations = f'<Relationships xmlns="{_RELATIONS}"><Relationship Id="s" Type="{_OFFICE}/styles" Target="styles.xml"/></Relationships>'
    return _office(
        "word/document.xml",
        "wordprocessingml.document",
        {
            "word/document.xml": document,
            "word/styles.xml": f"<w:styles {space}>{styles}</w:styles>",
            "word/_rels/document.xml.rels": relations,
        },
    )


def _paragraph(style: str, words: str) -> str:
    return f'<w:p><w:pPr><w:pStyle w:val="{style}"/></w:pPr><w:r><w:t xml:space="preserve">{words}</w:t></w:r></w:p>'


def _table(rows: list[list[str]]) -> str:
    cells = "".join("<w:tr>" + "".join(f"<w:tc>{_paragraph('', cell)}</w:tc>" for cell in row) + "</w:tr>" for row in rows)
    return f"<w:tbl>{cells}</w:tbl>"


def xlsx(sheets: dict[str, list[list[str | float]]], cells: str = "") -> bytes:
    """A workbook; `cells` are further ones of the last sheet, as XML."""
    space = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    listed = "".join(f'<sheet name="{name}" sheetId="{i}" r:id="r{i}"/>' for i, name in enumerate(sheets, start=1))
    relations = "".join(
        f'<Relationship Id="r{i}" Type="{_OFFICE}/worksheet" Target="worksheets/sheet{i}.xml"/>' for i in range(1, len(sheets) + 1)
    )
    parts: dict[str, str | bytes] = {
        "xl/workbook.xml": f'<workbook {space} xmlns:r="{_OFFICE}"><sheets>{listed}</sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{_RELATIONS}">{relations}</Relationships>',
    }
    for i, rows in enumerate(sheets.values(), start=1):
        lines = "".join(
            f'<row r="{y}">' + "".join(_cell(f"{chr(64 + x)}{y}", value) for x, value in enumerate(row, start=1)) + "</row>"
            for y, row in enumerate(rows, start=1)
        )
        parts[f"xl/worksheets/sheet{i}.xml"] = (
            f"<worksheet {space}><sheetData>{lines}{cells if i == len(sheets) else ''}</sheetData></worksheet>"
        )
    return _office("xl/workbook.xml", "spreadsheetml.sheet", parts)


def _cell(place: str, value: str | float) -> str:
    if isinstance(value, str):
        return f'<c r="{place}" t="inlineStr"><is><t>{value}</t></is></c>' if value else ""
    return f'<c r="{place}"><v>{value}</v></c>'
