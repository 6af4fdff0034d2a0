#!/usr/bin/env python3
"""Makes the three small tokenizers of tests/fixtures/hf/tokenizers from tests/fixtures/sample.txt.

    train_tokenizers.py

They are committed, since training breaks ties in an order that no version promises; this says how
they were made. `byte_level.json` is of the kind of GPT-2, Llama 3 and SmolLM2, `sentencepiece.json`
of Llama 2 and Phi-3 (legacy normalizer, bytes as tokens), and `wordpiece.json` of BERT. Each has
400 tokens, so that one model fits them all.
"""

import json
import pathlib

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
FIXTURES = REPOSITORY / "tests/fixtures"
SIZE = 400
SPECIAL = ["<unk>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]


def begin(tokenizer):
    """Puts <s> before every text that asks for special tokens."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )


def byte_level(text):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    begin(tokenizer)
    return tokenizer


def sentencepiece(text):
    """SentencePiece's byte fallback is no part of BPE training here: the bytes are put before what
    was learned.
    """
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    learned = SIZE - len(SPECIAL) - len(bytes_)
    trainer = trainers.BpeTrainer(vocab_size=learned, limit_alphabet=72, show_progress=False)
    learner.train_from_iterator(text.splitlines(), trainer)  # a line end stays the byte <0x0A>
    model = json.loads(learner.to_str())["model"]
    vocabulary = {token: i for i, token in enumerate(SPECIAL[:3] + bytes_)}
    for token in sorted(model["vocab"], key=model["vocab"].get):
        vocabulary[token] = len(vocabulary)
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(SPECIAL)
    begin(tokenizer)
    return tokenizer


def wordpiece(text):
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    trainer = trainers.WordPieceTrainer(
        vocab_size=SIZE, special_tokens=SPECIAL, limit_alphabet=72, show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    begin(tokenizer)
    return tokenizer


def main():
    text = (FIXTURES / "sample.txt").read_text(encoding="utf-8")
    out = FIXTURES / "hf/tokenizers"
    out.mkdir(parents=True, exist_ok=True)
    for make in (byte_level, sentencepiece, wordpiece):
        tokenizer = make(text)
        assert tokenizer.get_vocab_size() == SIZE, (make.__name__, tokenizer.get_vocab_size())
        path = out / f"{make.__name__}.json"
        path.write_text(tokenizer.to_str(), encoding="utf-8")
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
