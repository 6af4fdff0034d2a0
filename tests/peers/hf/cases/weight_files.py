"""Kind 4: which file of weights counts, where a directory holds more than one set, or a part of
one.
"""

import io

import torch
from safetensors.torch import save

from checkpoints import INDEX, Checkpoint, by_layer, shard_index, shards, tensors_of
from lib import Answer, Case, Losses

CHECKS = (Losses(), Answer())
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def case(name, arrange, checkpoint=None, **more):
    return Case(name, (checkpoint or Checkpoint()).layout(arrange), CHECKS, **more)


def old():
    """Another training's weights, of the same shapes."""
    return tensors_of("llama", seed=9)


def pickled(tensors):
    out = io.BytesIO()
    torch.save(tensors, out)
    return out.getvalue()


def whole_and_shards():
    single = lambda t: {"model.safetensors": t}  # noqa: E731
    yield case("shards and their index", lambda t: shards(t, by_layer))
    yield case(
        "model.safetensors beside an older index and its shards",
        lambda t: {**shards(old(), by_layer), **single(t)},
        says=(INDEX,),
    )
    yield case(
        "model.safetensors beside an older index and one older shard",
        lambda t: {
            **single(t),
            FIRST: shards(old(), by_layer)[FIRST],
            INDEX: shards(old(), by_layer)[INDEX],
        },
        says=(INDEX,),
    )
    yield case(
        "model.safetensors beside an index whose shards are gone",
        lambda t: {**single(t), INDEX: shards(t, by_layer)[INDEX]},
        says=(INDEX,),
    )
    yield case(
        "model.safetensors beside an index that lists it",
        lambda t: {**single(t), INDEX: shard_index({k: "model.safetensors" for k in t})},
    )
    yield case(
        "model.safetensors beside a malformed index",
        lambda t: {**single(t), INDEX: "{"},
        words=(INDEX,),
    )
    yield case(
        "model.safetensors beside shards without an index",
        lambda t: {**single(t), **shards(old(), by_layer, index=False)},
        says=(FIRST,),
    )
    yield case(
        "model.safetensors beside pytorch_model.bin",
        lambda t: {**single(t), "pytorch_model.bin": b"old"},
    )
    yield case(
        "model.safetensors beside model.fp16.safetensors",
        lambda t: {**single(t), "model.fp16.safetensors": old()},
        says=("model.fp16.safetensors",),
    )
    yield case(
        "shards and their index beside consolidated.safetensors",
        lambda t: {**shards(t, by_layer), "consolidated.safetensors": old()},
        says=("consolidated.safetensors",),
    )
    yield case(
        "weights of another format in original/",
        lambda t: {**single(t), "original/consolidated.00.pth": b"old", "onnx/model.onnx": b"old"},
    )


def other_names():
    yield case(
        "a lone safetensors file of another name",
        lambda t: {"weights.safetensors": t},
        words=("weights.safetensors",),
        may_run=True,
        says=("weights.safetensors",),
    )
    yield case(
        "a lone consolidated.safetensors",
        lambda t: {"consolidated.safetensors": t},
        words=("consolidated.safetensors",),
        may_run=True,
        says=("consolidated.safetensors",),
    )
    yield case(
        "a lone model.fp16.safetensors",
        lambda t: {"model.fp16.safetensors": t},
        words=("model.fp16.safetensors",),
        may_run=True,
        says=("model.fp16.safetensors",),
    )
    yield case(
        "two safetensors files of other names",
        lambda t: {"a.safetensors": t, "b.safetensors": old()},
        words=("a.safetensors", "b.safetensors"),
    )
    yield case(
        "shards without an index", lambda t: shards(t, by_layer, index=False), words=(INDEX,)
    )
    yield case(
        "pytorch_model.bin alone",
        lambda t: {"pytorch_model.bin": pickled(t)},
        words=("pytorch_model.bin", "safetensors"),
    )
    yield case("no weights at all", lambda t: {}, words=("model.safetensors",))
    yield case(
        "transformers_weights in config.json names a file",
        lambda t: {"model.safetensors": old(), "chosen.safetensors": t},
        Checkpoint().config(transformers_weights="chosen.safetensors"),
        words=("transformers_weights", "chosen.safetensors"),
    )
    yield case(
        "transformers_weights in config.json names an index",
        lambda t: {
            "model.safetensors": old(),
            **{
                k if k != INDEX else "chosen.safetensors.index.json": v
                for k, v in shards(t, by_layer).items()
            },
        },
        Checkpoint().config(transformers_weights="chosen.safetensors.index.json"),
        words=("transformers_weights", "chosen.safetensors.index.json"),
    )


def broken_sets():
    def changed(change):
        def arrange(tensors):
            files = shards(tensors, by_layer)
            return change(files) or files

        return arrange

    yield case(
        "a shard of the index is missing",
        changed(lambda f: f.pop(SECOND) and None),
        words=(SECOND,),
    )
    yield case(
        "a shard is still being downloaded",
        changed(lambda f: f.update({SECOND + ".incomplete": b"\0" * 64}) or f.pop(SECOND) and None),
        words=(SECOND,),
    )
    listed = "model.norm.weight"
    yield case(
        "the index names the wrong shard of a tensor",
        changed(lambda f: f[INDEX]["weight_map"].update({listed: FIRST})),
        words=(INDEX, listed),
    )
    yield case(
        "the index does not list a tensor that a shard holds",
        changed(lambda f: f[INDEX]["weight_map"].pop(listed) and None),
        words=(INDEX, listed),
    )
    yield case(
        "the index lists a tensor that no shard holds",
        changed(lambda f: f[INDEX]["weight_map"].update({"model.more.weight": FIRST})),
        words=(INDEX, "model.more.weight"),
    )
    yield case(
        "a needed tensor is in no shard",
        changed(lambda f: f[SECOND].pop(listed) is None or None),
        words=(listed,),
    )
    other = torch.full((64,), 3.0, dtype=torch.bfloat16)
    yield case(
        "two shards hold a tensor, the index names the second",
        changed(lambda f: f[FIRST].update({listed: other})),
        words=(listed,),
    )
    yield case(
        "two shards hold a tensor, the index names the first",
        changed(
            lambda f: (
                f[FIRST].update({listed: f[SECOND][listed]})
                or f[SECOND].update({listed: other})
                or f[INDEX]["weight_map"].update({listed: FIRST})
            )
        ),
        words=(listed,),
    )
    yield case(
        "an index without metadata",
        changed(lambda f: f[INDEX].pop("metadata") and None),
        words=(INDEX,),
        may_run=True,
    )
    yield case(
        "an index with more keys than its own",
        changed(
            lambda f: f[INDEX].update({"format": "pt", "metadata": {"total_size": 0, "note": "x"}})
        ),
    )
    yield case(
        "an index of no tensors",
        changed(lambda f: f[INDEX].update({"weight_map": {}})),
        words=(INDEX,),
    )
    yield case(
        "an index that is no JSON",
        changed(lambda f: f.update({INDEX: '{"weight_map": {'})),
        words=(INDEX,),
    )
    yield case("an index that is a list", changed(lambda f: f.update({INDEX: []})), words=(INDEX,))
    yield case(
        "shards in a folder of their own",
        changed(
            lambda f: {
                f"parts/{FIRST}": f[FIRST],
                f"parts/{SECOND}": f[SECOND],
                INDEX: shard_index({k: f"parts/{v}" for k, v in f[INDEX]["weight_map"].items()}),
            }
        ),
        words=(INDEX, "parts/"),
    )
    yield case(
        "an index that leaves the directory",
        changed(
            lambda f: f.update(
                {INDEX: shard_index({k: f"../{v}" for k, v in f[INDEX]["weight_map"].items()})}
            )
        ),
        words=(INDEX, "../"),
        must_refuse="(a path elsewhere)",
    )


def broken_files():
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 252656\n"
    yield case(
        "a Git LFS pointer in place of the weights",
        lambda t: {"model.safetensors": pointer},
        words=("model.safetensors", "lfs"),
    )
    yield case(
        "a Git LFS pointer in place of one shard",
        lambda t: {**shards(t, by_layer), SECOND: pointer},
        words=(SECOND, "lfs"),
    )
    yield case(
        "an empty file in place of the weights",
        lambda t: {"model.safetensors": b""},
        words=("model.safetensors",),
    )
    yield case(
        "weights that end early",
        lambda t: {"model.safetensors": save(t)[:-1000]},
        words=("model.safetensors",),
    )
    yield case(
        "a web page in place of the weights",
        lambda t: {"model.safetensors": "<!DOCTYPE html><html></html>"},
        words=("model.safetensors",),
    )


def cases():
    yield from whole_and_shards()
    yield from other_names()
    yield from broken_sets()
    yield from broken_files()
