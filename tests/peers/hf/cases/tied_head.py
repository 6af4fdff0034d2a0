"""Kind 5: tie_word_embeddings against what the files hold.

transformers ties only what is missing or equal: with both tensors there and different, the flag is
not followed.
"""

import torch

from checkpoints import DROP, Checkpoint, by_layer, shards
from lib import Answer, Case, Losses

CHECKS = (Losses(), Answer())
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def case(name, checkpoint, **more):
    return Case(name, checkpoint, CHECKS, **more)


def flagged(value, family="llama", **change):
    return Checkpoint(family).config(tie_word_embeddings=value, **change)


def same(tensors):
    tensors[HEAD] = tensors[EMBED].clone()


def one_off(tensors):
    same(tensors)
    tensors[HEAD][7, 7] += 1


def cases():
    for family in ("llama", "phi3"):
        yield case(f"{family}: true, with another head", flagged(True, family))
        yield case(f"{family}: true, without a head", Checkpoint(family, tied=True))
        yield case(
            f"{family}: true, with a head equal to the embedding",
            flagged(True, family).tensors(same),
        )
        yield case(
            f"{family}: true, with a head that differs in one element",
            flagged(True, family).tensors(one_off),
        )
        yield case(
            f"{family}: false, without a head",
            Checkpoint(family, tied=True).config(tie_word_embeddings=False),
            words=(HEAD,),
        )
        yield case(
            f"{family}: no flag, without a head",
            Checkpoint(family, tied=True).config(tie_word_embeddings=DROP),
            words=(HEAD,),
        )
        yield case(
            f"{family}: no flag, with a head", Checkpoint(family).config(tie_word_embeddings=DROP)
        )
        yield case(
            f"{family}: false, with a head equal to the embedding", Checkpoint(family).tensors(same)
        )
    yield case(
        "true, a head and no embedding",
        flagged(True).tensors(lambda t: t.pop(EMBED) is None or None),
        words=(EMBED,),
    )
    yield case(
        "false, a head and no embedding",
        flagged(False).tensors(lambda t: t.pop(EMBED) is None or None),
        words=(EMBED,),
    )
    yield case(
        "true, neither head nor embedding",
        Checkpoint(tied=True).tensors(lambda t: t.pop(EMBED) is None or None),
        words=(EMBED,),
    )
    wide = lambda t: {**t, HEAD: t[EMBED].float()}  # noqa: E731
    yield case("true, a head of another type with the same values", flagged(True).tensors(wide))
    yield case(
        "true, another head in f32",
        flagged(True).tensors(lambda t: {**t, HEAD: t[HEAD].float() * 1.001}),
    )
    yield case(
        "true, a head of more rows",
        flagged(True).tensors(lambda t: {**t, HEAD: torch.cat([t[HEAD], t[HEAD][:8]])}),
        words=(HEAD, "408", "400"),
    )
    yield case(
        "false, a head of fewer rows",
        flagged(False).tensors(lambda t: {**t, HEAD: t[HEAD][:392].clone()}),
        words=(HEAD, "392", "400"),
    )
    yield case(
        "true, another head in a shard of its own",
        flagged(True).layout(
            lambda t: shards(t, lambda k: 2 if k == HEAD else by_layer(k), count=3)
        ),
    )
    yield case("null, with a head", flagged(None), words=("tie_word_embeddings",))
