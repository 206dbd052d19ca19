"""Conversations: the forms that records have, one canonical form of them, and their ids with what is scored.

A canonical conversation is JSON: {"messages": [{"role", "content"}, ...]}, or {"prompt": text, "completion": text} of
plain text. Only what an assistant says, or the completion, is scored; prompts are read and never predicted.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data import chat

_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
FORMS = (
    '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}, '
    '{"prompt": "...", "completion": "..."} or {"instruction": "...", "output": "..."}'
)


def chatml(messages: Sequence[Mapping[str, str]], *, answer: bool) -> str:
    """Messages between <|im_start|> and <|im_end|>; `answer`: with the beginning of one behind them."""
    told = "".join(f"<|im_start|>{each['role']}\n{each['content']}<|im_end|>\n" for each in messages)
    return told + "<|im_start|>assistant\n" * answer


TEMPLATES = {"chatml": chatml}


def rendered(tokenizer: Any, template: str, messages: Sequence[Mapping[str, str]], *, answer: bool) -> str:
    """The text of messages; `answer`: with the beginning of an assistant's answer behind them.

    template: a name in `TEMPLATES` or a jinja template; "" is the tokenizer's own. Errors: ValueError.
    """
    used = template or getattr(tokenizer, "chat", "")
    if not used:
        raise ValueError(
            f"tokenizer={tokenizer.name!r} brings no chat template; use template='chatml' or a .jinja file."
        )
    if used in TEMPLATES:
        return TEMPLATES[used](messages, answer=answer)
    names = getattr(tokenizer, "names", {"bos_token": "", "eos_token": ""})
    return chat.render(used, messages, answer=answer, **names)


def canonical(record: Any, columns: tuple[str, ...], where: str) -> bytes:
    """The conversation of a record; `columns` may name the one place where its messages stand.

    Known are messages (role, content), conversations (from, value), prompt with completion or response (texts, or
    messages), and instruction, input, output. Errors: ValueError naming `where` for other records.
    """
    try:
        told = _read(record, columns)
    except (KeyError, TypeError, ValueError, AttributeError):
        told = None
    if told is None:
        raise ValueError(f"path={where!r} is no conversation; use lines like {FORMS}.")
    return json.dumps(told, ensure_ascii=False).encode("utf-8", "replace")


def _read(record: Mapping[str, Any], columns: tuple[str, ...]) -> dict[str, Any] | None:
    named = columns[0] if columns else next((name for name in ("messages", "conversations") if record.get(name)), "")
    if named:
        return {"messages": _checked([_message(each) for each in record[named]])}
    if "prompt" in record:
        prompt, answer = record["prompt"], record["completion"] if "completion" in record else record["response"]
        if isinstance(prompt, str) and isinstance(answer, str):
            return {"prompt": prompt, "completion": answer}
        answer = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
        return {"messages": _checked([_message(each) for each in (*prompt, *answer)])}
    asked = record["instruction"] + (f"\n\n{record['input']}" if record.get("input") else "")
    told = [{"role": "user", "content": asked}, {"role": "assistant", "content": record["output"]}]
    return {"messages": _checked([_message(each) for each in told])}


def _message(told: Mapping[str, Any]) -> dict[str, str]:
    role, content = (told["role"], told["content"]) if "role" in told else (told["from"], told["value"])
    if not isinstance(role, str) or not isinstance(content, str):
        raise ValueError
    return {"role": _ROLES.get(role, role), "content": content}


def _checked(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """With an answer in it, which is what is learned."""
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError
    return messages


def spans(messages: Sequence[Mapping[str, str]], template: str, tokenizer: Any) -> tuple[str, list]:
    """(the text of a conversation, [(first, last) character of each answer]) by a chat template, as in `rendered`.

    An answer is all that stands behind the beginning that the template writes for it, what ends it included. Errors:
    ValueError where the template writes earlier messages differently once later ones are there.
    """
    whole, found = rendered(tokenizer, template, messages, answer=False), []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = rendered(tokenizer, template, messages[:i], answer=True)
        after = rendered(tokenizer, template, messages[: i + 1], answer=False)
        if not (after.startswith(before) and whole.startswith(after)):
            raise ValueError(
                f"the chat template does not keep message {i + 1} as it was once others follow, so that its place is "
                "not known; use data.template='chatml' or a template that only adds."
            )
        found.append((len(before), len(after)))
    return whole, found


def encoded(document: bytes, tokenizer: Any, template: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids `[n]` int32 of a canonical conversation, and whether each is scored, `[n]` bool; the first one never is.

    Args:
      document: of `canonical`.
      tokenizer: with `chat`, a template, where `template` is "".
      template: as in `rendered`; for messages alone.

    A prompt with its completion is `[bos] prompt completion [eos]`, where completion and eos are scored.
    """
    told = json.loads(document)
    if "messages" in told:
        text, answers = spans(told["messages"], template, tokenizer)
        ids, scored = marked(tokenizer, text, answers, specials=True)
        starts = getattr(tokenizer, "add_bos", True)
        front = [tokenizer.bos] if starts and ids[:1].tolist() != [tokenizer.bos] else []
        back: list[int] = []
    else:
        text = told["prompt"] + told["completion"]
        ids, scored = marked(tokenizer, text, [(len(told["prompt"]), len(text))], specials=False)
        front, back = [tokenizer.bos], [tokenizer.eos]
    ids = np.concatenate([front, ids, back]).astype(np.int32)
    scored = np.concatenate([np.zeros(len(front), bool), scored, np.ones(len(back), bool)])
    scored[:1] = False
    return ids, scored


def marked(tokenizer: Any, text: str, answers: Sequence[tuple[int, int]], *, specials: bool) -> tuple:
    """(ids, scored) of a text: scored is what begins within one of `answers`, (first, last) characters.

    A tokenizer that tells where its pieces stand reads the text as a whole; others read it in parts.
    """
    if hasattr(tokenizer, "encode_placed"):
        ids, first = tokenizer.encode_placed(text, specials=specials)
        scored = np.zeros(len(ids), bool)
        for begin, end in answers:
            scored |= (first >= begin) & (first < end)
        return ids, scored
    found, at = [], 0
    for begin, end in answers:
        found += [(text[at:begin], False), (text[begin:end], True)]
        at = end
    parts = [
        (np.asarray(tokenizer.encode(part), np.int32), flag) for part, flag in (*found, (text[at:], False)) if part
    ]
    ids = np.concatenate([np.empty(0, np.int32), *(ids for ids, _ in parts)])
    return ids, np.concatenate([np.empty(0, bool), *(np.full(len(ids), flag) for ids, flag in parts)])


def template_of(named: str) -> str:
    """What `data.template` names: "" (the tokenizer's own), a name in `TEMPLATES`, or the text of a file."""
    if not named or named in TEMPLATES:
        return named
    try:
        with open(named, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"template={named!r} is no file that can be read ({error}); use '', 'chatml' or a .jinja file."
        ) from None
