"""Kind 9: text that streams while its bytes are not yet whole, or turn out not to be UTF-8.

The model says a given sequence of tokens. What was streamed must be the text that transformers
decodes the whole to.
"""

import functools
import json
import random

from tokenizers import Tokenizer

from checkpoints import SHAPE, Checkpoint, TokenizerFile, table_shape, table_tensors
from lib import Answer, Case, Stream

from .side_files import added

PROMPT = "There was a"


def read(file):
    return Tokenizer.from_str(json.dumps(file.json()))


def saying(checkpoint, ids):
    """Makes the model say `ids` after the prompt's last token; no id may come twice."""
    script = [read(checkpoint.files["tokenizer.json"]).encode(PROMPT).ids[-1], *ids]
    assert len(set(script)) == len(script), script
    size = SHAPE["vocab_size"]

    def tensors(_):
        table = [[0.0] * size for _ in range(size)]
        for first, second in zip(script, script[1:]):
            table[first][second] = 20.0
        return table_tensors(table)

    for key, value in table_shape(size).items():
        checkpoint.config(**{key: value})
    return checkpoint.tensors(tensors).config(eos_token_id=None).generation(eos_token_id=None)


def case(name, checkpoint, ids, words=None):
    n = len(ids)
    made = Case(
        name,
        saying(checkpoint, ids),
        (Answer(PROMPT, n), Stream(PROMPT, n)),
        words,
        record="streaming",
    )
    made.ids = ids
    return made


def byte_token(tokenizer, byte):
    return f"<0x{byte:02X}>" if tokenizer == "sentencepiece" else byte_alphabet()[byte]


@functools.cache
def byte_alphabet():
    """GPT-2's letter for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {
        **{byte: chr(byte) for byte in plain},
        **{byte: chr(256 + i) for i, byte in enumerate(rest)},
    }


def ids_of(tokenizer, parts):
    """Ids of words (text) and bytes (numbers)."""
    vocabulary = read(TokenizerFile(tokenizer)).get_vocab()
    space = "▁" if tokenizer == "sentencepiece" else "Ġ"
    names = [
        byte_token(tokenizer, p) if isinstance(p, int) else p.replace(" ", space) for p in parts
    ]
    return [vocabulary[name] for name in names]


GOOD, BROKEN = list("🎉".encode()), list("🎉".encode())[:2]
SCRIPTS = {
    "a line end, a whole emoji, a word": [0x0A, *GOOD, " the"],
    "a line end, a broken emoji, words": [0x0A, *BROKEN, " the", "in"],
    "a broken emoji, words": [*BROKEN, " the", "in"],
    "a whole two-byte letter, a broken byte, words": [0xC3, 0xBC, 0xE6, " the", "in"],
    "a whole three-byte letter, a broken four-byte one, a word": [
        0xE6,
        0x97,
        0xA5,
        *BROKEN,
        " his",
    ],
    "a broken byte, a whole letter, a word": [0xE6, 0xC3, 0xBC, " the"],
    "two broken ones in a row": [*BROKEN, 0xE6, 0x97, " the"],
    "the end inside a letter": [" the", *BROKEN],
    "the end inside a letter after a whole one": [" the", 0xC3, 0xBC, 0xE6],
    "nothing but a broken letter": BROKEN,
    "a continuation byte alone": [" the", 0x98, " his"],
    "bytes that no UTF-8 has": [0xFF, 0xC0, 0xF5, " the"],
    "a surrogate's bytes": [0xED, 0xA0, 0x80, " the"],
    "an overlong slash": [0xC0, 0xAF, " the"],
    "tab and line ends as bytes": [0x09, "in", 0x0A, " the", 0x0D],
    "letters as bytes": [0x41, 0x42, " the", 0x43],
    "a null byte": [" the", 0x00, "in"],
    "a joined emoji": [*"👩".encode(), 0xE2, 0x80, 0x8D, " the"],
    "a byte order mark": [0xEF, 0xBB, 0xBF, " the"],
    "a replacement character that is meant": [0xEF, 0xBF, 0xBD, " the"],
    "a word that starts without a space": ["in", " the"],
    "a space alone, then a word": [0x20, " the"],
}


def scripts():
    for tokenizer in ("sentencepiece", "byte_level"):
        for name, parts in SCRIPTS.items():
            yield case(
                f"{tokenizer}: {name}", Checkpoint(tokenizer=tokenizer), ids_of(tokenizer, parts)
            )


def special():
    for tokenizer in ("sentencepiece", "byte_level"):
        words = ids_of(tokenizer, [" the", "in", " his"])
        yield case(
            f"{tokenizer}: special tokens between words",
            Checkpoint(tokenizer=tokenizer),
            [0, words[0], 1, words[1], 2, words[2]],
        )
        yield case(
            f"{tokenizer}: a special token inside a letter",
            Checkpoint(tokenizer=tokenizer),
            ids_of(tokenizer, [0xC3]) + [1] + ids_of(tokenizer, [0xBC, " the"]),
        )
        plain = {
            "0": added("<unk>"),
            "1": added("<s>", special=False),
            "2": added("</s>", special=False),
        }
        yield case(
            f"{tokenizer}: added tokens that are not special",
            Checkpoint(tokenizer=tokenizer)
            .tokenizer(added_tokens=[{"id": int(i), **t} for i, t in plain.items()])
            .tokenizer_config(added_tokens_decoder=plain, bos_token=None, eos_token=None),
            [words[0], 1, words[1], 2, words[2]],
        )


def decoders():
    spaces = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    sentence = ids_of("sentencepiece", [" the", "in", " his", " of"])
    yield case(
        "a Metaspace decoder",
        Checkpoint(tokenizer="sentencepiece").tokenizer(decoder=spaces),
        sentence,
    )
    yield case(
        "no decoder", Checkpoint(tokenizer="sentencepiece").tokenizer(decoder=None), sentence
    )
    fused = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ],
    }
    yield case(
        "a decoder that keeps the first space",
        Checkpoint(tokenizer="sentencepiece").tokenizer(decoder=fused),
        sentence,
    )
    yield case(
        "a LlamaTokenizer's own decoder",
        Checkpoint(tokenizer="sentencepiece")
        .tokenizer(decoder=None)
        .tokenizer_config(tokenizer_class="LlamaTokenizer"),
        sentence,
        ("tokenizer_class",),
    )
    vocabulary = read(TokenizerFile("wordpiece")).get_vocab()
    pieces = [vocabulary[p] for p in ("they", "do", "n", "'", "t", "##ing", ",", "you", "?", "!")]
    for clean in (False, True):
        yield case(
            f"WordPiece, clean_up_tokenization_spaces {clean}",
            Checkpoint(tokenizer="wordpiece").tokenizer_config(clean_up_tokenization_spaces=clean),
            pieces,
            ("clean_up_tokenization_spaces",) if clean else None,
        )
    apart = ids_of("byte_level", [" the", 0x20, ".", " his", "!"])
    yield case(
        "BPE, clean_up_tokenization_spaces, which it ignores",
        Checkpoint().tokenizer_config(clean_up_tokenization_spaces=True),
        apart,
    )
    yield case(
        "BPE, clean_up_tokenization_spaces insisted on",
        Checkpoint().tokenizer_config(
            clean_up_tokenization_spaces=True,
            clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output=True,
        ),
        apart,
        ("clean_up_tokenization_spaces",),
    )


def random_scripts(count=12):
    """Whole and broken letters, words and special tokens in any order."""
    generator = random.Random(14)
    letters = [list(c.encode()) for c in "aüñ日本語🎉👍é\n\t"] + [
        BROKEN,
        [0xE6],
        [0xC3],
        [0xFF],
        [0x80],
    ]
    for tokenizer in ("sentencepiece", "byte_level"):
        words = [[w] for w in (" the", "in", " his", " of", "ed", " was", "or", " to")]
        made = 0
        while made < count:
            parts = [p for group in generator.sample(letters + words, 8) for p in group]
            ids = ids_of(tokenizer, dict.fromkeys(parts))
            if generator.random() < 0.5:
                ids.insert(generator.randrange(len(ids)), 2)
            made += 1
            yield case(
                f"{tokenizer}: random bytes and words {made}", Checkpoint(tokenizer=tokenizer), ids
            )


def cases():
    yield from scripts()
    yield from special()
    yield from decoders()
    yield from random_scripts()
