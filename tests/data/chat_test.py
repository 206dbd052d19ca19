"""Chat templates see the messages and nothing else of Python or of the machine, and end."""

import os
import time

import pytest

from data import chat

pytest.importorskip("jinja2")
SAID = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}", "{{ ''['__class__'] }}", "{{ messages.__class__.__mro__ }}",
        "{{ (messages | first).__init__.__globals__ }}", "{{ namespace.__init__.__globals__ }}",
        "{{ range.__self__ }}", "{{ raise_exception.__globals__ }}", "{{ ''.format.__self__.__class__ }}",
        "{{ '{0.__class__}'.format(messages) }}", "{{ '%s' | attr('__class__') }}",
        "{{ messages | map(attribute='__class__') | list }}", "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os }}", "{% extends 'a' %}", "{{ open('/etc/passwd') }}",
        "{{ self.__init__.__globals__ }}", "{{ cycler.__init__.__globals__ }}", "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}", "{{ range(10 ** 9) | list }}", "{{ lipsum.__globals__ }}",
        "{{ config }}{{ config.items() }}", "{{ raise_exception('no') }}", "{% for %}", "{{ 1 / 0 }}",
    ],
)  # fmt: skip
def test_what_reaches_beyond_the_messages_is_refused_or_empty(template):
    try:
        written = chat.render(template, SAID)
    except ValueError as error:
        assert str(error).startswith("the chat template refuses these messages") and "\n" not in str(error)
        return
    assert not any(word in written for word in ("class", "object", "dict", "root:", "builtin", "Undefined of"))


def test_messages_are_as_they_were_said():
    template = (
        "{{ bos_token }}{% for m in messages %}{% if loop.first %}# {% endif %}{{ m['role'] | upper }}: "
        "{{ m.content | trim }}\n{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
    )
    assert chat.render(template, SAID, bos_token="<s>") == "<s># USER: hello\nA:"
    assert chat.render(template, SAID, answer=False, bos_token="") == "# USER: hello\n"
    with pytest.raises(ValueError, match='not an object with texts in "role" and "content"'):
        chat.render(template, [{"role": "user", "content": 3}])


LOOP = "{% for a in range(100000) %}{% for b in range(100000) %}"
ENDLESS = {
    "a power": "{{ 10 ** (10 ** 10) }}",
    "loops in loops": f"{LOOP}x{{% endfor %}}{{% endfor %}}",
    "loops without a word": f"{LOOP}{{% endfor %}}{{% endfor %}}",
    "calls in calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "recursive loops": "{% set l = [1, 1] %}{% for a in l recursive %}{% if loop.depth < 60 %}{{ loop(l) }}"
    "{% endif %}{% endfor %}",
}
LARGE = {
    "doubled": "{% set n = namespace(t='x' * 1000) %}{% for i in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
    "repeated": "{{ 'x' * 10 ** 12 }}", "padded": "{{ '%99999999999d' % 1 }}",
    "centred": "{{ 'x' | center(10 ** 11) }}",
}  # fmt: skip


@pytest.mark.parametrize("name", [*ENDLESS, *LARGE])
def test_a_template_that_works_on_or_fills_the_memory_ends_in_a_sentence(name, monkeypatch):
    monkeypatch.setattr(chat, "SECONDS", 0.5)
    start = time.process_time()
    with pytest.raises(ValueError, match="the chat template refuses these messages") as caught:
        chat.render((ENDLESS | LARGE)[name], SAID)
    told = "longer than 0.5 seconds" if name in ENDLESS else ("more than 1024 MiB", "longer than", "digits", "width")
    assert any(words in str(caught.value) for words in ([told] if isinstance(told, str) else told)), caught.value
    assert time.process_time() - start < 1  # All of it was done elsewhere.
    assert chat.render("{{ messages[0].content }}", SAID) == "hello"  # By a new process, or the same one.


def test_the_memory_of_a_template_has_a_limit_by_itself():
    with pytest.raises(ValueError, match="it needs more than 1024 MiB"):
        chat.render("{{ (('x' * 600000000) ~ ('y' * 600000000)) | length }}", SAID)


def test_the_time_of_a_template_is_its_own(monkeypatch):
    """Many texts may take longer together than one of them may."""
    monkeypatch.setattr(chat, "SECONDS", 0.3)
    for _ in range(3):
        chat.render("{% for a in range(1000) %}{% for b in range(1500) %}{% endfor %}{% endfor %}", SAID)


def test_a_forked_process_and_text_of_any_kind(monkeypatch):
    odd = [{"role": "user", "content": "\udcff \u2028 \0 " + "x" * 300_000}]
    assert chat.render("{{ messages[0].content }}", odd) == odd[0]["content"]
    mine = chat._worker(os.getpid())
    monkeypatch.setattr(chat.os, "getpid", lambda: -1)  # As in a process that was forked: it shares no pipe.
    assert chat.render("{{ messages | length }}", SAID) == "1"
    assert chat._worker(-1) is not mine and chat._worker(-1)._process.pid != mine._process.pid


def test_what_interrupts_a_text_costs_the_next_one_nothing(monkeypatch):
    """Ctrl-C while a worker renders: its answer is to nobody's question."""
    worker, told = chat._worker(os.getpid()), chat._Worker._told

    def interrupted(process, request):
        told(process, request | {"seconds": 1.0})
        raise KeyboardInterrupt

    monkeypatch.setattr(chat._Worker, "_told", staticmethod(interrupted))
    with pytest.raises(KeyboardInterrupt):
        chat.render("first", SAID)
    monkeypatch.setattr(chat._Worker, "_told", staticmethod(told))
    assert worker._process is None and chat.render("second", SAID) == "second"
