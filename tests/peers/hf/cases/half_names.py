"""Kind 12: what `--target` selects among names that match by half, and whether the plan says so.

There is nothing for transformers to say: the first column is the share of the linear weights that
the target takes.
"""

import dataclasses
import re

import torch
from safetensors.torch import save_file

from lib import Cell, Refusal, Row, refusal_cell

WIDE = 64


def block(prefix, *names, rows=WIDE):
    return {
        f"{prefix}{name}.weight": torch.ones(rows, WIDE, dtype=torch.bfloat16) for name in names
    }


def attention(prefix, *names):
    return block(prefix, *(names or ("q_proj", "k_proj", "v_proj", "o_proj")))


def embedded(*parts, embedding="model.embed_tokens", head="lm_head"):
    out = {
        f"{embedding}.weight": torch.ones(50, WIDE, dtype=torch.bfloat16),
        "model.norm.weight": torch.ones(WIDE),
    }
    for part in parts:
        out |= part
    return out | ({f"{head}.weight": torch.ones(50, WIDE, dtype=torch.bfloat16)} if head else {})


M = "model.layers.0."
LLAMA = embedded(
    attention(f"{M}self_attn."), block(f"{M}mlp.", "gate_proj", "up_proj", "down_proj")
)
MODELS = {
    "Mixtral": embedded(
        attention(f"{M}self_attn."),
        block(
            f"{M}block_sparse_moe.",
            "gate",
            *(f"experts.{i}.w{j}" for i in range(2) for j in (1, 2, 3)),
        ),
    ),
    "Qwen-MoE": embedded(
        attention(f"{M}self_attn."),
        block(
            f"{M}mlp.",
            "gate",
            "shared_expert_gate",
            *(
                f"{e}.{p}_proj"
                for e in ("experts.0", "experts.1", "shared_expert")
                for p in ("gate", "up", "down")
            ),
        ),
    ),
    "Phi-2": embedded(
        attention(f"{M}self_attn.", "q_proj", "k_proj", "v_proj", "dense"),
        block(f"{M}mlp.", "fc1", "fc2"),
    ),
    "GPT-NeoX": embedded(
        block(
            "gpt_neox.layers.0.",
            "attention.query_key_value",
            "attention.dense",
            "mlp.dense_h_to_4h",
            "mlp.dense_4h_to_h",
        ),
        embedding="gpt_neox.embed_in",
        head="embed_out",
    ),
    "Falcon": embedded(
        block(
            "transformer.h.0.",
            "self_attention.query_key_value",
            "self_attention.dense",
            "mlp.dense_h_to_4h",
            "mlp.dense_4h_to_h",
        ),
        embedding="transformer.word_embeddings",
    ),
    "GPT-2": embedded(
        block("transformer.h.0.", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
        embedding="transformer.wte",
    ),
    "OPT": embedded(
        attention("model.decoder.layers.0.self_attn.", "q_proj", "k_proj", "v_proj", "out_proj"),
        block("model.decoder.layers.0.", "fc1", "fc2"),
        embedding="model.decoder.embed_tokens",
    ),
    "MPT": embedded(
        block(
            "transformer.blocks.0.", "attn.Wqkv", "attn.out_proj", "ffn.up_proj", "ffn.down_proj"
        ),
        embedding="transformer.wte",
    ),
    "DeepSeek": embedded(
        attention(
            f"{M}self_attn.", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"
        ),
        block(
            f"{M}mlp.",
            "gate",
            "experts.0.gate_proj",
            "experts.0.up_proj",
            "experts.0.down_proj",
            "shared_experts.up_proj",
        ),
    ),
    "Mamba": embedded(
        block("backbone.layers.0.mixer.", "in_proj", "x_proj", "dt_proj", "out_proj"),
        embedding="backbone.embeddings",
    ),
    "BERT": embedded(
        block(
            "bert.encoder.layer.0.",
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
        ),
        embedding="bert.embeddings.word_embeddings",
        head=None,
    ),
    "T5": embedded(
        block(
            "encoder.block.0.layer.",
            "0.SelfAttention.q",
            "0.SelfAttention.k",
            "1.DenseReluDense.wi_0",
            "1.DenseReluDense.wo",
        ),
        embedding="shared",
    ),
    "InternLM": embedded(
        block(f"{M}attention.", "wqkv", "wo"),
        block(f"{M}feed_forward.", "w1", "w2", "w3"),
        embedding="model.tok_embeddings",
        head="output",
    ),
    "Llama with an odd projection": {**LLAMA, **block(f"{M}self_attn.", "gate")},
}
TOWER = {
    **{f"language_model.{k}": v for k, v in LLAMA.items()},
    **block("vision_tower.encoder.layers.0.mlp.", "fc1", "fc2"),
    **attention("vision_tower.encoder.layers.0.self_attn."),
}
VISUAL = {
    **LLAMA,
    **block("visual.blocks.0.mlp.", "gate_proj", "up_proj", "down_proj"),
    **block("visual.blocks.0.attn.", "qkv", "proj"),
    **block("visual.merger.mlp.", "0", "2"),
}
AUDIO = {
    **LLAMA,
    **block("audio_tower.layers.0.self_attn.", "q_proj", "out_proj"),
    **block("multi_modal_projector.", "linear_1", "linear_2"),
}
EMBEDDING = re.compile(r"embed|wte|tok_embeddings|shared\.weight|lm_head|embed_out|^output\.weight")

BESIDE = re.compile(r"visual|vision|audio|projector|mlp\.gate\.|moe\.gate\.|shared_expert_gate")


@dataclasses.dataclass
class Plan:
    """A dry run: what it takes, the share that it must tell, and what it must warn of."""

    name: str
    tensors: dict
    target: tuple = ()
    warns: tuple = ()
    refuses: tuple | None = None
    takes: tuple | None = None
    share: bool = True

    def linear(self):
        """The decoder's linear weights: neither routers nor what is beside the language model."""
        matrices = [n for n, t in self.tensors.items() if t.dim() == 2]
        return [n for n in matrices if not (EMBEDDING.search(n) or BESIDE.search(n))]

    def row(self, bench):
        directory = bench.fresh()
        directory.mkdir()
        save_file(self.tensors, directory / "model.safetensors")
        arguments = [part for value in self.target or ("mlp",) for part in ("--target", value)]
        done = bench.ours.ask("smq-convert", "--dry-run", "-v", directory, *arguments)
        if isinstance(done, Refusal):
            cell = refusal_cell(done, self.refuses, ())
            return Row(self.name, "refused" if self.refuses else "planned", cell, Cell("-"))
        if self.refuses:
            return Row(self.name, "refused", Cell("differs", "plans, and must refuse"), Cell("-"))
        text = done[0] + done[1]
        taken = [
            n
            for n in self.tensors
            if any(n in line and "int4" in line for line in text.splitlines())
        ]
        linear = self.linear()
        counts = (len([n for n in taken if n in linear]), len(linear))
        return Row(
            self.name,
            f"takes {counts[0]} of {counts[1]}",
            self.judge(text, taken, counts),
            Cell("-"),
        )

    def judge(self, text, taken, counts):
        if self.takes is not None:
            wrong = [
                n for n in self.tensors if (n in taken) != any(part in n for part in self.takes)
            ]
            if wrong:
                return Cell("differs", f"takes or leaves {', '.join(wrong)}")
        told = re.search(r"(\d+) of (\d+) linear weights?, \d+\.\d %", text)
        if self.share and (not told or tuple(map(int, told.groups())) != counts):
            return Cell("differs", "does not say what share of the linear weights is taken")
        lines = [
            line.lower() for line in text.splitlines() if re.search(r"warning|note", line, re.I)
        ]
        silent = [w for w in self.warns if not any(w.lower() in line for line in lines)]
        return Cell("differs", f"no warning names {silent}") if silent else Cell("equal")


LEFT_OUT = {
    "Mixtral": ("w1",),
    "Qwen-MoE": (),
    "Phi-2": ("fc1",),
    "GPT-NeoX": ("dense_h_to_4h",),
    "Falcon": ("query_key_value",),
    "GPT-2": ("c_attn",),
    "OPT": ("fc1",),
    "MPT": ("wqkv",),
    "DeepSeek": ("kv_a_proj_with_mqa",),
    "Mamba": ("in_proj",),
    "BERT": ("intermediate.dense",),
    "T5": ("wi_0",),
    "InternLM": ("wqkv",),
    "Llama with an odd projection": ("gate",),
}


def cases():
    every = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    yield Plan("Llama, all", LLAMA, ("all",), takes=every)
    yield Plan("Llama, the default", LLAMA, takes=("gate_proj", "up_proj", "down_proj"))
    for name, tensors in MODELS.items():
        # Where nothing at all is known, to say so is an answer too.
        nothing = name in ("GPT-NeoX", "Falcon", "GPT-2", "MPT", "Mamba", "BERT", "T5", "InternLM")
        plan = Plan(f"{name}, all", tensors, ("all",), LEFT_OUT[name])
        yield Either(plan) if nothing else plan
    yield Plan(
        "a vision tower with fc1 and fc2, the default",
        TOWER,
        (),
        ("vision_tower",),
        takes=("language_model.model.layers.0.mlp",),
    )
    yield Plan(
        "a vision tower, all",
        TOWER,
        ("all",),
        ("vision_tower",),
        takes=tuple(f"language_model.{M}{p}" for p in ("self_attn", "mlp")),
    )
    yield Plan(
        "a visual part with the same names, the default",
        VISUAL,
        (),
        ("visual",),
        takes=(f"{M}mlp",),
    )
    yield Plan(
        "a visual part with the same names, all",
        VISUAL,
        ("all",),
        ("visual",),
        takes=tuple(M + p for p in ("self_attn", "mlp")),
    )
    yield Plan(
        "an audio tower, all",
        AUDIO,
        ("all",),
        ("audio_tower",),
        takes=tuple(M + p for p in ("self_attn", "mlp")),
    )
    yield Plan("an empty target", LLAMA, ("",), refuses=("--target",))
    yield Plan("a target of a space", LLAMA, (" ",), refuses=("--target",))
    yield Plan("a target that takes everything", LLAMA, (".*",), refuses=("embed_tokens",))
    yield Plan(
        "a target that takes the embedding by half", LLAMA, ("embed",), refuses=("embed_tokens",)
    )
    # A head of its own may be meant; one that is the embedding may not.
    yield Plan(
        "a target that takes the head by half", LLAMA, ("lm_head",), takes=("lm_head",), share=False
    )
    yield Plan("a target that ends every name", LLAMA, (r"\.weight$",), refuses=("embed_tokens",))
    yield Plan(
        "the embedding of another family by half", MODELS["GPT-2"], ("wt",), refuses=("wte",)
    )
    yield Plan(
        "the embedding in full",
        LLAMA,
        ("model.embed_tokens.weight",),
        takes=("model.embed_tokens.weight",),
        share=False,
    )
    yield Plan(
        "the head in full, as a pattern",
        LLAMA,
        (r"^lm_head\.weight$",),
        takes=("lm_head.weight",),
        share=False,
    )
    yield Plan("a target that takes nothing", LLAMA, ("nosuch",), refuses=("nosuch",))
    yield Plan("a target that is no pattern", LLAMA, ("(",), refuses=("(",))
    yield Plan("a word that is nearly a name", LLAMA, ("ALL",), refuses=("all",))
    yield Plan("one projection", LLAMA, ("down_proj",), takes=("down_proj",))
    yield Plan(
        "a pattern of Mixtral's experts",
        MODELS["Mixtral"],
        (r"experts\.\d+\.w\d",),
        takes=("experts.",),
    )


@dataclasses.dataclass
class Either:
    """A plan of a model of which ours may know nothing: it must warn as the plan says, or refuse
    and give names.
    """

    plan: Plan

    @property
    def name(self):
        return self.plan.name

    def row(self, bench):
        row = self.plan.row(bench)
        if row.directory.said.startswith("refuses:"):
            named = any(n in row.directory.said for n in self.plan.linear())
            row.directory = Cell("refused" if named else "differs", row.directory.said)
        return row
