"""Kind 1: state that training left in tokenizer.json (truncation, padding), and the like.

transformers sets truncation and padding anew at every call, so that what was saved cuts or fills
nothing.
"""

from checkpoints import Checkpoint
from lib import Answer, Case, Chat, Losses

LONG = "Lend me water for one week only, and I will give you back whatever you ask. " * 2
CHECKS = (Losses(), Answer("Hi"), Answer(LONG), Chat())


def truncation(length, direction="Right", strategy="LongestFirst", stride=0):
    return {"direction": direction, "max_length": length, "strategy": strategy, "stride": stride}


def padding(strategy="BatchLongest", direction="Right", multiple=None, token="<unk>", id=0):
    return {
        "direction": direction,
        "pad_id": id,
        "pad_to_multiple_of": multiple,
        "pad_token": token,
        "pad_type_id": 0,
        "strategy": strategy,
    }


def saved(name, truncation=None, padding=None, **more):
    checkpoint = Checkpoint().tokenizer(truncation=truncation, padding=padding)
    checkpoint.tokenizer_config(**more)
    return Case(name, checkpoint, CHECKS, record="tokenizer", texts=(LONG,))


def cases():
    yield saved(
        "truncation and padding to 128", truncation(128), padding({"Fixed": 128}), pad_token="<unk>"
    )
    yield saved("truncation to 16", truncation(16))
    yield saved("truncation to 16 from the left", truncation(16, "Left"), truncation_side="left")
    yield saved("truncation to 16 with a stride of 4", truncation(16, stride=4))
    yield saved("truncation of the first text only", truncation(16, strategy="OnlyFirst"))
    yield saved("truncation of the second text only", truncation(16, strategy="OnlySecond"))
    yield saved("truncation to 1, less than <s> and a token", truncation(1))
    yield saved("padding to the longest", padding=padding())
    yield saved("padding to a multiple of 8", padding=padding(multiple=8), pad_token="<unk>")
    yield saved(
        "padding to 64 on the left", padding=padding({"Fixed": 64}, "Left"), padding_side="left"
    )
    yield saved(
        "padding with </s>", padding=padding({"Fixed": 64}, token="</s>", id=2), pad_token="</s>"
    )
    yield saved(
        "padding with a token that is not there",
        padding=padding({"Fixed": 64}, token="[PAD]", id=9999),
    )
    yield saved("a model_max_length of 16", model_max_length=16)
    yield saved(
        "max_length, truncation and padding in tokenizer_config.json",
        max_length=8,
        truncation_side="left",
        padding_side="left",
        truncation_strategy="longest_first",
        stride=2,
        pad_to_multiple_of=8,
    )
    yield saved("add_bos_token false, where tokenizer.json adds <s>", add_bos_token=False)
    yield saved(
        "add_eos_token true, where tokenizer.json adds none", add_bos_token=True, add_eos_token=True
    )
    none = Checkpoint().tokenizer(post_processor=None).tokenizer_config(add_bos_token=True)
    yield Case("no post-processor, add_bos_token true", none, CHECKS, record="tokenizer")
    model = Checkpoint().files["tokenizer.json"].json()["model"]
    whole = Checkpoint().tokenizer(model={**model, "dropout": 0.0})
    yield Case("a BPE dropout of 0 left from training", whole, CHECKS, record="tokenizer")
    letters = Checkpoint().tokenizer(model={**model, "dropout": 1.0})
    yield Case(
        "a BPE dropout of 1 left from training",
        letters,
        CHECKS,
        words=("tokenizer.json", "dropout"),
        record="tokenizer",
    )
    pieces = Checkpoint(tokenizer="sentencepiece")
    pieces.tokenizer(truncation=truncation(24), padding=padding({"Fixed": 48}, "Left"))
    yield Case(
        "truncation and padding of a SentencePiece tokenizer", pieces, CHECKS, record="tokenizer"
    )
