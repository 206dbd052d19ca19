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
    wait(page, "document.readyState === 'complete' && typeof state === 'object' && !!state.facts")
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


@pytest.fixture(scope="module")
def forgetful(workdir):
    """A server whose layers see the last 16 tokens alone, and which drafts from the text itself."""
    made = servers.started(
        workdir,
        "--config.generate.memory=window",
        "--config.generate.window.size=16",
        "--config.generate.drafter=lookup",
    )
    yield made
    assert made.end() == 0


@pytest.mark.parametrize("width", WIDTHS)
def test_what_layers_kept_and_which_tokens_were_drafted_is_shown(width, page, forgetful, tmp_path):
    page.size(*WIDTHS[width])
    page.go(forgetful.url)
    wait(page, "document.readyState === 'complete' && typeof state === 'object' && !!state.facts")
    assert page.run("$('facts').textContent").endswith("drafts: lookup · memory: window")
    page.run("choose(false); $('seed').value = 3; $('max_tokens').value = 60; $('prompt').value = 'say 3 say 3 say 3'")
    page.run("$('send').click()")
    wait(page, "!state.going && !!document.querySelector('.kept canvas')")
    body = {"prompt": "say 3 say 3 say 3", "seed": 3, "max_tokens": 60, "logprobs": 1}
    made = servers.ask(forgetful, **body, return_kept=True, return_drafts=True).json()["choices"][0]
    kept, drafted = made["kept"], made["drafted"]
    spans = page.run("[...document.querySelectorAll('.t')].map(s => [s.classList.contains('drafted'), s.parts])")
    parts = [part for _, some in spans for part in some]
    assert [bool(part["drafted"]) for part in parts] == drafted[: len(parts)] and any(drafted)
    assert all(marked >= some[-1]["drafted"] for marked, some in spans)
    layers, n = kept["layers"], kept["prompt"]
    assert [part["kept"] for part in parts] == [[row[n + i] for row in layers] for i in range(len(parts))]
    pixels = page.run("""(c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]
        .filter((_, i) => i % 4 === 3 && (i >> 2) / c.width % 8 < 1).map(a => Math.round(a / 2.55)))(
        document.querySelector('.kept canvas'))""")
    assert pixels == [share for row in layers for share in row]
    page.run("document.querySelector('.kept').scrollIntoView({block: 'center'})")
    box = page.run(
        "(r => [r.left, r.top, r.width, r.height])(document.querySelector('.kept canvas').getBoundingClientRect())"
    )
    page.point(box[0] + box[2] - 2, box[1] + 3)
    tip = page.run("$('tip').innerText")
    assert f"token {len(kept['tokens'])} of {len(kept['tokens'])}" in tip and "layer 1: 0 %" in tip
    assert page.run("document.documentElement.scrollWidth <= innerWidth") and box[0] + box[2] <= WIDTHS[width][0]
    page.picture(pathlib.Path(os.environ.get("TESSERA_PICTURES", tmp_path)) / f"{width}-kept.png")
    page.point(1, 1)


def test_the_page_needs_no_network_and_no_build():
    text = (servers.ROOT / "experiments" / "serving" / "page.html").read_text()
    assert not re.findall(r"""(?:src|href|url|import)\s*[=(]\s*["']?(?:https?:)?//""", text)
    assert "innerHTML" not in text and "eval(" not in text and text.count("<script>") == 1
