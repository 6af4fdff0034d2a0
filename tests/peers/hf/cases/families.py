"""Kind 16: every family of decoders, small and random, on both sides of what its config switches.

The weights are a function of a tensor's name and an element's index, so that a test without Python
makes the same ones (`tests/fixtures/hf/families.json`). The names and shapes are transformers' own.
Each projection is one that int4 holds exactly in groups of 32 and more, so that a .smq of any
target gives the losses of the checkpoint.
"""

import dataclasses
import json

import numpy
import torch
from checkpoints import CHAT, DROP, Checkpoint
from lib import Answer, Case, Cell, Losses, Refusal, Row, refusal_cell
from transformers import AutoConfig, AutoModelForCausalLM

SENTENCE = "The capital of France is Paris. "
# About 90 tokens.
LONG = SENTENCE * 6
NEAR, FAR = Losses(32, 256), Losses(128, 512)
CHECKS = (NEAR, FAR, Answer(n=12), Answer(LONG, n=12))
# First below the context of the training, then past it while the answer grows, then the whole
# prompt past it.
SWITCH = (NEAR, Answer(n=12), Answer(SENTENCE * 4, n=24), FAR)

COMMON = {
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "dtype": "bfloat16",
    "tie_word_embeddings": False,
}
# Sizes that fill no register, a head that is not hidden / heads.
ODD = {
    "hidden_size": 60,
    "intermediate_size": 100,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 14,
}
ONE_KV = {"num_key_value_heads": 1}
TIED = {"tie_word_embeddings": True}
FAMILIES = {
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 16, "rope_theta": 1e6, "attention_bias": False}),
    "qwen2": ("Qwen2ForCausalLM", {"rope_theta": 1e6}),
    "mistral": (
        "MistralForCausalLM",
        {"sliding_window": None, "rope_theta": 1e6, "rms_norm_eps": 1e-5},
    ),
    "smollm3": (
        "SmolLM3ForCausalLM",
        {"pad_token_id": 0, "rope_theta": 5e6, "num_hidden_layers": 5},
    ),
    "gemma3_text": (
        "Gemma3ForCausalLM",
        {"head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16, "num_hidden_layers": 7},
    ),
    "gemma2": (
        "Gemma2ForCausalLM",
        {"head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 24, "rope_theta": 1e4},
    ),
    "granite": (
        "GraniteForCausalLM",
        {
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.25,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
        },
    ),
    "olmo2": ("Olmo2ForCausalLM", {"rms_norm_eps": 1e-6, "rope_theta": 5e5, "pad_token_id": 0}),
    "olmo3": (
        "Olmo3ForCausalLM",
        {"rms_norm_eps": 1e-6, "sliding_window": 16, "num_hidden_layers": 5, "pad_token_id": 0},
    ),
    "llama": ("LlamaForCausalLM", {"rope_theta": 5e5}),
    "phi3": ("Phi3ForCausalLM", {"pad_token_id": 0}),
}
LINEAR = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "qkv_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "gate_up_proj",
)


def hashes(name, count):
    """SplitMix64 of the element's index, from where FNV-1a of the name leads."""
    start = 0xCBF29CE484222325
    for byte in name.encode():
        start = (start ^ byte) * 0x100000001B3 % 2**64
    z = numpy.uint64(start) + numpy.arange(count, dtype=numpy.uint64) * numpy.uint64(
        0x9E3779B97F4A7C15
    )
    z = (z ^ (z >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    return z ^ (z >> numpy.uint64(31))


def values(name, shape, ones):
    """A tensor's values, all of which bf16 holds. `ones` says that norms multiply with one more."""
    z = hashes(name, int(numpy.prod(shape)))
    module = name.rsplit(".", 1)[0].rsplit(".", 1)[-1]
    if name.endswith(".bias"):
        out = ((z >> numpy.uint64(56)).astype(numpy.float64) / 128 - 1) / 2
    elif "norm" in module:
        out = ((z >> numpy.uint64(60)).astype(numpy.float64) / 8 - 1) / 4 + (0 if ones else 1)
    elif module in LINEAR:
        codes = (z % numpy.uint64(15)).astype(numpy.float64) - 7
        codes = codes.reshape(shape)
        codes[:, ::32] = 7
        out = codes / 32
    else:
        out = ((z >> numpy.uint64(56)).astype(numpy.float64) / 128 - 1) / 2
    return torch.tensor(out.reshape(shape), dtype=torch.float32).to(torch.bfloat16)


def names_and_shapes(config):
    """Of a config.json, as transformers' model lists them."""
    config = dict(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(config.pop("model_type"), **config)
        )
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    state = model.state_dict()
    return [(name, tuple(t.shape)) for name, t in state.items() if name not in tied]


class FamilyCheckpoint(Checkpoint):
    """A checkpoint whose tensors are made from its config.json alone, before cases change that."""

    def __init__(self, model_type, **keys):
        super().__init__("llama")
        architecture, own = FAMILIES[model_type]
        config = {
            "architectures": [architecture],
            "model_type": model_type,
            **COMMON,
            **own,
            **keys,
        }
        self.files["config.json"] = {k: v for k, v in config.items() if v is not DROP}
        self.files["tokenizer_config.json"]["chat_template"] = CHAT

    def weight_files(self):
        config = self.files["config.json"]
        ones = config["model_type"].startswith("gemma")
        if self._tensors is None:
            try:
                listed = names_and_shapes(config)
            except Exception:  # transformers refuses the config: any tensors of the family will do
                listed = names_and_shapes(
                    {
                        **COMMON,
                        **FAMILIES[config["model_type"]][1],
                        "model_type": config["model_type"],
                    }
                )
            self._tensors = {name: values(name, shape, ones) for name, shape in listed}
        return {"model.safetensors": self._tensors}

    def plain_weights(self):
        return ("families", json.dumps(self.files["config.json"], sort_keys=True))


def case(model_type, name, checks=CHECKS, words=None, **keys):
    more = {key: keys.pop(key) for key in ("must_refuse", "may_run", "record") if key in keys}
    return Case(
        f"{model_type}: {name}",
        FamilyCheckpoint(model_type, **keys),
        checks,
        words,
        target=("--target", "all"),
        **{"record": "config", **more},
    )


def layer_types(text):
    """Of a letter a layer."""
    return [{"s": "sliding_attention", "f": "full_attention"}[letter] for letter in text]


def sizes():
    """Grouped queries and none, tied and not, sizes that are no multiples of anything."""
    for model_type in FAMILIES:
        odd = {**ODD, "head_dim": DROP, "hidden_size": 84} if model_type == "phi3" else ODD
        yield case(model_type, "plain")
        yield case(model_type, "one key-value head, tied", record=None, **ONE_KV, **TIED)
        yield case(
            model_type,
            "no grouped queries, odd sizes",
            record=None,
            **{**odd, "num_key_value_heads": 6},
        )
        yield case(model_type, "odd sizes, grouped", record=None, **odd)


def biases():
    for model_type in (
        "llama",
        "qwen3",
        "smollm3",
        "gemma2",
        "gemma3_text",
        "granite",
        "olmo2",
        "olmo3",
    ):
        yield case(model_type, "attention_bias", attention_bias=True)
    for model_type in ("llama", "smollm3", "granite"):
        yield case(model_type, "mlp_bias", mlp_bias=True)
        yield case(
            model_type,
            "both biases, odd sizes",
            record=None,
            attention_bias=True,
            mlp_bias=True,
            **ODD,
        )
    for model_type in ("qwen2", "mistral", "phi3"):
        yield case(
            model_type, "attention_bias, which it does not read", attention_bias=True, mlp_bias=True
        )


def windows():
    yield case("mistral", "a window", sliding_window=16)
    # Its cache of a window less one is all of the sequence: with a window of 1, generate() differs
    # from one pass.
    yield case("mistral", "a window of 1", (NEAR, FAR), sliding_window=1)
    yield case("mistral", "the default window", sliding_window=DROP)
    yield case(
        "mistral",
        "default key-value heads",
        num_key_value_heads=DROP,
        num_attention_heads=8,
        head_dim=8,
    )
    for model_type in ("qwen2", "qwen3"):
        yield case(
            model_type, "a window that is not used", sliding_window=16, use_sliding_window=False
        )
        on = {"use_sliding_window": True, "sliding_window": 16}
        yield case(model_type, "a window from layer 2 on", max_window_layers=2, **on)
        yield case(model_type, "a window in every layer", max_window_layers=0, **on)
        yield case(model_type, "a window past the last layer", max_window_layers=3, **on)
        yield case(model_type, "max_window_layers left out", **on)
        yield case(
            model_type,
            "a null window",
            use_sliding_window=True,
            sliding_window=None,
            max_window_layers=0,
        )
        yield case(model_type, "layer_types", layer_types=layer_types("sfs"), **on)
        yield case(model_type, "layer_types of full attention", layer_types=layer_types("fff"))
        yield case(
            model_type,
            "layer_types with a window that is not used",
            words=("sliding_window",),
            layer_types=layer_types("sff"),
        )
        yield case(
            model_type,
            "layer_types of too few",
            words=("layer_types",),
            layer_types=layer_types("sf"),
            **on,
        )
        yield case(
            model_type,
            "layer_types of another kind",
            words=("layer_types",),
            layer_types=["full_attention", "chunked_attention", "full_attention"],
        )
    for model_type in ("gemma2", "gemma3_text", "olmo3"):
        six = {"num_hidden_layers": 6}
        yield case(model_type, "layer_types", layer_types=layer_types("fssfsf"), **six)
        yield case(
            model_type, "layer_types of full attention", layer_types=layer_types("ffffff"), **six
        )
        yield case(model_type, "layer_types of windows", layer_types=layer_types("ssssss"), **six)
        yield case(model_type, "a null window", words=("sliding_window",), sliding_window=None)
        yield case(model_type, "a window of 2", sliding_window=2)
        yield case(model_type, "a window longer than any prompt", sliding_window=4096)
        yield case(model_type, "sliding_window_pattern", sliding_window_pattern=3)
    for model_type in ("gemma2", "gemma3_text"):
        yield case(
            model_type,
            "attention to later positions",
            words=("use_bidirectional_attention",),
            use_bidirectional_attention=True,
            must_refuse="(attends to later positions)",
        )


def smollm3():
    on = {"use_sliding_window": True, "sliding_window": 16}
    yield case("smollm3", "no_rope_layers", no_rope_layers=[0, 1, 1, 0, 1])
    yield case("smollm3", "no_rope_layers of all ones", no_rope_layers=[1, 1, 1, 1, 1])
    yield case("smollm3", "no_rope_layers longer than the layers", no_rope_layers=[1, 0] * 4)
    yield case(
        "smollm3",
        "no_rope_layers shorter than the layers",
        words=("no_rope_layers",),
        no_rope_layers=[1, 0],
    )
    yield case("smollm3", "an interval of 2", no_rope_layer_interval=2)
    yield case("smollm3", "windows where there is no rotation", no_rope_layer_interval=2, **on)
    yield case("smollm3", "layer_types", layer_types=layer_types("sfsff"), **on)
    yield case("smollm3", "a window that is not used", sliding_window=16)


def gemma():
    yield case("gemma2", "no caps", attn_logit_softcapping=None, final_logit_softcapping=None)
    yield case("gemma2", "low caps", attn_logit_softcapping=2.0, final_logit_softcapping=5.0)
    yield case("gemma2", "a cap that is an integer", final_logit_softcapping=5, may_run=True)
    yield case(
        "gemma2", "default head_dim", head_dim=DROP, query_pre_attn_scalar=DROP, num_hidden_layers=2
    )
    yield case("gemma3_text", "caps", attn_logit_softcapping=2.0, final_logit_softcapping=5.0)
    yield case("gemma2", "silu", hidden_activation="silu")
    yield case("llama", "gelu_pytorch_tanh", hidden_act="gelu_pytorch_tanh")
    yield case("gemma3_text", "the default bases", rope_theta=DROP)
    old = {"rope_theta": 5e5, "rope_local_base_freq": 2e3}
    yield case("gemma3_text", "both bases, as transformers 4 wrote them", **old)
    yield case(
        "gemma3_text",
        "linear, as google writes it",
        rope_scaling={"factor": 8.0, "rope_type": "linear"},
        **old,
    )
    yield case(
        "gemma3_text",
        "rope_scaling with the old key",
        rope_scaling={"factor": 8.0, "type": "linear"},
        **old,
    )
    new = {
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 7e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 3e3},
    }
    yield case("gemma3_text", "rope_parameters by kind", rope_parameters=new)
    yield case("gemma3_text", "rope_parameters by kind beside old keys", rope_parameters=new, **old)
    yield case(
        "gemma3_text",
        "rope_parameters of one kind",
        rope_parameters={"full_attention": new["full_attention"]},
        **old,
    )
    yield case(
        "gemma3_text",
        "rope_parameters that are flat",
        rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 7e5},
    )
    yield case(
        "gemma3_text",
        "rope_scaling beside flat rope_parameters",
        words=("rope_scaling",),
        rope_scaling={"factor": 8.0, "rope_type": "linear"},
        rope_parameters={"rope_type": "default", "rope_theta": 7e5},
    )
    yield case("olmo3", "rope_theta alone", rope_theta=2e4)
    yield case("olmo3", "rope_parameters by kind", rope_parameters=new)


def scalings():
    at = "original_max_position_embeddings"
    yarn = {"rope_type": "yarn", "factor": 4.0, at: 64}
    dynamic = {"rope_type": "dynamic", "factor": 4.0}
    llama3 = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        at: 64,
    }
    wide = {"head_dim": 32}
    flat = [f for f in FAMILIES if f not in ("gemma3_text", "olmo3", "phi3")]
    for model_type in flat:
        theta = {"rope_theta": 1e4, "record": "config" if model_type == "qwen2" else None}
        yield case(
            model_type,
            "yarn",
            SWITCH,
            max_position_embeddings=256,
            rope_scaling=yarn,
            **wide,
            **theta,
        )
        yield case(
            model_type, "dynamic", SWITCH, max_position_embeddings=64, rope_scaling=dynamic, **theta
        )
        yield case(
            model_type,
            "llama3",
            SWITCH,
            max_position_embeddings=512,
            rope_scaling=llama3,
            **wide,
            **theta,
        )
    for model_type in ("gemma3_text", "olmo3"):
        at_both = {"rope_parameters": {"full_attention": {**yarn, "rope_theta": 1e4}}}
        yield case(model_type, "yarn", SWITCH, max_position_embeddings=256, **wide, **at_both)
        yield case(
            model_type,
            "yarn by rope_scaling",
            SWITCH,
            max_position_embeddings=256,
            rope_scaling=yarn,
            **wide,
        )
        yield case(model_type, "dynamic", SWITCH, max_position_embeddings=64, rope_scaling=dynamic)
        both = {
            kind: {**dynamic, "rope_theta": 1e4} for kind in ("full_attention", "sliding_attention")
        }
        yield case(
            model_type,
            "dynamic in all layers",
            SWITCH,
            max_position_embeddings=64,
            rope_parameters=both,
        )
        yield case(
            model_type,
            "yarn, truncate in it",
            max_position_embeddings=256,
            rope_parameters={"full_attention": {**yarn, "truncate": False, "rope_theta": 1e4}},
            **wide,
        )
    for name, keys in {
        "an attention_factor": {"attention_factor": 1.3},
        "mscale": {"mscale": 0.7, "mscale_all_dim": 1.2},
        "mscale alone": {"mscale": 0.7},
        "an mscale of 0": {"mscale": 0, "mscale_all_dim": 1.2},
        "beta_fast and beta_slow": {"beta_fast": 4, "beta_slow": 0.5},
        "null betas": {"beta_fast": None, "beta_slow": None},
        "no truncation": {"truncate": False},
        "the original length left out": {at: DROP},
        "a factor of 1": {"factor": 1},
        "a null factor": {"factor": None},
        "the old key": {"rope_type": DROP, "type": "yarn"},
        "an original length of 16": {at: 16},
    }.items():
        scaling = {k: v for k, v in {**yarn, **keys}.items() if v is not DROP}
        yield case(
            "qwen2",
            f"yarn: {name}",
            max_position_embeddings=512,
            rope_scaling=scaling,
            head_dim=32,
            rope_theta=1e4,
        )
    yield case(
        "qwen2",
        "yarn without a factor",
        words=("factor",),
        rope_scaling={"rope_type": "yarn", at: 64},
    )
    yield case(
        "qwen2",
        "dynamic without a factor",
        words=("factor",),
        rope_scaling={"rope_type": "dynamic"},
    )
    yield case(
        "qwen2",
        "longrope",
        words=("longrope",),
        rope_scaling={"rope_type": "longrope", "factor": 2.0},
        must_refuse="(keys of both factors)",
    )


@dataclasses.dataclass
class Selected:
    """`--target` takes every linear weight of the layers, or those of the MLP alone."""

    name: str
    model_type: str

    def row(self, bench):
        checkpoint = FamilyCheckpoint(self.model_type)
        directory = bench.write(checkpoint)[0]
        layers = checkpoint.files["config.json"]["num_hidden_layers"]
        fused = self.model_type == "phi3"
        linear, mlp = (4 * layers, 2 * layers) if fused else (7 * layers, 3 * layers)
        for target, taken in (("all", linear), ("mlp", mlp)):
            done = bench.ours.convert(
                directory, directory.with_suffix(f".{target}.smq"), "--target", target
            )
            if isinstance(done, Refusal):
                return Row(self.name, "", refusal_cell(done, None, ()), Cell("-"))
            if f"selected: {taken} of {linear} linear weights" not in done or "warning" in done:
                return Row(self.name, "", Cell("differs", done), Cell("-"))
        return Row(self.name, f"{linear} linear weights", Cell("equal"), Cell("-"))


@dataclasses.dataclass
class ConvertsOnly:
    """A model that no engine runs: it converts, every matrix of a layer is taken or named as left
    out, and running it is refused with the reason.
    """

    name: str
    checkpoint: Checkpoint
    says: tuple
    words: tuple

    def row(self, bench):
        directory = self.checkpoint.write(bench.fresh())
        smq = directory.with_suffix(".smq")
        done = bench.ours.convert(directory, smq, "--target", "all")
        if isinstance(done, Refusal):
            return Row(self.name, "", refusal_cell(done, None, ()), Cell("-"))
        silent = [word for word in self.says if word not in done]
        if silent:
            return Row(
                self.name,
                "",
                Cell("differs", f"converts without a word of {silent}: {done}"),
                Cell("-"),
            )
        cells = []
        for path in (directory, smq):
            answer = bench.ours.generate(path, "The", 2, raw=True)
            refused = isinstance(answer, Refusal)
            cells.append(
                refusal_cell(answer, self.words, ()) if refused else Cell("differs", "runs")
            )
        return Row(self.name, "not asked", *cells)


def converted_only():
    def experts(tensors):
        out = {}
        for name, tensor in tensors.items():
            if ".mlp." not in name:
                out[name] = tensor
                continue
            for expert in range(4):
                out[name.replace(".mlp.", f".mlp.experts.{expert}.")] = tensor.clone()
            out[name.split(".mlp.")[0] + ".mlp.gate.weight"] = torch.ones(
                4, 64, dtype=torch.bfloat16
            )
        return out

    def mixtral(tensors):
        names = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
        out = {}
        for name, tensor in experts(tensors).items():
            name = name.replace(".mlp.", ".block_sparse_moe.")
            for old, new in names.items():
                name = name.replace(old, new)
            out[name] = tensor
        return out

    def stacked(tensors):
        out = {}
        for name, tensor in tensors.items():
            if ".mlp." not in name:
                out[name] = tensor
            elif name.endswith(".down_proj.weight"):
                out[name.replace(".down_proj.weight", ".experts.down_proj")] = torch.stack(
                    [tensor] * 4
                )
        return out

    def beside_a_tower(tensors):
        out = {f"model.language_model.{k.removeprefix('model.')}": t for k, t in tensors.items()}
        tower = "model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight"
        return {**out, tower: torch.ones(64, 64, dtype=torch.bfloat16)}

    def made(family, change, **config):
        checkpoint = FamilyCheckpoint(family)
        checkpoint._tensors = change(checkpoint.weight_files()["model.safetensors"])
        return checkpoint.config(**config)

    moe = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 4}
    words = ("mixture of experts", "Qwen3ForCausalLM")
    yield ConvertsOnly(
        "qwen3_moe", made("qwen3", experts, **moe), ("48 of 48 linear weights",), words
    )
    yield ConvertsOnly(
        "qwen3_moe, experts stacked",
        made("qwen3", stacked, **moe),
        ("12 of 15 linear weights", "three dimensions", "experts.down_proj"),
        words,
    )
    mixtral_config = {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": 4,
    }
    yield ConvertsOnly(
        "mixtral",
        made("mistral", mixtral, **mixtral_config),
        ("12 of 48 linear weights", "w1", "w2", "w3", "to take them too"),
        ("mixture of experts", "MixtralForCausalLM"),
    )
    gemma = FamilyCheckpoint("gemma3_text").files["config.json"]
    parts = {"text_config": gemma, "vision_config": {"hidden_size": 64}}
    yield ConvertsOnly(
        "gemma3 with a vision tower",
        made(
            "gemma3_text",
            beside_a_tower,
            architectures=["Gemma3ForConditionalGeneration"],
            model_type="gemma3",
            **parts,
        ),
        ("49 of 49 linear weights", "vision"),
        ("text and something else", "Gemma3ForCausalLM"),
    )


def exports():
    from .exports import DENSE, PACKED, Export

    for model_type in FAMILIES:
        for form in (DENSE, PACKED):
            yield Export(
                f"{model_type}: {form[1]}",
                FamilyCheckpoint(model_type),
                form=form,
                checks=(NEAR, Answer()),
            )


def cases():
    yield from sizes()
    yield from biases()
    yield from windows()
    yield from smollm3()
    yield from gemma()
    yield from scalings()
    yield from (
        Selected(f"{model_type}: what --target takes", model_type) for model_type in FAMILIES
    )
    yield from converted_only()
    yield from exports()
