"""Kind 15: what `--to` writes must load elsewhere: in transformers here, in vLLM by its known
rules.
"""

import dataclasses
import json

import torch
from safetensors.torch import load_file

from checkpoints import Checkpoint
from lib import Answer, Cell, Chat, Losses, Refusal, Row, Theirs, refusal_cell

from .imports import SHAPE, Scheme, packed, quantized

try:
    import compressed_tensors  # noqa: F401

    HAS_COMPRESSED_TENSORS = True
except ImportError:
    HAS_COMPRESSED_TENSORS = False

PACKED, DENSE = ("--to", "compressed-tensors"), ("--to", "safetensors")
REMOTE = {
    "AutoConfig": "configuration_phi3.Phi3Config",
    "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
}


def exact(family="llama", shape=SHAPE):
    """Every linear layer is one that int4 holds exactly, in groups of 32 too."""
    made = Checkpoint(family, shape=shape)

    def change(tensors):
        generator = torch.Generator().manual_seed(2)
        for name, tensor in tensors.items():
            if name.endswith("_proj.weight"):
                codes = torch.randint(-7, 8, tensor.shape, generator=generator)
                codes[:, ::32] = 7
                tensors[name] = (codes * 2.0**-5).to(torch.bfloat16)

    return made.tensors(change)


@dataclasses.dataclass
class Export:
    """Checkpoint -> .smq -> directory: transformers must say of it what it says of the source."""

    name: str
    checkpoint: Checkpoint
    convert: tuple = ("--target", "all")
    form: tuple = PACKED
    look: object = None
    checks: tuple = (Losses(), Answer(), Chat())
    keys: tuple = ("auto_map",)

    def row(self, bench):
        if self.form[1] == "compressed-tensors" and not HAS_COMPRESSED_TENSORS:
            return Row(
                self.name, "not asked: compressed-tensors is not installed", Cell("-"), Cell("-")
            )
        directory, theirs = bench.write(self.checkpoint)
        smq, out = directory.with_suffix(".smq"), bench.fresh()
        for step in ((*self.convert, directory, smq), (*self.form, smq, out)):
            done = bench.ours.ask("smq-convert", *step)
            if isinstance(done, Refusal):
                return Row(self.name, "", refusal_cell(done, None, ()), Cell("-"))
        left = [
            f"{key} in {file}"
            for file in ("config.json", "tokenizer_config.json")
            for key in self.keys
            if key in json.loads((out / file).read_text())
        ]
        problems = [f"leaves {', '.join(left)}"] if left else []
        problems += [self.look(out)] if self.look and self.look(out) else []
        again, shown = Theirs(out), []
        for check in self.checks:
            first = check.theirs(theirs)
            shown.append(check.show(first))
            try:
                second = check.theirs(again)
                if isinstance(second, dict):
                    second["prompt_tokens"] = len(second["prompt_ids"])
                problem = check.difference(first, second)
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
            problems += [f"transformers on the export: {problem}"] if problem else []
        cell = Cell("differs", "; ".join(problems)) if problems else Cell("equal")
        return Row(self.name, "; ".join(shown), cell, self.back(bench, out, theirs))

    def back(self, bench, out, theirs):
        """The export converted once more gives what the source gives."""
        smq = out.with_suffix(".smq")
        keep = self.convert if self.form[1] == "safetensors" else ()
        done = bench.ours.convert(out, smq, *keep)
        if isinstance(done, Refusal):
            return Cell("differs", f"cannot be converted again: {done}")
        check = self.checks[0]
        ours = check.ours(bench.ours, smq)
        problem = (
            f"refuses: {ours}"
            if isinstance(ours, Refusal)
            else check.difference(check.theirs(theirs), ours)
        )
        return Cell("differs", f"converted again: {problem}") if problem else Cell("equal")


@dataclasses.dataclass
class Split:
    """A target that takes a part of what other programs fuse: refused with the names, or exported
    alike.
    """

    name: str
    target: str
    words: tuple
    fails: bool = True
    family: str = "llama"

    def row(self, bench):
        directory = exact(self.family).write(bench.fresh())
        smq, out = directory.with_suffix(".smq"), bench.fresh()
        done = bench.ours.convert(directory, smq, "--target", self.target)
        if isinstance(done, Refusal):
            return Row(self.name, "converts", refusal_cell(done, None, ()), Cell("-"))
        done = bench.ours.ask("smq-convert", *PACKED, smq, out)
        shown = "vLLM fuses them, and refuses" if self.fails else "vLLM loads it"
        if isinstance(done, Refusal):
            return Row(
                self.name,
                shown,
                refusal_cell(done, self.words if self.fails else None, ()),
                Cell("-"),
            )
        stored = {}
        for file in out.glob("*.safetensors"):
            stored |= load_file(file)
        uneven = []
        for layer in range(2):
            for parts in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
                names = [
                    n
                    for n in stored
                    if f"layers.{layer}." in n and any(f".{p}." in n for p in parts)
                ]
                if len({n.rsplit(".", 1)[1] == "weight" for n in names}) > 1:
                    uneven.append("/".join(parts))
        if uneven:
            return Row(
                self.name,
                shown,
                Cell("differs", f"exports {sorted(set(uneven))} in two ways without refusing"),
                Cell("-"),
            )
        return Row(self.name, shown, Cell("equal"), Cell("-"))


def scales_are(dtype):
    def look(out):
        kinds = {
            t.dtype
            for n, t in load_file(out / "model.safetensors").items()
            if n.endswith("weight_scale")
        }
        return None if kinds == {dtype} else f"scales are {', '.join(map(str, kinds))}, not {dtype}"

    return look


def integers_kept(scheme):
    def look(out):
        ours, source = load_file(out / "model.safetensors"), quantized(scheme)[0]
        changed = [n for n, t in source.items() if n not in ours or not torch.equal(t, ours[n])]
        return f"changes or drops {', '.join(changed[:3])}" if changed else None

    return look


def remote_code():
    for form in (PACKED, DENSE):
        kind = form[1]
        yield Export(
            f"{kind}: auto_map without its files", exact("phi3").config(auto_map=REMOTE), form=form
        )
        yield Export(
            f"{kind}: auto_map of another repository",
            exact().config(auto_map={k: f"org/name--{v}" for k, v in REMOTE.items()}),
            form=form,
        )
        yield Export(
            f"{kind}: auto_map in tokenizer_config.json",
            exact().tokenizer_config(
                auto_map={"AutoTokenizer": ["tokenization_my.MyTokenizer", None]}
            ),
            form=form,
        )
        yield Export(
            f"{kind}: auto_map as a list in tokenizer_config.json",
            exact().tokenizer_config(auto_map=["tokenization_my.MyTokenizer", None]),
            form=form,
        )
    yield Export("compressed-tensors: an empty auto_map", exact().config(auto_map={}))


def plain():
    yield Export("safetensors", exact(), form=DENSE)
    yield Export("safetensors, the MLP alone quantized", Checkpoint(), ("--target", "mlp"), DENSE)
    yield Export("safetensors, a tied head", Checkpoint(tied=True), ("--target", "mlp"), DENSE)
    yield Export("compressed-tensors", exact())
    yield Export(
        "compressed-tensors, the MLP alone quantized", Checkpoint(shape=SHAPE), ("--target", "mlp")
    )
    yield Export("compressed-tensors, Phi-3", exact("phi3"))
    yield Export(
        "compressed-tensors, a tied head", Checkpoint(shape=SHAPE, tied=True), ("--target", "mlp")
    )
    yield Export(
        "compressed-tensors, groups of 32", exact(), ("--target", "all", "--group-size", "32")
    )
    yield Export(
        "compressed-tensors, one layer quantized", exact(), ("--target", r"layers\.0\..*_proj")
    )
    yield Export(
        "compressed-tensors, scales in f16",
        exact(),
        ("--target", "all", "--scales", "f16"),
        look=scales_are(torch.float16),
    )
    yield Export(
        "compressed-tensors, scales in E5M7",
        exact(),
        ("--target", "all", "--mbits", "7"),
        look=scales_are(torch.bfloat16),
    )
    template = Checkpoint(shape=SHAPE, chat=None).file(
        "chat_template.jinja", "FILE {{ messages[0]['content'] }}"
    )
    yield Export("compressed-tensors, a template in a file", template, ("--target", "mlp"))
    extra = exact().tensors(lambda t: {**t, "model.rotary_emb.inv_freq": torch.rand(16)})
    yield Export("compressed-tensors, a buffer that nobody reads", extra)
    remade = exact().config(
        rope_parameters={"rope_theta": 5000.0, "rope_type": "linear", "factor": 2.0}
    )
    yield Export("compressed-tensors, a config of transformers 5", remade)
    old = exact().config(
        torch_dtype="bfloat16", _name_or_path="/home/somebody/model", transformers_version="4.43.0"
    )
    yield Export("compressed-tensors, a config of transformers 4", old)


def imported():
    for name, scheme in {
        "bf16 scales": Scheme(),
        "groups of 32": Scheme(group=32),
        "down_proj left alone": Scheme(ignore=("lm_head", "*down_proj")),
        "f16 scales": Scheme(scales=torch.float16),
    }.items():
        yield Same(f"an import out again: {name}", scheme)
    yield Through("transformers reads the harness's own packing", Scheme())


@dataclasses.dataclass
class Same:
    """compressed-tensors in, compressed-tensors out: the same integers and scales."""

    name: str
    scheme: Scheme

    def row(self, bench):
        directory = packed(self.scheme).write(bench.fresh())
        smq, out = directory.with_suffix(".smq"), bench.fresh()
        for step in ((directory, smq), (*PACKED, smq, out)):
            done = bench.ours.ask("smq-convert", *step)
            if isinstance(done, Refusal):
                return Row(self.name, "", refusal_cell(done, None, ()), Cell("-"))
        problem = integers_kept(self.scheme)(out)
        return Row(
            self.name,
            "the same tensors",
            Cell("differs", problem) if problem else Cell("equal"),
            Cell("-"),
        )


@dataclasses.dataclass
class Through:
    """The reference of kind 14 against compressed-tensors itself, so that the harness is not its
    own judge.
    """

    name: str
    scheme: Scheme

    def row(self, bench):
        if not HAS_COMPRESSED_TENSORS:
            return Row(
                self.name, "not asked: compressed-tensors is not installed", Cell("-"), Cell("-")
            )
        from .imports import dense_twin

        check = Losses()
        first = check.theirs(Theirs(dense_twin(self.scheme).write(bench.fresh())))
        second = check.theirs(Theirs(packed(self.scheme).write(bench.fresh())))
        problem = check.difference(first, second)
        return Row(
            self.name,
            check.show(first),
            Cell("differs", problem) if problem else Cell("equal"),
            Cell("-"),
        )


def split():
    attention = ("q_proj", "k_proj", "v_proj")
    yield Split("q alone", r"\.q_proj", attention)
    yield Split("q and k", r"\.[qk]_proj", attention)
    yield Split("v alone, in one layer", r"layers\.1\.self_attn\.v_proj", attention)
    yield Split("gate alone", "gate_proj", ("gate_proj", "up_proj"))
    yield Split("up and down", "(up|down)_proj", ("gate_proj", "up_proj"))
    yield Split("q, k, v and gate", r"(\.[qkv]|gate)_proj", ("gate_proj", "up_proj"))
    yield Split("down alone", "down_proj", (), False)
    yield Split("o alone", "o_proj", (), False)
    yield Split("q, k and v", r"\.[qkv]_proj", (), False)
    yield Split("gate and up", "(gate|up)_proj", (), False)
    yield Split("one layer", r"layers\.0\..*_proj", (), False)
    yield Split("qkv of Phi-3", "qkv_proj", (), False, "phi3")


def cases():
    yield from plain()
    yield from remote_code()
    yield from imported()
    yield from split()
