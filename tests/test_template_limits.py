"""Chat templates that loop or ask for huge texts: refused when they are loaded or used, with one clear error; what others do is unchanged."""

from __future__ import annotations

import resource

import jinja2.sandbox
import pytest

from tunesmith.core import template_limits
from tunesmith.core.errors import DataError
from tunesmith.core.template import ChatTemplate
from tunesmith.core.types import Message

ASK = [Message(role="user", content="x")]
DOUBLED = "{%% set ns = namespace(s=%s) %%}{%% for i in range(60) %%}{%% set ns.s = %s %%}{%% endfor %%}%s"
WITHOUT_AN_END = [
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{% for i in range(100000) %}{% for j in range(100000) %}{{ 'x' }}{% endfor %}{% endfor %}",
    "{% for i in range(90000) if range(90000)|list|length < 0 %}{% endfor %}",
    "{% for i in range(100000) %}{% set y = range(100000)|list|sort %}{% endfor %}",
    "{% for i in range(1000000000) %}{% endfor %}",
    "{% for m in [1] recursive %}{{ loop([1]) }}{{ loop([1]) }}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% macro f(n) %}{{ f(n+1) }}{% endmacro %}{{ f(0) }}",
    "{{ range(100000)|map('center', 100000)|list|length }}",
    "{% set x %}{% for i in range(100000) %}{{ 'y' * 1000000 }}{% endfor %}{% endset %}{{ x|length }}",
]
TOO_LARGE = [
    "{{ 'x' * 10**10 }}",
    "{{ [0] * 10000000000 }}",
    "{{ 9 ** (9 ** 9) }}",
    DOUBLED % ("'x'", "ns.s + ns.s", ""),
    DOUBLED % ("'x'", "ns.s ~ ns.s", ""),
    DOUBLED % ("[1]", "ns.s + ns.s", ""),
    DOUBLED % ("'x'", "[ns.s, ns.s]", "{{ ns.s }}"),
    DOUBLED % ("'x'", "[ns.s, ns.s]", "{{ '%s' % ns.s }}"),
    DOUBLED % ("'x'", "[ns.s, ns.s]", "{{ (ns.s ~ '')|length }}"),
    DOUBLED % ("'x'", "{'a': ns.s, 'b': ns.s}", "{{ ns.s|tojson }}"),
    "{{ 'x'.center(10000000000) }}",
    "{{ 'x'|center(10000000000) }}",
    "{{ 'x\n'|indent(10000000000) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 1000000000) }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ ('a' * 30000).replace('a', 'b' * 30000) }}",
    "{{ ('a' * 30000)|replace('a', 'b' * 30000) }}",
    "{{ ('a\t' * 100000).expandtabs(tabsize=1000000) }}",
    "{{ ([('a' * 1000000)] * 1000)|join }}",
    "{{ ''.join([('a' * 1000000)] * 1000) }}",
    "{{ ([('a' * 1000000)] * 1000)|tojson }}",
    "{{ [1, [2]]|tojson(indent=100000000) }}",
    "{{ [1]|batch(1000000000, 'x')|list }}",
    "{{ [[0] * 1000000] * 100|sum(start=[]) }}",
]
TOO_DEEP = [
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "{% for i in [1] %}" * 40 + "{% endfor %}" * 40,
]


@pytest.mark.slow
@pytest.mark.parametrize("source", [*WITHOUT_AN_END, *TOO_LARGE, *TOO_DEEP, "x" * (2 << 20)])
def test_a_template_without_an_end_is_refused_when_it_is_loaded(source, monkeypatch):
    monkeypatch.setattr(template_limits, "RENDER_S", 0.1)
    with pytest.raises(DataError, match="chat template cannot be used"):
        ChatTemplate(source, {})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 << 20  # KiB


@pytest.mark.slow
def test_what_only_some_conversations_bring_about_is_refused_with_them(monkeypatch):
    monkeypatch.setattr(template_limits, "RENDER_S", 0.1)
    template = ChatTemplate("{% if messages|length > 2 %}" + WITHOUT_AN_END[0] + "{% endif %}ok", {})
    assert template.render(ASK) == "ok"
    for _ in range(2):
        with pytest.raises(DataError, match="of the processor"):
            template.render(ASK * 3)
    assert template.render(ASK) == "ok"


def test_what_templates_do_is_unchanged():
    pieces = """{{ '%s: %d' % ('a', 3) }}|{{ 'a' ~ 1 ~ none }}|{{ [1, 2]|join(', ') }}|{{ 'a b'.split() }}|{{ ['b', 'a']|sort|list }}
{{ [1, 2]|map('string')|join('-') }}|{{ {'a': [1]}|string }}|{{ 'abc'|replace('b', 'xx') }}|{{ '{}-{}'.format(1, 'z') }}
{{ '{{"a": {}}}'.format(3) }}|{{ messages[::-1]|length }}|{{ 'ab'|list }}|{{ [1, 2]|reverse|list }}|{{ 'x'.rjust(5) }}
{% for k, v in {'a': 1}|items %}{{ k }}{% endfor %}|{{ [{'a': 1}, {'a': 2}]|selectattr('a', 'equalto', 2)|map(attribute='a')|join }}
{{ undefd|list }}|{{ 'a\nb'|indent(2) }}|{{ 3 + 4 * 2 ** 3 % 5 }}|{% set x %}q{% endset %}{{ x ~ 'w' }}|{{ [1, 2]|sum }}|{{ [3, 1]|unique|list }}
{% macro f(a) %}<{{ a }}>{% endmacro %}{{ f('m') }}|{% for i in range(3) %}{{ loop.index }}{% if loop.last %}.{% endif %}{% endfor %}
{{ 'a' if undefd is defined else 'b' }}|{{ [1, 2, 3]|batch(2)|list }}|{{ {'b': 1, 'a': 2}|dictsort }}|{{ ''.join(['a', 'b']) }}|{{ [1] + [2] }}"""
    plain = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    wanted = plain.from_string(pieces).render(messages=[{"role": "user", "content": "x"}])
    assert ChatTemplate(pieces, {}).render(ASK) == wanted
    assert len(ChatTemplate("{{ messages[0].content }}", {}).render([Message(role="user", content="é" * 15_000_000)])) == 15_000_000
