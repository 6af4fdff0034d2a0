//! Logits of the checkpoint that `SMQ_MODEL` names, such as SmolLM2: as it is and in every scheme,
//! one test each.

use smq_convert::{LevelChoice, Method, QuantizeOptions, ScaleChoice, ScaleRule};

use crate::logits::of_all;
use crate::models::{Model, lut4_method, sample_tokens_of};
use crate::reference::Path;
use crate::{Outcome, none};

/// Around a tile of tokens, and several tiles.
const PROMPTS: [usize; 5] = [1, 127, 128, 129, 700];
/// Tokens after each. Of SmolLM2 in FP8 the CPU's distance from f32 differs by half of itself
/// between orders of summation at 9 positions, by an eighth at 64: less than these say little about
/// an rms.
const STEPS: usize = 63;

/// Name and method of each scheme; none for the checkpoint itself.
pub(crate) fn schemes() -> Vec<(String, Option<Method>)> {
    let int4 = |scales| {
        Method::Int4(QuantizeOptions {
            group: 128,
            scales,
            rule: ScaleRule::Reference,
        })
    };
    let mini = ScaleChoice::e5;
    let mut list = vec![
        ("unquantized".to_owned(), None),
        ("fp8".to_owned(), Some(Method::Fp8)),
        ("nf4".to_owned(), Some(Method::Nf4)),
    ];
    let lut4 = lut4_method(mini(3), 128, LevelChoice::Learned);
    list.push(("lut4".to_owned(), Some(lut4)));
    let scales = [ScaleChoice::F32, mini(5), mini(3), mini(0)];
    list.extend(scales.map(|s| (s.to_string(), Some(int4(s)))));
    list
}

/// Prompts, then token by token. One pass on the CPU, in f32 and in bf16, has every length.
pub(crate) fn logits(checkpoint: &str, name: &str, method: Option<Method>) -> Outcome {
    let given = Model::at(checkpoint);
    let model = match method {
        None => given,
        Some(method) => given.quantized_as(method, "all"),
    };
    let source = model.open();
    // int4 projections that lie apart are widened at any length, fused ones never at these. NF4's
    // levels are rounded, where the twin rounds its weights.
    let fused = source.contains("model.layers.0.self_attn.qkv_proj.weight");
    let grouped = matches!(method, Some(Method::Int4(_) | Method::Lut4 { .. }));
    let widened = (grouped && !fused) || method == Some(Method::Nf4);
    let decode = match method {
        Some(Method::Fp8) => Path::Fp8Decode,
        _ => Path::Decode,
    };
    let tokens = sample_tokens_of(&source, 700 + STEPS);
    let all = (&PROMPTS[..], STEPS);
    none(of_all(
        name,
        &source,
        Some(1024),
        &tokens,
        all,
        widened,
        decode,
    ))
}
