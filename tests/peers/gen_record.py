#!/usr/bin/env python3
"""Records what transformers does with generation settings, for the tests of `generate`.

    python3 tests/peers/gen_record.py tests/fixtures/phi3-tiny tests/fixtures/hf

Written with transformers 5.24.0 and torch on a CPU, in f32. Three files come out:

gen-processors.json   settings, the tokens so far and logits, with the logits that the processors
                      of `generate` make of them (null for minus infinity)
gen-stop-strings.json tokens of a prompt and of a text, with the tokens of the text after which each
                      of some stop strings ends it (null for never), for three kinds of tokenizers
gen-greedy.json       greedy continuations of the fixture under settings that change them, with the
                      smallest distance between the two most likely tokens of any step
"""
import json
import pathlib
import sys

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM,
                          PreTrainedTokenizerFast)
from transformers.generation.stopping_criteria import StopStringCriteria

VOCAB = 40
TOKENS = 64


def processed(settings, prompt, new, logits, max_new_tokens):
    """The logits after every processor, as `generate` builds them."""
    model = processed.model
    model.generation_config = GenerationConfig(**settings)
    config, _ = model._prepare_generation_config(None, max_new_tokens=max_new_tokens)
    ids = torch.tensor([prompt])
    model._prepare_special_tokens(config, True, device="cpu", batch_size=1)
    config = model._prepare_generated_length(
        generation_config=config, has_default_max_length=True,
        has_default_min_length=settings.get("min_length") is None, model_input_name="input_ids",
        inputs_tensor=ids, input_ids_length=len(prompt))
    processors = model._get_logits_processor(
        config, input_ids_seq_length=len(prompt), encoder_input_ids=ids, device="cpu",
        model_kwargs={})
    return processors(torch.tensor([prompt + new]), torch.tensor([logits]))[0].tolist()


def case(name, settings, prompt=(7, 3, 9, 3, 9, 4), new=(5, 3, 9), logits=None, max_new_tokens=12):
    logits = case.logits if logits is None else logits
    prompt, new = list(prompt), list(new)
    out = processed(settings, prompt, new, logits, max_new_tokens)
    return {"name": name, "settings": settings, "prompt": prompt, "new": new,
            "max_new_tokens": max_new_tokens, "logits": logits,
            "expected": [None if x == float("-inf") else float(f"{x:.7g}") for x in out]}


def processor_cases():
    config = LlamaConfig(vocab_size=VOCAB, hidden_size=16, intermediate_size=16,
                         num_hidden_layers=1, num_attention_heads=2)
    processed.model = LlamaForCausalLM(config)
    random = torch.Generator().manual_seed(5)
    case.logits = [round(x, 3) for x in (3 * torch.randn(VOCAB, generator=random)).tolist()]
    even = [0.0] * 4 + [-30.0] * (VOCAB - 4)
    wide = [round(x, 3) for x in (0.5 * torch.randn(VOCAB, generator=random)).tolist()]
    ties = [float(x // 4) for x in range(VOCAB)]
    eos = {"eos_token_id": [2, 11]}
    yield case("nothing", {})
    yield case("repetition", {"repetition_penalty": 1.3})
    yield case("repetition below one", {"repetition_penalty": 0.7})
    yield case("prompt", {"encoder_repetition_penalty": 1.4})
    yield case("prompt below one", {"encoder_repetition_penalty": 0.6})
    for size in (1, 2, 3, 4, 20):
        yield case(f"ngram {size}", {"no_repeat_ngram_size": size})
        yield case(f"prompt ngram {size}", {"encoder_no_repeat_ngram_size": size})
    yield case("ngram of the whole", {"no_repeat_ngram_size": 9})
    yield case("bias", {"sequence_bias": [[[4], -2.5], [[9, 1], 3.0], [[3, 9, 1], 0.5], [[4], 1.5],
                                          [[8, 9, 2], 9.0], [[1] * 30, 2.0]]})
    yield case("bad words", {"bad_words_ids": [[1], [9, 6], [3, 9, 8], [2, 9, 5], [11]], **eos})
    yield case("min_length", {"min_length": 10, **eos})
    yield case("min_length reached", {"min_length": 9, **eos})
    yield case("min_new_tokens", {"min_new_tokens": 4, **eos})
    yield case("min_new_tokens reached", {"min_new_tokens": 3, **eos})
    yield case("min_new_tokens before min_length", {"min_new_tokens": 0, "min_length": 30, **eos})
    yield case("min_length without an end", {"min_length": 30})
    yield case("forced first", {"forced_bos_token_id": 17}, prompt=[7], new=[])
    yield case("forced first, too late", {"forced_bos_token_id": 17}, prompt=[7, 8], new=[])
    yield case("forced last", {"forced_eos_token_id": [2, 30]}, max_new_tokens=4)
    yield case("forced last, too early", {"forced_eos_token_id": 2}, max_new_tokens=5)
    yield case("invalid", {"remove_invalid_values": True, "suppress_tokens": [1],
                           "bad_words_ids": [[6]]})
    yield case("decay", {"exponential_decay_length_penalty": [1, 1.5], **eos})
    yield case("decay below one", {"exponential_decay_length_penalty": [0, 0.5], **eos})
    yield case("decay not yet", {"exponential_decay_length_penalty": [3, 1.5], **eos})
    yield case("decay of the excluded",
               {"exponential_decay_length_penalty": [1, 1.5], "min_new_tokens": 8, **eos})
    yield case("suppress", {"suppress_tokens": [3, 30, 30]})
    yield case("suppress at the beginning", {"begin_suppress_tokens": [3, 30]}, new=[])
    yield case("suppress after the beginning", {"begin_suppress_tokens": [3, 30]})
    both = {"begin_suppress_tokens": [3, 30], "forced_bos_token_id": 17}
    yield case("suppress after a forced first", both, prompt=[7], new=[17])
    yield case("suppress, nothing forced", both, prompt=[7, 8], new=[])
    yield case("normalize", {"renormalize_logits": True})
    yield case("sampling is off", {"temperature": 0.5, "top_k": 3, "top_p": 0.2, "min_p": 0.5,
                                   "typical_p": 0.2, "epsilon_cutoff": 0.1, "eta_cutoff": 0.1,
                                   "top_h": 0.2})
    on = {"do_sample": True, "top_k": 0}
    yield case("default top_k is more than all", {"do_sample": True})
    yield case("temperature", {**on, "temperature": 0.6})
    for logits, of in ((case.logits, ""), (wide, " of a wide distribution"), (ties, " of ties"),
                       (even, " of equals")):
        for key, values in {"top_k": (1, 5, 39, 60), "top_p": (0.0, 0.25, 0.5, 0.9, 0.999),
                            "min_p": (0.0, 0.05, 0.5, 1.0), "typical_p": (0.1, 0.5, 0.9, 0.999),
                            "epsilon_cutoff": (0.001, 0.03, 0.2, 0.9),
                            "eta_cutoff": (0.001, 0.03, 0.2, 0.9),
                            "top_h": (0.1, 0.4, 0.8)}.items():
            for value in values:
                yield case(f"{key} {value}{of}", {**on, key: value}, logits=logits)
    yield case("out of range and off", {**on, "top_p": 1.5, "typical_p": 2.0, "epsilon_cutoff": 3.0,
                                        "eta_cutoff": -1.0})
    every = {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3,
             "encoder_repetition_penalty": 1.1,
             "bad_words_ids": [[1], [9, 6]], "min_new_tokens": 5, "suppress_tokens": [12, 13],
             "sequence_bias": [[[9, 8], 2.0]], "renormalize_logits": True, **eos}
    yield case("all greedy", every)
    yield case("all sampled", {**every, "do_sample": True, "temperature": 1.7, "top_h": 0.95,
                               "top_k": 20, "top_p": 0.95, "min_p": 0.02, "typical_p": 0.9,
                               "epsilon_cutoff": 0.01, "eta_cutoff": 0.01})


GREEDY = {
    "plain": {},
    "repetition": {"repetition_penalty": 1.3},
    "prompt": {"encoder_repetition_penalty": 1.5},
    "ngram": {"no_repeat_ngram_size": 2},
    "prompt ngram": {"encoder_no_repeat_ngram_size": 1},
    "suppress": {"suppress_tokens": [11, 13, 199, 220]},
    "begin suppress": {"begin_suppress_tokens": "first"},
    "bad words": {"bad_words_ids": "words"},
    "bias": {"sequence_bias": "biases"},
    "min new tokens": {"min_new_tokens": 40, "eos_token_id": "common"},
    "min length": {"min_length": 30, "eos_token_id": "common"},
    "forced end": {"forced_eos_token_id": 3},
    "decay": {"exponential_decay_length_penalty": [4, 1.3], "eos_token_id": [3, 6]},
    "several": {"repetition_penalty": 1.15, "no_repeat_ngram_size": 4, "min_new_tokens": 20,
                "eos_token_id": "common", "renormalize_logits": True},
}


def greedy_cases(directory):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32,
                                                 attn_implementation="eager").eval()
    golden = json.loads((directory / "golden.json").read_text())
    prompts = [p["prompt_ids"] for p in golden["prompts"] if len(p["prompt_ids"]) < 400]

    def run(prompt, settings):
        model.generation_config = GenerationConfig(**settings)
        ids = torch.tensor([prompt])
        with torch.no_grad():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS,
                                 output_scores=True, return_dict_in_generate=True)
        top = [torch.topk(s[0], 2).values.tolist() for s in out.scores]
        return out.sequences[0, len(prompt):].tolist(), min(a - b for a, b in top)

    for prompt in prompts:
        plain, _ = run(prompt, {})
        common = max(set(plain), key=plain.count)
        of_plain = {"first": plain[:1], "common": common, "words": [plain[1:2], plain[4:6]],
                    "biases": [[plain[2:3], -3.0], [plain[5:7], -6.5], [[plain[0], plain[3]], 4.0]]}
        for name, settings in GREEDY.items():
            settings = {k: of_plain[v] if isinstance(v, str) else v for k, v in settings.items()}
            ids, margin = run(prompt, settings)
            yield {"name": name, "prompt": prompt, "settings": settings, "max_new_tokens": TOKENS,
                   "ids": ids, "margin": round(margin, 6)}


def byte_fallback():
    """As Llama 2's: bytes are tokens of their own, and a space is in the token that follows it."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    words = ["▁", "H", "e", "l", "o", "w", "r", "d", "x", ":", "a", "b", "c", "f", "▁H", "▁w", "el",
             "lo", "▁Hel", "▁Hello", "or", "ld", "▁wor", "▁world", "▁x", "aa"]
    for word in words:
        vocab[word] = len(vocab)
    merges = [("▁", "H"), ("▁", "w"), ("e", "l"), ("l", "o"), ("▁H", "el"), ("▁Hel", "lo"),
              ("o", "r"), ("l", "d"), ("▁w", "or"), ("▁wor", "ld"), ("▁", "x"), ("a", "a")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>",
                                     byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"),
                                                 normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                                           decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def word_pieces():
    """As BERT's: the pieces of a word begin with ##, and no token is a byte."""
    words = ["[UNK]", "[SEP]", "a", "b", "##b", "hello", "world", ",", "##ing", "##c", "##d", "##e",
             "##f", "sing"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)},
                                           unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.add_special_tokens(["[UNK]", "[SEP]"])
    return tokenizer


def stop_cases(fixture):
    byte_level = Tokenizer.from_file(str(fixture / "tokenizer.json"))
    fallback, pieces = byte_fallback(), word_pieces()
    ids = lambda tokenizer, text: tokenizer.encode(text, add_special_tokens=False).ids
    tokens = lambda tokenizer, names: [tokenizer.token_to_id(name) for name in names]
    cases = [
        ("byte level", byte_level, ids(byte_level, "Once upon a"),
         ids(byte_level, " time, there was a naïve 漢字 🦀.\nThe end<|end|> of it<|user|>"),
         ["time", "a time", "upon a t", "once", ", t", ",t", "ere w", "ï", "\u00ef", "字", "🦀.",
          "\n", ".\nThe", "<|end|>", "end<|end|>", "nd<", "<|user|>", "e", " ", "it<|user|>x"]),
        ("byte fallback", fallback, ids(fallback, "Hello"),
         tokens(fallback, ["▁world", "<0x0A>", "<0xF0>", "<0x9F>", "<0x8E>", "<0x89>", "▁x", ":",
                           "aa", "aa", "</s>", "▁Hello", "<0xC3>", "<0xBC>"]),
         ["world", " world", "Hello world", "o w", "d\n", "\n", "🎉", "🎉 x", "aaa", "aaaa", "aaaaa",
          "</s>", "s> H", ":a", "ü", "<0x0A>", "<s>"]),
        ("word pieces", pieces, ids(pieces, "hello"),
         tokens(pieces, [",", "world", "a", "##b", "##b", "sing", "##ing", "[SEP]", "hello"]),
         ["world", ", w", "hello ,", "ab", "bb", "singing", " [SEP]", "[SEP] hello", "abc"]),
    ]
    for name, tokenizer, prompt, new, strings in cases:
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
        ends = {}
        for string in strings:
            criterion = StopStringCriteria(fast, string)
            hits = (n for n in range(1, len(new) + 1)
                    if criterion(torch.tensor([prompt + new[:n]]), None).item())
            ends[string] = next(hits, None)
        yield {"name": name, "prompt": prompt, "new": new, "ends": ends,
               "tokenizer": None if tokenizer is byte_level else json.loads(tokenizer.to_str())}


def write(path, cases):
    lines = ",\n".join(json.dumps(case) for case in cases)
    path.write_text(f"[\n{lines}\n]\n")
    print(path)


def main():
    fixture, out = map(pathlib.Path, sys.argv[1:])
    out.mkdir(exist_ok=True)
    write(out / "gen-processors.json", processor_cases())
    write(out / "gen-stop-strings.json", stop_cases(fixture))
    write(out / "gen-greedy.json", greedy_cases(fixture))


if __name__ == "__main__":
    main()
