#!/usr/bin/env python3
"""Records what transformers makes of the cases' side files, so that tests in Rust need no Python.

    record.py            writes tests/fixtures/hf/*_cases.json
    record.py --check    exits with 1 where they differ from what transformers says now

Recorded are the kinds that need no weights: tokenizers, templates, streams, generation settings,
config.json, and which file is blamed. tests/fixtures/hf/README.md describes the files.
"""

import argparse
import base64
import importlib
import json
import pathlib
import random
import re
import shutil
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

# It comes first, since it silences transformers.
from lib import Case, Theirs, torch, transformers  # noqa: E402, I001
from transformers import AutoConfig  # noqa: E402
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: E402
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING  # noqa: E402

from cases import generation as tables_of  # noqa: E402
from cases.families import FAMILIES  # noqa: E402
from checkpoints import FIXTURES, TEXT, Checkpoint, TokenizerFile  # noqa: E402
from run import KINDS  # noqa: E402

OUT = FIXTURES / "hf"
TEXTS = (
    "The capital of France is",
    TEXT[:120],
    "  two spaces, Grüße, 日本 🎉\n\n\tand <|end|> then </s>.<s> don't",
)
QUESTION = "Is <b>5 > 3</b> & 'x' \"y\"? Grüße, 日本!"
TURNS = (
    ["What is the capital of France?"],
    [QUESTION],
    ["system: Be <brief> & kind.", QUESTION],
    ["  Hi \n", "assistant: <think>\nhm\n</think>\n\n Hello! ", "And now?"],
)


def conversation(turns, generation=True):
    messages = []
    for turn in turns:
        role, _, rest = turn.partition(": ")
        role, text = (role, rest) if role in ("system", "assistant") else ("user", turn)
        messages.append({"role": role, "content": text})
    return {"messages": messages, "add_generation_prompt": generation}


CONVERSATIONS = [*(conversation(turns) for turns in TURNS), conversation(TURNS[0], False)]


def said(error):
    """The message in a line, without where the checkpoint happened to be."""
    text = re.sub(r"\S*smq-hf-\S*?/case-\d+", "CHECKPOINT", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text}"[:200]


def attempt(function):
    """The value, or what transformers raised."""
    try:
        return function()
    except Exception as error:  # whatever it raises is its answer
        return {"error": said(error)}


def failed(value):
    return isinstance(value, dict) and "error" in value


# Files ----------------------------------------------------------------------


def encoded(contents, base):
    """A file in the form that the README describes."""
    if isinstance(contents, TokenizerFile):
        described = {"$tokenizer": contents.name}
        return described | ({"$set": contents.changes} if contents.changes else {})
    if isinstance(contents, str):
        return contents
    if isinstance(contents, bytes):
        return {"$base64": base64.b64encode(contents).decode()}
    if isinstance(contents, dict) and isinstance(base, dict):
        # By their JSON: to Python 64, 64.0 and True, 1 are equal, to whoever reads the file they
        # are not.
        changed = {
            k: v
            for k, v in contents.items()
            if k not in base or json.dumps(base[k]) != json.dumps(v)
        }
        # Named tokens are added in the order of their keys, which a reader of JSON may lose.
        if isinstance(changed.get("extra_special_tokens"), dict):
            return json.dumps(contents)
        dropped = [k for k in base if k not in contents]
        if len(changed) + len(dropped) < len(contents):
            return {"$set": changed} | ({"$drop": dropped} if dropped else {})
    return {"$json": contents}


def bases():
    """The side files that cases change. `table` is the small model of the generation settings."""
    return {
        "llama": Checkpoint("llama").files,
        "phi3": Checkpoint("phi3").files,
        "table": tables_of.checkpoint().files,
    }


def files_of(checkpoint, base=None, only=None):
    """The base, and what differs from it; `only` some of the files where others do not matter."""
    base = base or checkpoint.family
    from_base, changed = bases()[base], {}
    for name in sorted({*from_base, *checkpoint.files} if only is None else only):
        if name not in checkpoint.files:
            if name in from_base:
                changed[name] = None
            continue
        contents = checkpoint.files[name]
        described = [json.dumps(encoded(c, None)) for c in (contents, from_base.get(name))]
        if name not in from_base or described[0] != described[1]:
            changed[name] = encoded(contents, from_base.get(name))
    return {"base": base, "files": changed}


def refusal_of(case):
    """What ours may do that transformers does not, or must refuse though transformers does not."""
    out = {}
    if case.must_refuse:
        out["must_refuse"] = True
    elif case.words is not None:
        out["may_refuse"] = True
    if case.may_run:
        out["may_run"] = True
    return (
        out
        | ({"words": list(case.words)} if case.words else {})
        | ({"never": list(case.never)} if case.never else {})
    )


# Kinds ----------------------------------------------------------------------


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


class Recorder:
    """One method a kind of record: what transformers says of a case."""

    def __init__(self, scratch):
        self.scratch, self.number = scratch, 0
        self.files = {
            name: []
            for name in ("tokenizer", "template", "streaming", "generation", "config", "blame")
        }

    def record(self, kind, case):
        if not isinstance(case, Case) or case.record is None:
            return
        self.number += 1
        directory = self.scratch / f"case-{self.number:04d}"
        weights = case.record in ("generation", "config", "blame")
        made = (
            case.checkpoint.write(directory)
            if weights
            else case.checkpoint.write_side_files(directory)
        )
        files = {"generation": {"base": "table"}, "streaming": {"only": TOKENIZER_FILES}}.get(
            case.record, {}
        )
        entry = {"kind": kind, "name": case.name, **files_of(case.checkpoint, **files)}
        found = getattr(self, case.record)(case, Theirs(made))
        self.files[case.record].append({**entry, **found, **refusal_of(case)})

    def tokenizer(self, case, theirs):
        tokenizer = attempt(lambda: theirs.tokenizer)
        if failed(tokenizer):
            return tokenizer
        texts = [*TEXTS, *case.texts]
        plain = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        ids = [*plain[2], *range(7), *range(len(tokenizer) - 5, len(tokenizer)), *plain[0][:3]]
        return {
            "texts": list(case.texts),
            "plain": plain,
            "special": tokenizer(texts[0])["input_ids"],
            "decoded": {"ids": ids, "text": tokenizer.decode(ids, skip_special_tokens=True)},
            "tokens": tokenizer.special_tokens_map,
            "chat": [attempt(lambda c=c: self.chat(tokenizer, c, True)) for c in CONVERSATIONS],
        }

    @staticmethod
    def chat(tokenizer, conversation, ids):
        messages, generation = conversation["messages"], conversation["add_generation_prompt"]
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generation
        )
        if not ids:
            return text
        return {"text": text, "ids": tokenizer(text, add_special_tokens=False)["input_ids"]}

    def template(self, case, theirs):
        if case.chats:
            conversations = [conversation([text]) for text in case.chats]
            extra = {"conversations": conversations}
        else:
            conversations, extra = CONVERSATIONS, {}
        chat = [attempt(lambda c=c: self.chat(theirs.tokenizer, c, False)) for c in conversations]
        return {**extra, "chat": chat}

    def streaming(self, case, theirs):
        return {
            "ids": case.ids,
            "text": theirs.tokenizer.decode(case.ids, skip_special_tokens=True),
        }

    def generation(self, case, theirs):
        check = case.checks[0]
        out = {"table": case.checkpoint.table, "stop_ids": attempt(theirs.stop_ids)}
        found = attempt(lambda: check.theirs(theirs))
        if isinstance(check, tables_of.Samples):
            out["prompt"] = theirs.prompt_ids(tables_of.PROMPT)
            return out | (
                found if failed(found) else {"probabilities": [round(p, 9) for p in found]}
            )
        out |= {"prompt": theirs.prompt_ids(check.prompt), "max_new_tokens": check.n}
        return out | (found if failed(found) else {"ids": found["ids"]})

    def config(self, case, theirs):
        effective = attempt(lambda: effective_config(theirs.directory))
        if failed(effective):
            return effective
        loads = attempt(lambda: theirs.model and True)
        return {"effective": effective} | ({"weights": loads["error"]} if failed(loads) else {})

    def blame(self, case, theirs):
        found = attempt(lambda: theirs.tokenizer and theirs.model and case.checks[0].theirs(theirs))
        return found if failed(found) else {}


def f32(tensor):
    return [float(x) for x in tensor.float()]


def effective_config(directory):
    """What transformers makes of config.json, of the families that ours runs."""
    config = AutoConfig.from_pretrained(directory)
    cls = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    out = {"class": cls.__name__}
    if cls.__name__ not in {name for name, _ in FAMILIES.values()}:
        return out
    with torch.device("meta"):
        model = cls(config)  # refuses what it cannot build
    module = importlib.import_module(cls.__module__)
    rotary = getattr(module, cls.__name__.replace("ForCausalLM", "RotaryEmbedding"))(config)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    out |= {
        "hidden": config.hidden_size,
        "intermediate": config.intermediate_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "head_dim": head_dim,
        "vocab": config.vocab_size,
        "rms_norm_eps": config.rms_norm_eps,
        "max_positions": config.max_position_embeddings,
        "tied": config.tie_word_embeddings,
        "activation": config.hidden_activation if "Gemma" in cls.__name__ else config.hidden_act,
        "layer": layer_numbers(model.model.layers[0]),
        "rotated": [bool(r) for r in config.no_rope_layers] if "SmolLM3" in cls.__name__ else [],
        "multipliers": multipliers(model, config, cls),
        "soft_caps": soft_caps(config, cls),
    }
    found = windows(config, cls)
    out |= {"windows": found} if any(found) else {}
    return out | rope(rotary, config)


def layer_numbers(layer):
    """Whether q, o and gate have biases."""
    attention, mlp = layer.self_attn, layer.mlp
    q = getattr(attention, "q_proj", None) or attention.qkv_proj
    gate = getattr(mlp, "gate_proj", None) or mlp.gate_up_proj
    return [module.bias is not None for module in (q, attention.o_proj, gate)]


def windows(config, cls):
    """How far back each layer sees, as its mask has it."""
    types = getattr(config, "layer_types", None)
    if cls.__name__ in ("Phi3ForCausalLM", "MistralForCausalLM"):
        return [config.sliding_window] * config.num_hidden_layers
    if cls.__name__ in ("LlamaForCausalLM", "GraniteForCausalLM", "Olmo2ForCausalLM"):
        return [None] * config.num_hidden_layers
    return [config.sliding_window if kind == "sliding_attention" else None for kind in types]


def multipliers(model, config, cls):
    """Of the embedding, the scores, the residual stream, and what logits are divided by."""
    granite = cls.__name__ == "GraniteForCausalLM"
    embedding = config.embedding_multiplier if granite else 1.0
    scale = getattr(model.model.embed_tokens, "scalar_embed_scale", embedding)
    scores = model.model.layers[0].self_attn.scaling
    rest = (config.residual_multiplier, config.logits_scaling) if granite else (1.0, 1.0)
    return [float(x) for x in (scale, scores, *rest)]


def soft_caps(config, cls):
    """On scores and on logits; Gemma 3 has a key for the former and does not use it."""
    scores = config.attn_logit_softcapping if cls.__name__ == "Gemma2ForCausalLM" else None
    logits = config.final_logit_softcapping if cls.__name__.startswith("Gemma") else None
    return [scores, logits]


def rope(rotary, config):
    """Frequencies; by kind of layer where the family has two."""
    own = config.rope_parameters
    if hasattr(rotary, "inv_freq"):
        out = {
            "rope_type": own["rope_type"],
            "rope_theta": own["rope_theta"],
            "inv_freq": f32(rotary.inv_freq),
            "attention_scaling": float(rotary.attention_scaling),
        }
        if own["rope_type"] == "longrope":
            original = own["original_max_position_embeddings"]
            long, _ = ROPE_INIT_FUNCTIONS["longrope"](config, seq_len=original + 1)
            out |= {"original_positions": original, "inv_freq_long": f32(long)}
        return out
    out, kinds = {}, {"full_attention": "", "sliding_attention": "_windowed"}
    for kind, suffix in kinds.items():
        if hasattr(rotary, f"{kind}_inv_freq"):
            out |= {
                f"rope_type{suffix}": own[kind]["rope_type"],
                f"rope_theta{suffix}": own[kind]["rope_theta"],
                f"inv_freq{suffix}": f32(getattr(rotary, f"{kind}_inv_freq")),
                f"attention_scaling{suffix}": float(getattr(rotary, f"{kind}_attention_scaling")),
            }
    return out


# Output ---------------------------------------------------------------------


def tables():
    """The logits that the models of the generation cases have in f32: row a is what follows token
    a.
    """
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in tables_of.TABLES:
            model = Theirs(
                tables_of.checkpoint(name).write(f"{folder}/{name.replace(' ', '-')}")
            ).model
            with torch.no_grad():
                out[name] = [
                    f32(model(torch.tensor([[id]])).logits[0, 0]) for id in range(tables_of.SIZE)
                ]
    return out


def random_streams(count=120):
    """Ids in any order, as no model need say them."""
    generator, out = random.Random(9), []
    for name in ("sentencepiece", "byte_level"):
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = Theirs(
                Checkpoint(tokenizer=name).write_side_files(pathlib.Path(folder) / "a")
            ).tokenizer
        vocabulary = dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
        bytes_ = [i for t, i in vocabulary.items() if t.startswith("<0x")] or list(range(7, 263))
        words = [i for i in vocabulary.values() if i not in bytes_]
        emoji = tokenizer("🎉é日ü", add_special_tokens=False)["input_ids"]
        for _ in range(count):
            ids = [
                generator.choice(generator.choice((bytes_, words, emoji)))
                for _ in range(generator.randrange(2, 12))
            ]
            out.append(
                {
                    "tokenizer": name,
                    "ids": ids,
                    "text": tokenizer.decode(ids, skip_special_tokens=True),
                }
            )
    return out


def lines(head, cases):
    """JSON with one case a line, so that a change is one line of a diff."""
    dumps = lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":"))  # noqa: E731
    head = ",\n".join(f"{dumps(key)}:{dumps(value)}" for key, value in head.items())
    return "{" + head + ',\n"cases":[\n' + ",\n".join(map(dumps, cases)) + "\n]}\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="compare with what is there, and write nothing"
    )
    args = parser.parse_args()
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="smq-hf-record-"))
    recorder = Recorder(scratch)
    for kind in KINDS:
        for case in importlib.import_module(f"cases.{kind}").cases():
            recorder.record(kind, case)
    shutil.rmtree(scratch)
    base = {
        name: {f: encoded(c, None) for f, c in files.items()} for name, files in bases().items()
    }
    head = {"transformers": transformers.__version__, "base": base}
    heads = {
        "tokenizer": {**head, "texts": TEXTS, "conversations": CONVERSATIONS},
        "template": {**head, "conversations": CONVERSATIONS},
        "streaming": {**head, "random": random_streams()},
        "generation": {**head, "tables": tables()},
        "config": head,
        "blame": head,
    }
    stale, total = [], 0
    for name, cases in recorder.files.items():
        path, text = OUT / f"{name}_cases.json", lines(heads[name], cases)
        total += len(text.encode())
        if args.check:
            stale += (
                [] if path.exists() and path.read_text(encoding="utf-8") == text else [path.name]
            )
        else:
            path.write_text(text, encoding="utf-8")
        print(f"{path.name}: {len(cases)} cases, {len(text.encode())} bytes")
    print(f"{total} bytes in all")
    if stale:
        sys.exit(f"transformers {transformers.__version__} says otherwise than {', '.join(stale)}")


if __name__ == "__main__":
    main()
