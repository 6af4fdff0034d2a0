//! Timed generation of many sequences at once, over the same path as `serve`.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::{ms, synthetic_prompt};
use smq_engine::serve::{BatchEngine, Event, Request, Scheduler};
use smq_engine::{Error, Result, Summary};

/// What to time, and with how many sequences.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct SequencesOptions {
    /// Numbers of sequences, each timed by itself.
    pub sequences: Vec<usize>,
    /// Tokens of each prompt.
    pub prompt_tokens: usize,
    /// Tokens generated after each; end-of-sequence tokens do not stop them.
    pub output_tokens: usize,
    /// Runs that are not counted.
    pub warmup: usize,
    /// Runs that are timed.
    pub repeats: usize,
}

/// What so many sequences took.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct SequencesReport {
    /// Sequences that were begun together.
    pub sequences: usize,
    /// From their start until each had its first token, milliseconds, over repeats.
    pub all_first_tokens_ms: Summary,
    /// Prompt tokens a second until then, mean over repeats.
    pub prompt_tokens_per_s: f64,
    /// Each step that gave every sequence one token, milliseconds, over all repeats.
    pub step_ms: Option<Summary>,
    /// Tokens of all sequences a second: `sequences` over the median step.
    pub decode_tokens_per_s: Option<f64>,
}

/// Times `engine` with each number of sequences in turn. Prompts differ from each other and from
/// run to run, so that no pages are shared.
///
/// # Errors
/// [`Error::Input`] if the options ask for nothing, or for more than fits at once.
pub(crate) fn bench_sequences<E: BatchEngine>(
    engine: E,
    options: &SequencesOptions,
) -> Result<Vec<SequencesReport>> {
    let o = options;
    let vocab = engine.config().vocab;
    let (pages, page_tokens, rows) = (engine.pages(), engine.page_tokens(), engine.max_rows());
    let pages_each = (o.prompt_tokens + o.output_tokens).div_ceil(page_tokens);
    for n in &o.sequences {
        if *n == 0 || *n > rows || n.saturating_mul(pages_each) > pages {
            return Err(Error::Input(format!(
                "{n} sequences of {} tokens were asked for; at once the engine runs 1 to {rows}, \
                 and the KV cache has room for {} of that length",
                o.prompt_tokens + o.output_tokens,
                pages / pages_each
            )));
        }
    }
    let mut scheduler = Scheduler::new(engine)?;
    let mut seed = 0;
    let mut reports = Vec::with_capacity(o.sequences.len());
    for &n in &o.sequences {
        let (mut firsts, mut steps) = (Vec::new(), Vec::new());
        for run in 0..o.warmup + o.repeats {
            for _ in 0..n {
                seed += 1;
                let prompt = synthetic_prompt(o.prompt_tokens, vocab, seed);
                scheduler.submit(Request::new(prompt, o.output_tokens))?;
            }
            let (first, each) = run_all(&mut scheduler, n)?;
            if run >= o.warmup {
                firsts.push(ms(first));
                steps.extend(each.into_iter().map(ms));
            }
        }
        let nothing = || Error::Input("nothing was timed: no repeats asked for".into());
        let all_first_tokens_ms = Summary::of(&firsts).ok_or_else(nothing)?;
        let step_ms = Summary::of(&steps);
        reports.push(SequencesReport {
            sequences: n,
            all_first_tokens_ms,
            prompt_tokens_per_s: (n * o.prompt_tokens) as f64 / all_first_tokens_ms.mean * 1e3,
            step_ms,
            decode_tokens_per_s: step_ms.map(|step| n as f64 / step.p50 * 1e3),
        });
    }
    Ok(reports)
}

/// Runs what was submitted to its end: the time until all `n` had a token, and that of each step
/// that gave all of them one.
fn run_all<E: BatchEngine>(
    scheduler: &mut Scheduler<E>,
    n: usize,
) -> Result<(Duration, Vec<Duration>)> {
    let start = Instant::now();
    let (mut first, mut steps) = (None, Vec::new());
    let mut begun = std::collections::HashSet::new();
    while !scheduler.is_idle() {
        let before = Instant::now();
        let events = scheduler.step();
        let took = before.elapsed();
        let mut tokens = 0;
        for event in events {
            match event {
                Event::Token { id, .. } => {
                    tokens += 1;
                    begun.insert(id);
                }
                Event::Failed { error, .. } => return Err(error),
                Event::Prompt { .. } | Event::Finished { .. } => {}
            }
        }
        match first {
            None if begun.len() == n => first = Some(start.elapsed()),
            Some(_) if tokens == n => steps.push(took),
            None | Some(_) => {}
        }
    }
    let first = first.ok_or_else(|| Error::Input("not every sequence got a token".into()))?;
    Ok((first, steps))
}
