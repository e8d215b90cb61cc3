"""Personal data: what patterns must find whole, what they must leave alone, and how it is taken out."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.core.errors import ConfigError
from tunesmith.data.pii import KINDS, count, find, find_all, replace
from tunesmith.data.pii_patterns import iban_valid, luhn_valid

# keys are put together here so that no scanner takes this file for a leak
FOUND = {
    "email": ["john.doe+x@mail.example.co.uk", "müller@straße.de", "o'neil@example.org"],
    "phone": [
        "(555) 234-5678",
        "+49 170 1234567",
        "555-234-5678x3890",
        "06 12 34 56 78",
        "030/1234567",
        "+1-555-234-5678",
        "001-581-896-0013x3890",
    ],
    "card": ["4111 1111 1111 1111", "378282246310005", "5555-5555-5555-4444", "503815736817", "180014885945264"],
    "iban": ["DE89 3704 0044 0532 0130 00", "GB29NWBK60161331926819", "NL91ABNA0417164300"],
    "ip": ["192.168.0.1", "2001:db8::8a2e:370:7334", "fe80::1"],
    "ssn": ["123-45-6789"],
    "api_key": [
        "sk-" + "proj-abcdefghijklmnopqrstuvwx1234",
        "AKIA" + "IOSFODNN7EXAMPLE",
        "ghp_" + "a1" * 18,
        "hf_" + "aB3" * 11,
        "sk" + "_live_" + "4eC39HqLyjWDarjtT1zdp7dc",
    ],
    "jwt": ["eyJ" + "hbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9"],
    "private_key": ["-----BEGIN " + "RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----"],
}
ANNOUNCED = {
    "born on {}": ("date_of_birth", ["12 May 1980", "1980-05-12", "12.05.1980", "May 12, 1980"]),
    "DOB: {}": ("date_of_birth", ["05/12/1980"]),
    "geboren am {}": ("date_of_birth", ["3. März 1971", "03.03.1971"]),
    "{} is her birthday": ("date_of_birth", ["05/12/1980", "12 May 1980"]),
    "tel. {}": ("phone", ["204 9 428", "(+358) 626000705"]),
    "call me at {}": ("phone", ["5552345678", "234 5678", "(351) 921 765 757"]),
    "password = {}": ("password", ["hunter2abc9"]),
    '"api_key": "{}"': ("password", ["x8Zk29slQ0"]),
}
LEFT = [
    "the agreement dated January 27, 1999, section 3.2.1",
    "pi is 3.14159265358979 and 1,234,567,890 people",
    "01010101 call 1010101010",
    "card 4111 1111 1111 1112",
    "DE00 3704 0044 0532 0130 00",
    "at 12:30:45 the time a::b",
    "user @ example dot com",
    "999.999.999.999",
    "the password is secret",
    "1999-2003 2004/2005 12/03/1980",
    "call us before 12 03 1980 or 2004-05-06",
    "12/03/1980 is the date, not a birthplace",
]
ALL = [(kind, "so {} it is", value) for kind, values in FOUND.items() for value in values]
ALL += [(kind, frame, value) for frame, (kind, values) in ANNOUNCED.items() for value in values]


@pytest.mark.parametrize(("kind", "frame", "value"), ALL)
def test_found_whole(kind, frame, value):
    text = frame.format(value)
    assert [(span.kind, text[span.start : span.end]) for span in find(text)] == [(kind, value)]


@pytest.mark.parametrize("text", LEFT)
def test_left_alone(text):
    assert find(text) == []


def test_letters_that_grow_when_lowered_move_nothing():
    text = "İİİ DOB 05/12/1980 İ a@example.com"
    assert [text[span.start : span.end] for span in find(text)] == ["05/12/1980", "a@example.com"]


def test_kinds_can_be_chosen():
    text = "a@example.com 192.168.0.1"
    assert [span.kind for span in find(text, ["ip"])] == ["ip"]
    with pytest.raises(ConfigError, match="did you mean 'email'"):
        find(text, ["mail"])
    assert set(FOUND) | {kind for kind, _ in ANNOUNCED.values()} == set(KINDS)


WORD = st.text(string.ascii_lowercase + " .,\x00é", max_size=12)


@pytest.mark.slow
@given(st.lists(st.tuples(WORD, st.sampled_from([None, *ALL]), WORD), max_size=6))
def test_many_texts_give_what_each_gives_alone(parts):
    texts = [before + (frame[1].format(frame[2]) if frame else "") + after for before, frame, after in parts]
    assert find_all(texts) == [find(text) for text in texts]


def test_replacing_takes_every_value_out_and_names_it_alike():
    text = "Write to A@example.com, a@example.com or b@example.com; card 4111 1111 1111 1111."
    spans = find(text)
    assert replace(text, spans) == "Write to <EMAIL>, <EMAIL> or <EMAIL>; card <CARD>."
    named = replace(text, spans, salt="s")
    first, second, third = (part.split(">")[0] for part in named.split("<EMAIL_")[1:])
    assert first == second != third
    assert len(first) == 6
    assert find(named) == []
    assert replace(text, spans, salt="other") != named
    assert count([spans, []]) == {"email": 1, "card": 1}


@given(st.text(string.digits, min_size=12, max_size=18))
def test_one_wrong_digit_breaks_luhn(digits):
    good = next(digits + d for d in string.digits if luhn_valid(digits + d))
    wrong = good[:3] + str((int(good[3]) + 1) % 10) + good[4:]
    assert not luhn_valid(wrong)


def test_iban_lengths_and_check_digits():
    assert iban_valid("DE89370400440532013000")
    assert not iban_valid("DE89370400440532013001")
    assert not iban_valid("DE8937040044053201300")
