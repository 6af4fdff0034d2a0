//! `smq-run generate` and the loop below it, obeying the model's generation settings.
//!
//! Greedy texts are compared with those of transformers 5.24.0 on the same weights in f32, which
//! tests/peers/gen_record.py recorded. Every step's two most likely tokens are at least 1.8e-3
//! apart there, which is more than f32's rounding explains (1e-3, derived in golden.rs).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde::Deserialize;
use serde_json::{Value, json};
use smq_convert::{Checkpoint, ConvertOptions, Method, Target, convert};
use smq_engine::CpuEngine;
use smq_engine::generate::{GenerateOptions, Stop, generate};
use smq_model::{GenerationSettings, Source};
use tempfile::TempDir;

#[derive(Deserialize)]
struct Greedy {
    name: String,
    prompt: Vec<u32>,
    settings: Value,
    max_new_tokens: usize,
    ids: Vec<u32>,
}

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn recorded() -> Vec<Greedy> {
    let json = std::fs::read(fixtures().join("hf/gen-greedy.json")).unwrap();
    serde_json::from_slice(&json).unwrap()
}

#[test]
fn greedy_texts_equal_hugging_face_under_every_setting() {
    let source = Source::open(&fixtures().join("phi3-tiny")).unwrap();
    let mut engine = CpuEngine::load(&source).unwrap();
    let cases = recorded();
    assert_eq!(cases.len(), 3 * 14);
    for case in cases {
        let json = case.settings.to_string();
        let settings = GenerationSettings::from_json(json.as_bytes()).unwrap();
        let eos_ids = settings.eos_ids.clone();
        let options = GenerateOptions {
            max_new_tokens: case.max_new_tokens,
            settings,
            ..Default::default()
        };
        let ours = generate(&mut engine, &case.prompt, &options, |_| Ok(())).unwrap();
        // Theirs holds the token that ends the text.
        let (ids, stop) = match case.ids.split_last() {
            Some((last, ids)) if eos_ids.contains(last) => (ids, Stop::EndOfSequence),
            _ => (&case.ids[..], Stop::MaxNewTokens),
        };
        assert_eq!(ours.ids, ids, "{} {json}", case.name);
        assert_eq!(ours.stop, stop, "{} {json}", case.name);
    }
}

const PROMPT: &str = "Once upon a time";

/// The fixture with another generation_config.json.
struct Model(TempDir);

impl Model {
    fn new(settings: &Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(fixtures().join("phi3-tiny")).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
        let model = Self(dir);
        model.set(settings);
        model
    }

    fn set(&self, settings: &Value) {
        let path = self.0.path().join("generation_config.json");
        std::fs::write(path, settings.to_string()).unwrap();
    }

    fn output(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_smq-run"));
        command
            .args(["--device", "cpu", "generate"])
            .arg(self.0.path());
        command.args(["--raw", "--json"]).args(args);
        command.output().unwrap()
    }

    /// The report, and what was said on standard error.
    fn generates(&self, args: &[&str]) -> (Value, String) {
        let args = [&["--prompt", PROMPT][..], args].concat();
        let output = self.output(&args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{args:?}: {said}");
        (serde_json::from_slice(&output.stdout).unwrap(), said)
    }

    fn ids(&self, args: &[&str]) -> Value {
        self.generates(args).0["ids"].clone()
    }

    fn refuses(&self, args: &[&str]) -> String {
        let args = [&["--prompt", PROMPT][..], args].concat();
        let output = self.output(&args);
        assert!(!output.status.success(), "{args:?} is accepted");
        String::from_utf8(output.stderr).unwrap()
    }
}

#[test]
fn the_models_settings_are_obeyed_and_flags_go_before_them() {
    let model = Model::new(&json!({}));
    let plain = model.ids(&["-n", "24"]);
    let (report, said) = model.generates(&["-n", "24", "--repetition-penalty", "1.3"]);
    let penalized = report["ids"].clone();
    assert_ne!(plain, penalized);
    assert_eq!(said, "");

    model.set(&json!({"repetition_penalty": 1.3, "max_new_tokens": 24}));
    let (report, said) = model.generates(&[]);
    assert_eq!(report["ids"], penalized);
    assert_eq!(report["stop"], "max_new_tokens");
    assert_eq!(
        said,
        "note: generation_config.json sets max_new_tokens 24, repetition_penalty 1.3 \
         (--greedy ignores it)\n"
    );
    let (report, said) = model.generates(&["-n", "24", "--repetition-penalty", "1"]);
    assert_eq!(report["ids"], plain);
    assert_eq!(said, "");
    let (report, said) = model.generates(&["-n", "24", "--greedy"]);
    assert_eq!(report["ids"], plain);
    assert_eq!(said, "");

    let pairs = |ids: &Value| -> Vec<String> {
        let ids = ids.as_array().unwrap();
        ids.windows(2).map(|pair| format!("{pair:?}")).collect()
    };
    let is_unique = |ids: &Value| {
        let mut pairs = pairs(ids);
        let len = pairs.len();
        pairs.sort();
        pairs.dedup();
        pairs.len() == len
    };
    model.set(&json!({}));
    assert!(!is_unique(&model.ids(&["-n", "60"])));
    assert!(is_unique(&model.ids(&[
        "-n",
        "60",
        "--no-repeat-ngram-size",
        "2"
    ])));
}

#[test]
fn sampling_is_the_models_choice_and_a_seeds() {
    let model = Model::new(&json!({"do_sample": true, "temperature": 1.5, "top_p": 0.95}));
    let plain = model.ids(&["-n", "24", "--greedy"]);
    let (report, said) = model.generates(&["-n", "24"]);
    let drawn = report["ids"].clone();
    assert_ne!(drawn, plain);
    assert_eq!(
        said,
        "note: generation_config.json sets do_sample true, temperature 1.5, top_p 0.95 (--greedy \
         ignores it); sampling has top_k 50, as in transformers (--top-k changes it)\n"
    );
    assert_eq!(model.ids(&["-n", "24"]), drawn);
    assert_ne!(model.ids(&["-n", "24", "--seed", "7"]), drawn);
    assert_eq!(model.ids(&["-n", "24", "--temperature", "0"]), plain);
    assert_eq!(model.ids(&["-n", "24", "--top-k", "1"]), plain);
    assert_eq!(model.ids(&["-n", "24", "--min-p", "1"]), plain);

    // A flag samples as the model's own settings do.
    model.set(&json!({"top_p": 0.95}));
    assert_eq!(model.ids(&["-n", "24"]), plain);
    assert_eq!(model.ids(&["-n", "24", "--temperature", "1.5"]), drawn);
}

#[test]
fn only_generation_config_ends_a_text() {
    let model = Model::new(&json!({}));
    let ids = model.ids(&["-n", "12"]);
    let before = |end: &Value| -> Vec<Value> {
        let ids = ids.as_array().unwrap().iter();
        ids.take_while(|id| *id != end).cloned().collect()
    };
    let config = model.0.path().join("config.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    json["eos_token_id"] = ids[4].clone();
    std::fs::write(&config, json.to_string()).unwrap();
    assert_eq!(model.ids(&["-n", "12"]), ids);

    model.set(&json!({"eos_token_id": [ids[6], 4095]}));
    let (report, _) = model.generates(&["-n", "12"]);
    assert_eq!(report["ids"], Value::Array(before(&ids[6])));
    assert_eq!(report["stop"], "end_of_sequence");
    assert_eq!(model.ids(&["-n", "12", "--greedy"]), report["ids"]);
    let (report, _) = model.generates(&["-n", "12", "--min-new-tokens", "8"]);
    assert!(report["output_tokens"].as_u64() >= Some(8));

    std::fs::remove_file(model.0.path().join("generation_config.json")).unwrap();
    let (report, _) = model.generates(&["-n", "12"]);
    assert_eq!(report["ids"], Value::Array(before(&ids[4])));
}

#[test]
fn a_stop_string_ends_the_text_that_it_stays_part_of() {
    let model = Model::new(&json!({}));
    let (whole, _) = model.generates(&["-n", "24"]);
    let whole = whole["text"].as_str().unwrap();
    let stop = whole.split_whitespace().nth(3).unwrap();
    model.set(&json!({"stop_strings": [stop, "xyzzy"]}));
    let (report, said) = model.generates(&["-n", "24"]);
    let text = report["text"].as_str().unwrap();
    assert!(
        whole.starts_with(text) && text.len() < whole.len(),
        "{text:?}"
    );
    assert!(text.contains(stop), "{text:?}");
    assert_eq!(report["stop"], "stop_string");
    assert!(said.contains("stop_strings"), "{said}");
}

#[test]
fn a_length_is_the_models_where_no_flag_gives_one() {
    let model = Model::new(&json!({"max_length": 10}));
    let (report, _) = model.generates(&[]);
    let total =
        report["prompt_tokens"].as_u64().unwrap() + report["output_tokens"].as_u64().unwrap();
    assert_eq!(total, 10);
    model.set(&json!({"max_length": 2}));
    let said = model.refuses(&[]);
    assert!(
        said.contains("generation_config.json: max_length is 2, which"),
        "{said}"
    );
    let (report, _) = model.generates(&["-n", "3"]);
    assert_eq!(report["output_tokens"], 3);
}

#[test]
fn what_cannot_be_obeyed_is_refused() {
    let model = Model::new(&json!({"num_beams": 4}));
    let said = model.refuses(&["-n", "2"]);
    assert!(
        said.contains("generation_config.json: num_beams is 4, expected 1"),
        "{said}"
    );
    model.generates(&["-n", "2", "--greedy"]);
    model.set(&json!({"do_sample": true, "temperature": 0.0}));
    let said = model.refuses(&["-n", "2"]);
    assert!(
        said.contains("generation_config.json: temperature is 0"),
        "{said}"
    );
    assert!(!said.contains("note: "), "{said}");
    model.generates(&["-n", "2", "--temperature", "0"]);
    model.set(&json!({"suppress_tokens": (0..4096).collect::<Vec<_>>()}));
    let said = model.refuses(&["-n", "2"]);
    assert!(said.contains("exclude every token"), "{said}");
}

#[test]
fn flags_without_an_effect_are_refused() {
    let model = Model::new(&json!({}));
    for flag in [
        ["--temperature", "0.5"],
        ["--top-k", "5"],
        ["--top-p", "0.5"],
        ["--min-p", "0.5"],
        ["--repetition-penalty", "1.5"],
        ["--no-repeat-ngram-size", "3"],
        ["--min-new-tokens", "3"],
        ["--seed", "3"],
    ] {
        let said = model.refuses(&[&["--greedy"][..], &flag].concat());
        assert!(said.contains("'--greedy' cannot be used with"), "{said}");
    }
    for flag in [
        ["--top-k", "5"],
        ["--top-p", "0.5"],
        ["--min-p", "0.5"],
        ["--seed", "3"],
    ] {
        let said = model.refuses(&flag);
        assert!(said.contains("add --temperature to sample"), "{said}");
        let said = model.refuses(&[&["--temperature", "0"][..], &flag].concat());
        assert!(
            said.contains("has no effect: --temperature 0 takes"),
            "{said}"
        );
    }
    for (flag, expected) in [
        (["--temperature", "-1"], "expected 0 or more"),
        (["--top-p", "0"], "expected more than 0 and at most 1"),
        (["--min-p", "2"], "expected 0 to 1"),
        (["--repetition-penalty", "0"], "expected more than 0"),
        (["--temperature", "nan"], "expected 0 or more"),
    ] {
        let said = model.refuses(&[&format!("{}={}", flag[0], flag[1])]);
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn a_prompt_may_begin_with_a_hyphen() {
    let model = Model::new(&json!({}));
    for prompt in ["-5 + 3 =", "- a list", "--raw", "-n", "---"] {
        let count = |flag: &str| {
            let output = model.output(&[flag, prompt, "-n", "2"]);
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.success(), "{prompt:?}: {said}");
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            (
                report["prompt_tokens"].clone(),
                report["output_tokens"].clone(),
            )
        };
        assert_eq!(count("--prompt"), count("-p"));
        assert_eq!(count("-p").1, 2, "{prompt:?}");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_smq-run"));
    command
        .args(["--device", "cpu", "generate"])
        .arg(model.0.path());
    command.args(["--system", "- be brief", "-p", "- a list", "-n", "2"]);
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_converted_model_has_the_settings_of_its_checkpoint() {
    let settings = json!({"eos_token_id": [3, 6], "repetition_penalty": 1.2, "do_sample": true,
        "temperature": 0.7, "stop_strings": ["end"], "suppress_tokens": [5]});
    let model = Model::new(&settings);
    let smq = model.0.path().join("model.smq");
    let options = ConvertOptions {
        target: Target::Mlp,
        quantize: Method::Nf4,
        overwrite: true,
        jobs: 0,
    };
    let checkpoint = Checkpoint::open(model.0.path()).unwrap();
    convert(&checkpoint, &smq, &options, &|_| true).unwrap();
    let of = |path: &Path| GenerationSettings::of(&Source::open(path).unwrap()).unwrap();
    assert_eq!(of(&smq), of(model.0.path()));
    assert_eq!(of(&smq).repetition_penalty, 1.2);
}

/// What is guessed does not show: greedy, sampled, with penalties, ends and stop strings.
#[test]
fn guessed_texts_are_those_without_guesses() {
    let model = Model::new(&json!({}));
    let itself = model.0.path().to_string_lossy().into_owned();
    for settings in [
        &["-n", "70"][..],
        &["-n", "70", "--temperature", "0.6", "--top-k", "5"],
        &["-n", "70", "--repetition-penalty", "1.1"],
        &["-n", "70", "--no-repeat-ngram-size", "2"],
        &["-n", "1"],
        &["-n", "70", "--stop", "the", "--stop", "and"],
    ] {
        let (plain, _) = model.generates(settings);
        assert_eq!(plain["guesses"], Value::Null);
        let mut accepted = Vec::new();
        for guessing in [
            &["--speculate", "ngram"][..],
            &["--speculate", "ngram:2"],
            &["--draft", &itself],
            &["--draft", &itself, "--draft-tokens", "9"],
        ] {
            let (report, said) = model.generates(&[settings, guessing].concat());
            assert_eq!(said, "");
            for key in ["ids", "text", "stop", "prompt_tokens"] {
                assert_eq!(report[key], plain[key], "{settings:?} {guessing:?}");
            }
            let guesses = &report["guesses"];
            assert_eq!(guesses["failures"], 0);
            let count = |key: &str| guesses[key].as_u64().unwrap();
            assert!(count("accepted_tokens") <= count("draft_tokens"));
            assert!(count("drafts") <= count("draft_tokens"));
            let a_step = guesses["tokens_per_step"].as_f64().unwrap();
            assert_eq!(a_step > 1.0, count("accepted_tokens") > 0);
            accepted.push(count("accepted_tokens"));
        }
        if settings == ["-n", "70"] {
            // A model knows what it will say, and is no faster at it.
            assert!(accepted[1] > 5 && accepted[3] > 0, "{accepted:?}");
        }
    }
}

#[test]
fn guesses_that_cannot_be_had_are_refused() {
    let model = Model::new(&json!({}));
    let said = model.refuses(&["--speculate", "model"]);
    assert!(said.contains("expected ngram or ngram:K"), "{said}");
    let said = model.refuses(&["--speculate", "ngram:0"]);
    assert!(said.contains("expected at least 1"), "{said}");
    let said = model.refuses(&["--draft-tokens", "3"]);
    assert!(said.contains("--draft <MODEL>"), "{said}");
    let other = Model::new(&json!({}));
    let path = other.0.path().to_string_lossy().into_owned();
    let said = model.refuses(&["--draft", &path, "--speculate", "ngram"]);
    assert!(said.contains("cannot be used with"), "{said}");

    // Two tokens change places.
    let file = other.0.path().join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let words = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let of = |id: u64| words.iter().find(|(_, i)| **i == id).unwrap().0.clone();
    let (one, two) = (of(1000), of(1001));
    words.insert(one, 1001.into());
    words.insert(two, 1000.into());
    std::fs::write(&file, tokenizer.to_string()).unwrap();
    let said = model.refuses(&["--draft", &path]);
    let expected = "its token 1000 is";
    assert!(
        said.contains(expected) && said.contains("same vocabulary"),
        "{said}"
    );
    let said = model.refuses(&["--draft", "/nowhere"]);
    assert!(said.contains("/nowhere"), "{said}");
}
