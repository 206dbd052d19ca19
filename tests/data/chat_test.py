"""Chat templates see the messages and nothing else of Python or of the machine."""

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
