//! What must not be written, and what must not be left.

use std::fs;

use serde_json::{Value, json};

use super::super::{SynthError, SynthOptions};
use super::{config_dir, files, llama_config, llama_options, run};
use crate::directory::DirectoryError;

/// Why the directory was not written.
fn directory_error(options: &SynthOptions) -> DirectoryError {
    match run(options) {
        Err(SynthError::Directory(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_directory_that_holds_something_is_not_written_without_force() {
    let dir = config_dir(&llama_config());
    let mut options = llama_options(&dir);
    fs::create_dir_all(&options.out_dir).unwrap();
    let old = [
        "notes.txt",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
    ];
    for name in old {
        fs::write(options.out_dir.join(name), "old").unwrap();
    }
    fs::create_dir(options.out_dir.join(".checkpoint.k1lled.smq-partial")).unwrap();
    let refused = directory_error(&options);
    assert!(
        matches!(refused, DirectoryError::NotEmpty { .. }),
        "{refused}"
    );
    assert_eq!(fs::read(options.out_dir.join(old[1])).unwrap(), b"old");

    options.force = true;
    run(&options).unwrap();
    let names: Vec<_> = files(&options.out_dir).into_keys().collect();
    let expected = [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "notes.txt",
    ];
    assert_eq!(names, expected);

    options.out_dir = dir.path().to_owned();
    let refused = directory_error(&options);
    assert!(
        matches!(refused, DirectoryError::OutputIsInput { .. }),
        "{refused}"
    );
    options.out_dir = dir.path().join("config.json");
    let refused = directory_error(&options);
    assert!(
        matches!(refused, DirectoryError::NotADirectory { .. }),
        "{refused}"
    );
}

#[test]
fn nothing_is_left_after_an_error() {
    let dir = config_dir(&llama_config());
    let mut options = llama_options(&dir);
    options.tokenizer = Some(dir.path().to_owned());
    let error = run(&options).unwrap_err();
    assert!(matches!(error, SynthError::NoTokenizer { .. }), "{error}");
    assert!(!dir.path().join("a").exists());

    // A directory in the place of a file to write.
    options.tokenizer = None;
    options.force = true;
    fs::create_dir_all(options.out_dir.join("config.json")).unwrap();
    let error = directory_error(&options);
    assert!(matches!(error, DirectoryError::InTheWay { .. }), "{error}");
    let left: Vec<_> = fs::read_dir(&options.out_dir).unwrap().collect();
    assert_eq!(left.len(), 1);
}

#[test]
fn a_config_that_cannot_be_followed_is_refused_with_its_reason() {
    let changed = |changes: &[(&str, Value)]| {
        let mut config = llama_config();
        for (key, value) in changes {
            config[*key] = value.clone();
        }
        config
    };
    let mut no_vocab = llama_config();
    no_vocab.as_object_mut().unwrap().remove("vocab_size");
    let cases = [
        (json!([1]), "expected a JSON object"),
        (
            no_vocab,
            "missing key vocab_size, which LlamaForCausalLM needs",
        ),
        (
            changed(&[("architectures", json!(["GPT2LMHeadModel"]))]),
            r#"is ["GPT2LMHeadModel"], but only"#,
        ),
        (
            changed(&[("architectures", Value::Null)]),
            "architectures is null",
        ),
        (
            changed(&[("head_dim", Value::Null), ("hidden_size", 73.into())]),
            "hidden_size 73 is not a multiple of num_attention_heads 6",
        ),
        (
            changed(&[("num_key_value_heads", 4.into())]),
            "num_attention_heads 6 is not a multiple of num_key_value_heads 4",
        ),
        (
            changed(&[("hidden_size", (-72).into())]),
            "hidden_size is -72, expected an integer from 1 to 1048576",
        ),
        (
            changed(&[("hidden_size", 7.5.into())]),
            "hidden_size is 7.5, expected",
        ),
        (
            changed(&[("intermediate_size", 0.into())]),
            "intermediate_size is 0, expected",
        ),
        (
            changed(&[("vocab_size", u64::MAX.into())]),
            "vocab_size is 18446744073709551615, expected",
        ),
        (
            changed(&[("num_hidden_layers", 4097.into())]),
            "num_hidden_layers is 4097, expected an integer from 1 to 4096",
        ),
        (
            changed(&[("num_attention_heads", (1 << 18).into())]),
            "model.layers.0.self_attn.q_proj.weight [4194304, 72] has a dimension of \
             4194304 elements, over the limit of 1048576 elements",
        ),
        (
            changed(&[("tie_word_embeddings", "yes".into())]),
            r#"tie_word_embeddings is "yes", expected true or false"#,
        ),
    ];
    for (config, message) in cases {
        let dir = config_dir(&config);
        let options = llama_options(&dir);
        let error = run(&options).unwrap_err().to_string();
        assert!(error.contains(message), "{error}\nshould say: {message}");
        assert!(error.contains("config.json"), "{error}");
        assert!(!dir.path().join("a").exists(), "{error}");
    }
    let mut options = llama_options(&config_dir(&llama_config()));
    options.config = "/no/such/config.json".into();
    let error = run(&options).unwrap_err().to_string();
    assert_eq!(error, "/no/such/config.json: cannot read");
}
