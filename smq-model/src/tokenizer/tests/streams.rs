//! Texts that are shown while their tokens come.

use super::*;

/// Random numbers that are the same everywhere (Knuth's linear congruence).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        let next = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = next.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

/// What is streamed is what the `tokenizers` library makes of all ids at once, whatever decoder
/// the tokenizer has.
#[test]
fn a_streamed_text_is_the_librarys() {
    let recorded = recorded();
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let regex = json!({"type": "Replace", "pattern": {"Regex": "[aeiou]+"}, "content": "*"});
    let fallback = json!({"type": "ByteFallback"});
    let fuse = json!({"type": "Fuse"});
    let strip =
        |c: &str, start, stop| json!({"type": "Strip", "content": c, "start": start, "stop": stop});
    let metaspace = |scheme: &str| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true});
    let level = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                       "use_regex": true});
    let pieces = |cleanup| json!({"type": "WordPiece", "prefix": "##", "cleanup": cleanup});
    let suffix = json!({"type": "BPEDecoder", "suffix": "e"});
    let ctc = json!({"type": "CTC", "pad_token": "<x>", "word_delimiter_token": "▁",
                     "cleanup": true});
    let chain = |decoders: &[&Value]| json!({"type": "Sequence", "decoders": decoders});
    let space = replace("▁", " ");
    let decoders = [
        Value::Null,
        space.clone(),
        fallback.clone(),
        level.clone(),
        metaspace("always"),
        metaspace("never"),
        pieces(true),
        pieces(false),
        suffix.clone(),
        ctc,
        chain(&[&space, &fallback, &fuse, &strip(" ", 1, 0)]),
        chain(&[&space, &fallback, &fuse, &strip(" ", 3, 0)]),
        chain(&[&space, &strip(" ", 1, 0), &fallback]),
        chain(&[&fallback, &metaspace("first")]),
        chain(&[&fallback, &fuse, &metaspace("first")]),
        chain(&[&fallback, &fuse, &metaspace("never"), &replace("  ", "_")]),
        chain(&[&fallback, &fuse, &regex]),
        chain(&[&fuse, &replace("th", "TH"), &replace("TH", "t")]),
        chain(&[&fuse, &pieces(true)]),
        chain(&[&fuse, &pieces(false), &fuse, &suffix]),
        chain(&[&chain(&[&space, &fallback]), &chain(&[&fuse])]),
        chain(&[&level, &strip("t", 2, 0)]),
        chain(&[&fuse, &replace("a", ""), &fallback]),
        chain(&[&replace("e", ""), &level, &replace("\u{fffd}", "?")]),
    ];
    let mut random = Random(7);
    for decoder in &decoders {
        let mut base = recorded.tokenizers["spm"].clone();
        base.insert("decoder".into(), decoder.clone());
        let tokenizer = tokenizer(&base, &[]).unwrap();
        let size = tokenizer.inner.get_vocab_size(true) + 2;
        for round in 0..400 {
            let length = 1 + random.below(14);
            // Half of the rounds mostly of bytes, leading and continuing ones.
            let id = |_| match round % 2 == 0 && random.below(4) != 0 {
                true => 3 + 0x80 + random.below(0x80),
                false => random.below(size),
            };
            let ids: Vec<u32> = (0..length).map(id).map(|id| id as u32).collect();
            let want = tokenizer.inner.decode(&ids, true).unwrap();
            assert_eq!(streamed(&tokenizer, &ids), want, "{decoder} {ids:?}");
        }
    }
}

/// The library aborts where a decoder would take more from a text than there is.
#[test]
fn a_decoder_that_strips_too_much_is_none_the_worse() {
    let mut base = recorded().tokenizers["spm"].clone();
    let strip = json!({"type": "Strip", "content": "a", "start": 2, "stop": 3});
    for decoders in [json!([strip]), json!([{"type": "Fuse"}, strip])] {
        base.insert(
            "decoder".into(),
            json!({"type": "Sequence", "decoders": decoders}),
        );
        let tokenizer = tokenizer(&base, &[]).unwrap();
        let a = tokenizer.token_id("a").unwrap();
        assert_eq!(streamed(&tokenizer, &[]), "");
        assert_eq!(streamed(&tokenizer, &[a]), "");
    }
}

/// Bytes may turn out to be no character as long as bytes follow, so that a run of them waits for
/// its end, and then for nothing.
#[test]
fn a_run_of_bytes_shows_at_its_end() {
    let base = recorded().tokenizers["spm"].clone();
    let tokenizer = tokenizer(&base, &[]).unwrap();
    let id = |token: &str| tokenizer.token_id(token).unwrap();
    let mut stream = tokenizer.stream();
    let mut shown = Vec::new();
    for token in [
        "▁H", "<0xC3>", "<0xBC>", "<s>", "<0xE6>", "▁a", "▁", "<0xC3>", "<0xBC>",
    ] {
        let token = tokenizer.token_id(token).unwrap_or_else(|| id("▁"));
        shown.push(stream.push(token).unwrap());
    }
    assert_eq!(shown[1..5], ["", "", "", ""]);
    assert!(
        shown[5].starts_with("\u{fffd}\u{fffd}\u{fffd} "),
        "{shown:?}"
    );
    assert_eq!(shown[7..], ["", ""]);
    assert_eq!(stream.finish().unwrap().0, "ü");
}

/// Every token costs the same: with the whole text decoded each time this would take hours.
#[test]
fn long_answers_stream_in_time() {
    let recorded = recorded();
    for base in ["spm", "level", "wordpiece", "meta"] {
        let tokenizer = tokenizer(&recorded.tokenizers[base], &[]).unwrap();
        let size = tokenizer.inner.get_vocab_size(true);
        let mut stream = tokenizer.stream();
        let mut shown = 0;
        for n in 0..300_000 {
            shown += stream.push((n * 7919 % size) as u32).unwrap().len();
        }
        let (rest, whole) = stream.finish().unwrap();
        assert_eq!(shown + rest.len(), whole.len());
    }
}
