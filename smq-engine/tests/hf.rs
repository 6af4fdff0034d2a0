//! Generation settings as transformers obeys them, on a model that is a table of logits:
//! `tests/fixtures/hf/generation_cases.json`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

use serde_json::Value;
use smq_engine::generate::{GenerateOptions, generate};
use smq_engine::sample::Sampler;
use smq_engine::{Engine, Error, KvCacheFormat, KvCacheReport, Result, Step, TokenScore};
use smq_model::{GenerationSettings, ModelConfig, Source, Tokenizer};

#[path = "../../smq-model/tests/hf/cases.rs"]
mod cases;

use cases::{Case, Cases};

/// New tokens that transformers generates where nobody sets a limit.
const DEFAULT_NEW_TOKENS: usize = 20;
/// Draws for a distribution.
const DRAWS: usize = 2000;
/// Standard errors that a frequency may be off: among some 500 frequencies the largest is about
/// 3.5.
const DEVIATIONS: f64 = 5.0;

/// The logits after a token, whatever came before.
struct Table {
    config: ModelConfig,
    rows: Vec<Vec<f32>>,
    last: usize,
}

impl Engine for Table {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn device(&self) -> &'static str {
        "table"
    }

    fn bytes_per_token(&self) -> usize {
        0
    }

    fn kv_cache(&self) -> KvCacheReport {
        KvCacheReport {
            format: KvCacheFormat::F32,
            bytes_per_token: 0,
            tokens: 0,
            bytes: 0,
        }
    }

    fn start(&mut self, _: usize) -> Result<()> {
        Ok(())
    }

    fn extend(&mut self, tokens: &[u32]) -> Result<Step<'_>> {
        self.last = *tokens.last().unwrap() as usize;
        Ok(Step {
            logits: &self.rows[self.last],
            rope_switched: false,
        })
    }

    fn scores(&mut self, _: &[u32]) -> Result<Vec<TokenScore>> {
        Err(Error::Input("a table scores nothing".into()))
    }

    fn continuation_scores(&mut self, _: &[u32], _: &[Vec<u32>]) -> Result<Vec<Vec<TokenScore>>> {
        Err(Error::Input("a table scores nothing".into()))
    }

    fn logit_rows(
        &mut self,
        _: &[u32],
        _: usize,
        _: &mut dyn FnMut(&[f32]) -> Result<()>,
    ) -> Result<()> {
        Err(Error::Input("a table has no rows to show".into()))
    }
}

#[test]
fn settings_are_obeyed_as_transformers_obeys_them() {
    let cases = Cases::read("generation");
    cases.check(|case| {
        let dir = tempfile::tempdir().unwrap();
        case.write_checkpoint(dir.path());
        match check(
            case,
            &cases.top["tables"],
            &Source::open(dir.path()).unwrap(),
        ) {
            Ok(None) => case.taken(),
            Ok(Some(different)) => case.taken().and(Err(different)),
            Err(refusal) => case.refused(&refusal.to_string()),
        }
    });
}

/// What differs, or why the settings are refused.
fn check(case: &Case<'_>, tables: &Value, source: &Source) -> Result<Option<String>> {
    let v = case.value;
    let settings = GenerationSettings::of(source)?;
    let prompt: Vec<u32> = list(&v["prompt"]);
    let config = ModelConfig::of(source)?;
    let table = &tables[v["table"].as_str().unwrap()];
    let rows: Vec<Vec<f32>> = serde_json::from_value(table.clone()).unwrap();
    let tokenizer = Tokenizer::load(source)?;
    let own = settings.new_tokens(prompt.len())?;
    let limit = v["max_new_tokens"].as_u64().map(|n| n as usize);
    let max_new_tokens = limit.or(own).unwrap_or(DEFAULT_NEW_TOKENS);
    if let Some(expected) = v["probabilities"].as_array() {
        let vocab = config.vocab;
        let mut counts = vec![0usize; vocab];
        for seed in 0..DRAWS as u64 {
            let mut sampler = Sampler::new(&settings, &prompt, max_new_tokens, vocab, seed)?;
            counts[sampler.sample(&rows[*prompt.last().unwrap() as usize])? as usize] += 1;
        }
        let p: Vec<f64> = expected.iter().map(|p| p.as_f64().unwrap()).collect();
        let off = |(id, count): &(usize, &usize)| {
            let error = (p[*id] * (1.0 - p[*id]) / DRAWS as f64).sqrt();
            (**count as f64 / DRAWS as f64 - p[*id]).abs() > DEVIATIONS * error
        };
        let wrong = counts.iter().enumerate().find(off);
        return Ok(wrong.map(|(id, count)| {
            format!(
                "token {id} was drawn {count} times of {DRAWS}, its probability is {}",
                p[id]
            )
        }));
    }
    let mut engine = Table {
        config,
        rows,
        last: 0,
    };
    let options = GenerateOptions {
        max_new_tokens,
        settings: settings.clone(),
        tokenizer: Some(&tokenizer),
        seed: 0,
    };
    let ids = generate(&mut engine, &prompt, &options, |_| Ok(()))?.ids;
    let sorted = |mut ids: Vec<u32>| {
        ids.sort_unstable();
        ids.dedup();
        ids
    };
    let stop_ids = sorted(list(&v["stop_ids"]));
    Ok(if sorted(settings.eos_ids) != stop_ids {
        Some(format!("transformers stops at {stop_ids:?}"))
    } else if v["ids"].is_array() && ids != list(&v["ids"]) {
        Some(format!("{ids:?}, transformers has {}", v["ids"]))
    } else {
        None
    })
}

fn list(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap_or_default()
}
