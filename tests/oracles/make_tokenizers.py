"""Byte-level vocabularies as released models have them, made small by the tokenizers library, and what it
makes of hostile texts: tokenizers/NAME.json and NAME.h5.  tiktoken must give the same where it can."""

import os

import h5py
import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from common import HERE, Random

LLAMA = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TRAINING = ["in the beginning was the word and the word was with the other, and he'll say it's 1234 times",
            "    if (x == 0) {\n\t\treturn 12345;\n    }\n\n", "Ünïcödé été naïve Привет мир 日本語 한국어"] * 40
SPECIAL = ["<|end|>", "<|end|><|end|>", "<tool>"]


def hostile():
    r = Random("hostile texts")
    yield from ["", " ", "\n", "\r\n", "a", "'", "''s", "the word was with the other"]
    yield "it's IT'S I'LL you're YOU'RE 'Ve 'tis x'ſ 'K o'clock ''d 'm'm"
    yield "1 12 123 1234 12345 x1y22 ٣٤٥ ⅷⅸ ½¼ 3.14 1,000,000 ²³ 一二三"
    yield "  lead   gaps    \t\tx \n\n y\r\n\r\n  z  \u00a0\u2003 \u3000w\u0085\u2028v   "
    yield "!?... --x ~~~\n\n ::\r\n<|end|> <|end|><|end|>x<|end|<tool><tool >"
    yield "e\u0301 \u0301e a\u0316\u0301 a\u0301\u0316 \u1100\u1161\u11a8 각\u11a8 가\u11a8 ﬁ Å Å \u0344 ẛ̣ \u0958 \u2126"
    yield "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 \u200b\u200d\ufeff\u202e שלום مرحبا हिन्दी ไทย မြန်မာ ᏣᎳᎩ 𝔘𝔫𝔦 𐍈 𒀀"
    yield "\x00\x01\x7f\u0080\u009f\ue000\uf8ff\ufffd\uffff\U0010ffff\U000e0001"
    yield " " * 3001 + "x" + " " * 2000
    yield "a" * 1500 + "the" * 700 + "\n" * 500 + "é" * 301
    letters = [c for c in range(1, 0x110000) if not 0xD800 <= c < 0xE000]
    for n, top in ((300, 0x180), (600, 0x3000), (900, len(letters))):
        yield "".join(chr(letters[int(i)]) for i in r.integers(top, n))
    marks = "ae\u0301\u0316\u0323\u0308 \u1100\u1161\u11a8\u0344가\u0f71\u0f72\u0f74'sS1 \n\r"
    yield "".join(marks[int(i)] for i in r.integers(len(marks), 800))


def make(name, cuts, normalizer=None, whole_first=False):
    t = Tokenizer(models.BPE(ignore_merges=whole_first))
    t.normalizer = normalizer
    t.pre_tokenizer = cuts
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(TRAINING, trainers.BpeTrainer(
        vocab_size=256 + 90, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    t.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL[:2]])
    t.add_tokens([AddedToken(SPECIAL[2], normalized=True)])
    folder = os.path.join(HERE, "tokenizers")
    os.makedirs(folder, exist_ok=True)
    t.save(os.path.join(folder, name + ".json"), pretty=False)
    texts = list(hostile())
    ids = [t.encode(x, add_special_tokens=False).ids for x in texts]
    back = [t.decode(i, skip_special_tokens=False) for i in ids]
    for x, y in zip(texts, back):
        assert y == (x if normalizer is None else normalizer.normalize_str(x)), (name, x[:40], y[:40])
    raw = [x.encode() for x in texts]
    joined = lambda parts: np.cumsum([0] + [len(p) for p in parts]).astype(np.int32)
    with h5py.File(os.path.join(folder, name + ".h5"), "w", track_order=True) as f:
        for key, value in (("text", np.frombuffer(b"".join(raw), np.uint8)), ("text_at", joined(raw)),
                           ("tokens", np.array([i for x in ids for i in x], np.int32)), ("tokens_at", joined(ids))):
            f.create_dataset(key, data=value, track_times=False, compression="gzip")
    print(name, t.get_vocab_size(), "tokens,", len(texts), "texts")
    return t, texts, ids


def same_in_tiktoken(pattern, t, texts, ids):
    import tiktoken
    byte = {c: b for b, c in enumerate(characters())}
    ranks = {bytes(byte[c] for c in s): i for s, i in t.get_vocab().items() if s not in SPECIAL}
    e = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    same = [e.encode_ordinary(x) == i for x, i in zip(texts, ids) if not any(s in x for s in SPECIAL)]
    print("tiktoken gives the same for", sum(same), "of", len(same))


def characters():
    other = iter(range(256, 512))
    return [chr(b) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174 else chr(next(other)) for b in range(256)]


def byte_level(pattern=None):
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    if pattern is None:
        return last
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), last])


if __name__ == "__main__":
    gpt2 = make("gpt2", byte_level())
    llama = make("llama3", byte_level(LLAMA % r"\p{N}{1,3}"), whole_first=True)
    make("qwen2", byte_level(LLAMA % r"\p{N}"), normalizer=normalizers.NFC())
    same_in_tiktoken(GPT2, *gpt2)
    same_in_tiktoken(LLAMA % r"\p{N}{1,3}", *llama)
