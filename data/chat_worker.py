"""The process in which chat templates are rendered, by jinja2 in its sandbox: `data.chat` starts it by its path.

A template comes from a foreign file and is a program. It sees the messages, the names of start and end, and nothing
else: no file, no module, no attribute of Python. The operating system ends what would not end by itself: the process
that renders for more CPU seconds than it was given dies, and memory has a limit.

A line of JSON on stdin says where modules lie, each one after it is a request: {"template", "messages", "answer",
"names", "seconds"}. A line on stdout answers it: {"text": ..} or {"error": ..}.
"""

import contextlib
import functools
import json
import signal
import sys
from typing import Any

MEMORY = 1 << 30  # Bytes beyond what the process has before its first template.
# What a template that is wrong, or made for other messages, raises beside jinja2's own errors.
_REFUSED = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError)


def main() -> None:
    """Answers until stdin ends."""
    sys.path[:] = json.loads(sys.stdin.readline())
    import jinja2  # noqa: F401 What it takes is not counted.

    _limit_memory()
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, request.pop("seconds"))  # SIGPROF, which nothing handles, ends it.
        answer = json.dumps(_answer(**request))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(answer, flush=True)


def _limit_memory() -> None:
    """Lets the process have `MEMORY` more bytes, where the operating system counts them."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        with open("/proc/self/statm") as file:
            has = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (has + MEMORY, has + MEMORY))


def _answer(template: str, messages: list[dict[str, str]], answer: bool, names: dict[str, str]) -> dict[str, str]:
    import jinja2

    try:
        return {"text": _template(template).render(messages=messages, add_generation_prompt=answer, **names)}
    except MemoryError:
        return {"error": f"it needs more than {MEMORY >> 20} MiB"}
    except (jinja2.TemplateError, *_REFUSED) as error:
        return {"error": " ".join(str(error).split())}


@functools.lru_cache(maxsize=4)
def _template(text: str) -> Any:
    import jinja2

    def refuse(text: str) -> str:
        raise jinja2.TemplateError(text)

    world = _world()(trim_blocks=True, lstrip_blocks=True, loader=None, extensions=["jinja2.ext.loopcontrols"])
    world.globals = {
        "raise_exception": refuse,
        "namespace": world.globals["namespace"],
        "range": world.globals["range"],
    }
    return world.from_string(text)


def _world() -> type:
    """jinja2's sandbox without any attribute beyond those of text, lists, dicts and of jinja itself."""
    from jinja2 import sandbox

    class World(sandbox.ImmutableSandboxedEnvironment):
        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            plain = isinstance(obj, str | list | tuple | dict) or type(obj).__module__.startswith("jinja2")
            return plain and super().is_safe_attribute(obj, attr, value)

    return World


if __name__ == "__main__":
    main()
