//! What guessed tokens gain at most and cost at least: steps of one sequence without them, with
//! guesses that all come true, and with guesses of which none does.

use std::time::Instant;

use serde::Serialize;

use super::{BenchOptions, ms, synthetic_prompt};
use smq_engine::serve::{Asked, BatchEngine, Drafter, Event, Request, RequestId, Scheduler};
use smq_engine::{Error, Result, Summary};

/// What is guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Guesses {
    /// Nothing.
    None,
    /// What comes.
    Right,
    /// Something else.
    Wrong,
}

/// What steps with such guesses took.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct GuessesReport {
    /// What was guessed.
    pub guesses: Guesses,
    /// Each step behind the first token, milliseconds, over all repeats.
    pub step_ms: Summary,
    /// Tokens that a step gave.
    pub tokens_per_step: f64,
    /// Tokens guessed a step.
    pub guessed_per_step: f64,
    /// Tokens over the time of all steps.
    pub decode_tokens_per_s: f64,
}

/// Guesses a text that is known, or other tokens in its place.
struct Oracle {
    text: Vec<u32>,
    vocab: u32,
    right: bool,
}

impl Oracle {
    /// Up to `most` tokens behind the first `known`.
    fn guess(&self, known: usize, most: usize) -> Vec<u32> {
        let rest = self.text.iter().skip(known).take(most);
        let guess = |token: &u32| match self.right {
            true => *token,
            false => (token + 1) % self.vocab,
        };
        rest.map(guess).collect()
    }
}

impl Drafter for Oracle {
    fn draft(&mut self, asked: &[Asked<'_>]) -> Vec<Result<Vec<u32>>> {
        let one = |asked: &Asked<'_>| Ok(self.guess(asked.tokens.len(), asked.most));
        asked.iter().map(one).collect()
    }

    fn forget(&mut self, _: RequestId) {}

    fn cost(&self) -> f64 {
        0.0
    }
}

/// Times `engine` without guesses, with up to `most` right ones at a time, and with wrong ones. As
/// for any text, guesses that do not come true are made only as far as their account allows.
///
/// # Errors
/// [`Error::Input`] if the options ask for nothing, or for more than fits.
pub(crate) fn bench_guesses<E: BatchEngine>(
    engine: E,
    options: &BenchOptions,
    most: usize,
) -> Result<Vec<GuessesReport>> {
    let vocab = engine.config().vocab;
    let prompt = synthetic_prompt(options.prompt_tokens, vocab, options.seed);
    let mut scheduler = Scheduler::new(engine)?;
    let mut text: Vec<u32> = Vec::new();
    let mut reports = Vec::new();
    for guesses in [Guesses::None, Guesses::Right, Guesses::Wrong] {
        if guesses != Guesses::None {
            let oracle = Oracle {
                text: text.clone(),
                vocab: vocab as u32,
                right: guesses == Guesses::Right,
            };
            scheduler.speculate(oracle, most);
        }
        let (mut steps, mut tokens) = (Vec::new(), 0);
        let mut guessed = 0;
        for run in 0..options.warmup + options.repeats {
            let before = scheduler.counters().draft_tokens;
            let once = run_once(&mut scheduler, &prompt, options.output_tokens)?;
            if !text.is_empty() && once.text != text {
                let message = "another text with guesses than without: this is a fault";
                return Err(Error::Input(message.into()));
            }
            text = once.text;
            if run >= options.warmup {
                tokens += once.tokens;
                steps.extend(once.step_ms);
                guessed += scheduler.counters().draft_tokens - before;
            }
        }
        let nothing = || Error::Input("nothing was timed: no steps behind a first token".into());
        let total: f64 = steps.iter().sum();
        reports.push(GuessesReport {
            guesses,
            step_ms: Summary::of(&steps).ok_or_else(nothing)?,
            tokens_per_step: tokens as f64 / steps.len() as f64,
            guessed_per_step: guessed as f64 / steps.len() as f64,
            decode_tokens_per_s: tokens as f64 / total * 1e3,
        });
    }
    Ok(reports)
}

/// A text, the prompt before it, and the steps behind its first token.
struct Once {
    text: Vec<u32>,
    step_ms: Vec<f64>,
    /// Tokens of these steps.
    tokens: usize,
}

fn run_once<E: BatchEngine>(
    scheduler: &mut Scheduler<E>,
    prompt: &[u32],
    output_tokens: usize,
) -> Result<Once> {
    scheduler.submit(Request::new(prompt.to_vec(), output_tokens))?;
    let (mut text, mut step_ms, mut tokens) = (prompt.to_vec(), Vec::new(), 0);
    while !scheduler.is_idle() {
        let before = Instant::now();
        let events = scheduler.step();
        let took = before.elapsed();
        let is_first = text.len() == prompt.len();
        let mut new = 0;
        for event in events {
            match event {
                Event::Token { token, .. } => {
                    text.push(token);
                    new += 1;
                }
                Event::Failed { error, .. } => return Err(error),
                Event::Prompt { .. } | Event::Finished { .. } => {}
            }
        }
        if new > 0 && !is_first {
            step_ms.push(ms(took));
            tokens += new;
        }
    }
    Ok(Once {
        text,
        step_ms,
        tokens,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_oracle_guesses_what_comes_or_something_else() {
        let mut oracle = Oracle {
            text: vec![1, 2, 3, 4],
            vocab: 5,
            right: true,
        };
        assert_eq!(oracle.guess(1, 2), [2, 3]);
        assert_eq!(oracle.guess(3, 8), [4]);
        assert!(oracle.guess(4, 8).is_empty());
        oracle.right = false;
        assert_eq!(oracle.guess(2, 4), [4, 0]);
    }
}
