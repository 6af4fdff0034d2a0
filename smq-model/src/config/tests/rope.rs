//! Rotary embedding: its numbers, and what of it is refused.

use serde_json::{Value, json};

use super::{read, refused};

/// Within what `powf` of two libraries may differ by, and what is computed with it.
fn assert_close(found: &[f32], expected: &Value, what: &str) {
    let expected: Vec<f32> = serde_json::from_value(expected.clone()).unwrap();
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(&expected) {
        let error = (found - expected).abs() / expected;
        assert!(error < 4e-7, "{what}: {found} instead of {expected}");
    }
}

/// Values that f32 does not hold, and a part of a head: `original_inv_freq` of transformers' models
/// in f32.
#[test]
fn numbers_are_f64_and_tensors_f32() {
    let odd = json!({"rope_parameters": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.3, "high_freq_factor": 4.1, "rope_theta": 5e5,
    }});
    let expected = json!([
        1.0,
        0.193922758102417,
        0.03760603070259094,
        0.0009115831344388425,
        0.00017677668074611574,
        3.428102354519069e-05,
        6.647869668086059e-06,
        1.289173155782919e-06
    ]);
    assert_close(
        &read("llama", odd).rope.inv_freq(false),
        &expected,
        "llama3",
    );
    let part = json!({"partial_rotary_factor": 0.75, "rope_parameters": {"rope_theta": 5000.0}});
    let expected = json!([
        1.0,
        0.2418271005153656,
        0.05848035216331482,
        0.014142136089503765,
        0.0034199513029307127,
        0.000827037263661623
    ]);
    assert_close(&read("phi3", part).rope.inv_freq(false), &expected, "part");
}

/// Refused by transformers too, but for proportional and for longrope of others than Phi-3.
#[test]
fn rotary_embedding_that_cannot_be_followed_is_refused_by_name() {
    let at = "original_max_position_embeddings";
    let scaled = |scaling: Value| json!({ "rope_scaling": scaling });
    for kind in ["proportional", "mrope", "su", "longrope"] {
        let keys = scaled(json!({"type": kind, "factor": 2.0}));
        refused("llama", keys, &["rope_scaling.type", kind, "llama3"]);
    }
    for kind in ["linear", "llama3", "dynamic"] {
        let keys = json!({"rope_parameters": {"rope_type": kind, "factor": 2.0}});
        refused(
            "phi3",
            keys,
            &["rope_parameters.rope_type", kind, "longrope"],
        );
    }
    for (keys, words) in [
        (scaled(json!("linear")), &["rope_scaling is \"linear\""][..]),
        (
            scaled(json!({"rope_type": null, "type": "linear"})),
            &["rope_scaling.rope_type is null"],
        ),
        (
            scaled(json!({"type": "linear"})),
            &["rope_scaling.factor is missing"],
        ),
        (
            scaled(json!({"type": "yarn", "factor": 4, "beta_fast": "32"})),
            &["rope_scaling.beta_fast is \"32\""],
        ),
        (
            scaled(json!({"type": "yarn"})),
            &["rope_scaling.factor is missing"],
        ),
        (
            scaled(json!({"type": "yarn", "factor": 4, "truncate": 1})),
            &["rope_scaling.truncate is 1"],
        ),
        (
            json!({"rope_theta": 1.0, "rope_scaling": {"type": "yarn", "factor": 4}}),
            &["yarn", "base of 1"],
        ),
        (
            scaled(json!({"type": "yarn", "factor": 4, "beta_slow": -1})),
            &["yarn", "beta_slow"],
        ),
        (
            json!({"head_dim": 2, "rope_scaling": {"type": "dynamic", "factor": 4}}),
            &["2 elements", "dynamic"],
        ),
        (
            scaled(json!({"type": "linear", "factor": "4"})),
            &["rope_scaling.factor is \"4\""],
        ),
        (
            scaled(json!({"type": "linear", "factor": null})),
            &["rope_scaling.factor is null"],
        ),
        (
            scaled(json!({"type": "linear", "factor": 0})),
            &["rope_scaling.factor is 0"],
        ),
        (
            json!({"rope_parameters": {"rope_theta": null}}),
            &["rope_parameters.rope_theta is null"],
        ),
        (json!({"rope_theta": null}), &["rope_theta is null"]),
        (json!({"rope_theta": "10000"}), &["rope_theta is \"10000\""]),
        (
            json!({"rope_parameters": {"full_attention": {"rope_theta": 5e3}}}),
            &["rope_parameters.full_attention"],
        ),
        (
            json!({"partial_rotary_factor": 0.5, "rope_scaling": {"type": "linear", "factor": 2}}),
            &["partial_rotary_factor is 0.5", "linear"],
        ),
        (
            scaled(
                json!({"type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, at: null}),
            ),
            &["rope_scaling.original_max_position_embeddings is null"],
        ),
        (
            json!({
                at: null,
                "rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, at: 64},
            }),
            &["original_max_position_embeddings is null"],
        ),
        (
            scaled(json!({"type": "llama3", "factor": 8, "low_freq_factor": 1})),
            &["high_freq_factor is missing"],
        ),
    ] {
        refused("llama", keys, words);
    }
    let long = |short: Value, long: Value| {
        let lists = json!({"type": "longrope", "short_factor": short, "long_factor": long});
        json!({"rope_scaling": lists, at: 64})
    };
    let eight = json!([1, 1, 1, 1, 1, 1, 1, 1]);
    for (keys, words) in [
        (
            long(json!([1.0]), eight.clone()),
            &["short_factor has 1 values", "8"][..],
        ),
        (
            long(eight.clone(), json!("no")),
            &["long_factor is \"no\"", "8"],
        ),
        (
            long(eight.clone(), json!([1, 1, 1, 1, 1, 1, 1, "1"])),
            &["long_factor holds \"1\""],
        ),
        (
            json!({"rope_scaling": {"type": "longrope", "short_factor": eight}, at: 64}),
            &["rope_scaling.long_factor is missing"],
        ),
        (
            json!({"rope_scaling": {"type": "longrope", "short_factor": eight, "long_factor": eight}, at: 1}),
            &[at, "at least 2"],
        ),
        (
            json!({"partial_rotary_factor": null}),
            &["partial_rotary_factor is null"],
        ),
        (
            json!({"partial_rotary_factor": 2.0}),
            &["partial_rotary_factor is 2"],
        ),
        (
            json!({"partial_rotary_factor": 0.1}),
            &["1 elements", "even"],
        ),
    ] {
        refused("phi3", keys, words);
    }
}
