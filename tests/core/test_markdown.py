"""Text from outside is displayed and never takes effect; a real parser of Markdown decides."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from azora_ci.core import markdown
from azora_ci.core.markdown import Markup

PARSER = MarkdownIt("commonmark").enable("table")
HOSTILE = [
    "a | b",
    "a \\| b",
    "20261124_x`|`y",
    "<img src=x onerror=alert(1)>",
    "</details><h1>ok</h1>",
    "&lt;script&gt;",
    "[click](https://evil.example)",
    "![](https://evil.example/pixel)",
    "**bold** and _slanted_ and __dunder__ and ~~gone~~",
    "# heading",
    "- [ ] item",
    "1. one",
    "> quotation",
    "```",
    "back\\slash at the end\\",
]
words = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1)
anything = st.one_of(st.sampled_from(HOSTILE), st.text("|`\\<>&*_[]()#-~!ab 1.\n"), words)


def cells(page: str) -> list[str]:
    """Return the text of each cell of the body, as a browser shows it; nothing but <br> and <code> may have become HTML."""
    rendered = PARSER.render(page)
    assert set(re.findall(r"<(\w+)", rendered)) <= {"table", "thead", "tbody", "tr", "th", "td", "br", "code"}, rendered
    return [_displayed(cell) for cell in re.findall(r"<td>(.*?)</td>", rendered, re.DOTALL)]


def _displayed(fragment: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", fragment.replace("<br>", "\n").replace("<br />", "\n")))


def flat(value: str) -> str:
    return " ".join(value.split())


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_cell_shows_exactly_what_it_was_given(hostile):
    assert cells(markdown.table(("name", ""), [(hostile, "next"), ("x", markdown.code(hostile))])) == [hostile, "next", "x", hostile]


@given(anything, anything)
def test_no_text_breaks_out_of_its_cell(first_cell, second_cell):
    body = cells(markdown.table(("one", "two"), [(first_cell, markdown.code(second_cell)), ("x", "y")]))
    assert [flat(cell) for cell in body] == [flat(first_cell), flat(second_cell), "x", "y"]


@given(st.lists(anything.filter(str.strip), min_size=1))
def test_no_text_breaks_out_of_its_line(values):
    rendered = PARSER.render("before\n\n" + markdown.listed(values) + "\n\nafter")
    assert set(re.findall(r"<(\w+)", rendered)) <= {"p", "ul", "li"}, rendered
    assert [_displayed(item).strip() for item in re.findall(r"<li>(.*?)</li>", rendered, re.DOTALL)] == list(map(flat, values))


def test_lines_of_a_text_stay_lines_and_our_own_markup_stays():
    assert cells(markdown.table(("", ""), [("one\r\ntwo | three", None), (Markup("**ours**".replace("*", "")), 3)])) == [
        "one\ntwo | three",
        "–",
        "ours",
        "3",
    ]
    assert markdown.escaped("public._prisma_migrations") == "public.\\_prisma_migrations"
    assert markdown.escaped("api_gateway 1.2.3 -> 1.2.4, 5 %") == "api_gateway 1.2.3 -> 1.2.4, 5 %"
    assert markdown.lines([markdown.code("a"), "<b>"]) == "`a`<br>&lt;b>"


def test_nothing_ends_a_code_block():
    assert PARSER.render(markdown.fenced("a\n````\n# b")).count("<pre>") == 1
    assert "<h1>" not in PARSER.render(markdown.fenced("a\n````\n# b"))
