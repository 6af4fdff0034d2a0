"""Kind 14: checkpoints that are int4 already. Their integers, their scales and what they left alone
must stay.

The reference is the dense twin: `q s` in f32 for what is packed, bf16 for the rest, as transformers
runs it.
"""

import copy
import dataclasses
import fnmatch
import json
import re
import struct

import torch
from safetensors.torch import load_file

from checkpoints import Checkpoint, tensors_of
from lib import Cell, Losses, Refusal, Row, Theirs, refusal_cell

SHAPE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
LINEAR = re.compile(r"\.(q|k|v|o|gate|up|down)_proj\.weight$")


@dataclasses.dataclass
class Scheme:
    """How a checkpoint was quantized."""

    form: str = "pack"  # or gptq
    group: int = 128  # 0: one group a row
    scales: torch.dtype = torch.bfloat16
    ignore: tuple = ("lm_head",)  # names, or patterns of fnmatch, of modules that stay as they are
    zero: int = 7  # what gptq stores for 8
    mantissa: int | None = None  # bits of the scales' mantissa that are used
    order: bool = False  # a g_idx or weight_g_idx that scatters the columns
    g_idx: bool = True
    config: dict = dataclasses.field(default_factory=dict)

    def packs(self, name):
        module = name.removesuffix(".weight")
        return bool(LINEAR.search(name)) and not any(
            fnmatch.fnmatch(module, p) for p in self.ignore
        )


def words_of(codes):
    """Eight 4-bit codes, 0 to 15, of a row to an int32: [rows, columns] to [rows, columns / 8]."""
    rows, columns = codes.shape
    padded = torch.zeros(rows, -(-columns // 8) * 8, dtype=torch.int64)
    padded[:, :columns] = codes
    shifts = torch.arange(8) * 4
    words = (padded.view(rows, -1, 8) << shifts).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def quantized(scheme):
    """Tensors as the quantizer wrote them, and the dense twin's."""
    generator = torch.Generator().manual_seed(3)
    packed, dense = {}, {}
    for name, tensor in tensors_of("llama", SHAPE).items():
        if not scheme.packs(name):
            packed[name], dense[name] = tensor, tensor
            continue
        rows, columns = tensor.shape
        group = scheme.group or columns
        groups = -(-columns // group)
        q = torch.randint(-8, 8, (rows, columns), generator=generator)
        scale = 0.02 + 0.08 * torch.rand(rows, groups, generator=generator)
        if scheme.mantissa is not None:
            power = torch.floor(torch.log2(scale))
            scale = (
                torch.floor(scale / 2**power * 2**scheme.mantissa) / 2**scheme.mantissa * 2**power
            )
        scale = scale.to(scheme.scales)
        dense[name] = q * scale.float().repeat_interleave(group, 1)[:, :columns]
        module = name.removesuffix(".weight")
        if scheme.form == "gptq":
            packed[f"{module}.qweight"] = words_of(q + 8).T.contiguous()  # [in / 8, out]
            packed[f"{module}.scales"] = scale.T.contiguous()
            packed[f"{module}.qzeros"] = words_of(torch.full((groups, rows), scheme.zero))
            order = torch.arange(columns) // group
            if scheme.g_idx:
                packed[f"{module}.g_idx"] = (order.flip(0) if scheme.order else order).to(
                    torch.int32
                )
        else:
            packed[f"{module}.weight_packed"] = words_of(q + 8)
            packed[f"{module}.weight_scale"] = scale
            packed[f"{module}.weight_shape"] = torch.tensor([rows, columns])
            if scheme.order:
                packed[f"{module}.weight_g_idx"] = (
                    (torch.arange(columns) // group).flip(0).to(torch.int32)
                )
    return packed, dense


def declared(scheme):
    """quantization_config, as the tools write it, with the case's changes; a dotted key changes an
    inner one.
    """
    if scheme.form == "gptq":
        config = {
            "bits": 4,
            "checkpoint_format": "gptq",
            "damp_percent": 0.1,
            "desc_act": False,
            "group_size": scheme.group or -1,
            "quant_method": "gptq",
            "sym": True,
            "true_sequential": True,
        }
    else:
        weights = {
            "actorder": None,
            "block_structure": None,
            "dynamic": False,
            "group_size": scheme.group or None,
            "num_bits": 4,
            "observer": "minmax",
            "observer_kwargs": {},
            "strategy": "group" if scheme.group else "channel",
            "symmetric": True,
            "type": "int",
        }
        group = {
            "input_activations": None,
            "output_activations": None,
            "targets": ["Linear"],
            "weights": weights,
        }
        config = {
            "config_groups": {"group_0": group},
            "format": "pack-quantized",
            "global_compression_ratio": None,
            "ignore": [re_of(p) for p in scheme.ignore],
            "kv_cache_scheme": None,
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
        }
    for key, value in scheme.config.items():
        *path, last = key.split(".")
        at = config
        for part in path:
            at = at[part]
        at[last] = value
    return config


def re_of(pattern):
    """compressed-tensors has patterns of its own after `re:`."""
    return pattern if "*" not in pattern else "re:" + pattern.replace(".", r"\.").replace("*", ".*")


def packed(scheme):
    tensors = quantized(scheme)[0]
    return (
        Checkpoint(shape=SHAPE)
        .config(quantization_config=declared(scheme))
        .tensors(lambda _: tensors)
    )


def dense_twin(scheme):
    tensors = quantized(scheme)[1]
    return Checkpoint(shape=SHAPE).tensors(lambda _: tensors)


def index_of(smq):
    data = smq.read_bytes()
    offset, length = struct.unpack_from("<QQ", data, 24)
    return json.loads(data[offset : offset + length])


@dataclasses.dataclass
class Import:
    """An import without further options keeps everything; `words`: what a refusal must name."""

    name: str
    scheme: Scheme
    words: tuple | None = None
    arguments: tuple = ()
    stored: tuple = ("int4-e5mx",)
    mantissa: int | None = None
    must_refuse: bool = False
    edit: object = None

    def row(self, bench):
        checkpoint = packed(self.scheme)
        if self.edit:
            self.edit(checkpoint)
        directory, twin = (
            checkpoint.write(bench.fresh()),
            dense_twin(self.scheme).write(bench.fresh()),
        )
        check = Losses()
        losses = check.theirs(Theirs(twin))
        shown = "refused" if self.must_refuse else f"{check.show(losses)} of q s"
        out = directory.with_suffix(".smq")
        done = bench.ours.convert(directory, out, *self.arguments)
        if isinstance(done, Refusal):
            return Row(self.name, shown, Cell("-"), refusal_cell(done, self.words, ()))
        if self.must_refuse:
            return Row(self.name, shown, Cell("-"), Cell("differs", "converts, and must refuse"))
        ours = check.ours(bench.ours, out)
        problem = (
            f"refuses: {ours}" if isinstance(ours, Refusal) else check.difference(losses, ours)
        )
        problem = problem or self.kept(bench, out) or self.provenance(out)
        return Row(
            self.name, shown, Cell("-"), Cell("differs", problem) if problem else Cell("equal")
        )

    def kept(self, bench, out):
        """Every value exactly, and every tensor in the storage that it had."""
        back = bench.fresh()
        done = bench.ours.convert(out, back, "--to", "safetensors", "--dtype", "f32")
        if isinstance(done, Refusal):
            return f"does not come out again: {done}"
        ours, dense = load_file(back / "model.safetensors"), quantized(self.scheme)[1]
        for name, expected in dense.items():
            if not torch.equal(ours[name].float(), expected.float()):
                most = (ours[name].float() - expected.float()).abs().max().item()
                return f"{name} changes by up to {most:.2g}"
        for tensor in index_of(out)["tensors"]:
            scheme, packs = tensor["scheme"], self.scheme.packs(tensor["name"])
            if packs != (scheme != "raw"):
                return f"{tensor['name']} is stored as {scheme}"
            if packs and scheme not in self.stored:
                return f"{tensor['name']} is stored as {scheme}, not {' or '.join(self.stored)}"
            if (
                packs
                and self.mantissa is not None
                and tensor["parameters"]["mantissa_bits"] != self.mantissa
            ):
                bits = tensor["parameters"]["mantissa_bits"]
                return f"{tensor['name']} has {bits} mantissa bits, not {self.mantissa}"
        return None

    def provenance(self, out):
        parameters = index_of(out)["provenance"]["parameters"]
        if "target" in parameters and not self.arguments:
            return f"provenance says target={parameters['target']}, and nothing was targeted"
        return (
            None if any("import" in key for key in parameters) else "provenance does not say import"
        )


@dataclasses.dataclass
class Narrowed:
    """With options that lose something, the output must say so."""

    name: str
    scheme: Scheme
    arguments: tuple
    says: tuple
    quantizes: tuple = ()

    def row(self, bench):
        directory = packed(self.scheme).write(bench.fresh())
        out = directory.with_suffix(".smq")
        done = bench.ours.convert(directory, out, *self.arguments)
        if isinstance(done, Refusal):
            return Row(self.name, " ".join(self.arguments), Cell("-"), refusal_cell(done, None, ()))
        silent = [word for word in self.says if not re.search(word, done, re.I)]
        if silent:
            return Row(
                self.name,
                " ".join(self.arguments),
                Cell("-"),
                Cell("differs", f"does not say {silent}"),
            )
        taken = {t["name"] for t in index_of(out)["tensors"] if t["scheme"] != "raw"}
        missed = [part for part in self.quantizes if not any(part in name for name in taken)]
        problem = f"leaves {missed} as it was" if missed else None
        return Row(
            self.name,
            " ".join(self.arguments),
            Cell("-"),
            Cell("differs", problem) if problem else Cell("equal"),
        )


# Sixteen bits in either spelling.
F16 = ("int4-f16", "int4-e5mx")


def pack(name, words=None, must_refuse=False, **scheme):
    how = {k: scheme.pop(k) for k in ("stored", "mantissa_bits", "edit") if k in scheme}
    if "mantissa_bits" in how:
        how["mantissa"] = how.pop("mantissa_bits")
    return Import(
        f"compressed-tensors: {name}", Scheme(**scheme), words, must_refuse=must_refuse, **how
    )


def gptq(name, words=None, must_refuse=False, **scheme):
    scheme.setdefault("scales", torch.float16)
    return Import(
        f"gptq: {name}", Scheme(form="gptq", **scheme), words, must_refuse=must_refuse, stored=F16
    )


def auto_round(name, words=None, must_refuse=False, zero=7, **config):
    base = {
        "autoround_version": "0.9",
        "bits": 4,
        "data_type": "int",
        "group_size": 128,
        "packing_format": "auto_round:auto_gptq",
        "quant_method": "auto-round",
        "sym": True,
    }
    scheme = Scheme(form="gptq", scales=torch.float16, zero=zero, g_idx=False)

    def edit(checkpoint):
        checkpoint.config(
            quantization_config={k: v for k, v in {**base, **config}.items() if v is not None}
        )

    return Import(
        f"auto-round: {name}", scheme, words, stored=F16, must_refuse=must_refuse, edit=edit
    )


ALL = ("lm_head", "*down_proj")


def compressed():
    yield pack("every linear layer", mantissa_bits=7)
    yield pack("groups of 64", group=64)
    yield pack("groups of 32", group=32)
    yield pack("groups of 48, the last one short", group=48)
    yield pack("one group a row", group=0)
    yield pack(
        "one group a row, group_size -1",
        group=0,
        config={"config_groups.group_0.weights.group_size": -1},
    )
    yield pack("down_proj left in bf16", ignore=ALL)
    yield pack("one layer left in bf16", ignore=("lm_head", "model.layers.1.*"))
    yield pack(
        "one module left in bf16 by its name", ignore=("lm_head", "model.layers.0.mlp.down_proj")
    )
    yield pack("the whole MLP left in bf16", ignore=("lm_head", "*mlp*"))
    yield pack(
        "modules in bf16 that ignore does not list", ignore=ALL, config={"ignore": ["lm_head"]}
    )
    yield pack("an empty ignore", config={"ignore": []})
    yield pack("scales in f16", scales=torch.float16, stored=F16)
    yield pack("scales in f32", scales=torch.float32, stored=("int4-f32",))
    yield pack("scales of bf16 that use 5 bits", mantissa=5)
    yield pack("scales of bf16 that are powers of two", mantissa=0)
    yield pack("scales of f16 that bf16 holds", scales=torch.float16, mantissa=6, stored=F16)
    yield pack("actorder weight", config={"config_groups.group_0.weights.actorder": "weight"})
    yield pack("targets by name", config={"config_groups.group_0.targets": ["re:.*_proj$"]})
    yield pack("status frozen", config={"quantization_status": "frozen"})
    yield pack("the scheme's own format", config={"config_groups.group_0.format": "pack-quantized"})
    two = declared(Scheme())["config_groups"]["group_0"]
    first, second = copy.deepcopy(two), copy.deepcopy(two)
    first["targets"], second["targets"] = ["re:.*self_attn.*"], ["re:.*mlp.*"]
    yield pack(
        "two groups of one scheme", config={"config_groups": {"group_0": first, "group_1": second}}
    )
    yield pack("with a dense sparsity_config", config={"sparsity_config": {"format": "dense"}})
    yield pack(
        "compression_config in place of quantization_config",
        ("compression_config",),
        edit=lambda c: c.config(
            compression_config=c.files["config.json"]["quantization_config"],
            quantization_config=None,
        ),
    )
    for name, words, config in (
        ("8 bits", ("num_bits", "8"), {"config_groups.group_0.weights.num_bits": 8}),
        ("asymmetric", ("symmetric",), {"config_groups.group_0.weights.symmetric": False}),
        ("floating point", ("type", "float"), {"config_groups.group_0.weights.type": "float"}),
        (
            "a tensor's scale",
            ("strategy", "tensor"),
            {"config_groups.group_0.weights.strategy": "tensor"},
        ),
        (
            "activations of 8 bits",
            ("input_activations",),
            {"config_groups.group_0.input_activations": {"num_bits": 8, "type": "int"}},
        ),
        (
            "a cache of 8 bits",
            ("kv_cache_scheme",),
            {"kv_cache_scheme": {"num_bits": 8, "type": "float"}},
        ),
        ("marlin-24", ("format", "marlin-24"), {"format": "marlin-24"}),
        ("int-quantized", ("format", "int-quantized"), {"format": "int-quantized"}),
        ("nvfp4", ("format", "nvfp4"), {"format": "nvfp4-pack-quantized"}),
        ("sparse", ("sparsity_config",), {"sparsity_config": {"format": "sparse-bitmask"}}),
        ("rotated", ("transform_config",), {"transform_config": {"config_groups": {"u": {}}}}),
        ("group order", ("actorder", "group"), {"config_groups.group_0.weights.actorder": "group"}),
        ("no method", ("quant_method",), {"quant_method": None}),
    ):
        yield pack(name, words, True, config=config)
    yield pack("a column order", ("weight_g_idx",), True, order=True)
    yield pack(
        "groups of another size than declared",
        ("weight_scale",),
        True,
        group=64,
        config={"config_groups.group_0.weights.group_size": 128},
    )

    def zeros(checkpoint):
        checkpoint.tensors(
            lambda t: {
                **t,
                **{
                    k.replace("weight_scale", "weight_zero_point"): torch.zeros(
                        1, 1, dtype=torch.int32
                    )
                    for k in t
                    if k.endswith("weight_scale")
                },
            }
        )

    yield pack("zero points", ("weight_zero_point",), True, edit=zeros)

    def nan(checkpoint):
        def change(tensors):
            name = next(k for k in tensors if k.endswith("weight_scale"))
            return {**tensors, name: torch.full_like(tensors[name], float("nan"))}

        checkpoint.tensors(change)

    yield pack("a NaN among the scales", ("q_proj", "nan"), True, edit=nan)
    yield pack(
        "integers missing",
        ("weight_packed",),
        True,
        edit=lambda c: c.tensors(
            lambda t: {
                k: v for k, v in t.items() if k != "model.layers.0.mlp.up_proj.weight_packed"
            }
        ),
    )


def gptqs():
    yield gptq("every linear layer")
    yield gptq("version 2, zero points 8", zero=8, config={"checkpoint_format": "gptq_v2"})
    yield gptq("groups of 32", group=32)
    yield gptq("one group a row", group=0)
    yield gptq("without g_idx", g_idx=False)
    yield gptq("scales in bf16", scales=torch.bfloat16)
    yield gptq(
        "down_proj left in bf16, by dynamic", ignore=ALL, config={"dynamic": {r"-:.*down_proj": {}}}
    )
    yield gptq(
        "down_proj left in bf16, by modules_in_block_to_quantize",
        ignore=ALL,
        config={
            "modules_in_block_to_quantize": [
                ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
                ["self_attn.o_proj"],
                ["mlp.up_proj", "mlp.gate_proj"],
            ]
        },
    )
    yield gptq("down_proj left in bf16, undeclared", ignore=ALL)
    yield gptq("desc_act with an order that is none", ("desc_act",), config={"desc_act": True})
    for name, words, config in (
        ("8 bits", ("bits", "8"), {"bits": 8}),
        ("3 bits", ("bits", "3"), {"bits": 3}),
        ("asymmetric", ("sym",), {"sym": False}),
        ("marlin", ("marlin",), {"checkpoint_format": "marlin", "is_marlin_format": True}),
        ("packed in bytes", ("pack_dtype",), {"pack_dtype": "int8"}),
        ("other bits in some modules", ("dynamic",), {"dynamic": {"+:.*down_proj": {"bits": 8}}}),
    ):
        yield gptq(name, words, True, config=config)
    yield gptq("a column order", ("desc_act",), True, order=True, config={"desc_act": True})
    yield gptq("a column order that desc_act denies", ("g_idx",), True, order=True)
    yield gptq("zero points other than 7 and 8", ("qzeros",), True, zero=5)


def auto_rounds():
    yield auto_round("GPTQ's bytes")
    yield auto_round("as intel/auto-round", quant_method="intel/auto-round")
    yield auto_round(
        "the format under backend", packing_format=None, backend="auto_round:auto_gptq"
    )
    yield auto_round("GPTQ's bytes of version 2", zero=8, packing_format="auto_round:gptqmodel")
    yield auto_round(
        "a head that is left alone", extra_config={"lm_head": {"bits": 16, "data_type": "float"}}
    )
    yield auto_round("AWQ's bytes", ("auto_awq",), True, packing_format="auto_round:auto_awq")
    yield auto_round("8 bits", ("bits", "8"), True, bits=8)
    yield auto_round("asymmetric", ("sym",), True, sym=False)
    yield auto_round(
        "other bits in some modules",
        ("extra_config",),
        True,
        extra_config={"model.layers.0.mlp.up_proj": {"bits": 8}},
    )
    yield auto_round("activations quantized", ("act_bits",), True, act_bits=8)


# One line that says of the scales that they change.
LOST = r"(chang|los[st]|round|differ|narrow|inexact)"
LOSS = rf"scale[^\n]*{LOST}|{LOST}[^\n]*scale"


def options():
    scheme = Scheme(ignore=ALL)
    yield Narrowed("narrowed with --mbits 5", Scheme(), ("--mbits", "5"), (LOSS,))
    yield Narrowed("narrowed with --mbits 3", Scheme(), ("--mbits", "3"), (LOSS,))
    yield Narrowed(
        "--target mlp quantizes what was left",
        scheme,
        ("--target", "mlp"),
        ("down_proj|imported",),
        ("mlp.down_proj",),
    )
    yield Narrowed("--requantize", Scheme(), ("--requantize",), ("import",))
    yield Import(
        "exact scales asked for", Scheme(), arguments=("--mbits", "-1"), stored=("int4-f32",)
    )
    yield Import(
        "the width that holds them asked for", Scheme(), arguments=("--mbits", "7"), mantissa=7
    )


def cases():
    yield from compressed()
    yield from gptqs()
    yield from auto_rounds()
    yield from options()
