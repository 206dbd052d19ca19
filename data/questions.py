"""Questions about the Python standard library, answered by the first paragraph of its docstrings: text to tune on.

It is on every machine, so that fine-tuning can be tried without a download; some 5,000 pairs.
"""

import ast
import dataclasses
import json
import warnings
from collections.abc import Iterator

from data import cache
from data.documents import Document, LeftOut, Texts

_KINDS = {ast.FunctionDef: "function", ast.AsyncFunctionDef: "coroutine", ast.ClassDef: "class"}
_LEAST = 20  # characters of an answer


def texts(modules: Texts) -> Texts:
    """Canonical conversations (data.conversations) from the documents of the source "stdlib"."""

    def documents(left_out: list[LeftOut]) -> Iterator[Document]:
        for content, split in modules.documents(left_out):
            for asked, answer in pairs(content):
                told = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
                yield json.dumps({"messages": told}, ensure_ascii=False).encode("utf-8", "replace"), split

    fingerprint = cache.digest("questions", modules.fingerprint)
    return dataclasses.replace(modules, fingerprint=fingerprint, documents=documents, form="chat")


def pairs(module: bytes) -> Iterator[tuple[str, str]]:
    """(question, answer) for each public function, class and method of a module that has a docstring."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in old modules
            tree = ast.parse(module)
    except (SyntaxError, ValueError, RecursionError):
        return
    pending = [("", node) for node in tree.body]
    while pending:
        inside, node = pending.pop(0)
        if type(node) not in _KINDS or node.name.startswith("_"):
            continue
        answer = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
        if len(answer) >= _LEAST:
            yield f"What does the Python {_KINDS[type(node)]} {inside}{node.name} do?", answer
        if isinstance(node, ast.ClassDef):
            pending += [(f"{inside}{node.name}.", each) for each in node.body]
