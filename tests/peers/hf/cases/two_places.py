"""Kind 6: one setting in two spellings or places, absent keys with an architecture's default, keys
of other families.
"""

from checkpoints import DROP, Checkpoint
from lib import Answer, Case, Losses

SHORT = [1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0]
LONG = [1.1, 1.5, 2.0, 3.0, 5.0, 9.0, 17.0, 30.0]
SENTENCE = "The capital of France is Paris. "
CHECKS = (Losses(), Losses(128, 512), Answer(), Answer(SENTENCE * 3, n=12))
FEW = (Losses(), Answer(SENTENCE * 2))
LLAMA3 = {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "rope_type": "llama3"}
LONGROPE = {"long_factor": LONG, "short_factor": SHORT, "type": "longrope"}


def case(name, checkpoint, words=None, checks=CHECKS, **more):
    return Case(name, checkpoint, checks, words=words, record="config", **more)


def llama(name, words=None, **config):
    return case(f"llama: {name}", Checkpoint("llama").config(**config), words)


def phi3(name, words=None, may_run=False, **config):
    return case(f"phi3: {name}", Checkpoint("phi3").config(**config), words, may_run=may_run)


def old(**scaling):
    """Keys as transformers 4 wrote them."""
    return {"rope_parameters": DROP, "rope_theta": 5000.0, "rope_scaling": scaling or None}


def llama_rope():
    yarn = {"factor": 4.0, "original_max_position_embeddings": 256, "rope_type": "yarn"}
    both = ("rope_scaling", "rope_parameters")
    yield llama(
        "rope_scaling beside rope_parameters, both default", rope_scaling={"rope_type": "default"}
    )
    yield llama(
        "rope_scaling linear beside rope_parameters",
        both,
        rope_scaling={"factor": 4.0, "rope_type": "linear"},
        rope_parameters={"rope_theta": 5000.0, "rope_type": "default"},
    )
    yield llama(
        "rope_scaling linear beside rope_parameters, the base at the top",
        both,
        rope_theta=5000.0,
        rope_scaling={"factor": 4.0, "rope_type": "linear"},
        rope_parameters={"rope_theta": 7000.0, "rope_type": "default"},
    )
    yield llama(
        "rope_scaling llama3 beside rope_parameters",
        both,
        rope_scaling={**LLAMA3, "original_max_position_embeddings": 128},
    )
    yield llama("rope_scaling yarn beside rope_parameters", ("yarn",), rope_scaling=yarn)
    yield llama(
        "an empty rope_scaling beside rope_parameters",
        rope_scaling={},
        rope_parameters={"rope_theta": 5000.0, "rope_type": "default"},
    )
    yield llama(
        "a null rope_scaling beside rope_parameters",
        rope_scaling=None,
        rope_parameters={"factor": 2.0, "rope_theta": 5000.0, "rope_type": "linear"},
    )
    yield llama(
        "rope_scaling, and null rope_parameters",
        rope_parameters=None,
        rope_theta=5000.0,
        rope_scaling={"factor": 2.0, "rope_type": "linear"},
    )
    yield llama("rope_theta at the top and in rope_parameters", ("rope_theta",), rope_theta=500.0)
    yield llama(
        "rope_theta at the top, rope_parameters without one",
        rope_theta=500.0,
        rope_parameters={"rope_type": "default"},
    )
    yield llama("rope_theta nowhere", rope_parameters={"rope_type": "default"})
    yield llama("no rope at all", rope_parameters=DROP)
    yield llama("an empty rope_parameters", rope_parameters={}, rope_theta=500.0)
    yield llama("as transformers 4 wrote it: rope_theta", **old())
    yield llama("as transformers 4 wrote it: linear", **old(type="linear", factor=4.0))
    yield llama(
        "as transformers 4 wrote it: rope_type linear, factor an integer",
        **old(rope_type="linear", factor=4),
    )
    yield llama(
        "as transformers 4 wrote it: dynamic", ("dynamic",), **old(type="dynamic", factor=4.0)
    )
    yield llama("as transformers 4 wrote it: yarn", ("yarn",), **old(**yarn))
    # Past the original length transformers recomputes the cache for Phi-3 alone; a Llama goes on
    # with short keys.
    yield llama(
        "as transformers 4 wrote it: longrope",
        ("longrope",),
        **old(**LONGROPE, original_max_position_embeddings=64),
    )
    yield llama(
        "rope_type and type disagree",
        ("rope_type", "type"),
        **old(rope_type="linear", type="llama3", factor=4.0),
    )
    yield llama(
        "type alone in rope_parameters",
        rope_parameters={"factor": 4.0, "rope_theta": 5000.0, "type": "linear"},
    )
    yield llama("an unknown type", ("mrope",), **old(type="mrope", mrope_section=[2, 3, 3]))
    yield llama("a factor that is text", ("factor",), **old(type="linear", factor="4.0"))
    yield llama("linear without a factor", ("factor",), **old(type="linear"))
    yield llama("a factor below 1", **old(type="linear", factor=0.5))
    yield llama(
        "rope_parameters by kind of layer",
        ("rope_parameters", "full_attention"),
        rope_parameters={"full_attention": {"rope_theta": 500.0, "rope_type": "default"}},
    )


def llama3_rope():
    at = "original_max_position_embeddings"
    yield llama(
        "llama3, original length inside", rope_parameters={**LLAMA3, at: 128, "rope_theta": 5000.0}
    )
    yield llama(
        "llama3, original length 128 inside and 512 outside",
        (at,),
        rope_parameters={**LLAMA3, at: 128, "rope_theta": 5000.0},
        **{at: 512},
    )
    yield llama(
        "llama3 by rope_scaling, original length 128 inside and 512 outside",
        (at,),
        **old(**LLAMA3, **{at: 128}),
        **{at: 512},
    )
    yield llama(
        "llama3, original length outside alone",
        (at,),
        rope_parameters={**LLAMA3, "rope_theta": 5000.0},
        **{at: 128},
    )
    yield llama("llama3, original length nowhere", rope_parameters={**LLAMA3, "rope_theta": 5000.0})
    yield llama(
        "llama3 without high_freq_factor",
        ("high_freq_factor",),
        rope_parameters={
            k: v
            for k, v in {**LLAMA3, at: 128, "rope_theta": 5e3}.items()
            if k != "high_freq_factor"
        },
    )
    yield llama(
        "llama3 with an attention_factor, which it does not read",
        rope_parameters={**LLAMA3, at: 128, "rope_theta": 5000.0, "attention_factor": 3.0},
    )
    yield llama(
        "linear with an attention_factor, which it does not read",
        rope_parameters={
            "factor": 4.0,
            "rope_theta": 5000.0,
            "rope_type": "linear",
            "attention_factor": 3.0,
        },
    )
    yield llama(
        "longrope, original length 64 inside and 128 outside",
        ("longrope",),
        **old(**LONGROPE, **{at: 64}),
        **{at: 128},
    )
    yield llama(
        "longrope with its own factor", ("longrope",), **old(**LONGROPE, **{at: 64, "factor": 32.0})
    )
    yield llama(
        "longrope with its own attention_factor",
        ("longrope",),
        **old(**LONGROPE, **{at: 64, "attention_factor": 1.5}),
    )
    yield llama(
        "partial_rotary_factor inside",
        ("partial_rotary_factor",),
        rope_parameters={
            "partial_rotary_factor": 0.5,
            "rope_theta": 5000.0,
            "rope_type": "default",
        },
    )
    yield llama(
        "partial_rotary_factor at the top", ("partial_rotary_factor",), partial_rotary_factor=0.5
    )
    yield llama("partial_rotary_factor 1", partial_rotary_factor=1.0)
    yield llama(
        "partial_rotary_factor with linear",
        ("partial_rotary_factor",),
        rope_parameters={
            "factor": 4.0,
            "partial_rotary_factor": 0.5,
            "rope_theta": 5e3,
            "rope_type": "linear",
        },
    )


def phi3_rope():
    at = "original_max_position_embeddings"
    yield phi3("as Phi-3.5 has it", **old(**LONGROPE), **{at: 64})
    yield phi3(
        "original length 64 outside, 32 inside", (at,), **old(**LONGROPE, **{at: 32}), **{at: 64}
    )
    yield phi3(
        "original length inside alone: 4096 counts",
        (at,),
        **old(**LONGROPE, **{at: 64}),
        **{at: DROP},
    )
    yield phi3(
        "original length nowhere: 4096",
        (at,),
        **old(**LONGROPE),
        **{at: DROP, "max_position_embeddings": 131072},
    )
    yield phi3("original length nowhere, the longest 1024", (at,), **old(**LONGROPE), **{at: DROP})
    yield phi3(
        "in rope_parameters, original length outside",
        rope_parameters={**LONGROPE, "rope_theta": 5000.0, "partial_rotary_factor": 1.0},
        **{at: 64},
    )
    yield phi3(
        "in rope_parameters, original length 32 inside and 64 outside",
        (at,),
        rope_parameters={**LONGROPE, "rope_theta": 5e3, "partial_rotary_factor": 1.0, at: 32},
        **{at: 64},
    )
    yield phi3(
        "rope_scaling beside rope_parameters",
        ("rope_scaling", "rope_parameters"),
        rope_scaling=LONGROPE,
        **{at: 64},
    )
    # transformers 5 renames it too late to find the original length; the first Phi-3 releases have
    # it.
    yield phi3("type su", ("su",), may_run=True, **old(**{**LONGROPE, "type": "su"}), **{at: 64})
    yield phi3(
        "type yarn, by which longrope was once meant",
        ("yarn",),
        **old(**{**LONGROPE, "type": "yarn"}),
        **{at: 64},
    )
    yield phi3("type linear", ("linear",), **old(type="linear", factor=2.0))
    yield phi3("type llama3", ("llama3",), **old(**LLAMA3, **{at: 64}))
    yield phi3("no scaling", **old())
    yield phi3(
        "a short_factor that is too short",
        ("short_factor", "7", "8"),
        **old(**{**LONGROPE, "short_factor": SHORT[:7]}),
        **{at: 64},
    )
    yield phi3(
        "no long_factor", ("long_factor",), **old(type="longrope", short_factor=SHORT), **{at: 64}
    )
    yield phi3("factors as integers", **old(**{**LONGROPE, "short_factor": [1] * 8}), **{at: 64})
    yield phi3("an attention_factor", **old(**LONGROPE, attention_factor=1.7), **{at: 64})
    yield phi3("a factor", **old(**LONGROPE, factor=4.0), **{at: 64})
    yield phi3("original length equal to the longest", **old(**LONGROPE), **{at: 1024})
    yield phi3("original length beyond the longest", **old(**LONGROPE), **{at: 2048})
    half = {k: v[:4] if isinstance(v, list) else v for k, v in LONGROPE.items()}
    yield phi3(
        "partial_rotary_factor 0.5 at the top, as Phi-4-mini has it",
        **old(**half),
        partial_rotary_factor=0.5,
        **{at: 64},
    )
    yield phi3(
        "partial_rotary_factor 0.5 in rope_parameters",
        **{at: 64},
        rope_parameters={**half, "rope_theta": 5000.0, "partial_rotary_factor": 0.5},
    )
    yield phi3(
        "partial_rotary_factor 0.5 at the top, 1 in rope_parameters",
        ("partial_rotary_factor",),
        partial_rotary_factor=0.5,
    )
    yield phi3("partial_rotary_factor 0.5 without scaling", **old(), partial_rotary_factor=0.5)
    yield phi3("rope_theta at the top and in rope_parameters", ("rope_theta",), rope_theta=500.0)


def defaults():
    for family in ("llama", "phi3"):
        for key in (
            "rms_norm_eps",
            "hidden_act",
            "max_position_embeddings",
            "attention_bias",
            "mlp_bias",
            "head_dim",
            "eos_token_id",
            "bos_token_id",
            "sliding_window",
            "initializer_range",
            "pad_token_id",
        ):
            checkpoint = Checkpoint(family)
            if key in checkpoint.files["config.json"]:
                # Phi-3's default of the padding id is a row that a small vocabulary does not have.
                yield case(
                    f"{family}: no {key}",
                    checkpoint.config(**{key: DROP}),
                    checks=FEW,
                    words=(key,) if key == "pad_token_id" else None,
                    may_run=key == "pad_token_id",
                )
        full = Checkpoint(family, shape={"num_key_value_heads": 4})
        yield case(f"{family}: no num_key_value_heads", full.config(num_key_value_heads=DROP))
        full = Checkpoint(family, shape={"num_key_value_heads": 4})
        yield case(f"{family}: null num_key_value_heads", full.config(num_key_value_heads=None))
        yield case(
            f"{family}: no vocab_size", Checkpoint(family).config(vocab_size=DROP), ("vocab_size",)
        )
        yield case(
            f"{family}: no intermediate_size",
            Checkpoint(family).config(intermediate_size=DROP),
            ("intermediate_size",),
        )
        yield case(
            f"{family}: no num_hidden_layers",
            Checkpoint(family).config(num_hidden_layers=DROP),
            ("num_hidden_layers",),
        )
        yield case(
            f"{family}: no num_attention_heads",
            Checkpoint(family).config(num_attention_heads=DROP),
            ("num_attention_heads",),
        )
        wide = Checkpoint(family, shape={"head_dim": 32})
        yield case(f"{family}: a head_dim of its own", wide.config(head_dim=32))
        yield case(
            f"{family}: a null head_dim",
            Checkpoint(family).config(head_dim=None),
            ("head_dim",),
            may_run=True,
        )
    uneven = Checkpoint(shape={"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 16})
    yield case(
        "llama: a hidden_size that the heads do not divide, with a head_dim",
        uneven,
        ("hidden_size", "num_attention_heads"),
        may_run=True,
    )


def other_families():
    for key, value in {
        "sliding_window": 16,
        "use_sliding_window": True,
        "layer_types": ["full_attention"] * 2,
        "qkv_bias": True,
        "logits_scaling": 8.0,
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.2,
        "attention_multiplier": 0.1,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
        "query_pre_attn_scalar": 256,
        "scale_emb": 12.0,
        "scale_depth": 1.4,
        "dim_model_base": 16,
        "clip_qkv": 0.5,
        "no_rope_layers": [1, 0],
        "use_qk_norm": True,
        "rope_interleaved": True,
        "num_experts": 8,
        "layer_norm_eps": 0.1,
        "n_head": 2,
        "hidden_activation": "gelu",
        "activation_function": "gelu_new",
        "rotary_pct": 0.5,
        "rope_pct": 0.5,
        "alibi": True,
        "parallel_attn": True,
        "pretraining_tp": 2,
        "original_max_position_embeddings": 512,
        "attention_dropout": 0.5,
        "hidden_dropout": 0.5,
        "mscale": 2.0,
        "use_mrope": True,
        "sliding_window_pattern": 2,
    }.items():
        # One of them counts: transformers cuts a Llama's cache to sliding_window, though not its
        # attention.
        yield case(
            f"llama: {key}, a key of another family",
            Checkpoint().config(**{key: value}),
            (key,),
            FEW,
        )
    for key, value in {
        "attention_bias": True,
        "mlp_bias": True,
        "use_sliding_window": False,
        "layer_types": None,
        "max_window_layers": 1,
        "resid_pdrop": 0.5,
        "embd_pdrop": 0.5,
        "attention_dropout": 0.5,
        "logits_scaling": 8.0,
        "lm_head_bias": False,
    }.items():
        yield case(
            f"phi3: {key}, which changes nothing",
            Checkpoint("phi3").config(**{key: value}),
            (key,),
            FEW,
        )
    yield phi3("a sliding_window of 16", sliding_window=16)
    yield phi3(
        "a sliding_window of 16 and use_sliding_window false",
        ("use_sliding_window",),
        sliding_window=16,
        use_sliding_window=False,
    )
    yield phi3(
        "a sliding_window of 16 and layer_types that are full",
        ("layer_types",),
        sliding_window=16,
        layer_types=["full_attention"] * 2,
    )
    yield phi3("a sliding_window of 0", ("sliding_window",), sliding_window=0)
    yield llama(
        "hidden_act swish, another name of silu", ("hidden_act", "swish"), hidden_act="swish"
    )
    yield llama("hidden_act gelu", ("hidden_act", "gelu"), hidden_act="gelu")
    yield llama("attention_bias true, without biases", ("bias",), attention_bias=True)
    yield llama("mlp_bias true, without biases", ("bias",), mlp_bias=True)
    yield llama("hidden_size as a decimal", ("hidden_size",), hidden_size=64.0)
    yield llama("hidden_size as text", ("hidden_size",), hidden_size="64")
    yield llama("rms_norm_eps as text", ("rms_norm_eps",), rms_norm_eps="1e-6")
    yield llama("torch_dtype beside dtype", torch_dtype="float16", dtype="bfloat16")
    yield llama(
        "num_attention_heads that its key-value heads do not divide",
        ("num_key_value_heads",),
        num_key_value_heads=3,
    )


def cases():
    yield from llama_rope()
    yield from llama3_rope()
    yield from phi3_rope()
    yield from defaults()
    yield from other_families()
