"""Kind 3: special tokens that other files than tokenizer.json declare, and which of them counts.

With an added_tokens_decoder in tokenizer_config.json transformers reads neither
special_tokens_map.json nor added_tokens.json. Without one the map overrides tokenizer_config.json.
Tokens are added in the order of their ids, at the end of the vocabulary, whatever those ids are.
"""

from checkpoints import CHAT, DROP, Checkpoint
from lib import Answer, Case, Chat, Losses

from .side_files import CHATML, added

TEXTS = (
    "<|im_start|>user\nHi <|im_end|> there",
    "one<|end|>  two</s> three <s>four",
    "  <|user|>\n\nspaces <|end|> \n after",
    "[PAD] <tool> <think>so</think> <extra>",
    "café über 日本 🎉",
)
SPOKEN = "one <|end|> two </s> three <tool> <think>"
CHECKS = (Answer(), Chat(), Chat(SPOKEN), Answer(TEXTS[1]), Answer(TEXTS[3]))


def case(name, checkpoint, **more):
    return Case(
        name,
        checkpoint,
        more.pop("checks", CHECKS),
        record="tokenizer",
        texts=TEXTS,
        chats=(SPOKEN,),
        **more,
    )


def wide(extra, chat=CHATML):
    return Checkpoint(chat=chat, shape={"vocab_size": 400 + extra})


def decoder(tokens):
    return {str(id): added(content, **flags) for id, (content, flags) in tokens.items()}


def without(content):
    """tokenizer.json with one token in the vocabulary but not among the added ones."""
    checkpoint = Checkpoint(chat="{{ messages[0]['content'] }}" + content)
    tokens = checkpoint.files["tokenizer.json"].json()["added_tokens"]
    return checkpoint.tokenizer(added_tokens=[t for t in tokens if t["content"] != content])


def declared():
    im = {400: ("<|im_start|>", {}), 401: ("<|im_end|>", {})}
    yield case("added_tokens_decoder", wide(2).tokenizer_config(added_tokens_decoder=decoder(im)))
    yield case(
        "added_tokens_decoder with the ids of the vocabulary and none in tokenizer.json",
        Checkpoint()
        .tokenizer(added_tokens=[])
        .tokenizer_config(
            added_tokens_decoder=decoder(
                {
                    0: ("<unk>", {}),
                    1: ("<s>", {}),
                    2: ("</s>", {}),
                    4: ("<|user|>", {}),
                    5: ("<|assistant|>", {}),
                    6: ("<|end|>", {}),
                }
            )
        ),
    )
    gap = {405: ("<|im_start|>", {}), 409: ("<|im_end|>", {})}
    yield case(
        "added_tokens_decoder with ids beyond the end: transformers counts on from the end",
        wide(10).tokenizer_config(added_tokens_decoder=decoder(gap)),
        words=("added_tokens_decoder", "405"),
    )
    swapped = {400: ("<|im_end|>", {}), 401: ("<|im_start|>", {})}
    yield case(
        "added_tokens_decoder in the other order",
        wide(2).tokenizer_config(added_tokens_decoder=decoder(swapped)),
    )
    yield case(
        "added_tokens.json",
        wide(2).file("added_tokens.json", {"<|im_start|>": 400, "<|im_end|>": 401}),
    )
    yield case(
        "added_tokens.json in the other order of ids",
        wide(2).file("added_tokens.json", {"<|im_start|>": 401, "<|im_end|>": 400}),
    )
    yield case(
        "added_tokens.json beside an added_tokens_decoder, which alone counts",
        wide(2)
        .tokenizer_config(added_tokens_decoder=decoder(im))
        .file("added_tokens.json", {"<tool>": 402}),
    )
    yield case(
        "added_tokens.json that names what tokenizer.json has",
        Checkpoint().file("added_tokens.json", {"<|end|>": 6, "<|user|>": 4}),
    )
    yield case(
        "added_tokens.json with the eos of tokenizer_config.json",
        wide(2)
        .tokenizer_config(eos_token="<|im_end|>")
        .file("added_tokens.json", {"<|im_start|>": 400, "<|im_end|>": 401}),
    )
    think = {400: ("<think>", {"special": False}), 401: ("</think>", {"special": False})}
    yield case(
        "tokens that are added but not special",
        wide(2, CHAT).tokenizer_config(added_tokens_decoder=decoder(think)),
    )
    yield case("an eos in the vocabulary, not among the added tokens", without("</s>"))
    yield case("a turn's end in the vocabulary, not among the added tokens", without("<|end|>"))


def other_files():
    yield case(
        "bos in special_tokens_map.json alone",
        Checkpoint()
        .tokenizer_config(bos_token=DROP)
        .file("special_tokens_map.json", {"bos_token": "<s>"}),
    )
    yield case(
        "special_tokens_map.json with objects for tokens",
        Checkpoint()
        .tokenizer_config(bos_token=DROP, eos_token=DROP)
        .file(
            "special_tokens_map.json",
            {"bos_token": added("<s>", rstrip=True), "eos_token": added("</s>")},
        ),
    )
    other = {"bos_token": "<|user|>", "eos_token": "<|end|>"}
    chat = "{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}"
    yield case(
        "special_tokens_map.json contradicts tokenizer_config.json",
        Checkpoint(chat=chat).file("special_tokens_map.json", other),
    )
    yield case(
        "the same beside an added_tokens_decoder, with which the map is not read",
        Checkpoint(chat=chat)
        .file("special_tokens_map.json", other)
        .tokenizer_config(
            added_tokens_decoder=decoder({0: ("<unk>", {}), 1: ("<s>", {}), 2: ("</s>", {})})
        ),
    )
    yield case(
        "special_tokens_map.json adds tokens that nothing else knows",
        wide(2).file(
            "special_tokens_map.json", {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}
        ),
    )
    yield case(
        "special_tokens_map.json with objects among the additional ones",
        wide(2).file(
            "special_tokens_map.json",
            {"additional_special_tokens": [added("<|im_start|>"), added("<|im_end|>")]},
        ),
        words=("special_tokens_map.json", "additional_special_tokens"),
        may_run=True,
    )
    yield case(
        "special_tokens_map.json with extra_special_tokens",
        wide(2).file(
            "special_tokens_map.json", {"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]}
        ),
    )


def configured():
    yield case(
        "additional_special_tokens",
        wide(2).tokenizer_config(additional_special_tokens=["<|im_start|>", "<|im_end|>"]),
    )
    yield case(
        "extra_special_tokens as a list",
        wide(2).tokenizer_config(extra_special_tokens=["<|im_start|>", "<|im_end|>"]),
    )
    yield case(
        "extra_special_tokens as named tokens",
        wide(2, "{{ start_token }}{{ messages[0].content }}{{ end_token }}").tokenizer_config(
            extra_special_tokens={"start_token": "<|im_start|>", "end_token": "<|im_end|>"}
        ),
    )
    yield case(
        "additional_special_tokens and extra_special_tokens, where the second counts",
        wide(2).tokenizer_config(
            additional_special_tokens=["<tool>"],
            extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        ),
    )
    yield case(
        "a token of one's own name",
        wide(1, "{{ tool_token }}{{ messages[0].content }}").tokenizer_config(tool_token="<tool>"),
    )
    yield case(
        "a pad token that is nowhere else", wide(1, CHAT).tokenizer_config(pad_token="[PAD]")
    )
    yield case(
        "sep, cls and mask tokens",
        wide(
            2, "{{ cls_token }}{{ messages[0].content }}{{ sep_token }}{{ mask_token }}"
        ).tokenizer_config(cls_token="<|user|>", sep_token="<tool>", mask_token="<extra>"),
    )
    yield case(
        "tokens as objects with __type",
        Checkpoint().tokenizer_config(
            bos_token={"__type": "AddedToken", **added("<s>")},
            eos_token={"__type": "AddedToken", **added("</s>")},
        ),
    )
    yield case(
        "tokens as objects without __type",
        Checkpoint().tokenizer_config(bos_token=added("<s>"), eos_token=added("</s>")),
        words=("tokenizer_config.json", "bos_token"),
        may_run=True,
    )
    yield case("no bos token", Checkpoint().tokenizer_config(bos_token=None))
    yield case("no unk token", Checkpoint().tokenizer_config(unk_token=DROP))
    yield case("the eos is the bos", Checkpoint().tokenizer_config(eos_token="<s>"))
    yield case("split_special_tokens", Checkpoint().tokenizer_config(split_special_tokens=True))
    yield case(
        "split_special_tokens false", Checkpoint().tokenizer_config(split_special_tokens=False)
    )
    yield case(
        "a token beyond the model's vocabulary",
        Checkpoint(chat=CHATML).tokenizer_config(
            additional_special_tokens=["<|im_start|>", "<|im_end|>"]
        ),
        words=("400",),
        checks=(Chat(),),
    )


def flags():
    strip = {
        5: ("<|assistant|>", {"rstrip": True}),
        6: ("<|end|>", {"rstrip": True}),
        4: ("<|user|>", {"rstrip": True}),
    }
    yield case(
        "added_tokens_decoder strips spaces to the right, tokenizer.json does not",
        Checkpoint().tokenizer_config(added_tokens_decoder=decoder(strip)),
    )
    left = {6: ("<|end|>", {"lstrip": True}), 2: ("</s>", {"lstrip": True, "rstrip": True})}
    yield case(
        "added_tokens_decoder strips spaces to the left",
        Checkpoint().tokenizer_config(added_tokens_decoder=decoder(left)),
    )
    plain = {6: ("<|end|>", {"special": False}), 2: ("</s>", {"special": False})}
    yield case(
        "added_tokens_decoder makes tokens ordinary",
        Checkpoint().tokenizer_config(added_tokens_decoder=decoder(plain)),
    )
    word = {6: ("<|end|>", {"single_word": True})}
    yield case(
        "added_tokens_decoder wants single words",
        Checkpoint().tokenizer_config(added_tokens_decoder=decoder(word)),
    )
    own = Checkpoint()
    tokens = [
        {**t, "rstrip": t["content"] == "<|end|>"}
        for t in own.files["tokenizer.json"].json()["added_tokens"]
    ]
    yield case("tokenizer.json itself strips", own.tokenizer(added_tokens=tokens))
    pieces = Checkpoint(tokenizer="sentencepiece")
    yield case(
        "SentencePiece with stripping tokens, as Phi-3 has them",
        pieces.tokenizer_config(
            added_tokens_decoder=decoder(
                {
                    397: ("<|user|>", {"rstrip": True}),
                    398: ("<|assistant|>", {"rstrip": True}),
                    399: ("<|end|>", {"rstrip": True}),
                    2: ("</s>", {"rstrip": True, "special": False}),
                }
            )
        ),
    )
    yield case(
        "SentencePiece with tokens in added_tokens.json",
        Checkpoint(tokenizer="sentencepiece", chat=CHATML, shape={"vocab_size": 402}).file(
            "added_tokens.json", {"<|im_start|>": 400, "<|im_end|>": 401}
        ),
    )


def classes():
    """tokenizer_class: some classes rebuild the tokenizer from vocabulary and merges, and take only
    that and the post-processor from tokenizer.json.
    """
    refused = ("tokenizer_class",)
    for name in (
        "TokenizersBackend",
        "PreTrainedTokenizer",
        "SomebodysTokenizer",
        "GPT2Tokenizer",
        "GPT2TokenizerFast",
        "Qwen2Tokenizer",
        "LlamaTokenizer",
        "LlamaTokenizerFast",
    ):
        yield case(
            f"tokenizer_class {name}",
            Checkpoint().tokenizer_config(tokenizer_class=name),
            words=refused,
            checks=(Losses(), *CHECKS),
        )
    yield case(
        "no tokenizer_class",
        Checkpoint().tokenizer_config(tokenizer_class=DROP),
        checks=(Losses(), *CHECKS),
    )
    yield case(
        "tokenizer_class in config.json",
        Checkpoint().tokenizer_config(tokenizer_class=DROP).config(tokenizer_class="GPT2Tokenizer"),
        words=refused,
        checks=(Losses(), *CHECKS),
    )
    spaced = "  two spaces,\n<|end|> then one"
    checks = (Losses(), *CHECKS, Answer(spaced))
    for name in ("LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast"):
        yield case(
            f"SentencePiece, tokenizer_class {name}",
            Checkpoint(tokenizer="sentencepiece").tokenizer_config(tokenizer_class=name),
            words=refused,
            checks=checks,
        )
    yield case(
        "SentencePiece, LlamaTokenizer with legacy and no prefix space",
        Checkpoint(tokenizer="sentencepiece").tokenizer_config(
            tokenizer_class="LlamaTokenizer", legacy=True, add_prefix_space=False
        ),
        words=refused,
        checks=checks,
    )
    yield case(
        "SentencePiece, LlamaTokenizer in a Phi-3 model",
        Checkpoint("phi3", tokenizer="sentencepiece").tokenizer_config(
            tokenizer_class="LlamaTokenizer", legacy=False
        ),
        checks=checks,
    )
    letters = Checkpoint().tokenizer(
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": "[A-Za-z]"},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {
                    "type": "ByteLevel",
                    "add_prefix_space": False,
                    "trim_offsets": True,
                    "use_regex": True,
                },
            ],
        }
    )
    yield case(
        "a pre-tokenizer of its own, tokenizer_class GPT2Tokenizer",
        letters.tokenizer_config(tokenizer_class="GPT2Tokenizer"),
        words=refused,
        checks=(Losses(), *CHECKS),
    )
    yield case(
        "GPT2Tokenizer with add_prefix_space",
        Checkpoint().tokenizer_config(tokenizer_class="GPT2Tokenizer", add_prefix_space=True),
        words=refused,
        checks=(Losses(), *CHECKS),
    )
    yield case(
        "GPT2Tokenizer without a bos token takes its own",
        wide(1, CHAT).tokenizer_config(tokenizer_class="GPT2Tokenizer", bos_token=DROP),
        words=refused,
    )
    yield case(
        "add_prefix_space true in tokenizer_config.json alone",
        Checkpoint().tokenizer_config(add_prefix_space=True),
        checks=(Losses(), *CHECKS),
    )
    yield case(
        "tokenizer_file names another file",
        Checkpoint().tokenizer_config(tokenizer_file="/nowhere/tokenizer.json"),
    )


def cases():
    yield from declared()
    yield from other_files()
    yield from configured()
    yield from flags()
    yield from classes()
