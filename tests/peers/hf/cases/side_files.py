"""Kind 2: files beside config.json and tokenizer.json that decide what the model says.

They must count in the directory, travel into the .smq, and come out again, with nothing stale
beside them.
"""

import pathlib
import tempfile

from checkpoints import CHAT, DROP, Checkpoint, write
from lib import Answer, Case, Cell, Chat, Losses, Refusal, Row, Theirs, refusal_cell

ANSWERS = (Answer(), Chat(), Chat(system="Be brief."))
FILE = "FILE {{ messages[0]['content'] }}<|end|>\n"
INLINE = "INLINE {{ messages[0]['content'] }}"
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def added(content, **flags):
    base = {
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }
    return {"content": content, **base, **flags}


def resaved(checkpoint):
    """The tokenizer files as transformers itself writes them."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Theirs(checkpoint.write_side_files(pathlib.Path(folder) / "a")).tokenizer
        tokenizer.save_pretrained(f"{folder}/b")
        for path in sorted(pathlib.Path(folder, "b").rglob("*")):
            if path.is_file():
                name = str(path.relative_to(f"{folder}/b"))
                checkpoint.file(name, path.read_text(encoding="utf-8"))
    assert "chat_template" not in checkpoint.files["tokenizer_config.json"]
    return checkpoint


def case(name, checkpoint):
    return Case(name, checkpoint, ANSWERS, record="tokenizer")


def templates():
    def only_file(text=CHAT):
        return Checkpoint(chat=None).file("chat_template.jinja", text)

    yield case("saved again by transformers 5", resaved(Checkpoint()))
    yield case("chat_template.jinja alone", only_file())
    yield case(
        "an old template inline, a new one in chat_template.jinja",
        Checkpoint(chat=INLINE).file("chat_template.jinja", FILE),
    )
    extra = Checkpoint(chat=INLINE).file("chat_template.jinja", FILE)
    extra.file("additional_chat_templates/rag.jinja", "RAG").file(
        "additional_chat_templates/tool_use.jinja", "TOOLS"
    )
    yield case("chat_template.jinja with additional_chat_templates", extra)
    yield case(
        "the default among additional_chat_templates",
        Checkpoint(chat=INLINE).file("additional_chat_templates/default.jinja", FILE),
    )
    yield case(
        "both a file and a default among additional_chat_templates",
        only_file(FILE).file("additional_chat_templates/default.jinja", "THE OTHER"),
    )
    lone = Checkpoint(chat=INLINE).file("additional_chat_templates/rag.jinja", FILE)
    yield Case(
        "additional_chat_templates without a default hide the inline one",
        lone,
        (Chat(),),
        words=("template", "default", "rag"),
        record="tokenizer",
    )
    yield Case("the same, continued as plain text", lone, (Losses(), Answer()))
    notes = (
        only_file(FILE)
        .file("additional_chat_templates/README.md", "no template")
        .file("chat_template.txt", "old")
    )
    yield case("other files among the templates", notes)
    yield case(
        "chat_template.json, which only processors read",
        Checkpoint(chat=INLINE).file("chat_template.json", {"chat_template": FILE}),
    )
    yield case(
        "chat_template.jinja with Windows line ends", only_file(CHAT.replace("\n", "\r\n") + "\r\n")
    )
    yield case(
        "an inline template with Windows line ends", Checkpoint(chat=CHAT.replace("\n", "\r\n"))
    )
    yield case("a template that ends in two line ends", only_file(CHAT + "\n\n"))
    yield case("a template that begins with a byte order mark", only_file("\ufeff" + CHAT))
    yield Case("an empty chat_template.jinja", only_file(""), (Chat(),), words=("empty",))
    yield Case(
        "a chat_template.jinja that is not UTF-8",
        only_file().file("chat_template.jinja", b"\xff\xfe{{"),
        (Chat(),),
        words=("chat_template.jinja", "utf-8"),
    )


def tokens():
    yield case(
        "bos in special_tokens_map.json alone",
        Checkpoint()
        .tokenizer_config(bos_token=DROP)
        .file("special_tokens_map.json", {"bos_token": "<s>", "eos_token": "</s>"}),
    )
    wide = lambda: Checkpoint(chat=CHATML, shape={"vocab_size": 402})  # noqa: E731
    yield case(
        "tokens in added_tokens.json alone",
        wide().file("added_tokens.json", {"<|im_start|>": 400, "<|im_end|>": 401}),
    )
    yield case(
        "tokens in added_tokens_decoder alone",
        wide().tokenizer_config(
            added_tokens_decoder={"400": added("<|im_start|>"), "401": added("<|im_end|>")}
        ),
    )
    # Without a template ours continues a prompt as plain text, and says so; transformers has no
    # such question.
    yield Case(
        "no tokenizer_config.json", Checkpoint().drop("tokenizer_config.json"), record="tokenizer"
    )
    yield case(
        "no tokenizer_config.json, a template in a file",
        Checkpoint().drop("tokenizer_config.json").file("chat_template.jinja", FILE),
    )
    yield Case(
        "an old tokenizer.model beside tokenizer.json",
        Checkpoint().file("tokenizer.model", b"\x0a\x0dnot the same"),
        ANSWERS,
    )
    yield Case(
        "vocab.json and merges.txt in place of tokenizer.json",
        slow_files(),
        (Answer(),),
        words=("tokenizer.json",),
    )
    yield Case(
        "other files that are nobody's business",
        Checkpoint()
        .file("preprocessor_config.json", {"do_resize": True})
        .file("README.md", "hello")
        .file("training_args.bin", b"\x80\x02"),
        ANSWERS,
    )


def slow_files():
    """The files of a GPT-2 tokenizer before tokenizer.json."""
    model = Checkpoint().files["tokenizer.json"].json()["model"]
    merges = "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]) + "\n"
    checkpoint = (
        Checkpoint().drop("tokenizer.json").tokenizer_config(tokenizer_class="GPT2Tokenizer")
    )
    return checkpoint.file("vocab.json", model["vocab"]).file("merges.txt", merges)


# What an export may find in the directory that it is to replace. Weights of other names are
# nobody's to delete.
STALE = {
    "chat_template.jinja": "STALE {{ messages[0]['content'] }}",
    "additional_chat_templates/rag.jinja": "STALE",
    "special_tokens_map.json": {"bos_token": "</s>", "eos_token": "<s>"},
    "added_tokens.json": {"<stale>": 400},
    "tokenizer.model": b"stale",
    "vocab.json": {"stale": 0},
    "merges.txt": "#version: 0.2\n",
    "adapter_config.json": {"base_model_name_or_path": "stale", "peft_type": "LORA"},
    "adapter_model.safetensors": b"stale",
    "tokenizer_config.json": {"chat_template": "STALE"},
    "generation_config.json": {"eos_token_id": 77, "repetition_penalty": 5.0},
}


class RoundTrip:
    """Directory -> .smq -> directory: transformers and ours must say of the second what they say of
    the first.
    """

    def __init__(self, name, checkpoint, into=None, gone=(), kept=()):
        self.name, self.checkpoint, self.into, self.gone, self.kept = (
            name,
            checkpoint,
            into,
            gone,
            kept,
        )

    def row(self, bench):
        directory, theirs = bench.write(self.checkpoint)
        out = bench.fresh()
        for name, contents in (self.into or {}).items():
            write(out / name, contents)
        smq = directory.with_suffix(".smq")
        for step in (
            (directory, smq, "--target", "mlp"),
            (smq, out, "--to", "safetensors", "--force"),
        ):
            done = bench.ours.convert(*step)
            if isinstance(done, Refusal):
                # An adapter is more than a stale file: not to write beside one is an answer too.
                words = ("adapter_config.json",) if "adapter_config.json" in self.gone else None
                return Row(self.name, "", refusal_cell(done, words, ()), Cell("-"))
        left = sorted(name for name in self.gone if (out / name).exists())
        checks = [Answer()] if "tokenizer.json" in self.checkpoint.files else []
        checks += [Chat()] if checks and theirs.tokenizer.chat_template is not None else []
        again, cells = Theirs(out), []
        for check in checks:
            first = check.theirs(theirs)
            try:
                second = {**check.theirs(again)}
                second["prompt_tokens"] = len(second["prompt_ids"])
                problem = check.difference(first, second)
            except Exception as error:
                problem = f"transformers on the export: {type(error).__name__}: {error}"
            ours = check.ours(bench.ours, out)
            our_problem = (
                f"refuses: {ours}" if isinstance(ours, Refusal) else check.difference(first, ours)
            )
            cells.append((problem, our_problem))
        lost = [name for name in self.kept if not (out / name).exists()]
        problems = [f"left in the directory: {', '.join(left)}"] if left else []
        problems += [f"lost on the way: {', '.join(lost)}"] if lost else []
        problems += [p for p, _ in cells if p]
        first = Cell("differs", "; ".join(problems)) if problems else Cell("equal")
        ours = [p for _, p in cells if p]
        second = Cell("differs", ours[0]) if ours else Cell("equal")
        return Row(self.name, f"export as the source ({len(checks)} checks)", first, second)


def round_trips():
    full = Checkpoint(chat=None).file("chat_template.jinja", FILE)
    full.file("special_tokens_map.json", {"bos_token": "<s>", "eos_token": "</s>"})
    full.file("additional_chat_templates/rag.jinja", "RAG")
    kept = ("chat_template.jinja", "special_tokens_map.json", "additional_chat_templates/rag.jinja")
    yield RoundTrip("out again: templates in files", full, kept=kept)
    wide = Checkpoint(chat=CHATML, shape={"vocab_size": 402})
    wide.file("added_tokens.json", {"<|im_start|>": 400, "<|im_end|>": 401})
    yield RoundTrip("out again: tokens in added_tokens.json", wide, kept=("added_tokens.json",))
    yield RoundTrip(
        "over another model's files, of which none may count",
        Checkpoint(),
        STALE,
        gone=sorted(set(STALE) - {"tokenizer_config.json", "generation_config.json"}),
    )
    bare = Checkpoint().drop("tokenizer.json", "tokenizer_config.json", "generation_config.json")
    yield RoundTrip(
        "no tokenizer, over a directory that has one",
        bare,
        {"tokenizer.json": {"version": "1.0"}, **STALE},
        gone=["tokenizer.json", *sorted(STALE)],
    )
    yield RoundTrip(
        "over shards and their index",
        Checkpoint(),
        {
            "model-00001-of-00002.safetensors": b"stale",
            "model-00002-of-00002.safetensors": b"stale",
            "model.safetensors.index.json": {
                "weight_map": {"a": "model-00001-of-00002.safetensors"}
            },
        },
        gone=("model-00001-of-00002.safetensors", "model.safetensors.index.json"),
    )


def cases():
    yield from templates()
    yield from tokens()
    yield from round_trips()
