"""Text of a run or a claim on a page: shown as it is, never taken for a tag, a table, a link or a direction."""

import html
import re

import pytest

from experiments.report import markdown, page
from experiments.settings.visible import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain < 3 & 4 > 1", "plain < 3 & 4 > 1"),
        ("\u202eevil\u2066x\u2069", "\\u202eevil\\u2066x\\u2069"),
        ("\x1b[31m\x85", "\\x1b[31m\\x85"),
        ("a\u200bb\ufeff\u2028", "a\\u200bb\\ufeff\\u2028"),
        ("\U000e0041", "\\U000e0041"),
        ("é 日本 \U0001f469\u200d\U0001f4bb עברית", "é 日本 \U0001f469\u200d\U0001f4bb עברית"),
        ("line\n\ttab", "line\n\ttab"),
        ("\udc80", "?"),
    ],
)
def test_what_reorders_or_hides_text_is_spelt_out(text, shown):
    assert visible(text) == shown
    assert page.escape(text) == html.escape(shown)


def test_no_bidirectional_control_reaches_a_page():
    """Every character of Unicode that is one (UAX 9, table 4) or moves text on a terminal."""
    controls = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069" + "".join(map(chr, range(32)))
    for shown in (page.escape(controls), markdown.inline(controls), markdown.code(controls)):
        assert not set(controls) - set("\n\t") & set(shown)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a | b", "a \\| b"),
        ("a \\| b", "a \\\\\\| b"),
        ("<!-- end of claims -->", "&lt;!-- end of claims -->"),
        ("<script>x</script>", "&lt;script>x&lt;/script>"),
        ("1 < 2 <= 3", "1 < 2 <= 3"),
        ("a\nb\r\n| c", "a b \\| c"),
        ("&lt;b&gt; a & b", "&amp;lt;b&amp;gt; a & b"),
        ("![x](http://y)", "![x]\\(http://y)"),
        ("`x` y", "\\`x\\` y"),
        ("95% [0.1, 0.2] (n)", "95% [0.1, 0.2] (n)"),
    ],
)
def test_markdown_shows_the_text_and_reads_nothing_into_it(text, shown):
    assert markdown.inline(text) == shown


@pytest.mark.parametrize("text", ["python x", "a `b` c", "``", "a\nb <b>", "`start", "end``"])
def test_code_ends_where_its_text_ends(text):
    """By the rule of CommonMark: a code span ends at the first run of as many backticks as opened it."""
    shown = markdown.code(text)
    fence = re.match("`+", shown).group()
    inside, ended, rest = re.match(f"{fence}(?!`)(.*?)(?<!`)({fence})(?!`)(.*)$", shown).groups()
    assert rest == "" and ended == fence and inside.strip() == " ".join(text.split())
