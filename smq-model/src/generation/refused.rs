//! Keys that change what is generated in ways that are not implemented: refused by name, since a
//! text that ignores them is not the one that the model's authors asked for.

use serde_json::Value;

use super::keys::Keys;
use crate::error::Result;

/// When a key's value asks for something. Null asks for nothing anywhere.
enum Asks {
    /// Whatever its value is.
    Always,
    /// Where it is `true`, since `false` asks for nothing.
    True,
    /// Any number but this one.
    Not(f64),
    /// Any word but these.
    NotAmong(&'static [&'static str]),
}

/// Values of `cache_implementation`, which give the same text.
const CACHES: &[&str] = &[
    "static",
    "offloaded_static",
    "sliding_window",
    "hybrid",
    "hybrid_chunked",
    "offloaded_hybrid",
    "offloaded_hybrid_chunked",
    "dynamic",
    "paged",
    "offloaded",
];

const REFUSED: [(&str, Asks, &str); 14] = [
    (
        "num_beams",
        Asks::Not(1.0),
        "1: beam search is not implemented",
    ),
    (
        "num_return_sequences",
        Asks::Not(1.0),
        "1: one text is generated at a time",
    ),
    (
        "constraints",
        Asks::Always,
        "null: constrained beam search is not implemented",
    ),
    (
        "force_words_ids",
        Asks::Always,
        "null: constrained beam search is not implemented",
    ),
    (
        "guidance_scale",
        Asks::Not(1.0),
        "1: classifier-free guidance is not implemented",
    ),
    (
        "watermarking_config",
        Asks::Always,
        "null: watermarking is not implemented",
    ),
    (
        "token_healing",
        Asks::True,
        "false: token healing is not implemented",
    ),
    (
        "max_time",
        Asks::Always,
        "null: a limit of time is not implemented",
    ),
    (
        "dola_layers",
        Asks::Always,
        "null: DoLa decoding is not implemented",
    ),
    (
        "prompt_lookup_num_tokens",
        Asks::Always,
        "null: assisted decoding is not implemented",
    ),
    (
        "assistant_early_exit",
        Asks::Always,
        "null: assisted decoding is not implemented",
    ),
    (
        "use_mtp",
        Asks::True,
        "false: multi-token prediction is not implemented",
    ),
    (
        "is_assistant",
        Asks::True,
        "false: assisted decoding is not implemented",
    ),
    (
        "cache_implementation",
        Asks::NotAmong(CACHES),
        "one of transformers' caches of full precision: a quantized one is not implemented",
    ),
];

pub(super) fn check(keys: &Keys) -> Result<()> {
    for (key, asks, expected) in &REFUSED {
        let Some(value) = keys.value(key) else {
            continue;
        };
        let neutral = match asks {
            Asks::Always => false,
            Asks::True => value == &Value::Bool(false),
            Asks::Not(number) => value.as_f64() == Some(*number),
            Asks::NotAmong(words) => value.as_str().is_some_and(|word| words.contains(&word)),
        };
        if !neutral {
            return Err(refuse(keys, key, expected));
        }
    }
    // Contrastive search is what transformers does where all of this holds.
    let above =
        |key, limit: f64, absent: f64| keys.number(key).map(|v| v.unwrap_or(absent) > limit);
    if keys.flag("do_sample")? != Some(true)
        && above("penalty_alpha", 0.0, 0.0)?
        && above("top_k", 1.0, 50.0)?
    {
        let expected = "null: contrastive search is not implemented";
        return Err(refuse(keys, "penalty_alpha", expected));
    }
    Ok(())
}

fn refuse(keys: &Keys, key: &str, expected: &str) -> crate::Error {
    let remedy = "--greedy generates without the model's settings";
    keys.bad(key, &format!("{expected}; {remedy}"))
}
