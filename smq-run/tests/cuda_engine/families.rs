//! Every family beyond Llama's and Phi-3's layers: small models with random weights, biases and
//! norms that matter, in bf16, int4 and NF4, on both engines.

use std::ops::ControlFlow;

use rayon::prelude::*;
use serde_json::{Value, json};
use smq_convert::Method;
use smq_engine::Engine;
use smq_engine::cuda::compile::compile;
use smq_engine::cuda::{CudaEngine, Need, SMS, kernels_of};
use smq_model::ModelConfig;

use crate::logits::of_all;
use crate::models::{self, E5M5, Model, any_tokens, sample_tokens};
use crate::reference::{Path, argmax};
use crate::{Outcome, batch, none, rows};
pub(crate) use checkpoints::VOCAB;
use checkpoints::configs;

#[path = "../../../smq-convert/tests/families/mod.rs"]
mod checkpoints;

/// Models whose steps of one sequence are made by the kernels of prompts.
pub(crate) const BY_PROMPTS: [&str; 3] = [
    "Qwen3 with biases",
    "Llama with biases",
    "Llama that is small",
];
/// The prompts of one sequence: on both sides of the window and of a tile of keys, and of the 1024
/// tokens from which on more blocks of decode.cu share a head: above, then below with steps that
/// cross it, so that what these blocks left above must not be taken.
const PROMPTS: [usize; 7] = [1, 40, 64, 130, 300, 1030, 1020];
const STEPS: usize = 8;
const GREEDY: usize = 40;

fn made(config: &Value) -> Model {
    Model::of(checkpoints::made(config))
}

/// A small model of each family, not quantized.
pub(crate) fn models() -> Vec<(String, Model)> {
    let made = |(name, config): (&str, Value)| (name.to_owned(), made(&config));
    ready(configs().into_iter().map(made).collect())
}

/// A small model of each family, made into something by `convert`.
fn converted(to: &str, convert: impl Fn(Model) -> Model) -> Vec<(String, Model)> {
    let made = |(name, config): (&str, Value)| (format!("{name} {to}"), convert(made(&config)));
    ready(configs().into_iter().map(made).collect())
}

/// Their kernels compiled, on all cores: engines compile one after the other.
fn ready(models: Vec<(String, Model)>) -> Vec<(String, Model)> {
    let mut needs: Vec<Need> = Vec::new();
    for (_, model) in &models {
        for need in kernels_of(&model.open(), None, SMS).unwrap() {
            if !needs.contains(&need) {
                needs.push(need);
            }
        }
    }
    needs.par_iter().for_each(|(file, defines)| {
        compile("sm_90a", file, defines).unwrap();
    });
    models
}

/// Prompts and steps, of which decode.cu makes those of every family but where the MLP or the
/// attention's output has biases, and of models with work for fewer blocks than the GPU has: then
/// the kernels of prompts do, a row at a time.
fn of_sequence(name: &str, model: &Model, widened: bool) -> Vec<String> {
    let tokens = sample_tokens(1030 + STEPS);
    let source = model.open();
    let c = ModelConfig::of(&source).unwrap();
    let qkv = (c.heads + 2 * c.kv_heads) * c.head_dim;
    let small = (qkv / 8).max(c.intermediate / 4) < SMS;
    let by_rows = c.biases.o || c.biases.mlp || small;
    let decode = match (by_rows, widened) {
        (false, _) => Path::Decode,
        (true, false) => Path::Prompt,
        (true, true) => Path::WidenedPrompt,
    };
    let prompts = (&PROMPTS[..], STEPS);
    let mut failures = of_all(name, &source, None, &tokens, prompts, widened, decode);
    failures.extend(greedy(name, &mut CudaEngine::load(&source, None).unwrap()));
    failures
}

/// What is chosen ahead of the host is what the same engine's logits say, and the same again.
fn greedy(name: &str, engine: &mut CudaEngine) -> Vec<String> {
    let mut failures = Vec::new();
    for length in [1, 60] {
        let prompt = sample_tokens(length);
        let mut text = || {
            let mut tokens = Vec::new();
            let mut take = |token, _| {
                tokens.push(token);
                Ok(ControlFlow::Continue(()))
            };
            engine.start(length + GREEDY).unwrap();
            engine.greedy(&prompt, GREEDY, &mut take).unwrap();
            tokens
        };
        let tokens = text();
        if text() != tokens {
            failures.push(format!("{name}: other tokens the second time"));
        }
        engine.start(length + GREEDY).unwrap();
        let mut next = prompt.clone();
        for (i, token) in tokens.iter().enumerate() {
            let best = argmax(engine.extend(&next).unwrap().logits);
            if best != *token {
                failures.push(format!("{name}: token {i} is not the largest logit's"));
                break;
            }
            next = vec![*token];
        }
    }
    failures
}

pub(crate) fn unquantized() -> Outcome {
    let of = |(name, model): (String, Model)| of_sequence(&name, &model, false);
    none(models().into_iter().flat_map(of).collect())
}

pub(crate) fn int4() -> Outcome {
    let of = |(name, model): (String, Model)| of_sequence(&name, &model, true);
    let models = converted("int4", |model| model.quantized(E5M5, "all"));
    none(models.into_iter().flat_map(of).collect())
}

pub(crate) fn nf4() -> Outcome {
    let of = |(name, model): (String, Model)| of_sequence(&name, &model, true);
    let models = converted("NF4", |model| model.quantized_as(Method::Nf4, "all"));
    none(models.into_iter().flat_map(of).collect())
}

/// Each step's log-probabilities against the CPU.
pub(crate) fn batch_scores() -> Outcome {
    let int4 = converted("int4", |model| model.quantized(E5M5, "all"));
    of_each(models().into_iter().chain(int4), |model| {
        batch::scores(model, None, None)
    })
}

/// The same bits whatever is in a step beside a row.
pub(crate) fn batch_invariant() -> Outcome {
    of_each(models(), |model| batch::invariant(model, None, None))
}

/// A sequence alone by the kernel of one sequence; models that it does not compute are refused.
pub(crate) fn batch_fast() -> Outcome {
    let (refused, taken): (Vec<_>, Vec<_>) = models()
        .into_iter()
        .partition(|(name, _)| BY_PROMPTS.contains(&name.as_str()));
    of_each(refused, |model| {
        match batch::opened(&model.open(), true, None).map_err(|e| e.to_string()) {
            Err(error) if error.contains("leave out --fast-nondeterministic") => Ok(()),
            Err(error) => Err(error.into()),
            Ok(_) => Err("it was not refused".into()),
        }
    })?;
    of_each(taken, |model| batch::fast_alone(model, Some(VOCAB), None))
}

/// Packed sequences against each by itself.
pub(crate) fn continuations() -> Outcome {
    let of = |(name, model): (String, Model)| rows::continuations_of(&name, &model.open());
    none(models().into_iter().flat_map(of).collect())
}

/// A dynamic rotary embedding, within the length up to which it does not change.
pub(crate) fn dynamic_rope() -> Outcome {
    let mut config = models::llama();
    config["rope_scaling"] = json!({"type": "dynamic", "factor": 2.0});
    let model = Model::synthetic(&config);
    let (source, context) = (model.open(), 2048);
    if CudaEngine::load(&source, None).is_ok() {
        return none(vec!["a longer context is taken".into()]);
    }
    let tokens = any_tokens(300 + STEPS, 1000);
    // Too little work for each multiprocessor: the kernels of prompts make the steps.
    let (prompts, path) = ((&PROMPTS[..5], STEPS), Path::Prompt); // within that length
    none(of_all(
        "dynamic",
        &source,
        Some(context),
        &tokens,
        prompts,
        false,
        path,
    ))
}

/// Every model's outcome, by its name.
fn of_each(
    models: impl IntoIterator<Item = (String, Model)>,
    test: impl Fn(&Model) -> Outcome,
) -> Outcome {
    let failure = |(name, model): (String, Model)| {
        let failed = test(&model).err()?;
        Some(format!("{name}: {}", failed.message().unwrap_or("failed")))
    };
    none(models.into_iter().filter_map(failure).collect())
}
