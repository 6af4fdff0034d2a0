//! What the files say, with what transformers 5.24.0 makes of the same files.

use serde_json::{Value, json};

use super::*;

fn read(json: &Value) -> GenerationSettings {
    GenerationSettings::from_json(json.to_string().as_bytes()).unwrap()
}

fn error(json: &Value) -> String {
    let settings = GenerationSettings::from_json(json.to_string().as_bytes());
    match settings.and_then(|s| s.check(100)) {
        Ok(()) => panic!("{json} is accepted"),
        Err(e) => e.to_string(),
    }
}

/// A checkpoint directory with these files and no weights worth the name.
fn source(dir: &std::path::Path, files: &[(&str, &str)]) -> Source {
    let header = br#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let mut weights = (header.len() as u64).to_le_bytes().to_vec();
    weights.extend_from_slice(header);
    weights.extend_from_slice(&[0; 4]);
    std::fs::write(dir.join("model.safetensors"), weights).unwrap();
    for (name, text) in files {
        std::fs::write(dir.join(name), text).unwrap();
    }
    Source::open(dir).unwrap()
}

fn of(files: &[(&str, &str)]) -> crate::Result<GenerationSettings> {
    let dir = tempfile::tempdir().unwrap();
    GenerationSettings::of(&source(dir.path(), files))
}

#[test]
fn generation_config_alone_decides_where_it_is_there() {
    let model = r#"{"eos_token_id": 7, "repetition_penalty": 1.5}"#;
    for (generation, eos_ids) in [
        (r#"{"eos_token_id": 3}"#, vec![3]),
        (r#"{"eos_token_id": [3, 9]}"#, vec![3, 9]),
        (r#"{"eos_token_id": null}"#, vec![]),
        (r#"{"eos_token_id": []}"#, vec![]),
        ("{}", vec![]),
    ] {
        let files = [
            ("config.json", model),
            ("generation_config.json", generation),
        ];
        let dir = tempfile::tempdir().unwrap();
        let source = source(dir.path(), &files);
        let settings = GenerationSettings::of(&source).unwrap();
        assert_eq!(settings.eos_ids, eos_ids, "{generation}");
        assert_eq!(settings.repetition_penalty, 1.0);
        assert_eq!(settings.file, Some("generation_config.json"));
        let plain = GenerationSettings::plain(&source).unwrap();
        assert_eq!(plain.eos_ids, eos_ids, "{generation}");
    }
}

#[test]
fn config_is_asked_only_where_there_is_no_other() {
    let model = r#"{"eos_token_id": 7, "repetition_penalty": 1.5, "do_sample": null,
                    "bos_token_id": 4, "force_bos_token_to_be_generated": true}"#;
    let settings = of(&[("config.json", model)]).unwrap();
    assert_eq!(settings.eos_ids, [7]);
    assert_eq!(settings.repetition_penalty, 1.5);
    assert_eq!(settings.forced_bos_token_id, Some(4));
    assert_eq!(settings.file, Some("config.json"));
    // Nobody asks for BART's key elsewhere.
    let settings = read(&json!({"bos_token_id": 4, "force_bos_token_to_be_generated": true}));
    assert_eq!(settings.forced_bos_token_id, None);
}

/// `LlamaConfig` ends a text with 2 and `Phi3Config` with 32000 where nobody says what does, but
/// `from_pretrained` makes the settings of config.json's own keys, of which a class knows nothing.
#[test]
fn a_class_has_no_end_of_text_for_files_that_have_none() {
    for family in ["llama", "phi3"] {
        for end in ["", r#", "eos_token_id": null"#] {
            let config = format!(r#"{{"model_type": "{family}"{end}}}"#);
            for generation in [None, Some("{}"), Some(r#"{"eos_token_id": null}"#)] {
                let mut files = vec![("config.json", config.as_str())];
                files.extend(generation.map(|text| ("generation_config.json", text)));
                let dir = tempfile::tempdir().unwrap();
                let source = source(dir.path(), &files);
                for settings in [
                    GenerationSettings::of(&source),
                    GenerationSettings::plain(&source),
                ] {
                    assert_eq!(settings.unwrap().eos_ids, [0; 0], "{files:?}");
                }
            }
        }
    }
}

#[test]
fn the_file_at_fault_is_named() {
    let bad = r#"{"eos_token_id": -1}"#;
    let files = [("config.json", "{}"), ("generation_config.json", bad)];
    let expected = "eos_token_id is -1, expected a token id or a list of them";
    let text = of(&files).unwrap_err().to_string();
    assert_eq!(text, format!("generation_config.json: {expected}"));
    let text = of(&[("config.json", bad)]).unwrap_err().to_string();
    assert_eq!(text, format!("config.json: {expected}"));
    let files = [("config.json", bad), ("generation_config.json", "{}")];
    assert!(of(&files).unwrap().eos_ids.is_empty());
    let files = [("config.json", "{}"), ("generation_config.json", "{,}")];
    let text = of(&files).unwrap_err().to_string();
    assert!(
        text.starts_with("generation_config.json: not valid JSON: "),
        "{text}"
    );
}

#[test]
fn absent_and_null_keys_have_the_defaults_of_transformers() {
    let mut nulls = serde_json::Map::new();
    for key in [
        "max_length",
        "max_new_tokens",
        "min_length",
        "min_new_tokens",
        "stop_strings",
        "do_sample",
        "num_beams",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "top_h",
        "typical_p",
        "epsilon_cutoff",
        "eta_cutoff",
        "repetition_penalty",
        "encoder_repetition_penalty",
        "no_repeat_ngram_size",
        "bad_words_ids",
        "renormalize_logits",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "remove_invalid_values",
        "exponential_decay_length_penalty",
        "suppress_tokens",
        "begin_suppress_tokens",
        "sequence_bias",
        "guidance_scale",
        "watermarking_config",
        "eos_token_id",
        "penalty_alpha",
        "dola_layers",
        "max_time",
    ] {
        nulls.insert(key.into(), Value::Null);
    }
    let expected = GenerationSettings {
        file: Some("generation_config.json"),
        ..Default::default()
    };
    assert_eq!(read(&Value::Object(nulls)), expected);
    assert_eq!(read(&json!({})), expected);
    assert!(!expected.do_sample);
    assert_eq!(expected.sampling.top_k, 50);
}

/// Values that transformers does not look at, or that change nothing.
#[test]
fn neutral_values_are_no_reason_to_refuse() {
    for neutral in [
        json!({"num_beams": 1, "num_return_sequences": 1, "guidance_scale": 1.0, "use_mtp": false}),
        json!({"length_penalty": 2.0, "early_stopping": true, "diversity_penalty": 1.0}),
        json!({"num_beam_groups": 2, "num_assistant_tokens": 20, "pad_token_id": -1}),
        json!({"cache_implementation": "static", "use_cache": false, "unknown": [1, {}]}),
        json!({"temperature": 0.0, "top_k": -1, "top_p": 7, "min_p": -1.0, "typical_p": 0}),
        json!({"do_sample": true, "top_p": 1.5, "typical_p": 3, "epsilon_cutoff": 2, "top_k": 0}),
        json!({"penalty_alpha": 0.0}),
        json!({"penalty_alpha": 0.6, "top_k": 1}),
        json!({"penalty_alpha": 0.6, "do_sample": true}),
        json!({"suppress_tokens": [7, 900], "eos_token_id": 5000}),
    ] {
        read(&neutral).check(100).unwrap();
    }
}

#[test]
fn what_is_not_implemented_is_refused_by_name() {
    for (key, value) in [
        ("num_beams", json!(4)),
        ("num_beams", json!(0)),
        ("num_return_sequences", json!(2)),
        ("constraints", json!([1])),
        ("force_words_ids", json!([[1]])),
        ("guidance_scale", json!(1.5)),
        ("watermarking_config", json!({"greenlist_ratio": 0.25})),
        ("token_healing", json!(true)),
        ("max_time", json!(3.5)),
        ("dola_layers", json!("low")),
        ("prompt_lookup_num_tokens", json!(10)),
        ("assistant_early_exit", json!(4)),
        ("use_mtp", json!(true)),
        ("is_assistant", json!(true)),
        ("cache_implementation", json!("quantized")),
        ("penalty_alpha", json!(0.6)),
    ] {
        let text = error(&json!({key: value}));
        let start = format!("generation_config.json: {key} is {value}, expected ");
        assert!(text.starts_with(&start), "{text}");
        assert!(
            text.contains("not implemented") || text.contains("one text"),
            "{text}"
        );
        assert!(
            text.ends_with("--greedy generates without the model's settings"),
            "{text}"
        );
    }
}

#[test]
fn wrong_values_are_named_with_what_was_expected() {
    let sampled = |key: &str, value: Value| json!({"do_sample": true, key: value});
    for (settings, expected) in [
        (json!({"eos_token_id": "2"}), "a token id or a list of them"),
        (
            json!({"eos_token_id": [2, -1]}),
            "a token id or a list of them",
        ),
        (json!({"eos_token_id": 2.5}), "a token id or a list of them"),
        (json!({"do_sample": "yes"}), "true or false"),
        (json!({"do_sample": 1}), "true or false"),
        (json!({"temperature": "hot"}), "a number"),
        (json!({"top_k": 2.5}), "a whole number"),
        (json!({"max_new_tokens": 0}), "a whole number of 1 or more"),
        (json!({"max_new_tokens": -3}), "a whole number of 1 or more"),
        (json!({"min_new_tokens": -1}), "a whole number of 0 or more"),
        (
            json!({"no_repeat_ngram_size": 2.0}),
            "a whole number of 0 or more",
        ),
        (json!({"repetition_penalty": 0.0}), "more than 0"),
        (json!({"encoder_repetition_penalty": -1}), "more than 0"),
        (json!({"suppress_tokens": 3}), "a list of token ids"),
        (
            json!({"begin_suppress_tokens": [-1]}),
            "a list of token ids",
        ),
        (
            json!({"bad_words_ids": [3]}),
            "a list of lists of token ids, none of them empty",
        ),
        (
            json!({"bad_words_ids": [[]]}),
            "a list of lists of token ids, none of them empty",
        ),
        (
            json!({"sequence_bias": {"(1,)": 2.0}}),
            "a list of pairs, each a list of token ids",
        ),
        (
            json!({"sequence_bias": [[[1], 2.0, 3.0]]}),
            "a list of pairs, each a list of token ids",
        ),
        (
            json!({"stop_strings": ["a", ""]}),
            "a string or a list of strings, none of them empty",
        ),
        (
            json!({"stop_strings": 4}),
            "a string or a list of strings, none of them empty",
        ),
        (
            json!({"exponential_decay_length_penalty": [1]}),
            "a pair of a number of tokens and",
        ),
        (
            json!({"exponential_decay_length_penalty": [1, 1.5]}),
            "one or more ids below",
        ),
        (
            json!({"forced_bos_token_id": 100}),
            "ids below the vocabulary's 100",
        ),
        (
            json!({"forced_eos_token_id": [2, 100]}),
            "ids below the vocabulary's 100",
        ),
        (
            json!({"bad_words_ids": [[2, 100]]}),
            "ids below the vocabulary's 100",
        ),
        (
            json!({"sequence_bias": [[[100], 1.0]]}),
            "ids below the vocabulary's 100",
        ),
        (
            sampled("temperature", json!(0.0)),
            "more than 0 where do_sample is true",
        ),
        (
            sampled("temperature", json!(-1)),
            "more than 0 where do_sample is true",
        ),
        (
            sampled("top_k", json!(-1)),
            "1 or more, or 0 for all tokens",
        ),
        (sampled("top_p", json!(-0.1)), "0 to 1"),
        (sampled("min_p", json!(1.1)), "0 to 1"),
        (
            sampled("typical_p", json!(0.0)),
            "more than 0 and at most 1",
        ),
        (sampled("top_h", json!(1.5)), "more than 0 and at most 1"),
        (json!([1]), "a JSON object"),
    ] {
        let text = error(&settings);
        assert!(text.starts_with("generation_config.json: "), "{text}");
        assert!(
            text.contains(&format!("expected {expected}")),
            "{settings}: {text}"
        );
    }
}

#[test]
fn max_new_tokens_goes_before_max_length() {
    assert_eq!(read(&json!({})).new_tokens(9).unwrap(), None);
    let settings = read(&json!({"max_length": 20}));
    assert_eq!(settings.new_tokens(9).unwrap(), Some(11));
    assert_eq!(settings.new_tokens(19).unwrap(), Some(1));
    let text = settings.new_tokens(20).unwrap_err().to_string();
    let expected = "max_length is 20, which the prompt's 20 tokens reach; give --max-new-tokens";
    assert_eq!(text, format!("generation_config.json: {expected}"));
    let settings = read(&json!({"max_length": 20, "max_new_tokens": 5}));
    assert_eq!(settings.new_tokens(100).unwrap(), Some(5));
}

#[test]
fn what_is_in_force_is_told_and_nothing_else() {
    let told = |json: &Value| {
        let settings = read(json);
        let list: Vec<String> = settings
            .in_force()
            .map(|(k, v)| format!("{k} {v}"))
            .collect();
        list.join(", ")
    };
    let neutral = json!({"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "do_sample": false,
        "suppress_tokens": [], "temperature": 0.3, "eos_token_id": 2, "top_k": 9});
    assert_eq!(told(&neutral), "");
    let all = json!({"top_p": 0.9, "do_sample": true, "temperature": 1.0, "max_new_tokens": 7,
        "repetition_penalty": 1.1, "stop_strings": "x", "suppress_tokens": [3], "min_p": 0.0});
    let expected = "max_new_tokens 7, stop_strings \"x\", repetition_penalty 1.1, \
                    suppress_tokens [3], do_sample true, top_p 0.9";
    assert_eq!(told(&all), expected);
    let bad = error(&json!({"suppress_tokens": vec![-1; 50]}));
    assert!(
        bad.contains("..., expected a list") && bad.len() < 150,
        "{bad}"
    );
    let long = told(&json!({"suppress_tokens": vec![1000; 50]}));
    assert!(long.ends_with("...") && long.len() < 90, "{long}");
}
