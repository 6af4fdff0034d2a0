"""Runs transformers and smq on the same checkpoint, and says where they differ.

A case is a checkpoint and the checks to run on it. A check asks both sides the same question: of
the directory, and of the .smq file that smq-convert makes of it. Ours must answer as transformers
does, or refuse in words that the case lists; where transformers fails, ours must refuse in those
words too.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
import warnings

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "critical")
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TQDM_DISABLE="1")
warnings.filterwarnings("ignore")

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from checkpoints import TEXT, Checkpoint, link_or_write  # noqa: E402

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "second_reader"))

PROMPT = "The capital of France is"
QUESTION = "What is the capital of France?"
# Two orders of f32 sums: a logit of about 10, of some 256 products, is off by up to 10 * 2^-24 *
# sqrt(256). Losses of 8 to 10 nats agree to 4e-7 for the most part, and to 3.6e-6 at worst.
TOLERANCE_NATS = 1e-5


class Refusal(str):
    """What a program of ours wrote before it left with an error."""

    code = 1

    def __new__(cls, text, code=1):
        self = super().__new__(cls, text.strip())
        self.code = code
        return self


class Ours:
    """The programs under test."""

    def __init__(self, folder, scratch):
        self.folder, self.scratch = pathlib.Path(folder).resolve(), scratch
        self.text = scratch / "text.txt"
        self.text.write_text(TEXT, encoding="utf-8")
        self.environment = {**os.environ, "RAYON_NUM_THREADS": "1", "NO_COLOR": "1"}

    def run(self, program, *arguments, env=None, stdin=None, cwd=None):
        command = [str(self.folder / program), *map(str, arguments)]
        return subprocess.run(
            command,
            capture_output=True,
            timeout=120,
            env={**self.environment, **(env or {})},
            input=stdin,
            cwd=cwd or self.scratch,
        )

    def ask(self, program, *arguments, **how):
        """Standard output and error, or a Refusal."""
        done = self.run(program, *arguments, **how)
        out, err = (
            done.stdout.decode(errors="backslashreplace"),
            done.stderr.decode(errors="backslashreplace"),
        )
        if done.returncode != 0:
            # A signal (negative) or a panic is an accident, and no refusal in any words.
            code = done.returncode if "panicked" not in err else 101
            return Refusal(err or out, code)
        return out, err

    def generate(self, path, prompt, n, raw=False, system=None, extra=(), env=None):
        """The report of `generate --json` with what went to standard error, or a Refusal."""
        arguments = ["generate", path, f"--prompt={prompt}", "--json", "--device", "cpu", *extra]
        arguments += ["-n", n] if n is not None else []
        arguments += ["--raw"] if raw else []
        arguments += ["--system", system] if system is not None else []
        done = self.ask("smq-run", *arguments, env=env)
        if isinstance(done, Refusal):
            return done
        return {**json.loads(done[0]), "stderr": done[1]}

    def losses(self, path, window, tokens):
        """Nats a token of each window, or a Refusal."""
        done = self.ask(
            "smq-run",
            "eval",
            "ppl",
            path,
            "--text",
            self.text,
            "--window",
            window,
            "--text-tokens",
            tokens,
            "--json",
            "--device",
            "cpu",
        )
        return done if isinstance(done, Refusal) else json.loads(done[0])["window_nll"]

    def convert(self, source, out, *arguments):
        """What smq-convert printed, on both streams, or a Refusal."""
        done = self.ask("smq-convert", *arguments, source, out)
        return done if isinstance(done, Refusal) else done[0] + done[1]


class Theirs:
    """transformers on one directory; model and tokenizer are loaded when asked for."""

    def __init__(self, directory, models=None, key=None, **how):
        """`models` keeps what was loaded under `key`, for directories that differ in nothing a
        model reads.
        """
        self.directory, self.how = directory, how
        self._models, self._key = ({}, None) if models is None else (models, key)
        self._tokenizer = None

    @property
    def tokenizer(self):
        if self._tokenizer is None:
            self._tokenizer = AutoTokenizer.from_pretrained(self.directory, **self.how)
        return self._tokenizer

    @property
    def model(self):
        if self._key not in self._models:
            model, loading = AutoModelForCausalLM.from_pretrained(
                self.directory,
                dtype=torch.float32,
                attn_implementation="eager",
                output_loading_info=True,
                **self.how,
            )
            missing = sorted(loading["missing_keys"])
            if missing:
                # Only a warning over there, but made-up weights are no answer to compare with.
                raise ValueError(f"transformers fills {', '.join(missing[:3])} with random numbers")
            self._models[self._key] = model.eval()
        return self._models[self._key]

    def prompt_ids(self, prompt):
        return self.tokenizer(prompt)["input_ids"]

    def chat(self, question, system=None):
        """The rendered text and its ids, the assistant's turn opened."""
        messages = [{"role": "system", "content": system}] if system is not None else []
        messages.append({"role": "user", "content": question})
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        ids = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        return text, ids

    @torch.no_grad()
    def generate(self, ids, n=None, **settings):
        """The ids that generate() adds, without the stop id that ends them, as
        generation_config.json says.
        """
        x = torch.tensor([ids])
        if n is not None:
            settings["max_new_tokens"] = n
        config = self.model.generation_config
        if config.stop_strings or config.token_healing:
            settings["tokenizer"] = self.tokenizer
        out = self.model.generate(x, attention_mask=torch.ones_like(x), **settings)[
            0, len(ids) :
        ].tolist()
        stop = self.stop_ids()
        return out[:-1] if out and out[-1] in stop else out

    def stop_ids(self):
        eos = self.model.generation_config.eos_token_id
        return [] if eos is None else eos if isinstance(eos, list) else [eos]

    @torch.no_grad()
    def losses(self, window, tokens):
        ids = self.tokenizer(TEXT, add_special_tokens=False)["input_ids"][:tokens]
        out = []
        for start in range(0, len(ids) - window + 1, window):
            x = torch.tensor([ids[start : start + window]])
            log_p = torch.log_softmax(self.model(x).logits[0].double(), -1)
            out.append(-log_p[:-1].gather(1, x[0, 1:, None]).mean().item())
        return out


# Checks ---------------------------------------------------------------------


@dataclasses.dataclass
class Losses:
    """Cross-entropy of each window of the sample text, without special tokens."""

    window: int = 64
    tokens: int = 256

    def theirs(self, theirs):
        return theirs.losses(self.window, self.tokens)

    def ours(self, ours, path):
        return ours.losses(path, self.window, self.tokens)

    def difference(self, theirs, ours):
        if len(theirs) != len(ours):
            return f"{len(theirs)} windows, ours {len(ours)}"
        most = max(abs(a - b) for a, b in zip(theirs, ours))
        return None if most <= TOLERANCE_NATS else f"losses differ by {most:.2g} nats"

    def show(self, theirs):
        return f"loss {sum(theirs) / len(theirs):.4f}"


@dataclasses.dataclass
class Answer:
    """A continuation: the prompt's length, ids, and text without special tokens."""

    prompt: str = PROMPT
    n: int | None = 8
    raw: bool = True
    system: str | None = None
    flags: tuple = ()
    settings: dict = dataclasses.field(default_factory=dict)
    env: dict | None = None

    def theirs(self, theirs):
        with local_time(self.env):
            ids = (
                theirs.prompt_ids(self.prompt)
                if self.raw
                else theirs.chat(self.prompt, self.system)[1]
            )
        if not ids:
            raise ValueError("the prompt has no tokens")
        out = theirs.generate(ids, self.n, **self.settings)
        return {
            "prompt_ids": ids,
            "ids": out,
            "text": theirs.tokenizer.decode(out, skip_special_tokens=True),
        }

    def ours(self, ours, path):
        return ours.generate(path, self.prompt, self.n, self.raw, self.system, self.flags, self.env)

    def difference(self, theirs, ours):
        if ours.get("prompt_ids", theirs["prompt_ids"]) != theirs["prompt_ids"]:
            return f"prompt {theirs['prompt_ids'][:24]}, ours {ours['prompt_ids'][:24]}"
        if len(theirs["prompt_ids"]) != ours["prompt_tokens"]:
            return f"prompt of {len(theirs['prompt_ids'])} tokens, ours {ours['prompt_tokens']}"
        if theirs["ids"] != ours["ids"]:
            return f"answer {theirs['ids']}, ours {ours['ids']}"
        return (
            None
            if theirs["text"] == ours["text"]
            else f"text {theirs['text']!r}, ours {ours['text']!r}"
        )

    def show(self, theirs):
        prompt, ids = len(theirs["prompt_ids"]), theirs["ids"]
        return f"{prompt} -> {','.join(map(str, ids[:4]))}.. ({len(ids)})"


def Chat(question=QUESTION, n=6, **more):
    return Answer(question, n, raw=False, **more)


class local_time:
    """Makes TZ count in this process too, where a check sets it for ours."""

    def __init__(self, env):
        self.zone = (env or {}).get("TZ")

    def __enter__(self):
        if self.zone:
            self.old = os.environ.get("TZ")
            os.environ["TZ"] = self.zone
            time.tzset()

    def __exit__(self, *_):
        if self.zone:
            os.environ.pop("TZ") if self.old is None else os.environ.update(TZ=self.old)
            time.tzset()


@dataclasses.dataclass
class Stream(Answer):
    """What streams to standard output must be the text that the ids decode to as a whole."""

    def ours(self, ours, path):
        arguments = [
            "generate",
            path,
            f"--prompt={self.prompt}",
            "-n",
            self.n,
            "--device",
            "cpu",
            *self.flags,
        ]
        done = ours.run("smq-run", *arguments, *(["--raw"] if self.raw else []))
        if done.returncode != 0:
            text = done.stderr.decode(errors="replace")
            return Refusal(text, 101 if "panicked" in text else done.returncode)
        text = done.stdout.decode(errors="backslashreplace")
        return {"text": text.removesuffix("\n")}

    def difference(self, theirs, ours):
        return (
            None
            if theirs["text"] == ours["text"]
            else f"streams {ours['text']!r}, not {theirs['text']!r}"
        )


# Cases ----------------------------------------------------------------------


@dataclasses.dataclass
class Case:
    """One input.

    `words`: what a refusal must contain; None where a refusal is no answer to this input.
    `must_refuse`: transformers' answer is not to be followed, and this says why.
    `may_run`: transformers fails on a spelling whose meaning is plain, so that ours may read it.
    `says`: words that both programs must print although they succeed, since something was left out
    or chosen.
    `never`: words that no message may contain, since they blame something else.
    `target`: what the conversion quantizes; nothing is lost in the MLP's projections.
    """

    name: str
    checkpoint: Checkpoint
    checks: tuple = (Losses(), Answer())
    words: tuple | None = None
    must_refuse: str | None = None
    may_run: bool = False
    says: tuple = ()
    never: tuple = ()
    target: tuple = ("--target", "mlp")
    smq: bool = True
    # What the fixtures record of it: "tokenizer", "template", "streaming", "generation", "config",
    # "blame", or nothing.
    record: str | None = None
    texts: tuple = ()
    chats: tuple = ()


@dataclasses.dataclass
class Cell:
    """What one side said: `equal`, `refused`, `differs`, or `-` where it was not asked."""

    state: str
    said: str = ""


@dataclasses.dataclass
class Row:
    name: str
    theirs: str
    directory: Cell
    smq: Cell

    @property
    def verdict(self):
        states = {self.directory.state, self.smq.state}
        if "differs" in states:
            return "DIFFERS"
        if states == {"-"}:
            return "not asked"
        return "refused by name" if "refused" in states else "equal"


def refusal_cell(refusal, words, never):
    """A refusal is an answer only with the words that the case asks for, on one line of a
    deliberate message.
    """
    first = " ".join(refusal.split())
    if refusal.code < 0 or refusal.code == 101:
        return Cell("differs", f"aborts: {first[-160:]}")
    if words is None:
        return Cell("differs", f"refuses: {first}")
    absent = [word for word in words if word.lower() not in first.lower()]
    wrong = [word for word in never if word.lower() in first.lower()]
    if absent or wrong:
        problem = f"does not name {absent}" if absent else f"blames {wrong}"
        return Cell("differs", f"{problem}: {first}")
    return Cell("refused", first)


class Bench:
    """Runs cases and keeps what they may share: scratch folders, weights on disk, loaded models."""

    def __init__(self, ours, scratch):
        self.ours, self.scratch = ours, scratch
        self.weights, self.models = {}, {}
        self.number = 0

    def fresh(self):
        """A new path. Its name holds no model's name, since transformers has read meaning into
        such.
        """
        self.number += 1
        return self.scratch / f"case-{self.number:04d}"

    def write(self, checkpoint):
        directory = link_or_write(checkpoint, self.fresh(), self.weights)
        key = checkpoint.plain_weights()
        if key is not None:
            names = ("config.json", "generation_config.json")
            key = (
                key,
                *(json.dumps(checkpoint.files.get(n), sort_keys=True, default=str) for n in names),
            )
            # Other files may change what loads: an adapter, for example.
            key = (key, tuple(sorted(checkpoint.files)))
        return directory, Theirs(directory, None if key is None else self.models, key)

    def run(self, case):
        if not isinstance(case, Case):
            return case.row(self)
        directory, theirs = self.write(case.checkpoint)
        asked, shown = [], []
        for check in case.checks:
            try:
                asked.append((check, check.theirs(theirs)))
                shown.append(check.show(asked[-1][1]))
            except Exception as error:  # whatever transformers raises is its answer
                asked.append((check, error))
                shown.append(f"{type(error).__name__}: {' '.join(str(error).split())}")
        if case.must_refuse:
            shown = [case.must_refuse]
        first = self.column(case, asked, directory)
        second = self.smq_column(case, asked, directory) if case.smq else Cell("-")
        return Row(case.name, "; ".join(dict.fromkeys(shown)), first, second)

    def smq_column(self, case, asked, directory):
        out = directory.with_suffix(".smq")
        converted = self.ours.convert(directory, out, *case.target)
        if isinstance(converted, Refusal):
            expected = case.must_refuse or any(isinstance(answer, Exception) for _, answer in asked)
            words = case.words if case.words is not None or not expected else ()
            return refusal_cell(converted, words, case.never)
        silent = [word for word in case.says if word.lower() not in converted.lower()]
        if silent:
            return Cell("differs", f"converts without a word of {silent}")
        return self.column(case, asked, out)

    def column(self, case, asked, path):
        cells = []
        for check, theirs in asked:
            ours = check.ours(self.ours, path)
            if isinstance(ours, Refusal):
                cells.append(refusal_cell(ours, case.words, case.never))
            elif case.may_run and isinstance(theirs, Exception):
                cells.append(Cell("equal", "reads what transformers does not"))
            elif case.must_refuse or isinstance(theirs, Exception):
                cells.append(Cell("differs", "runs, and must refuse"))
            else:
                difference = check.difference(theirs, ours)
                if difference is None and case.says and "stderr" in ours and path.is_dir():
                    silent = [
                        word for word in case.says if word.lower() not in ours["stderr"].lower()
                    ]
                    difference = f"runs without a word of {silent}" if silent else None
                cells.append(Cell("differs", difference) if difference else Cell("equal"))
        order = {"differs": 0, "refused": 1, "equal": 2}
        return min(cells, key=lambda cell: order[cell.state])
