//! The CUDA engine against the CPU reference on a real GPU; where there is none the tests count as
//! ignored.
//!
//! They read the repository's fixtures; `SMQ_REPOSITORY` says where it is, if not where this was
//! built. `SMQ_MODEL` names a checkpoint directory whose logits are compared too, in every scheme.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use smq_convert::ScaleChoice;
use smq_engine::cuda::Gpu;
use smq_engine::{KvCacheFormat, KvCode};

mod batch;
mod drafts;
mod errors;
mod families;
mod given;
mod greedy;
mod guessing;
mod kv_cache;
mod log_probs;
mod logits;
mod models;
mod reference;
mod rows;
mod stale;

type Outcome = Result<(), Failed>;
/// A test without parameters.
type Plain = fn() -> Outcome;
type Test = Box<dyn FnOnce() -> Result<Completion, Failed> + Send>;

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let gpu = Gpu::open(0);
    if !args.list {
        match &gpu {
            Ok(gpu) => println!("{:?}", gpu.info()),
            Err(why) => println!("not run: {why}"),
        }
    }
    let present = gpu.is_ok();
    let trials = tests().into_iter().map(|(name, test)| {
        Trial::ignorable_test(name, move || match present {
            true => test(),
            false => Ok(Completion::ignored_with("no GPU")),
        })
    });
    libtest_mimic::run(&args, trials.collect()).exit_code()
}

fn tests() -> Vec<(String, Test)> {
    let mut tests: Vec<(String, Test)> = Vec::new();
    for (scheme, method) in given::schemes() {
        let name = format!("logits_of_the_given_model_{scheme}");
        let test = move || match std::env::var("SMQ_MODEL") {
            Ok(path) => given::logits(&path, &scheme, method).map(|()| Completion::Completed),
            Err(_) => Ok(Completion::ignored_with("SMQ_MODEL names no checkpoint")),
        };
        tests.push((name, Box::new(test)));
    }
    let mut add = |name: &str, test: Box<dyn FnOnce() -> Outcome + Send>| {
        let test = move || test().map(|()| Completion::Completed);
        tests.push((name.to_owned(), Box::new(test)));
    };
    add("logits_c0", Box::new(logits::unquantized));
    let mini = ScaleChoice::e5;
    for scales in [
        ScaleChoice::F32,
        ScaleChoice::F16,
        mini(0),
        mini(3),
        mini(5),
        mini(10),
    ] {
        let test = move || logits::quantized(scales);
        add(&format!("logits_{scales}"), Box::new(test));
    }
    for code in KvCode::SMALLER {
        let name = |what: &str| format!("kv_cache_{what}_{}", KvCacheFormat::Coded(code));
        add(&name("logits"), Box::new(move || kv_cache::logits(code)));
        add(&name("shapes"), Box::new(move || kv_cache::shapes(code)));
        add(&name("repeats"), Box::new(move || kv_cache::repeats(code)));
        add(&name("pages"), Box::new(move || kv_cache::pages(code)));
        let shapes = move || kv_cache::pages_shapes(code);
        add(&name("pages_shapes"), Box::new(shapes));
        let fast = move || kv_cache::pages_fast(code);
        add(&name("pages_fast"), Box::new(fast));
    }
    for code in [KvCode::Bf16].into_iter().chain(KvCode::SMALLER) {
        let name = format!("kv_cache_many_tokens_{}", KvCacheFormat::Coded(code));
        add(&name, Box::new(move || kv_cache::many_tokens(code)));
    }
    let fixed: [(&str, Plain); 65] = [
        ("batch_scores_c0", batch::scores_c0),
        ("batch_scores_int4", batch::scores_int4),
        ("batch_scores_lut4", batch::scores_lut4),
        ("batch_scores_nf4", batch::scores_nf4),
        ("batch_scores_fp8", batch::scores_fp8),
        ("batch_scores_llama_int4", batch::scores_llama_int4),
        ("batch_invariant_c0", batch::invariant_c0),
        ("batch_invariant_c4", batch::invariant_c4),
        ("batch_invariant_int4", batch::invariant_int4),
        ("batch_invariant_fp8", batch::invariant_fp8),
        ("batch_invariant_lut4", batch::invariant_lut4),
        ("batch_fast_c0", batch::fast_c0),
        ("batch_fast_int4", batch::fast_int4),
        ("batch_fast_llama_int4", batch::fast_llama_int4),
        ("batch_choices", batch::choices),
        ("batch_drafts_c0", drafts::c0),
        ("batch_drafts_int4", drafts::int4),
        ("batch_drafts_fp8", drafts::fp8),
        ("logits_nf4", logits::nf4),
        ("logits_lut4", logits::lut4),
        ("logits_lut4_of_other_shapes", logits::lut4_of_other_shapes),
        ("logits_fp8", logits::fp8),
        ("logits_int4_head", logits::int4_head),
        ("logits_groups_of_64", || logits::groups_of(64)),
        ("logits_groups_of_32", || logits::groups_of(32)),
        ("logits_llama", logits::llama),
        ("logits_llama_int4", logits::llama_int4),
        ("logits_llama_fp8", logits::llama_fp8),
        (
            "logits_grouped_partial_window",
            logits::grouped_partial_window,
        ),
        ("logits_heads_of_96", logits::heads_of_96),
        ("logits_heads_of_128", logits::heads_of_128),
        ("logits_wide_mlp", logits::wide_mlp),
        ("logits_uneven_rows", logits::uneven_rows),
        ("greedy_c0", greedy::unquantized),
        ("greedy_int4", greedy::int4),
        ("greedy_lut4", greedy::lut4),
        ("greedy_groups_of_64", greedy::groups_of_64),
        ("greedy_stops_where_asked", greedy::stops_where_asked),
        (
            "greedy_ends_with_the_context",
            greedy::ends_with_the_context,
        ),
        ("greedy_grows_its_cache", greedy::grows_its_cache),
        ("log_probs_c0", log_probs::unquantized),
        ("log_probs_int4", log_probs::int4),
        ("rows_of_logits", rows::logit_rows),
        ("rows_of_continuations", rows::continuations),
        ("rows_of_two_engines", rows::two_engines),
        ("perplexity", log_probs::perplexity_of_the_sample),
        ("kv_cache_stale_buffers", kv_cache::stale_buffers),
        ("kv_cache_refused", kv_cache::refused),
        ("stale_buffers_c0", stale::unquantized),
        ("stale_buffers_int4", stale::int4),
        ("families_c0", families::unquantized),
        ("families_int4", families::int4),
        ("families_nf4", families::nf4),
        ("families_batch_scores", families::batch_scores),
        ("families_batch_invariant", families::batch_invariant),
        ("families_batch_fast", families::batch_fast),
        ("families_continuations", families::continuations),
        ("families_dynamic_rope", families::dynamic_rope),
        ("guessing_weights", guessing::weights),
        ("guessing_caches", guessing::caches),
        ("guessing_families", guessing::of_families),
        ("bad_requests", errors::bad_requests),
        ("unsupported_models", errors::unsupported_models),
        ("damaged_weights", errors::damaged_weights),
        (
            "a_cache_larger_than_the_card",
            errors::a_cache_larger_than_the_card,
        ),
    ];
    for (name, test) in fixed {
        add(name, Box::new(test));
    }
    tests
}

/// Fails with all of them, if there are any.
fn none(failures: Vec<String>) -> Outcome {
    match failures[..] {
        [] => Ok(()),
        _ => Err(failures.join("\n").into()),
    }
}

/// Whether two lists of floats are the same bits.
fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}
