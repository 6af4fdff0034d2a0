"""Tiny checkpoints, described as data and written on the spot.

A checkpoint is its side files by name, and tensors by the file that holds them. Cases change a few
of either; the recorder writes the side files alone into the fixtures, with tokenizer.json as a
reference to one of three.
"""

import functools
import json
import os
import pathlib

import torch
from safetensors.torch import save_file

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
FIXTURES = REPOSITORY / "tests/fixtures"
# Enough for every window that a case asks for.
TEXT = (FIXTURES / "sample.txt").read_text(encoding="utf-8")[:4000]
INDEX = "model.safetensors.index.json"

# A value that removes a key, where None would write null.
DROP = object()

CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

SHAPE = {
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONFIGS = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "dtype": "bfloat16",
        "eos_token_id": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        **SHAPE,
        "initializer_range": 0.02,
        "max_position_embeddings": 1024,
        "mlp_bias": False,
        "model_type": "llama",
        "pad_token_id": None,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": False,
        "transformers_version": "5.24.0",
        "use_cache": True,
    },
    "phi3": {
        "architectures": ["Phi3ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "dtype": "bfloat16",
        "embd_pdrop": 0.0,
        "eos_token_id": 2,
        "hidden_act": "silu",
        **SHAPE,
        "initializer_range": 0.02,
        "max_position_embeddings": 1024,
        "model_type": "phi3",
        "original_max_position_embeddings": 1024,
        "pad_token_id": 0,
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {
            "partial_rotary_factor": 1.0,
            "rope_theta": 10000.0,
            "rope_type": "default",
        },
        "sliding_window": None,
        "tie_word_embeddings": False,
        "transformers_version": "5.24.0",
        "use_cache": True,
    },
}
TOKENIZER_CONFIG = {
    "bos_token": "<s>",
    "clean_up_tokenization_spaces": False,
    "eos_token": "</s>",
    "model_max_length": 4096,
    "tokenizer_class": "PreTrainedTokenizerFast",
    "unk_token": "<unk>",
}


@functools.cache
def tokenizer_json(name):
    return (FIXTURES / "hf/tokenizers" / f"{name}.json").read_text(encoding="utf-8")


class TokenizerFile:
    """One of the three tokenizers, with some of its top-level keys set anew."""

    def __init__(self, name, changes=()):
        self.name, self.changes = name, dict(changes)

    def json(self):
        return {**json.loads(tokenizer_json(self.name)), **self.changes}

    def describe(self):
        return (
            {"$tokenizer": self.name, "set": self.changes}
            if self.changes
            else {"$tokenizer": self.name}
        )


def int4_exact(rows, columns, generator):
    """Weights that int4 in groups of 128 with a scale of 2^-4 holds exactly: the largest of each
    group is 7.
    """
    codes = torch.randint(-7, 8, (rows, columns), generator=generator)
    codes[:, ::128] = 7
    return (codes * 2.0**-4).to(torch.bfloat16)


def tensors_of(family, shape=None, seed=0, tied=False):
    """Random bf16 tensors of a decoder. The MLP's projections lose nothing as int4, so that a .smq
    file gives the same losses as the checkpoint.
    """
    s = {**SHAPE, "head_dim": 16, **(shape or {})}
    generator = torch.Generator().manual_seed(seed)
    hidden, heads, kv_heads, dim = (
        s[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    )

    def dense(rows, columns):
        return (0.25 * torch.randn(rows, columns, generator=generator)).to(torch.bfloat16)

    def norm():
        return (1 + 0.1 * torch.randn(hidden, generator=generator)).to(torch.bfloat16)

    tensors = {"model.embed_tokens.weight": dense(s["vocab_size"], hidden)}
    for layer in range(s["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        q, k, v = (
            dense(heads * dim, hidden),
            dense(kv_heads * dim, hidden),
            dense(kv_heads * dim, hidden),
        )
        gate, up = (int4_exact(s["intermediate_size"], hidden, generator) for _ in range(2))
        if family == "phi3":
            tensors[at + "self_attn.qkv_proj.weight"] = torch.cat([q, k, v])
            tensors[at + "mlp.gate_up_proj.weight"] = torch.cat([gate, up])
        else:
            names = (
                "self_attn.q_proj",
                "self_attn.k_proj",
                "self_attn.v_proj",
                "mlp.gate_proj",
                "mlp.up_proj",
            )
            for name, weight in zip(names, (q, k, v, gate, up)):
                tensors[f"{at}{name}.weight"] = weight
        tensors[at + "self_attn.o_proj.weight"] = dense(hidden, heads * dim)
        tensors[at + "mlp.down_proj.weight"] = int4_exact(hidden, s["intermediate_size"], generator)
        tensors[at + "input_layernorm.weight"] = norm()
        tensors[at + "post_attention_layernorm.weight"] = norm()
    tensors["model.norm.weight"] = norm()
    head = dense(s["vocab_size"], hidden)
    if not tied:
        tensors["lm_head.weight"] = head
    return tensors


def table_tensors(table):
    """A model whose next token depends on the last one alone: `table[a][b]` is the logit of b after
    a, as near as bf16 comes. Embeddings are unit vectors, the layers add nothing, and the head
    is the table.
    """
    size, hidden = len(table), 4 * (-(-len(table) // 4))
    tensors = tensors_of("llama", {**table_shape(size), "vocab_size": size})
    for name, tensor in tensors.items():
        if "norm" in name:
            tensor.fill_(1.0)
        else:
            tensor.zero_()
    tensors["model.embed_tokens.weight"].copy_(torch.eye(size, hidden))
    # The norm makes a unit vector of `hidden` elements sqrt(hidden) long.
    tensors["lm_head.weight"][:, :size] = (torch.tensor(table).T / hidden**0.5).to(torch.bfloat16)
    return tensors


def table_shape(size):
    hidden = 4 * (-(-size // 4))
    return {
        "vocab_size": size,
        "hidden_size": hidden,
        "head_dim": hidden // 4,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
    }


class Checkpoint:
    """A checkpoint directory to be. Every method that changes it returns it.

    `shape` is what the tensors have; what config.json says starts from it and may then be made to
    disagree.
    """

    def __init__(
        self, family="llama", tokenizer="byte_level", chat=CHAT, shape=None, seed=0, tied=False
    ):
        self.family, self.shape, self.seed, self.tied = family, dict(shape or {}), seed, tied
        config = {**CONFIGS[family], **self.shape, "tie_word_embeddings": tied}
        tokenizer_config = dict(TOKENIZER_CONFIG) | (
            {} if chat is None else {"chat_template": chat}
        )
        self.files = {
            "config.json": config,
            "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2},
            "tokenizer.json": TokenizerFile(tokenizer),
            "tokenizer_config.json": tokenizer_config,
        }
        self._tensors = None
        self._changes = []
        self._layout = None

    def _json(self, name, changes):
        contents = dict(self.files[name])
        for key, value in changes.items():
            if value is DROP:
                contents.pop(key, None)
            else:
                contents[key] = value
        self.files[name] = contents
        return self

    def config(self, **changes):
        return self._json("config.json", changes)

    def tokenizer_config(self, **changes):
        return self._json("tokenizer_config.json", changes)

    def generation(self, **changes):
        return self._json("generation_config.json", changes)

    def tokenizer(self, **changes):
        """Sets top-level keys of tokenizer.json."""
        old = self.files["tokenizer.json"]
        self.files["tokenizer.json"] = TokenizerFile(old.name, {**old.changes, **changes})
        return self

    def file(self, name, contents):
        """A side file: a JSON value, text, or bytes."""
        self.files[name] = contents
        return self

    def drop(self, *names):
        for name in names:
            self.files.pop(name, None)
        return self

    def tensors(self, change):
        """`change` edits the tensors in place, or returns others."""
        self._changes.append(change)
        return self

    def layout(self, arrange):
        """`arrange` turns the tensors into files: name -> tensors, JSON value, text or bytes."""
        self._layout = arrange
        return self

    def weight_files(self):
        if self._tensors is None:
            tensors = tensors_of(self.family, self.shape, self.seed, self.tied)
            for change in self._changes:
                tensors = change(tensors) or tensors
            self._tensors = tensors
        return self._layout(self._tensors) if self._layout else {"model.safetensors": self._tensors}

    def plain_weights(self):
        """What makes the tensors those of another checkpoint of the same key, or None where a case
        changed them.
        """
        if self._changes or self._layout:
            return None
        return (self.family, json.dumps(self.shape, sort_keys=True), self.seed, self.tied)

    def write_side_files(self, directory):
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, contents in self.files.items():
            write(directory / name, contents)
        return directory

    def write(self, directory):
        directory = self.write_side_files(directory)
        for name, contents in self.weight_files().items():
            write(directory / name, contents)
        return directory


def write(path, contents):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(contents, bytes):
        path.write_bytes(contents)
    elif isinstance(contents, str):
        path.write_bytes(contents.encode("utf-8"))
    elif isinstance(contents, TokenizerFile):
        path.write_text(json.dumps(contents.json(), ensure_ascii=False), encoding="utf-8")
    elif isinstance(contents, dict) and any(isinstance(v, torch.Tensor) for v in contents.values()):
        save_file({k: v.contiguous() for k, v in contents.items()}, path, metadata={"format": "pt"})
    else:
        path.write_text(json.dumps(contents, ensure_ascii=False, indent=1), encoding="utf-8")


def shards(tensors, split, index=True, count=2):
    """Tensors over `count` files; `split` gives the shard of a name. With the index unless told
    otherwise.
    """
    name = lambda i: f"model-{i + 1:05d}-of-{count:05d}.safetensors"  # noqa: E731
    files = {name(i): {k: t for k, t in tensors.items() if split(k) == i} for i in range(count)}
    if index:
        files[INDEX] = shard_index({k: name(split(k)) for k in tensors})
    return files


def shard_index(weight_map):
    return {"metadata": {"total_size": 1}, "weight_map": weight_map}


def by_layer(name):
    """The usual split into two: layer 0 first, the rest after it."""
    return 0 if "layers.0." in name else 1


def link_or_write(checkpoint, directory, cache):
    """Writes a checkpoint, with the weights linked where another one of the same weights was
    written before.
    """
    key = checkpoint.plain_weights()
    directory = checkpoint.write_side_files(directory)
    target = directory / "model.safetensors"
    if key is not None and key in cache:
        os.link(cache[key], target)
        return directory
    for name, contents in checkpoint.weight_files().items():
        write(directory / name, contents)
    if key is not None:
        cache[key] = target
    return directory
