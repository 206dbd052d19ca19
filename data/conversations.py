"""Conversations: the forms that records have, one canonical form of them, and their ids with what is scored.

A canonical conversation is JSON: {"messages": [{"role", "content"}, ...]}, or {"prompt": text, "completion": text} of
plain text. Only what an assistant says, or the completion, is scored; prompts are read and never predicted.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data import chat, roles

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


class Told(NamedTuple):
    """A document as ids `[n]` int32; whether each is scored, `[n]` bool; its kind, `[n]` uint8, of `data.roles`."""

    ids: np.ndarray
    scored: np.ndarray
    kinds: np.ndarray


Segments = list[tuple[int, int, int]]  # (first character, last, kind of data.roles), in their order, of a whole text


def segments(
    messages: Sequence[Mapping[str, str]], template: str, tokenizer: Any, *, answer: bool = False
) -> tuple[str, Segments]:
    """(the text of a conversation, its segments) by a chat template, as in `rendered`.

    An answer is all that stands behind the beginning that the template writes for it, what ends it included. What
    stands between two answers is cut where the kind of messages changes, and where the template does not keep earlier
    messages as they were it is one segment, of the least trusted kind in it. Errors: ValueError where the template
    writes what stands before an answer differently once the answer is there.
    """
    whole, found, waiting = rendered(tokenizer, template, messages, answer=answer), [], []
    text = lambda end, asks: rendered(tokenizer, template, messages[:end], answer=asks)  # noqa: E731
    at = 0
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            waiting.append(i)
            continue
        before, after = text(i, True), text(i + 1, False)
        if not (after.startswith(before) and whole.startswith(after)):
            raise ValueError(
                f"the chat template does not keep message {i + 1} as it was once others follow, so that its place is "
                "not known; use data.template='chatml' or a template that only adds."
            )
        found += _given(messages, waiting, (at, len(before)), whole, text)
        found.append((len(before), len(after), roles.OUTPUT))
        waiting, at = [], len(after)
    return whole, found + _given(messages, waiting, (at, len(whole)), whole, text)


def _given(
    messages: Sequence[Mapping[str, str]], which: Sequence[int], span: tuple[int, int], whole: str, text: Any
) -> Segments:
    """Segments of the messages between two answers, which fill the characters `span` of the whole text."""
    found: Segments = []
    (at, end), kinds = span, [roles.of_message(messages[i]["role"]) for i in which]
    if at == end:
        return found
    least = kinds[0] if kinds else roles.OUTPUT
    for place, i in enumerate(which[1:], 1):
        if kinds[place] != kinds[place - 1] and at < (cut := _kept(text, i, whole)) < end:
            found.append((at, cut, least))
            at, least = cut, kinds[place]
        least = max(least, kinds[place])
    return [*found, (at, end, least)]


def _kept(text: Any, count: int, whole: str) -> int:
    """Where the first `count` messages end in the whole text; -1: the template does not say."""
    try:
        before = text(count, False)
    except ValueError:  # Of a template that wants a user's message, for one.
        return -1
    return len(before) if whole.startswith(before) else -1


def encoded(document: bytes, tokenizer: Any, template: str) -> Told:
    """A canonical conversation as ids; the first one is never scored.

    Args:
      document: of `canonical`.
      tokenizer: with `chat`, a template, where `template` is "".
      template: as in `rendered`; for messages alone.

    A prompt with its completion is `[bos] prompt completion [eos]`, where completion and eos are scored.
    """
    told = json.loads(document)
    if "messages" in told:
        ids, scored, kinds = marked(tokenizer, *segments(told["messages"], template, tokenizer), specials=True)
        starts = getattr(tokenizer, "add_bos", True)
        front = [tokenizer.bos] if starts and ids[:1].tolist() != [tokenizer.bos] else []
        back: list[int] = []
    else:
        text, cut = told["prompt"] + told["completion"], len(told["prompt"])
        parts = [(0, cut, roles.USER), (cut, len(text), roles.OUTPUT)]
        ids, scored, kinds = marked(tokenizer, text, parts, specials=False)
        front, back = [tokenizer.bos], [tokenizer.eos]
    ids = np.concatenate([front, ids, back]).astype(np.int32)
    scored = np.concatenate([np.zeros(len(front), bool), scored, np.ones(len(back), bool)])
    first = kinds[:1] if len(kinds) else [roles.USER]
    kinds = np.concatenate([[first[0]] * len(front), kinds, [roles.OUTPUT] * len(back)]).astype(np.uint8)
    scored[:1] = False
    return Told(ids, scored, kinds)


def asked(messages: Sequence[Mapping[str, str]], template: str, tokenizer: Any) -> tuple[str, Told]:
    """(text, ids) of messages and the beginning of an answer: a prompt, read as one text, without bos in front."""
    text, parts = segments(messages, template, tokenizer, answer=True)
    ids, first, at = _placed(tokenizer, [text] if text else [], specials=True)
    kinds = roles.of_tokens(first, [(at(text, begin), at(text, end), kind) for begin, end, kind in parts])
    return text, Told(ids, np.zeros(len(ids), bool), kinds)


def marked(tokenizer: Any, text: str, parts: Segments, *, specials: bool) -> Told:
    """A text as ids; scored is what begins within a part whose kind is output.

    A tokenizer that tells where its pieces stand reads the text as a whole; others read what stands between answers,
    and answers, by themselves, and a piece's place is that of its first byte.
    """
    pieces, flags, last = [], [], 0
    for begin, end, kind in parts:
        if kind == roles.OUTPUT:
            pieces += [text[last:begin], text[begin:end]]
            flags += [False, True]
            last = end
    pieces, flags = [*pieces, text[last:]], [*flags, False]
    ids, first, at = _placed(tokenizer, pieces, specials=specials)
    spans = [(at(text, begin), at(text, end), kind) for begin, end, kind in parts]
    scored = np.zeros(len(ids), bool)
    for begin, end, kind in spans:
        scored |= (kind == roles.OUTPUT) & (first >= begin) & (first < end)
    return Told(ids, scored, roles.of_tokens(first, spans))


def _placed(tokenizer: Any, pieces: Sequence[str], *, specials: bool) -> tuple[np.ndarray, np.ndarray, Any]:
    """(ids `[n]`, where each begins `[n]`, at(text, character): that place in the same count) of a text's pieces.

    Places are characters where the tokenizer tells them, else bytes.
    """
    if hasattr(tokenizer, "encode_placed"):
        return *tokenizer.encode_placed("".join(pieces), specials=specials), lambda text, k: k
    made = [np.asarray(tokenizer.encode(piece), np.int32) for piece in pieces if piece]
    ids = np.concatenate([np.empty(0, np.int32), *made])
    sizes = np.asarray(tokenizer.token_bytes)[ids]
    return ids, np.cumsum(sizes) - sizes, lambda text, k: len(text[:k].encode("utf-8", "surrogateescape"))


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
