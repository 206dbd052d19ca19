"""Chat templates: messages as the text that a model was trained on, by jinja2 in its sandbox.

A template sees the messages, the names of start and end, and nothing else: no file, no module, no attribute of Python.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, str]  # {"role": "user", "content": "..."}
# What a template that is wrong, or made for other messages, raises beside jinja2's own errors.
_REFUSED = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError)


def render(template: str, messages: Sequence[Message], *, answer: bool = True, **names: str) -> str:
    """`messages` by `template`; `answer`: with the beginning of the assistant's answer behind them.

    names: bos_token and eos_token. Errors: ValueError with one sentence.
    """
    try:
        import jinja2
        from jinja2 import sandbox
    except ImportError:
        raise ValueError("chat templates need jinja2; pip install -r requirements-pretrained.txt.") from None

    def refuse(text: str) -> str:
        raise jinja2.TemplateError(text)

    checked = [_message(message) for message in messages]
    world = _world(sandbox)(trim_blocks=True, lstrip_blocks=True, loader=None, extensions=["jinja2.ext.loopcontrols"])
    world.globals = {
        "raise_exception": refuse,
        "namespace": world.globals["namespace"],
        "range": world.globals["range"],
    }
    try:
        return world.from_string(template).render(messages=checked, add_generation_prompt=answer, **names)
    except (jinja2.TemplateError, *_REFUSED) as error:
        raise ValueError(f"the chat template refuses these messages: {' '.join(str(error).split())}.") from None


def _world(sandbox: Any) -> type:
    """jinja2's sandbox without any attribute beyond those of text, lists, dicts and of jinja itself."""

    class World(sandbox.ImmutableSandboxedEnvironment):
        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            plain = isinstance(obj, str | list | tuple | dict) or type(obj).__module__.startswith("jinja2")
            return plain and super().is_safe_attribute(obj, attr, value)

    return World


def _message(message: Message) -> dict[str, str]:
    if not isinstance(message, Mapping) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
        raise ValueError('a message is not an object with texts in "role" and "content".')
    return {key: value for key, value in message.items() if isinstance(value, str)}
