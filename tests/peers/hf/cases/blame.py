"""Kind 13: which file is blamed, and whether the message says what to do."""

import dataclasses
import json
import struct

from safetensors.torch import save

from checkpoints import Checkpoint, write
from lib import PROMPT, Answer, Case, Cell, Losses, Refusal, Row, Theirs, refusal_cell

from .imports import Scheme, packed

ONE = (Answer(n=4),)
WRONG = ("generation_config.json",)


def text_of(**changes):
    return json.dumps(Checkpoint().config(**changes).files["config.json"], indent=1)


def config(name, contents, *words):
    return Case(
        f"config.json: {name}",
        Checkpoint().file("config.json", contents),
        ONE,
        ("config.json", *words),
        never=WRONG,
        record="blame",
    )


def configs():
    base = text_of()
    yield config(
        "Infinity, which Python reads",
        base.replace('"use_cache"', '"time_step_limit": [0.0, Infinity],\n "use_cache"'),
    )
    yield config("minus Infinity", base.replace('"use_cache"', '"floor": -Infinity,\n "use_cache"'))
    yield config(
        "NaN, which Python reads", base.replace('"use_cache"', '"note": NaN,\n "use_cache"')
    )
    yield config(
        "infinity as transformers 5 writes it",
        base.replace('"use_cache"', '"limit": {"__float__": "Infinity"},\n "use_cache"'),
    )
    yield config("a trailing comma", base.rstrip("}\n ") + ",\n}")
    yield config("a comment", "// mine\n" + base)
    yield config("single quotes", base.replace('"', "'"))
    yield config("cut short", base[:200])
    yield config("empty", "")
    yield config("white space alone", "\n \n")
    yield config("a list", "[1, 2]")
    yield config("text", '"llama"')
    yield config("null", "null")
    yield config("a byte order mark", "\ufeff" + base)
    yield config("UTF-16", base.encode("utf-16"))
    yield config("Latin-1", base.replace('"silu"', '"silu", "author": "Grün"').encode("latin-1"))
    yield config(
        "a key twice, the last one counts",
        base.replace('"hidden_size": 64', '"hidden_size": 32,\n "hidden_size": 64'),
    )
    yield config("two objects", base + base)
    yield config("a page of HTML", "<!DOCTYPE html><html></html>")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 700\n"
    yield config("a Git LFS pointer", pointer, "lfs")
    for key, value in {"eos_token_id": -1, "bos_token_id": -1, "pad_token_id": -1}.items():
        yield config(f"{key} {value}", text_of(**{key: value}), key)
    yield config("eos_token_id as text", text_of(eos_token_id="2"), "eos_token_id")
    yield config("eos_token_id as a decimal", text_of(eos_token_id=2.0), "eos_token_id")
    yield config("eos_token_id as a list of text", text_of(eos_token_id=["</s>"]), "eos_token_id")
    yield config("eos_token_id true", text_of(eos_token_id=True), "eos_token_id")
    yield config("vocab_size as text", text_of(vocab_size="400"), "vocab_size")
    yield config("num_hidden_layers as a list", text_of(num_hidden_layers=[2]), "num_hidden_layers")
    yield config(
        "max_position_embeddings as a decimal",
        text_of(max_position_embeddings=1024.0),
        "max_position_embeddings",
    )
    yield config("rope_parameters as text", text_of(rope_parameters="default"), "rope_parameters")
    yield config(
        "tie_word_embeddings as text", text_of(tie_word_embeddings="false"), "tie_word_embeddings"
    )
    yield Case("no config.json", Checkpoint().drop("config.json"), ONE, ("config.json",))


def others():
    broken = '{"a": 1,}'
    for name in (
        "tokenizer_config.json",
        "tokenizer.json",
        "special_tokens_map.json",
        "added_tokens.json",
    ):
        made = Checkpoint().file(name, broken)
        yield Case(f"{name}: a trailing comma", made, ONE, (name,), never=WRONG, record="blame")
        yield Case(
            f"{name}: a list",
            Checkpoint().file(name, "[]"),
            ONE,
            (name,),
            never=WRONG,
            record="blame",
        )
        yield Case(
            f"{name}: not UTF-8",
            Checkpoint().file(name, b'{"a": "\xff"}'),
            ONE,
            (name,),
            never=WRONG,
            record="blame",
        )
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 6772\n"
    yield Case(
        "tokenizer.json: a Git LFS pointer",
        Checkpoint().file("tokenizer.json", pointer),
        ONE,
        ("tokenizer.json", "lfs"),
        record="blame",
    )
    yield Case(
        "tokenizer.json: an unknown model",
        Checkpoint().tokenizer(model={"type": "Nobody's"}),
        ONE,
        ("tokenizer.json",),
        record="blame",
    )
    yield Case(
        "no tokenizer.json",
        Checkpoint().drop("tokenizer.json", "tokenizer_config.json"),
        ONE,
        ("tokenizer.json",),
        never=("config.json:",),
    )
    yield Case(
        "tokenizer_config.json: Infinity for a length",
        Checkpoint().file(
            "tokenizer_config.json",
            json.dumps(Checkpoint().files["tokenizer_config.json"]).replace("4096", "Infinity"),
        ),
        ONE,
        ("tokenizer_config.json",),
        record="blame",
    )
    yield Case(
        "tokenizer_config.json: a length of 10^30, as transformers writes it",
        Checkpoint().tokenizer_config(model_max_length=1000000000000000019884624838656),
        ONE,
        record="blame",
    )
    for name, contents, words in (
        ("a trailing comma", broken, ()),
        ("eos_token_id as text", {"eos_token_id": "</s>"}, ("eos_token_id",)),
        (
            "temperature as text",
            {"do_sample": True, "temperature": "hot", "eos_token_id": 2},
            ("temperature",),
        ),
    ):
        yield Case(
            f"generation_config.json: {name}",
            Checkpoint().file("generation_config.json", contents),
            ONE,
            ("generation_config.json", *words),
            never=(" config.json:",),
            record="blame",
        )
    yield Case(
        "generation_config.json: Infinity",
        Checkpoint().file("generation_config.json", '{"eos_token_id": 2, "max_time": Infinity}'),
        ONE,
        ("generation_config.json",),
        record="blame",
    )


class Apart(Answer):
    """The prompt as an argument of its own, as a shell passes it."""

    def ours(self, ours, path):
        arguments = ("generate", path, "--prompt", self.prompt, "-n", self.n, "--raw", "--json")
        done = ours.ask("smq-run", *arguments, "--device", "cpu")
        return done if isinstance(done, Refusal) else json.loads(done[0])


@dataclasses.dataclass
class Path:
    """A path that is not a checkpoint directory, given to a program. `make` returns it and the
    words of the answer.
    """

    name: str
    make: object
    words: tuple
    programs: tuple = ("smq-run", "smq-convert")
    never: tuple = ()

    def row(self, bench):
        path = self.make(bench)
        cells = []
        for program in ("smq-run", "smq-convert"):
            if program not in self.programs:
                cells.append(Cell("-"))
                continue
            done = (
                bench.ours.generate(path, PROMPT, 2, raw=True)
                if program == "smq-run"
                else bench.ours.convert(path, bench.fresh())
            )
            cells.append(
                refusal_cell(done, self.words, self.never)
                if isinstance(done, Refusal)
                else Cell("differs", "runs, and must refuse")
            )
        return Row(self.name, f"refused: {', '.join(self.words)}", *cells)


def inside(name, contents=None, checkpoint=None):
    """A file of a whole checkpoint."""

    def make(bench):
        directory = (checkpoint or Checkpoint()).write(bench.fresh())
        if contents is not None:
            write(directory / name, contents)
        return directory / name

    return make


def smq(bench, suffix=".smq", keep=None):
    directory = Checkpoint().write(bench.fresh())
    out = directory.with_suffix(".smq")
    assert not isinstance(bench.ours.convert(directory, out), Refusal)
    made = directory.with_suffix(suffix)
    out.rename(made)
    if keep is not None:
        made.write_bytes(made.read_bytes()[:keep])
    return made


def paths():
    directory = ("directory",)
    yield Path(
        "config.json given as the model",
        inside("config.json"),
        ("config.json", *directory),
        never=("header too large", "download"),
    )
    yield Path(
        "tokenizer.json given as the model",
        inside("tokenizer.json"),
        ("tokenizer.json", *directory),
        never=("header too large", "download"),
    )
    yield Path(
        "an index given as the model",
        inside("model.safetensors.index.json", {"weight_map": {}}),
        ("model.safetensors.index.json", *directory),
        never=("header too large", "download"),
    )
    yield Path(
        "a safetensors file given to generate",
        inside("model.safetensors"),
        ("model.safetensors", *directory),
        ("smq-run",),
    )
    yield Path(
        "a .smq given as a checkpoint to convert",
        smq,
        (".smq",),
        ("smq-convert",),
        never=("header too large", "download"),
    )
    yield Path(
        "a .smq under another name",
        lambda b: smq(b, ".safetensors"),
        (".smq",),
        ("smq-convert",),
        never=("header too large", "download"),
    )
    yield Path("a .smq that was cut short", lambda b: smq(b, keep=5000), (".smq",), ("smq-run",))
    yield Path(
        "a safetensors file under the name of a .smq",
        inside("weights.smq", b"\x08\0\0\0\0\0\0\0{}      "),
        ("weights.smq",),
        ("smq-run",),
    )
    yield Path(
        "a GGUF file",
        inside("model.gguf", b"GGUF" + struct.pack("<IQQ", 3, 0, 0)),
        ("gguf", "dequantize it first", "dequantized"),
    )
    yield Path(
        "a pickled file",
        inside("pytorch_model.bin", b"PK\x03\x04" + b"\0" * 64),
        ("pytorch_model.bin", "safetensors"),
    )
    yield Path("a text file", inside("notes.txt", "hello"), ("notes.txt",), never=("download",))
    yield Path("an empty file", inside("empty.smq", b""), ("empty.smq",), ("smq-run",))
    yield Path(
        "a path that is not there",
        lambda b: b.fresh() / "nowhere" / "model",
        ("nowhere",),
        never=("hf download",),
    )
    yield Path(
        "a path that is not there, with a dot",
        lambda b: "./nowhere",
        ("nowhere",),
        never=("hf download",),
    )
    yield Path(
        "a .smq that is not there",
        lambda b: b.fresh().with_suffix(".smq"),
        (".smq",),
        ("smq-run",),
        never=("hf download",),
    )
    yield Path(
        "a repository that is not a path",
        lambda b: "org/name",
        ("org/name", "hf download org/name"),
    )
    yield Path(
        "a repository with dots and dashes",
        lambda b: "HuggingFaceTB/SmolLM2-135M-Instruct",
        ("hf download HuggingFaceTB/SmolLM2-135M-Instruct",),
    )
    yield Path("a web address", lambda b: "https://huggingface.co/org/name", ("hf download",))
    yield Path(
        "an empty directory",
        lambda b: b.fresh().mkdir() or b.scratch / f"case-{b.number:04d}",
        ("safetensors",),
        ("smq-run",),
    )
    yield Path(
        "a directory of directories",
        lambda b: (Checkpoint().write(b.fresh() / "inner")).parent,
        ("safetensors",),
        ("smq-run",),
    )


def quantized():
    yield Path(
        "a compressed-tensors directory given to generate",
        lambda b: packed(Scheme()).write(b.fresh()),
        ("smq-convert", "compressed-tensors"),
        ("smq-run",),
        never=("absent",),
    )
    yield Path(
        "a GPTQ directory given to generate",
        lambda b: packed(Scheme(form="gptq")).write(b.fresh()),
        ("smq-convert", "gptq"),
        ("smq-run",),
        never=("absent",),
    )
    yield Path(
        "an AWQ directory given to generate",
        lambda b: (
            Checkpoint()
            .config(quantization_config={"quant_method": "awq", "bits": 4})
            .tensors(
                lambda t: {k.replace("up_proj.weight", "up_proj.qweight"): v for k, v in t.items()}
            )
            .write(b.fresh())
        ),
        ("awq",),
        ("smq-run",),
        never=("absent",),
    )


class Cached:
    """A repository id that the local cache of Hugging Face holds: it is used, or the message says
    what to give instead.
    """

    def __init__(self, name, refs=True, variable="HF_HOME", whole=True):
        self.name, self.refs, self.variable, self.whole = name, refs, variable, whole

    def row(self, bench):
        home = bench.fresh()
        hub = home / "hub" if self.variable == "HF_HOME" else home
        repository = hub / "models--org--name"
        snapshot = repository / "snapshots" / ("0" * 40)
        made = Checkpoint().write(snapshot)
        if not self.whole:
            (made / "model.safetensors").unlink()
        if self.refs:
            write(repository / "refs/main", "0" * 40)
        theirs = Theirs("org/name", cache_dir=hub)
        check = Answer(n=4)
        try:
            answer = check.theirs(theirs)
            shown = check.show(answer)
        except Exception as error:
            answer, shown = None, f"{type(error).__name__}: {error}"
        done = bench.ours.generate("org/name", PROMPT, 4, raw=True, env={self.variable: str(home)})
        converted = bench.ours.ask(
            "smq-convert", "org/name", bench.fresh(), env={self.variable: str(home)}
        )
        cells = []
        for one in (done, converted):
            if isinstance(one, Refusal):
                words = (
                    ("org/name", "snapshots")
                    if self.whole and self.refs
                    else ("org/name", "hf download org/name")
                )
                cells.append(refusal_cell(one, words, ()))
            elif answer is None:
                cells.append(Cell("differs", "runs, and must refuse"))
            elif isinstance(one, dict):
                difference = check.difference(answer, one)
                cells.append(Cell("differs", difference) if difference else Cell("equal"))
            else:
                cells.append(Cell("equal"))
        return Row(self.name, shown, *cells)


def cases():
    yield from configs()
    yield from others()
    yield from paths()
    yield from quantized()
    hyphens = tuple(Apart(prompt, n=4) for prompt in ("-5 + 3 =", "- a list", "--json"))
    yield Case("prompts that begin with a hyphen", Checkpoint(), hyphens)
    yield Cached("a repository in the local cache")
    yield Cached("a repository in the cache that HF_HUB_CACHE names", variable="HF_HUB_CACHE")
    yield Cached("a repository of which the cache holds no main", refs=False)
    yield Cached("a repository of which the cache holds a part", whole=False)
    for name, made in (
        ("tokenizer.json", Checkpoint()),
        (
            "the header of the weights",
            Checkpoint().layout(
                lambda t: {"model.safetensors": save(t)[:4] + b"\xff\xff\xff\xff" + save(t)[8:]}
            ),
        ),
    ):
        if name != "tokenizer.json":
            yield Case(f"damage in {name}", made, (Losses(),), ("model.safetensors",))
