"""Kind 10: config.json that contradicts itself or the weights, adapters, declared quantization."""

import torch

from checkpoints import DROP, Checkpoint, tensors_of
from lib import Answer, Case, Losses

CHECKS = (Losses(), Answer())
L0 = "model.layers.0."


def case(name, checkpoint, words=None, **more):
    return Case(name, checkpoint, CHECKS, words, **more)


def config(name, words=None, family="llama", **more):
    change = {k: more.pop(k) for k in list(more) if k not in ("must_refuse", "may_run", "says")}
    return Case(name, Checkpoint(family).config(**change), CHECKS, words, record="config", **more)


def families():
    both = ("model_type", "architectures")
    for other in (
        "mistral",
        "qwen2",
        "gemma",
        "granite",
        "phi",
        "gpt2",
        "cohere",
        "olmo2",
        "smollm3",
        "starcoder2",
    ):
        yield config(
            f"model_type {other}, architectures Llama", ("model_type", other), model_type=other
        )
    yield config("model_type llama, architectures Phi-3", both, architectures=["Phi3ForCausalLM"])
    yield config(
        "model_type phi3, architectures Llama", both, "phi3", architectures=["LlamaForCausalLM"]
    )
    yield config(
        "model_type llama, architectures Mistral",
        ("architecture", "Mistral"),
        architectures=["MistralForCausalLM"],
    )
    yield config("no architectures", ("architecture",), architectures=DROP)
    yield config("null architectures", ("architecture",), architectures=None)
    yield config("an empty list of architectures", ("architecture",), architectures=[])
    yield config("architectures as text", ("architecture",), architectures="LlamaForCausalLM")
    yield config(
        "two architectures",
        ("architecture",),
        architectures=["LlamaForCausalLM", "MistralForCausalLM"],
    )
    yield config(
        "two architectures, the second supported",
        ("architecture",),
        architectures=["MyForCausalLM", "LlamaForCausalLM"],
    )
    yield config("no model_type", ("model_type",), may_run=True, model_type=DROP)
    yield config("an unknown model_type", ("model_type", "my_llama"), model_type="my_llama")
    yield config(
        "an unknown model_type with auto_map",
        ("model_type", "my_llama"),
        model_type="my_llama",
        auto_map={"AutoModelForCausalLM": "modeling_my.MyForCausalLM"},
    )
    yield config(
        "auto_map beside a model_type that is known",
        auto_map={
            "AutoConfig": "configuration_llama.LlamaConfig",
            "AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM",
        },
    )
    yield config(
        "phi3 with auto_map, as Phi-3.5 has it",
        None,
        "phi3",
        auto_map={
            "AutoConfig": "configuration_phi3.Phi3Config",
            "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
        },
    )
    bare = Checkpoint().config(architectures=["LlamaModel"])
    bare.tensors(
        lambda t: {k.removeprefix("model."): v for k, v in t.items() if k != "lm_head.weight"}
    )
    yield case("LlamaModel, without a head and a prefix", bare, ("LlamaModel",))
    score = Checkpoint().config(architectures=["LlamaForSequenceClassification"])
    score.tensors(
        lambda t: {
            **{k: v for k, v in t.items() if k != "lm_head.weight"},
            "score.weight": torch.ones(2, 64),
        }
    )
    yield case(
        "LlamaForSequenceClassification, without a head", score, ("LlamaForSequenceClassification",)
    )
    nested = Checkpoint()
    inner = nested.files["config.json"]
    nested.file(
        "config.json",
        {
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "text_config": inner,
            "vision_config": {"model_type": "clip_vision_model"},
        },
    )
    nested.tensors(lambda t: {f"language_model.{k}": v for k, v in t.items()})
    yield case("a model of text and images", nested, ("Llava",))
    yield config(
        "text_config beside a plain config",
        ("text_config",),
        text_config={"hidden_size": 32, "model_type": "llama"},
    )
    yield config(
        "vision_config beside a plain config", ("vision_config",), vision_config={"hidden_size": 32}
    )


def adapters():
    lora = {
        "base_model_name_or_path": "org/base",
        "peft_type": "LORA",
        "r": 4,
        "target_modules": ["q_proj"],
    }
    weights = {f"base_model.model.{L0}self_attn.q_proj.lora_A.weight": torch.ones(4, 64)}
    beside = Checkpoint().file("adapter_config.json", lora)
    why = "(applies it where peft is installed, and says nothing where it is not)"
    yield case(
        "an adapter beside a full model",
        beside.layout(lambda t: {"model.safetensors": t, "adapter_model.safetensors": weights}),
        ("adapter_config.json",),
        must_refuse=why,
    )
    yield case(
        "an adapter's configuration alone beside a full model",
        Checkpoint().file("adapter_config.json", lora),
        ("adapter_config.json",),
        must_refuse=why,
    )
    yield case(
        "adapter weights without a configuration beside a full model",
        Checkpoint().layout(
            lambda t: {"model.safetensors": t, "adapter_model.safetensors": weights}
        ),
        ("adapter_model.safetensors",),
        says=("adapter_model.safetensors",),
    )
    alone = (
        Checkpoint().drop("config.json", "generation_config.json").file("adapter_config.json", lora)
    )
    yield case(
        "an adapter alone",
        alone.layout(lambda t: {"adapter_model.safetensors": weights}),
        ("adapter_config.json", "org/base"),
    )
    yield case(
        "a folder of adapters beside a full model",
        Checkpoint().file("lora/adapter_config.json", lora),
    )
    yield case(
        "weights that were saved with an adapter inside",
        Checkpoint().tensors(
            lambda t: {
                **{k.replace("q_proj.weight", "q_proj.base_layer.weight"): v for k, v in t.items()}
            }
        ),
        ("q_proj.weight",),
    )


QUANTIZATIONS = {
    "bitsandbytes 4 bits": {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
    },
    "bitsandbytes 8 bits": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True},
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    "fbgemm_fp8": {"quant_method": "fbgemm_fp8"},
    "compressed-tensors": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {},
    },
    "hqq": {"quant_method": "hqq", "quant_config": {}},
    "torchao": {"quant_method": "torchao", "quant_type": "int4_weight_only"},
    "mxfp4": {"quant_method": "mxfp4"},
    "bitnet": {"quant_method": "bitnet"},
    "eetq": {"quant_method": "eetq"},
    "quanto": {"quant_method": "quanto", "weights": "int8"},
    "aqlm": {"quant_method": "aqlm"},
    "vptq": {"quant_method": "vptq"},
    "spqr": {"quant_method": "spqr"},
    "a method of nobody": {"quant_method": "nobody's"},
    "no method": {"bits": 4, "group_size": 128},
}


def quantizations():
    for name, value in QUANTIZATIONS.items():
        yield config(
            f"quantization_config of plain weights: {name}",
            ("quantization_config",),
            must_refuse="(what it declares is not in the files)",
            quantization_config=value,
        )
    yield config("a null quantization_config", quantization_config=None)
    yield config(
        "an empty quantization_config",
        ("quantization_config",),
        may_run=True,
        quantization_config={},
    )
    yield config(
        "quantization_config as text",
        ("quantization_config",),
        quantization_config="int4",
        must_refuse="(no quantization_config)",
    )
    yield config(
        "compression_config, as it was once called",
        ("compression_config",),
        compression_config={
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {},
        },
        must_refuse="(what it declares is not in the files)",
    )
    eight = Checkpoint().config(quantization_config=QUANTIZATIONS["fp8"])
    eight.tensors(
        lambda t: {
            **t,
            f"{L0}mlp.up_proj.weight": t[f"{L0}mlp.up_proj.weight"].to(torch.float8_e4m3fn),
            f"{L0}mlp.up_proj.weight_scale_inv": torch.ones(1, 1),
        }
    )
    yield case(
        "weights in FP8 with scales",
        eight,
        ("quantization_config", "fp8"),
        must_refuse="(reads it with an FP8 kernel)",
    )
    bits = Checkpoint().config(quantization_config=QUANTIZATIONS["bitsandbytes 4 bits"])
    bits.tensors(
        lambda t: {
            **t,
            f"{L0}mlp.up_proj.weight": torch.zeros(4096, 1, dtype=torch.uint8),
            f"{L0}mlp.up_proj.weight.absmax": torch.ones(128),
        }
    )
    yield case(
        "weights of bitsandbytes",
        bits,
        ("quantization_config", "bitsandbytes"),
        must_refuse="(needs bitsandbytes)",
    )
    silent = Checkpoint().tensors(
        lambda t: {**t, f"{L0}mlp.up_proj.weight": torch.zeros(4096, 1, dtype=torch.uint8)}
    )
    yield case("packed bytes that nothing declares", silent, ("up_proj.weight",))
    nowhere = Checkpoint().tensors(
        lambda t: {**t, f"{L0}mlp.up_proj.weight_scale_inv": torch.ones(1, 1)}
    )
    yield case("a scale beside plain weights that nothing declares", nowhere, ("weight_scale_inv",))


def sizes():
    more = Checkpoint()
    more.tensors(lambda _: tensors_of("llama", {"num_hidden_layers": 3}))
    yield case(
        "more layers in the files than in config.json",
        more,
        ("model.layers.2", "num_hidden_layers"),
    )
    yield config(
        "more layers in config.json than in the files", ("model.layers.2",), num_hidden_layers=3
    )
    yield config("no layers", ("num_hidden_layers",), num_hidden_layers=0)
    yield config(
        "a larger vocabulary in config.json", ("config.json", "embed_tokens", "416"), vocab_size=416
    )
    yield config(
        "a smaller vocabulary in config.json",
        ("config.json", "embed_tokens", "384"),
        vocab_size=384,
    )
    yield config("another hidden_size", ("config.json", "32"), hidden_size=32)
    yield config(
        "another intermediate_size", ("config.json", "gate_proj", "96"), intermediate_size=96
    )
    yield config("another head_dim", ("config.json", "_proj"), head_dim=32)
    yield config("more key-value heads", ("config.json", "k_proj"), num_key_value_heads=4)
    yield config("fewer heads", ("config.json", "_proj"), num_attention_heads=2)
    yield config(
        "a prompt longer than max_position_embeddings",
        max_position_embeddings=8,
        words=("context", "8"),
    )
    yield config("is_encoder_decoder", ("is_encoder_decoder",), is_encoder_decoder=True)
    yield config("is_decoder", is_decoder=True)
    yield config("pruned_heads", ("pruned_heads",), pruned_heads={"0": [1]})
    yield config("a negative hidden_size", ("hidden_size", "-64"), hidden_size=-64)
    yield config("a hidden_size that no machine holds", ("hidden_size",), hidden_size=1 << 40)


def cases():
    yield from families()
    yield from adapters()
    yield from quantizations()
    yield from sizes()
