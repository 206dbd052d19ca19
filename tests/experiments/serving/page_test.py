"""The page in a real browser: it streams, colours tokens by their surprise, says what else could have stood there."""

import math
import os
import pathlib
import re
import shutil

import pytest

from tests.experiments.serving import browser, servers

WIDTHS = {"phone": (390, 844), "desktop": (1280, 800)}


@pytest.fixture(scope="module")
def page(server, tmp_path_factory):
    if not shutil.which("chromium"):
        pytest.skip("no chromium is installed")
    with browser.opened(tmp_path_factory.mktemp("chromium")) as made:
        made.go(server.url)
        yield made


def wait(page, true):
    servers.until(lambda: page.run(true), 60)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("chat", [True, False], ids=["chat", "completion"])
def test_a_text_streams_and_each_token_says_what_it_was(width, chat, page, server, tmp_path):
    page.size(*WIDTHS[width])
    page.go(server.url)
    wait(page, "document.readyState === 'complete' && !!state.facts")
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    assert page.run("$('settings').open") == (width == "desktop")
    page.run(
        f"choose({str(chat).lower()}); $('seed').value = 3; $('max_tokens').value = 30; $('prompt').value = 'say 3'"
    )
    page.run("$('send').click()")
    wait(page, "!state.going && document.querySelectorAll('.t').length > 5")
    prompt = {"messages": [{"role": "user", "content": "say 3"}], "logprobs": True} if chat else {"prompt": "say 3"}
    path = "/v1/chat/completions" if chat else "/v1/completions"
    made = servers.ask(server, path, seed=3, max_tokens=30, **{"logprobs": 1} | prompt).json()["choices"][0]
    shown = page.run("[...document.querySelectorAll('.t:not(.end)')].map(span => span.textContent).join('')")
    text = made["message"]["content"] if chat else made["text"]
    assert shown == text or (shown.startswith(text.rstrip("\ufffd")) and len(shown) - len(text) <= 1)
    spans = page.run("[...document.querySelectorAll('.t')].map(s => [s.style.getPropertyValue('--much'), s.parts])")
    own = [entry["logprob"] for entry in made["logprobs"]["content"]] if chat else made["logprobs"]["token_logprobs"]
    parts = [part for _, parts in spans for part in parts]
    assert [part["logprob"] for part in parts] == pytest.approx(own[: len(parts)], abs=1e-4)
    for much, some in spans:
        surprise = max(-part["logprob"] / math.log(2) for part in some)
        assert float(much) == pytest.approx(min(surprise, 10) / 10 * 0.7, abs=2e-3)
    place = page.run("(r => [r.x + r.width / 2, r.y + r.height / 2])(document.querySelector('.t').getClientRects()[0])")
    page.point(*place)
    assert page.run("!$('tip').hidden")
    tip = page.run("$('tip').innerText")
    first = spans[0][1][0]
    assert f"p {math.exp(first['logprob']):.3g}"[:5] in tip and "bits" in tip
    assert page.run("document.querySelectorAll('#tip tr').length") >= 8
    box = page.run("(r => [r.left, r.right, r.top, r.bottom])($('tip').getBoundingClientRect())")
    assert box[0] >= 0 and box[1] <= WIDTHS[width][0] and box[2] >= 0 and box[3] <= WIDTHS[width][1]
    assert re.match(r"30 tokens · [\d.]+ tokens/s|\d+ tokens", page.run("document.querySelector('.after').textContent"))
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    folder = pathlib.Path(os.environ.get("TESSERA_PICTURES", tmp_path))  # For somebody who looks.
    page.picture(folder / f"{width}-{'chat' if chat else 'completion'}.png")
    page.point(1, 1)


def test_a_refusal_is_shown_and_stop_frees_the_lane(page, server):
    page.size(*WIDTHS["desktop"])
    page.run("choose(false); $('prompt').value = 'a'.repeat(500); $('send').click()")
    wait(page, "!!document.querySelector('.wrong')")
    assert "use a shorter prompt" in page.run("document.querySelector('.wrong').textContent")
    page.run("clear(); $('prompt').value = 'a'; $('max_tokens').value = 180; $('send').click()")
    page.run("""new Promise(done => { const look = setInterval(() => {
        if (document.querySelector('.t')) { clearInterval(look); $('stop').click(); done(); } }, 1); })""")
    wait(page, "!state.going")
    assert page.run("document.querySelector('.after').textContent").endswith("tokens · stopped")
    servers.until(lambda: servers.busy(server) == (0, 0), 10)


def test_the_page_needs_no_network_and_no_build():
    text = (servers.ROOT / "experiments" / "serving" / "page.html").read_text()
    assert not re.findall(r"""(?:src|href|url|import)\s*[=(]\s*["']?(?:https?:)?//""", text)
    assert "innerHTML" not in text and "eval(" not in text and text.count("<script>") == 1
