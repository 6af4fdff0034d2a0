"""Kind 8: generation_config.json, and what of it counts.

The model is a table: the next token's logits depend on the last token alone, so that loops and ties
are easy to make and the fixtures can hold the whole model. Its tokens are the seven special ones, a
space, and the letters a to p.
"""

import dataclasses
import math

import torch

from checkpoints import DROP, SHAPE, Checkpoint, table_shape, table_tensors
from lib import Answer, Case, Cell, Losses, Refusal, Row

SIZE = 24
LETTERS = "abcdefghijklmnop"
A = 8  # the id of `a`
PROMPT = "ab"


def id_of(letter):
    return A + LETTERS.index(letter)


def small_vocabulary():
    special = ["<unk>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    vocab = {token: i for i, token in enumerate([*special, "Ġ", *LETTERS])}
    assert len(vocab) == SIZE
    model = Checkpoint().files["tokenizer.json"].json()["model"]
    return {**model, "vocab": vocab, "merges": []}


def looping_table():
    """a b c d go round; each has runners-up, and </s> comes near after d."""
    generator = torch.Generator().manual_seed(5)
    table = (torch.randint(-80, 40, (SIZE, SIZE), generator=generator) / 20.0).tolist()
    for first, second in zip("abcdefgh", "bcdaefgh"):
        table[id_of(first)][id_of(second)] = 6.0
    for first, second, logit in (
        ("a", "e", 5.5),
        ("b", "f", 5.0),
        ("c", "g", 4.5),
        ("d", "h", 5.25),
        ("e", "f", 4.0),
    ):
        table[id_of(first)][id_of(second)] = logit
    for first, second in zip("efgh", "fgha"):
        table[id_of(first)][id_of(second)] = 5.75
    table[id_of("d")][2] = 5.9
    table[id_of("h")][2] = 5.5
    return table


def spread_table():
    """After every token the same: logits fall by 0.3 a letter, and nothing else is likely."""
    row = [-40.0] * 7 + [2.5] + [2.2 - 0.3 * i for i in range(len(LETTERS))]
    return [list(row) for _ in range(SIZE)]


def garden_path_table():
    """c is likelier after b than e is, but what follows e is sure and what follows c is not: more
    beams take e.
    """
    table = spread_table()
    for letter, next_ in zip("befghi", "efghij"):
        table[id_of(letter)] = [-40.0] * SIZE
        table[id_of(letter)][id_of(next_)] = 5.0
    table[id_of("b")][id_of("c")] = 5.5
    return table


TABLES = {"loop": looping_table(), "spread": spread_table(), "garden path": garden_path_table()}


def checkpoint(table="loop", **settings):
    made = Checkpoint(shape=table_shape(SIZE)).tensors(lambda _: table_tensors(TABLES[table]))
    made.tokenizer(model=small_vocabulary()).generation(**settings)
    made.table = table
    return made


def case(
    name,
    words=None,
    n=16,
    change=None,
    flags=(),
    settings=None,
    prompt=PROMPT,
    may_run=False,
    **generation,
):
    made = checkpoint(**generation)
    if change:
        change(made)
    check = Answer(prompt, n, flags=flags, settings=settings or {})
    record = None if flags or settings else "generation"
    return Case(name, made, (check,), words, record=record, may_run=may_run)


@dataclasses.dataclass
class Samples:
    """Many sampled tokens, each drawn from the one distribution that transformers draws from."""

    n: int = 300
    seeds: int = 3
    flags: tuple = ()

    def theirs(self, theirs):
        ids = theirs.prompt_ids(PROMPT)
        torch.manual_seed(0)
        x = torch.tensor([ids])
        out = theirs.model.generate(
            x,
            attention_mask=torch.ones_like(x),
            max_new_tokens=1,
            output_scores=True,
            return_dict_in_generate=True,
        )
        return torch.softmax(out.scores[0][0].double(), -1).tolist()

    def ours(self, ours, path):
        drawn = []
        for seed in range(self.seeds):
            report = ours.generate(
                path, PROMPT, self.n, raw=True, extra=("--seed", seed, *self.flags)
            )
            if isinstance(report, Refusal):
                return report
            drawn.append(report["ids"])
        return {"runs": drawn}

    def difference(self, theirs, ours):
        drawn = [id for run in ours["runs"] for id in run]
        outside = sorted({id for id in drawn if theirs[id] < 1e-9})
        if outside:
            return f"draws {outside}, which transformers never does"
        for id, p in enumerate(theirs):
            share, spread = drawn.count(id) / len(drawn), math.sqrt(p * (1 - p) / len(drawn))
            if abs(share - p) > 5 * spread + 1e-9:
                return (
                    f"draws {id} with a share of {share:.3f}, "
                    f"transformers with a probability of {p:.3f}"
                )
        if max(theirs) < 0.999 and ours["runs"][0] == ours["runs"][1]:
            return "draws the same with another seed"
        return None

    def show(self, theirs):
        return f"draws from {sum(p > 1e-9 for p in theirs)} tokens, the likeliest {max(theirs):.3f}"


def sampled(name, words=None, flags=(), record="generation", **generation):
    return Case(
        name,
        checkpoint("spread", do_sample=True, **generation),
        (Samples(flags=flags),),
        words,
        record=record,
    )


def no_end_of_a_class():
    """LlamaConfig ends a text with </s> where config.json does not say what does, and generate()
    does not."""
    table = looping_table()
    table[id_of("d")][2] = 7.0
    table[2][id_of("a")] = 6.0
    for name, eos in (("no eos", DROP), ("a null eos", None)):
        for generation in (None, {}):
            made = checkpoint().config(eos_token_id=eos).tensors(lambda _: table_tensors(table))
            made.drop("generation_config.json")
            if generation is not None:
                made.file("generation_config.json", generation)
            file = "no" if generation is None else "an empty"
            yield Case(
                f"{name} in config.json, {file} generation_config.json, and </s> comes",
                made,
                (Answer(PROMPT, 16),),
            )


def stops():
    stale = lambda c: c.config(eos_token_id=id_of("d"))  # noqa: E731
    yield case("the eos of both files")
    yield case("an eos in config.json that generation_config.json does not have", change=stale)
    yield case("a list of eos", eos_token_id=[2, id_of("g")])
    yield case("the same eos twice", eos_token_id=[2, 2])
    yield case("eos as a letter", eos_token_id=id_of("d"))
    yield case("an eos that comes first", eos_token_id=[id_of("c")])
    yield case(
        "no eos in generation_config.json, one in config.json", eos_token_id=DROP, change=stale
    )
    yield case(
        "null eos in generation_config.json, one in config.json", eos_token_id=None, change=stale
    )
    yield case(
        "an empty list of eos",
        ("generation_config.json", "eos_token_id"),
        may_run=True,
        eos_token_id=[],
    )
    yield case(
        "an empty generation_config.json",
        change=lambda c: stale(c).file("generation_config.json", {}),
    )
    yield case(
        "no generation_config.json: config.json's eos",
        change=lambda c: c.drop("generation_config.json").config(eos_token_id=[2, id_of("a")]),
    )
    yield case(
        "no generation_config.json and no eos",
        change=lambda c: c.drop("generation_config.json").config(eos_token_id=DROP),
    )
    yield from no_end_of_a_class()
    yield case(
        "an eos beyond the vocabulary", ("generation_config.json", "eos_token_id"), eos_token_id=999
    )
    yield case("a negative eos", ("generation_config.json", "eos_token_id"), eos_token_id=-1)
    yield case(
        "an eos that is text", ("generation_config.json", "eos_token_id"), eos_token_id="</s>"
    )
    yield case(
        "the tokenizer's eos is another, and does not stop",
        change=lambda c: c.tokenizer_config(eos_token="<|end|>"),
    )
    yield case("stop_strings", ("stop_strings",), stop_strings=["da"])
    yield case(
        "a generation_config.json that is no JSON",
        ("generation_config.json",),
        change=lambda c: c.file("generation_config.json", '{"eos_token_id": 2,}'),
    )
    yield case(
        "a generation_config.json that is a list",
        ("generation_config.json",),
        change=lambda c: c.file("generation_config.json", []),
    )


def penalties():
    yield case("repetition_penalty 1.3", repetition_penalty=1.3)
    yield case("repetition_penalty 1.02", repetition_penalty=1.02)
    yield case("repetition_penalty below 1", repetition_penalty=0.5)
    yield case("repetition_penalty 1", repetition_penalty=1.0)
    yield case(
        "repetition_penalty 2, of a long prompt", prompt="abcdabcd efgh", repetition_penalty=2.0
    )
    yield case("repetition_penalty 0", ("repetition_penalty",), repetition_penalty=0.0)
    yield case("repetition_penalty as text", ("repetition_penalty",), repetition_penalty="1.3")
    yield case("no_repeat_ngram_size 1", no_repeat_ngram_size=1)
    yield case("no_repeat_ngram_size 2", no_repeat_ngram_size=2)
    yield case("no_repeat_ngram_size 3", no_repeat_ngram_size=3)
    yield case(
        "no_repeat_ngram_size 3, some of it in the prompt", prompt="abcda", no_repeat_ngram_size=3
    )
    yield case("no_repeat_ngram_size longer than all", no_repeat_ngram_size=40)
    yield case("no_repeat_ngram_size 0", no_repeat_ngram_size=0)
    yield case("suppress_tokens", suppress_tokens=[id_of("d"), 2])
    yield case(
        "suppress_tokens with the eos", suppress_tokens=[id_of("d")], eos_token_id=[2, id_of("d")]
    )
    yield case("an empty suppress_tokens", suppress_tokens=[])
    yield case("suppress_tokens beyond the vocabulary", ("suppress_tokens",), suppress_tokens=[999])
    yield case(
        "begin_suppress_tokens", ("begin_suppress_tokens",), begin_suppress_tokens=[id_of("c")]
    )
    yield case("bad_words_ids of one token", bad_words_ids=[[id_of("d")]])
    yield case("bad_words_ids of a pair", bad_words_ids=[[id_of("c"), id_of("d")]])
    yield case(
        "bad_words_ids of three, some of it in the prompt",
        bad_words_ids=[[id_of("a"), id_of("b"), id_of("c")]],
    )
    yield case("bad_words_ids longer than all", bad_words_ids=[[id_of("a")] * 40])
    yield case(
        "bad_words_ids of several lengths",
        bad_words_ids=[[id_of("d")], [id_of("g"), id_of("h")], [2]],
    )
    yield case("bad_words_ids with the eos, which stays allowed", bad_words_ids=[[2], [id_of("c")]])
    yield case("empty bad_words_ids", ("bad_words_ids",), bad_words_ids=[])
    yield case("bad_words_ids that is flat", ("bad_words_ids",), bad_words_ids=[2, 3])
    yield case("min_new_tokens 8", min_new_tokens=8, suppress_tokens=[id_of("a")])
    yield case("min_new_tokens 3, then the eos", min_new_tokens=3, suppress_tokens=[id_of("a")])
    yield case("min_new_tokens with two eos", min_new_tokens=6, eos_token_id=[2, id_of("d")])
    yield case("min_new_tokens without eos", min_new_tokens=6, eos_token_id=None)
    yield case(
        "min_length 8, the prompt counted",
        ("min_length",),
        min_length=8,
        suppress_tokens=[id_of("a")],
    )
    yield case(
        "min_new_tokens and min_length",
        ("min_length",),
        min_new_tokens=3,
        min_length=12,
        suppress_tokens=[id_of("a")],
    )
    yield case(
        "several at once",
        repetition_penalty=1.2,
        no_repeat_ngram_size=2,
        suppress_tokens=[id_of("e")],
        bad_words_ids=[[id_of("f"), id_of("g")]],
        min_new_tokens=10,
        eos_token_id=[2, id_of("h")],
    )
    yield case(
        "all tokens suppressed but one", suppress_tokens=[i for i in range(SIZE) if i != id_of("p")]
    )


def lengths():
    yield case(
        "max_new_tokens in the file, none on the command line",
        ("max_new_tokens",),
        n=None,
        max_new_tokens=5,
    )
    yield case("max_new_tokens in the file, more on the command line", n=9, max_new_tokens=5)
    yield case(
        "max_length in the file, none on the command line", ("max_length",), n=None, max_length=9
    )
    yield case("max_length in the file, more on the command line", n=12, max_length=6)
    yield case("max_new_tokens 0", ("max_new_tokens",), max_new_tokens=0)


def ignored():
    """Keys that change nothing here: what only sampling reads, what only speed is about, and
    defaults.
    """
    for key, value in {
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 3,
        "min_p": 0.2,
        "typical_p": 0.5,
        "epsilon_cutoff": 0.01,
        "eta_cutoff": 0.01,
        "num_beams": 1,
        "num_return_sequences": 1,
        "use_cache": False,
        "length_penalty": 2.0,
        "early_stopping": True,
        "renormalize_logits": True,
        "remove_invalid_values": True,
        "cache_implementation": "static",
        "pad_token_id": 2,
        "bos_token_id": 3,
        "decoder_start_token_id": 3,
        "output_attentions": True,
        "return_dict_in_generate": False,
        "num_beam_groups": 1,
        "diversity_penalty": 0.0,
        "transformers_version": "4.30.0",
        "_from_model_config": True,
        "do_sample": False,
        "some_key_of_nobody": 7,
        "max_time": 100.0,
        "penalty_alpha": 0.0,
        "guidance_scale": 1,
        "encoder_repetition_penalty": 1.0,
        "encoder_no_repeat_ngram_size": 0,
        "disable_compile": True,
        "is_assistant": False,
    }.items():
        yield case(f"{key} {value}, which changes nothing", (key,), **{key: value})


def refusable():
    """Keys that change what is said: honoured or refused by name."""
    yield case("num_beams 3", ("num_beams",), table="garden path", n=6, num_beams=3)
    yield case(
        "num_beams 2 with early_stopping",
        ("num_beams",),
        table="garden path",
        n=6,
        num_beams=2,
        early_stopping=True,
    )
    for key, value in {
        "num_return_sequences": 2,
        "penalty_alpha": 0.6,
        "dola_layers": "high",
        "guidance_scale": 2.0,
        "forced_bos_token_id": 9,
        "forced_eos_token_id": 2,
        "encoder_repetition_penalty": 1.5,
        "encoder_no_repeat_ngram_size": 2,
        "exponential_decay_length_penalty": [2, 1.5],
        "sequence_bias": [[[10], 9.0]],
        "watermarking_config": {"bias": 30.0},
        "force_words_ids": [[9]],
        "constraints": [1],
        "token_healing": True,
        "prompt_lookup_num_tokens": 2,
        "cache_implementation": "no such",
        "max_time": 0.0,
    }.items():
        more = {"top_k": 4} if key == "penalty_alpha" else {}
        yield case(f"{key} {value}", (key,), **{key: value}, **more)


def sampling():
    yield sampled("do_sample", temperature=1.0, top_p=1.0, top_k=0)
    yield sampled("do_sample, top_k's default of 50")
    yield sampled("do_sample with top_k 4", top_k=4)
    yield sampled("do_sample with top_k 1", top_k=1)
    yield sampled("do_sample with top_k beyond the vocabulary", top_k=1000)
    yield sampled("do_sample with top_p 0.6", top_p=0.6)
    yield sampled("do_sample with top_p 0.01", top_p=0.01)
    yield sampled("do_sample with top_p 0", ("top_p",), top_p=0.0)
    yield sampled("do_sample with a temperature of 0.4", temperature=0.4)
    yield sampled("do_sample with a temperature of 3", temperature=3.0)
    yield sampled(
        "do_sample with temperature, top_k and top_p", temperature=0.8, top_k=8, top_p=0.7
    )
    yield sampled("do_sample with suppress_tokens and top_k", suppress_tokens=[7, 8], top_k=3)
    yield sampled("do_sample with a temperature of 0", ("temperature",), temperature=0.0)
    yield sampled("do_sample with a negative temperature", ("temperature",), temperature=-1.0)
    yield sampled("do_sample with top_p 1.5", ("top_p",), top_p=1.5)
    yield sampled("do_sample with a negative top_k", ("top_k",), top_k=-1)
    for key, value in {
        "min_p": 0.3,
        "typical_p": 0.5,
        "epsilon_cutoff": 0.1,
        "eta_cutoff": 0.3,
        "top_h": 0.8,
    }.items():
        yield sampled(f"do_sample with {key}", (key,), **{key: value})
    yield sampled("do_sample with num_beams 2", ("num_beams",), num_beams=2)
    yield sampled(
        "do_sample with a penalty of what was said",
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        top_k=5,
    )
    yield Case(
        "temperature without do_sample is not read",
        checkpoint("spread", temperature=2.0, top_k=9),
        (Answer(PROMPT, 8),),
        record="generation",
    )
    yield case(
        "settings in config.json without generation_config.json",
        ("config.json", "repetition_penalty"),
        change=lambda c: c.drop("generation_config.json").config(
            do_sample=False, top_k=2, repetition_penalty=1.4
        ),
    )
    yield case(
        "settings in config.json beside generation_config.json, which alone counts",
        change=lambda c: c.config(do_sample=True, temperature=5.0, repetition_penalty=9.0),
    )


def flags():
    """What the command line says counts before the file."""
    sampled_file = {"do_sample": True, "top_k": 5, "temperature": 0.7}
    greedy = {"do_sample": False}
    yield case("--greedy against do_sample", flags=("--greedy",), settings=greedy, **sampled_file)
    yield case(
        "--temperature 0 against do_sample",
        flags=("--temperature", "0"),
        settings=greedy,
        **sampled_file,
    )
    spread = lambda **s: checkpoint("spread", **s)  # noqa: E731
    yield Case(
        "--temperature 1 without do_sample draws",
        spread(),
        (SamplesAt({"do_sample": True, "top_k": 50}, ("--temperature", "1")),),
    )
    yield Case(
        "--top-p against the file's",
        spread(do_sample=True, top_p=0.9),
        (SamplesAt({"top_p": 0.3}, ("--top-p", "0.3")),),
    )
    yield Case(
        "--temperature against the file's",
        spread(do_sample=True, temperature=0.2),
        (SamplesAt({"temperature": 1.5}, ("--temperature", "1.5")),),
    )


@dataclasses.dataclass
class SamplesAt(Samples):
    """As Samples, with settings that ours gets as flags."""

    settings: dict = dataclasses.field(default_factory=dict)

    def __init__(self, settings, flags):
        super().__init__(flags=flags)
        self.settings = settings

    def theirs(self, theirs):
        theirs.model.generation_config.update(**self.settings)
        return super().theirs(theirs)


def measurements():
    """bench and eval stay what they are, whatever the settings."""
    for name, settings in {
        "sampling": {"do_sample": True, "temperature": 0.5},
        "penalties": {"repetition_penalty": 3.0},
        "what generate refuses": {"num_beams": 4, "stop_strings": ["a"]},
        "no stop": {"eos_token_id": None},
    }.items():
        made = Checkpoint().generation(**settings)
        yield Case(f"eval with {name} in generation_config.json", made, (Losses(),))
    broken = Checkpoint().file("generation_config.json", "{")
    yield Case(
        "eval with a generation_config.json that is no JSON",
        broken,
        (Losses(),),
        ("generation_config.json",),
    )


@dataclasses.dataclass
class Benched:
    """bench times the model, whatever it would say."""

    name: str
    checkpoint: Checkpoint

    def row(self, bench):
        directory = self.checkpoint.write(bench.fresh())
        arguments = (
            "bench",
            directory,
            "--prompt-tokens",
            4,
            "--output-tokens",
            2,
            "--device",
            "cpu",
        )
        done = bench.ours.ask("smq-run", *arguments)
        refused = isinstance(done, Refusal)
        return Row(
            self.name,
            "times it",
            Cell("differs", str(done)) if refused else Cell("equal"),
            Cell("-"),
        )


def benches():
    yield Benched(
        "bench with what generate refuses", Checkpoint().generation(num_beams=4, do_sample=True)
    )
    yield Benched("bench with a template that cannot be parsed", Checkpoint(chat="{% if %}{{"))
    yield Benched(
        "bench without a tokenizer", Checkpoint().drop("tokenizer.json", "tokenizer_config.json")
    )


def cases():
    assert SHAPE["vocab_size"] > SIZE
    for group in (
        stops,
        penalties,
        lengths,
        ignored,
        refusable,
        sampling,
        flags,
        measurements,
        benches,
    ):
        yield from group()
