//! Options of guessing tokens, and generation with and without.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;

use super::generate::at_least_one;
use super::{Global, Opened};
use smq_convert::number::count;
use smq_engine::generate::{GenerateOptions, Generation, generate, generate_scheduled};
use smq_engine::serve::{
    BatchEngine, BatchOptions, CPU_KV_TOKENS, Counters, Drafter, ModelDrafter, NgramDrafter,
    Scheduler,
};
use smq_engine::{Engine, Result};
use smq_model::{ModelConfig, Source, Spelling, Tokenizer};

/// Most tokens that the text's repeats guess at a time.
pub(super) const NGRAM_TOKENS: usize = 8;
/// Tokens of a page of a draft model on a CPU. Each guess computes the text from its last whole
/// page on.
const DRAFT_PAGE_TOKENS: usize = 2;
/// Steps of a draft model for a guessed token: what was chosen since the last guess is read too.
const DRAFT_STEPS: f64 = 1.5;
/// A page of the largest kind, which a sequence may begin.
const PAGE_SLACK: usize = 64;

#[derive(Debug, Args)]
#[command(next_help_heading = "More than one token a step, with the same text")]
pub(super) struct DraftArgs {
    /// Guess up to K tokens at a time (8 unless given), and keep those that are right: ngram
    /// guesses that the text goes on as it did where its last tokens came before, which pays for
    /// answers that quote or repeat
    #[arg(long, value_name = "ngram[:K]", conflicts_with = "draft")]
    speculate: Option<Method>,
    /// Guess by a smaller model with the same vocabulary: a .smq file or a checkpoint directory
    #[arg(long, value_name = "MODEL")]
    draft: Option<PathBuf>,
    /// Most tokens that the draft model guesses at a time
    #[arg(long, value_name = "K", requires = "draft", default_value_t = 4,
        value_parser = at_least_one)]
    draft_tokens: usize,
}

/// How tokens are guessed without a model.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Method {
    /// Repeats of the text guess, at most so many tokens at a time.
    Ngram(usize),
}

impl FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.split_once(':').unwrap_or((text, "")) {
            ("ngram", "") if !text.ends_with(':') => Ok(Self::Ngram(NGRAM_TOKENS)),
            ("ngram", count) => at_least_one(count).map(Self::Ngram),
            _ => Err("expected ngram or ngram:K".to_owned()),
        }
    }
}

impl DraftArgs {
    pub(super) fn is_asked_for(&self) -> bool {
        self.speculate.is_some() || self.draft.is_some()
    }

    /// What guesses for the model of `opened`, which runs with `batch`, and how many tokens at
    /// most; `None` where nothing is asked for. A draft model stays loaded until the program ends.
    ///
    /// # Errors
    /// A draft model that cannot be loaded, or that has another vocabulary.
    pub(super) fn load(
        &self,
        opened: &Opened,
        global: &Global,
        batch: &BatchOptions,
    ) -> anyhow::Result<Option<(Box<dyn Drafter>, usize)>> {
        if let Some(Method::Ngram(most)) = self.speculate {
            return Ok(Some((Box::new(NgramDrafter::default()), most)));
        }
        let Some(path) = &self.draft else {
            return Ok(None);
        };
        let draft: &'static Opened = Box::leak(Box::new(Opened::new(path, global)?));
        let (small, large) = (&draft.source, &opened.source);
        let message = || {
            format!(
                "{} cannot guess for {}",
                path.display(),
                large.path().display()
            )
        };
        check_vocabulary(small, large).with_context(message)?;
        let engine = draft.load_batch(&BatchOptions {
            page_tokens: DRAFT_PAGE_TOKENS,
            kv_tokens: Some(batch.kv_tokens.unwrap_or(CPU_KV_TOKENS)),
            max_rows: batch.max_rows,
            ..BatchOptions::default()
        })?;
        // A step of one token reads the weights, and little else.
        let step = small.file_bytes() as f64 / large.file_bytes().max(1) as f64;
        let vocab = ModelConfig::of(large)?.vocab;
        let drafter = ModelDrafter::new(engine, vocab, DRAFT_STEPS * step).with_context(message)?;
        Ok(Some((Box::new(drafter), self.draft_tokens)))
    }
}

/// Refuses a draft model whose tokens are not the model's.
fn check_vocabulary(draft: &Source, model: &Source) -> anyhow::Result<()> {
    let [own, vocab] = [ModelConfig::of(draft)?.vocab, ModelConfig::of(model)?.vocab];
    ensure!(
        own == vocab,
        "it has {own} tokens and the model {vocab}; a draft model needs the same vocabulary, as a \
         smaller one of the same family has it"
    );
    let [small, large] = [Tokenizer::load(draft)?, Tokenizer::load(model)?];
    let [small, large] = [Spelling::new(&small)?, Spelling::new(&large)?];
    for id in 0..vocab as u32 {
        let [own, other] = [small.of(id)?, large.of(id)?];
        ensure!(
            own == other && small.is_special(id) == large.is_special(id),
            "its token {id} is {:?} and the model's {:?}; a draft model needs the same vocabulary, \
             as a smaller one of the same family has it",
            String::from_utf8_lossy(&own),
            String::from_utf8_lossy(&other)
        );
    }
    Ok(())
}

/// What generates one text at a time.
pub(super) enum Generator<'m> {
    /// The engine of one sequence.
    Alone(Box<dyn Engine + 'm>),
    /// That of many, with one, whose tokens are guessed.
    Guessing(Box<Scheduler<Box<dyn BatchEngine + 'm>>>),
}

impl<'m> Generator<'m> {
    /// With room for texts of `tokens`, and how long loading took.
    ///
    /// # Errors
    /// A model that cannot be loaded.
    pub(super) fn guessing(
        opened: &'m Opened,
        draft: &DraftArgs,
        global: &Global,
        tokens: usize,
    ) -> anyhow::Result<(Self, Duration)> {
        let start = Instant::now();
        let options = BatchOptions {
            kv_tokens: Some(tokens.saturating_add(PAGE_SLACK)),
            max_rows: 1,
            ..BatchOptions::default()
        };
        let guessing = draft.load(opened, global, &options)?;
        let mut scheduler = Scheduler::new(opened.load_guessing(&options)?)?;
        if let Some((drafter, most)) = guessing {
            scheduler.speculate(drafter, most);
        }
        Ok((
            Self::Guessing(Box::new(scheduler)),
            opened.opening + start.elapsed(),
        ))
    }

    /// Continues `prompt`, as [`generate`] does.
    ///
    /// # Errors
    /// As [`generate`].
    pub(super) fn generate(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions<'_>,
        on_token: impl FnMut(u32) -> Result<()>,
    ) -> Result<Generation> {
        match self {
            Self::Alone(engine) => generate(&mut **engine, prompt, options, on_token),
            Self::Guessing(scheduler) => generate_scheduled(scheduler, prompt, options, on_token),
        }
    }

    /// How good the guesses were so far, where there are any.
    pub(super) fn guesses(&self) -> Option<Guesses> {
        match self {
            Self::Alone(_) => None,
            Self::Guessing(scheduler) => Some(Guesses::of(&scheduler.counters())),
        }
    }
}

/// How good guesses were.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Guesses {
    /// Steps that computed guessed tokens.
    drafts: u64,
    /// Tokens that were guessed and computed.
    draft_tokens: u64,
    /// How many of those were right.
    accepted_tokens: u64,
    /// Guesses that ended in an error.
    failures: u64,
    /// Tokens that a step of the model gave.
    tokens_per_step: f64,
}

impl Guesses {
    fn of(counters: &Counters) -> Self {
        let generated = counters.generated_tokens;
        // Each step gives one token, and those that were guessed.
        let steps = generated.saturating_sub(counters.accepted_tokens).max(1);
        Self {
            drafts: counters.drafts,
            draft_tokens: counters.draft_tokens,
            accepted_tokens: counters.accepted_tokens,
            failures: counters.draft_failures,
            tokens_per_step: generated as f64 / steps as f64,
        }
    }
}

impl fmt::Display for Guesses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            ", {:.2} tokens a step ({} of {} guessed ones right)",
            self.tokens_per_step,
            count(self.accepted_tokens),
            count(self.draft_tokens)
        )?;
        match self.failures {
            0 => Ok(()),
            failures => write!(f, ", {} guesses failed", count(failures)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_read() {
        let method = |text: &str| text.parse::<Method>();
        assert_eq!(method("ngram"), Ok(Method::Ngram(NGRAM_TOKENS)));
        assert_eq!(method("ngram:3"), Ok(Method::Ngram(3)));
        for text in [
            "",
            "ngram:",
            "ngram:0",
            "ngram:x",
            "model",
            "ngrams",
            "ngram:1:2",
        ] {
            assert!(method(text).is_err(), "{text}");
        }
    }

    #[test]
    fn tokens_a_step_follow_from_what_was_right() {
        let counters = Counters {
            generated_tokens: 30,
            drafts: 8,
            draft_tokens: 20,
            accepted_tokens: 10,
            ..Counters::default()
        };
        let guesses = Guesses::of(&counters);
        assert_eq!(guesses.tokens_per_step, 1.5);
        let text = guesses.to_string();
        assert_eq!(text, ", 1.50 tokens a step (10 of 20 guessed ones right)");
        assert_eq!(Guesses::of(&Counters::default()).tokens_per_step, 0.0);
    }
}
