"""A tokenizer that puts the chat template around prompts, and is the same in all else."""

import pytest

import data
from experiments.generation import requests
from experiments.generation.chatting import Chat


def test_prompts_are_what_a_user_says_and_text_comes_back_as_it_was():
    plain = data.ByteTokenizer()
    chatting = Chat(plain, "chatml")
    ids = requests.encode(chatting, "a b")
    assert ids[0] == plain.bos and plain.decode(ids) == "<|im_start|>user\na b<|im_end|>\n<|im_start|>assistant\n"
    decoder = data.StreamDecoder(chatting)
    assert "".join(decoder.push(token) for token in "one é".encode()) == "one é"
    assert (chatting.eos, chatting.vocab_size) == (plain.eos, plain.vocab_size)
    with pytest.raises(ValueError, match="brings no chat template"):
        Chat(plain, "")
