//! Loads a tokenizer.json that is arbitrary, with the files beside it, and encodes a text and
//! decodes it again.
#![no_main]

use smq_fuzz::{Kind, Known, Parts, mutate_parts, scratch, weights, write_files};
use smq_model::{Source, StopStrings, Tokenizer};

/// Longest text that is encoded, bytes: the limits let a normalizer make it 4,096 times as long.
const MAX_TEXT_BYTES: usize = 256;
const WORDS: &[&str] = &[
    "BPE",
    "WordPiece",
    "WordLevel",
    "Unigram",
    "type",
    "Sequence",
    "normalizers",
    "NFC",
    "NFKC",
    "Lowercase",
    "Strip",
    "Prepend",
    "prepend",
    "Replace",
    "Precompiled",
    "precompiled_charsmap",
    "BertNormalizer",
    "pattern",
    "String",
    "Regex",
    "content",
    "\\s+",
    "(a|b)*c",
    "[^a]",
    ".",
    "pretokenizers",
    "ByteLevel",
    "Metaspace",
    "replacement",
    "prepend_scheme",
    "always",
    "first",
    "never",
    "Split",
    "behavior",
    "Isolated",
    "MergedWithPrevious",
    "Removed",
    "Contiguous",
    "invert",
    "Digits",
    "individual_digits",
    "Whitespace",
    "BertPreTokenizer",
    "Punctuation",
    "CharDelimiterSplit",
    "UnicodeScripts",
    "post_processor",
    "TemplateProcessing",
    "single",
    "special_tokens",
    "BertProcessing",
    "RobertaProcessing",
    "sep",
    "cls",
    "decoders",
    "ByteFallback",
    "Fuse",
    "CTC",
    "BPEDecoder",
    "suffix",
    "cleanup",
    "start",
    "stop",
    "byte_fallback",
    "unk_token",
    "unk_id",
    "fuse_unk",
    "dropout",
    "ignore_merges",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "max_input_chars_per_word",
    "vocab",
    "merges",
    "added_tokens",
    "id",
    "single_word",
    "lstrip",
    "rstrip",
    "normalized",
    "special",
    "use_regex",
    "trim_offsets",
    "add_prefix_space",
    "<unk>",
    "<s>",
    "</s>",
    "<0x0A>",
    "▁",
    "##",
    "a b",
    "Ġ",
    "é",
    "\n",
    "",
    "tokenizer_class",
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "PreTrainedTokenizerFast",
    "GPT2Tokenizer",
    "Qwen2Tokenizer",
    "BertTokenizer",
    "T5Tokenizer",
    "GemmaTokenizer",
    "model_type",
    "llama",
    "mistral",
    "phi3",
    "qwen2",
    "gemma",
    "vocab_size",
    "add_bos_token",
    "bos_token",
    "eos_token",
    "pad_token",
    "additional_special_tokens",
    "extra_special_tokens",
    "added_tokens_decoder",
    "clean_up_tokenization_spaces",
    "split_special_tokens",
    "legacy",
];
const TEXT: &[&str] = &[
    " ", "\n", "é", "日本", "\u{301}", "<s>", "<unk>", "1234", "'s", "the",
];
const KNOWN: Known = &[
    ("tokenizer.json", Kind::Json(WORDS)),
    ("tokenizer_config.json", Kind::Json(WORDS)),
    ("special_tokens_map.json", Kind::Json(WORDS)),
    ("added_tokens.json", Kind::Json(WORDS)),
    ("config.json", Kind::Json(WORDS)),
    ("text", Kind::Text(TEXT)),
];

smq_fuzz::target! {
    mutate: |input, limit, random, mutate| mutate_parts(KNOWN, input, limit, random, mutate),
    run: run,
}

fn run(data: &[u8]) {
    let parts = Parts::of(KNOWN, data);
    let dir = scratch();
    let weights = weights(&[("w", &[1])]);
    let config = br#"{"model_type": "llama"}"#;
    let others = [
        ("config.json", &config[..]),
        ("model.safetensors", &weights[..]),
    ];
    write_files(dir.path(), &parts, &others);
    let Ok(source) = Source::open(dir.path()) else {
        return;
    };
    let tokenizer = match Tokenizer::load(&source) {
        Ok(tokenizer) => tokenizer,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let text = parts.get("text").unwrap_or(b"a <s>The b\xc3\xa9e, 12\n");
    let text = String::from_utf8_lossy(&text[..text.len().min(MAX_TEXT_BYTES)]);
    for special in [false, true] {
        let Ok(ids) = tokenizer.encode(&text, special) else {
            continue;
        };
        let whole = tokenizer.decode(&ids);
        let mut stream = tokenizer.stream();
        let pieces: Result<String, _> = ids.iter().map(|id| stream.push(*id)).collect();
        let streamed = pieces.and_then(|text| stream.finish().map(|(rest, _)| text + &rest));
        assert_eq!(
            whole.ok(),
            streamed.ok(),
            "a text streams as it is decoded whole"
        );
        if let Ok(mut stop) = StopStrings::new(&tokenizer, &["b".to_owned()], &[]) {
            for id in ids {
                let _ = stop.push(id);
            }
        }
    }
}
