//! What `/v1/completions` answers, and what it refuses.

use std::process::Command;

use serde_json::{Value, json};

use crate::client::{Server, fixture};

const PATH: &str = "/v1/completions";
const PROMPT: &str = "Once upon a time";

/// What `smq-run generate` says.
pub(crate) fn generated(prompt: &str, options: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smq-run"));
    command
        .args(["--device", "cpu", "generate", "--json"])
        .arg(fixture());
    let output = command.args(["-p", prompt]).args(options).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text(answer: &Value) -> &str {
    answer["choices"][0]["text"].as_str().unwrap()
}

/// The texts of a stream's chunks together, of one choice.
fn joined(chunks: &[Value], index: u64) -> String {
    let choices = chunks.iter().map(|chunk| &chunk["choices"][0]);
    let of = choices.filter(|choice| choice["index"] == index);
    of.map(|choice| choice["text"].as_str().unwrap()).collect()
}

#[test]
fn a_completion_is_what_generate_says() {
    let server = Server::start(&[]);
    let expected = generated(PROMPT, &["--raw", "-n", "24"]);
    let body = json!({"prompt": PROMPT, "max_tokens": 24});
    let answer = server.ok(PATH, &body);
    assert_eq!(text(&answer), expected["text"].as_str().unwrap());
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["model"], "phi3-tiny");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["choices"][0]["logprobs"], Value::Null);
    let usage = &answer["usage"];
    assert_eq!(usage["prompt_tokens"], expected["prompt_tokens"]);
    assert_eq!(usage["completion_tokens"], expected["output_tokens"]);

    // The same prompt as ids, and among others.
    let ids = server.ok("/tokenize", &json!({"prompt": PROMPT}))["tokens"].clone();
    let by_ids = server.ok(PATH, &json!({"prompt": ids, "max_tokens": 24}));
    assert_eq!(text(&by_ids), text(&answer));
    let several = json!({"prompt": ["The cat", PROMPT], "max_tokens": 24, "n": 2});
    let several = server.ok(PATH, &several);
    let choices = several["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
        let is_same = choice["text"] == text(&answer);
        assert_eq!(is_same, index >= 2, "{several}");
    }
    // Another sample of a prompt that is there is not computed anew.
    assert!(server.metric("vllm:prefix_cache_queries_total", "") > 0.0);

    // What a model answers by default is 16 tokens, as OpenAI has it.
    let answer = server.ok(PATH, &json!({"prompt": PROMPT, "ignore_eos": true}));
    assert_eq!(answer["usage"]["completion_tokens"], 16);
}

/// Among others, whose texts come in the same steps, and in a cache that says how much it holds.
#[test]
fn a_completion_with_every_cache_is_what_generate_says_with_it() {
    for cache in ["f32", "bf16", "fp8", "int8", "int4"] {
        let with = ["--kv-cache", cache];
        let server = Server::start(&[&with[..], &["--kv-tokens", "2080"]].concat());
        assert_eq!(server.metric("smq:kv_cache_tokens", ""), 2080.0);
        let prompts = ["The cat", PROMPT, "In the beginning there was"];
        let body = json!({"prompt": prompts, "max_tokens": 40, "n": 2});
        let answer = server.ok(PATH, &body);
        for (index, choice) in answer["choices"].as_array().unwrap().iter().enumerate() {
            let options = [&with[..], &["--raw", "-n", "40"]].concat();
            let alone = generated(prompts[index / 2], &options);
            assert_eq!(choice["text"], alone["text"], "{cache}, choice {index}");
        }
    }
}

#[test]
fn a_stream_is_the_whole_in_parts() {
    let server = Server::start(&[]);
    let body = json!({"prompt": PROMPT, "max_tokens": 20, "logprobs": 2, "echo": true,
        "stream_options": {"include_usage": true}});
    let mut plain = body.clone();
    plain.as_object_mut().unwrap().remove("stream_options");
    let whole = server.ok(PATH, &plain);
    let mut chunks = server.stream(PATH, &body);
    let last = chunks.pop().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(
        last["usage"]["total_tokens"],
        whole["usage"]["total_tokens"]
    );
    assert_eq!(joined(&chunks, 0), text(&whole));
    assert!(chunks.len() >= 20, "{} chunks", chunks.len());
    for key in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        let lists = chunks
            .iter()
            .map(|chunk| &chunk["choices"][0]["logprobs"][key]);
        let all: Vec<Value> = lists
            .flat_map(|list| list.as_array().unwrap().clone())
            .collect();
        assert_eq!(
            Value::Array(all),
            whole["choices"][0]["logprobs"][key],
            "{key}"
        );
    }
    let ends = chunks
        .iter()
        .filter(|c| !c["choices"][0]["finish_reason"].is_null());
    assert_eq!(ends.count(), 1);
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk["usage"].is_null() && chunk["id"] == last["id"])
    );
    // Or as they come.
    let mut body = body;
    body["stream_options"]["continuous_usage_stats"] = true.into();
    let counted = server.stream(PATH, &body);
    let tokens = counted
        .iter()
        .map(|chunk| chunk["usage"]["completion_tokens"].as_u64().unwrap());
    assert!(
        tokens.is_sorted() && counted.len() == chunks.len() + 1,
        "{counted:?}"
    );
    let without = server.stream(PATH, &json!({"prompt": PROMPT, "max_tokens": 3}));
    assert!(without.iter().all(|chunk| chunk.get("usage").is_none()));
}

/// A generated token is as likely when it is generated as when it is scored in a prompt.
#[test]
fn log_probabilities_of_prompts_and_of_new_tokens_agree() {
    let server = Server::start(&[]);
    let ids = server.ok("/tokenize", &json!({"prompt": PROMPT}))["tokens"].clone();
    let prompt = ids.as_array().unwrap().len();
    let body = json!({"prompt": ids, "max_tokens": 12, "logprobs": 3, "echo": true});
    let answer = server.ok(PATH, &body);
    let log_probs = &answer["choices"][0]["logprobs"];
    assert_eq!(log_probs["tokens"].as_array().unwrap().len(), prompt + 12);
    assert_eq!(log_probs["token_logprobs"][0], Value::Null);
    assert_eq!(log_probs["top_logprobs"][0], Value::Null);
    let tokens = log_probs["tokens"].as_array().unwrap();
    for at in 1..prompt + 12 {
        let own = log_probs["token_logprobs"][at].as_f64().unwrap();
        let top = log_probs["top_logprobs"][at].as_object().unwrap();
        assert!(own <= 0.0 && (3..=4).contains(&top.len()), "{top:?}");
        let name = tokens[at].as_str().unwrap();
        assert_eq!(top[name].as_f64(), Some(own));
        // Greedy: what was generated is the most likely.
        let most = top
            .values()
            .map(|v| v.as_f64().unwrap())
            .fold(f64::NEG_INFINITY, f64::max);
        assert!(at < prompt || own == most, "{top:?}");
    }
    let offsets = log_probs["text_offset"].as_array().unwrap();
    assert_eq!(offsets[0], 0);
    // The whole text as a prompt of its own, of which nothing is generated.
    let whole = generated(PROMPT, &["--raw", "-n", "12"])["ids"].clone();
    let all: Vec<Value> = [
        ids.as_array().unwrap().clone(),
        whole.as_array().unwrap().clone(),
    ]
    .concat();
    let scored = json!({"prompt": all, "max_tokens": 0, "logprobs": 3, "echo": true});
    let scored = server.ok(PATH, &scored);
    assert_eq!(scored["choices"][0]["logprobs"], *log_probs);
    assert_eq!(scored["usage"]["completion_tokens"], 0);
}

#[test]
fn a_stop_string_is_left_out() {
    let server = Server::start(&[]);
    let whole = server.ok(PATH, &json!({"prompt": PROMPT, "max_tokens": 40}));
    let whole = text(&whole);
    let word = whole.split_whitespace().nth(6).unwrap();
    let expected = &whole[..whole.find(word).unwrap()];
    for stop in [json!(word), json!(["xyzzy", word])] {
        let body = json!({"prompt": PROMPT, "max_tokens": 40, "stop": stop});
        let answer = server.ok(PATH, &body);
        assert_eq!(text(&answer), expected);
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        assert!(answer["usage"]["completion_tokens"].as_u64() < Some(40));
        let chunks = server.stream(PATH, &body);
        assert_eq!(joined(&chunks, 0), expected);
    }
    // Its pages are free, though the engine may have been a step ahead.
    server.wait_for("vllm:num_requests_running", "", 0.0);
    let ids = server.ok(
        "/tokenize",
        &json!({"prompt": whole, "add_special_tokens": false}),
    );
    let third = ids["tokens"][3].clone();
    let body = json!({"prompt": PROMPT, "max_tokens": 40, "stop_token_ids": [third]});
    let answer = server.ok(PATH, &body);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert!(text(&answer).len() < whole.len());
}

#[test]
fn sampling_is_a_seeds_and_obeys_its_fields() {
    let server = Server::start(&[]);
    let of = |more: Value| {
        let mut body = json!({"prompt": PROMPT, "max_tokens": 16, "ignore_eos": true});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let answer = server.ok(PATH, &body);
        let choices = answer["choices"].as_array().unwrap().clone();
        choices
            .into_iter()
            .map(|c| c["text"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let greedy = of(json!({}));
    let seeded = |seed: i64| of(json!({"temperature": 1.3, "seed": seed, "n": 2}));
    assert_eq!(seeded(5), seeded(5));
    assert_ne!(seeded(5)[0], seeded(5)[1]);
    // The second sample has the next seed.
    assert_eq!(seeded(5)[1], seeded(6)[0]);
    let free = |_| of(json!({"temperature": 1.3})).remove(0);
    assert_ne!(free(0), free(1));
    for narrow in [
        json!({"temperature": 0}),
        json!({"temperature": 1.3, "top_k": 1}),
        json!({"temperature": 1.3, "min_p": 1}),
        json!({"temperature": 1.3, "top_p": 0}),
    ] {
        assert_eq!(of(narrow.clone()), greedy, "{narrow}");
    }
    let expected = generated(
        PROMPT,
        &["--raw", "-n", "16", "--temperature", "1.3", "--seed", "5"],
    );
    // Where generate does not end early, the texts are the same.
    if expected["output_tokens"] == 16 {
        assert_eq!(seeded(5)[0], expected["text"].as_str().unwrap());
    }
    let penalized = of(json!({"repetition_penalty": 1.8}));
    assert_ne!(penalized, greedy);
    assert_ne!(
        of(json!({"presence_penalty": 2, "frequency_penalty": 2})),
        greedy
    );
    let first = server.ok(
        "/tokenize",
        &json!({"prompt": greedy[0], "add_special_tokens": false}),
    );
    let banned = of(json!({"logit_bias": {first["tokens"][0].to_string(): -100}}));
    assert_ne!(
        banned[0].chars().take(3).collect::<String>(),
        greedy[0].chars().take(3).collect::<String>()
    );
    let forced = of(json!({"logit_bias": {"300": 100}, "max_tokens": 4}));
    let piece = server.ok("/detokenize", &json!({"tokens": [300, 300, 300, 300]}));
    assert_eq!(forced[0], piece["prompt"].as_str().unwrap());
}

#[test]
fn a_schema_is_kept_to() {
    let server = Server::start(&[]);
    let schema = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 99},
            "kind": {"enum": ["cat", "dog"]},
        },
        "required": ["name", "age", "kind"],
        "additionalProperties": false,
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "pet", "schema": schema}});
    let body = json!({"prompt": PROMPT, "max_tokens": 200, "response_format": format, "n": 2,
        "temperature": 1.0, "seed": 1});
    let answer = server.ok(PATH, &body);
    for choice in answer["choices"].as_array().unwrap() {
        assert_eq!(choice["finish_reason"], "stop", "{answer}");
        let pet: Value = serde_json::from_str(choice["text"].as_str().unwrap()).unwrap();
        assert!(pet["name"].as_str().unwrap().chars().count() <= 12, "{pet}");
        assert!((0..=99).contains(&pet["age"].as_i64().unwrap()), "{pet}");
        assert!(pet["kind"] == "cat" || pet["kind"] == "dog", "{pet}");
        let keys: Vec<&String> = pet.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["name", "age", "kind"]);
    }
    let wrong = json!({"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}});
    let body = json!({"prompt": PROMPT, "response_format": wrong});
    let reply = server.post(PATH, &body);
    assert_eq!(reply.status, 400, "{}", reply.text());
    assert_eq!(reply.error()["param"], "response_format");
}
