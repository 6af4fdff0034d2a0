//! A device that computes no model, and checks everything that it is given.
//!
//! What it stores for a token is a hash of all tokens up to it and of LongRoPE's factors, and what
//! it answers follows from that hash alone. Whoever hands it the wrong page, a page that was
//! overwritten, or one whose tokens were computed with the other factors gets caught here or has
//! other tokens than [`alone`] has.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use smq_engine::generate::Stop;
use smq_engine::sample::{Adjustments, Sampler};
use smq_engine::serve::{BatchEngine, Choice, Chosen, Chunk, Computed, LogProbs, Request};
use smq_engine::{Error, KvCacheFormat, Result};
use smq_model::{ModelConfig, RopeScaling};

use super::common::{Output, fixture, mix};

pub(crate) const VOCAB: usize = 40;

#[derive(Debug, Clone, Copy, PartialEq)]
struct Slot {
    token: u32,
    position: usize,
    state: u64,
}

pub(crate) struct Fake {
    pub(crate) config: ModelConfig,
    pub(crate) page_tokens: usize,
    pub(crate) rows: usize,
    pub(crate) step_tokens: usize,
    pub(crate) draft_cost: f64,
    slots: Vec<Option<Slot>>,
    /// Of every step the chunks and the tokens of all of them.
    pub(crate) steps: Vec<(usize, usize)>,
    /// Whether steps fail.
    pub(crate) broken: Arc<AtomicBool>,
}

/// The fixture's config with a small vocabulary, and contexts of so many tokens.
pub(crate) fn config(max_positions: usize, original: usize) -> ModelConfig {
    let mut config = ModelConfig::of(&fixture()).unwrap();
    config.vocab = VOCAB;
    config.max_positions = max_positions;
    match &mut config.rope.scaling {
        RopeScaling::LongRope {
            original_positions, ..
        } => *original_positions = original,
        other => panic!("the fixture has LongRoPE, not {other:?}"),
    }
    config
}

impl Fake {
    pub(crate) fn new(config: ModelConfig, pages: usize, page_tokens: usize) -> Self {
        Self {
            config,
            page_tokens,
            rows: 8,
            step_tokens: 24,
            draft_cost: 0.2,
            slots: vec![None; pages * page_tokens],
            steps: Vec::new(),
            broken: Arc::default(),
        }
    }

    fn slot(&self, chunk: &Chunk<'_>, position: usize) -> usize {
        chunk.pages[position / self.page_tokens] as usize * self.page_tokens
            + position % self.page_tokens
    }

    fn compute(&mut self, chunk: &mut Chunk<'_>) -> Result<Computed> {
        let mut state = u64::from(chunk.long) + 1;
        for position in 0..chunk.past {
            let slot = self.slots[self.slot(chunk, position)].expect("a page is read unwritten");
            state = after(state, slot.token);
            let expected = Slot {
                position,
                state,
                ..slot
            };
            assert_eq!(slot, expected, "a page holds other tokens than it should");
        }
        let mut computed = Computed::default();
        let mut failed = None;
        let known = chunk.tokens.len() - chunk.drafts;
        // Whether what was chosen so far is the draft's.
        let mut goes_on = true;
        for (i, token) in chunk.tokens.iter().enumerate() {
            state = after(state, *token);
            let position = chunk.past + i;
            let at = self.slot(chunk, position);
            self.slots[at] = Some(Slot {
                token: *token,
                position,
                state,
            });
            if let Some(scores) = &chunk.scores
                && let Some(target) = scores.targets.get(i)
            {
                match LogProbs::of(&logits(state), *target, scores.top) {
                    Ok(log_probs) => computed.scores.push(log_probs),
                    Err(error) => failed = Some(error),
                }
            }
            let row = (i + 1).checked_sub(known);
            if let (Some(choice), Some(row), true) = (&mut chunk.choice, row, goes_on) {
                match chosen(choice, row, &logits(state)) {
                    Ok(chosen) => {
                        goes_on = chunk.tokens.get(i + 1) == Some(&chosen.token);
                        computed.chosen.push(chosen);
                    }
                    Err(error) if row == 0 => failed = failed.or(Some(error)),
                    Err(_) => goes_on = false,
                }
            }
        }
        failed.map_or(Ok(computed), Err)
    }
}

/// Chooses behind `row` tokens of a draft.
fn chosen(choice: &mut Choice<'_>, row: usize, logits: &[f32]) -> Result<Chosen> {
    let words = VOCAB.div_ceil(32);
    let allowed = choice
        .allowed
        .map(|all| &all[row * words..(row + 1) * words]);
    let token = choice.sampler.sample_allowed(logits, allowed)?;
    let log_probs = choice.top.map(|top| LogProbs::of(logits, token, top));
    Ok(Chosen {
        token,
        log_probs: log_probs.transpose()?,
    })
}

/// The state behind one more token.
fn after(state: u64, token: u32) -> u64 {
    mix(state ^ mix(u64::from(token) + 7))
}

pub(crate) fn state_of(tokens: &[u32], long: bool) -> u64 {
    let start = u64::from(long) + 1;
    tokens
        .iter()
        .fold(start, |state, token| after(state, *token))
}

/// What a state says of the next token; one in 500 is damaged.
pub(crate) fn logits(state: u64) -> Vec<f32> {
    let logit = |id: usize| (mix(state ^ (id as u64 + 1) << 17) % 1000) as f32 / 100.0;
    let mut logits: Vec<f32> = (0..VOCAB).map(logit).collect();
    if state.is_multiple_of(500) {
        logits[3] = f32::NAN;
    }
    logits
}

impl BatchEngine for Fake {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn device(&self) -> &'static str {
        "fake"
    }

    fn page_tokens(&self) -> usize {
        self.page_tokens
    }

    fn pages(&self) -> usize {
        self.slots.len() / self.page_tokens
    }

    fn kv_format(&self) -> KvCacheFormat {
        KvCacheFormat::F32
    }

    fn max_rows(&self) -> usize {
        self.rows
    }

    fn step_tokens(&self) -> usize {
        self.step_tokens
    }

    fn draft_cost(&self) -> f64 {
        self.draft_cost
    }

    fn step(&mut self, chunks: &mut [Chunk<'_>]) -> Result<Vec<Result<Computed>>> {
        assert!(!chunks.is_empty() && chunks.len() <= self.rows);
        let tokens: usize = chunks.iter().map(|chunk| chunk.tokens.len()).sum();
        let more = chunks.len() + self.page_tokens;
        assert!(tokens <= self.step_tokens.max(more), "{tokens} tokens");
        self.steps.push((chunks.len(), tokens));
        let mut written = HashSet::new();
        for chunk in chunks.iter() {
            assert!(chunk.tokens.len() > chunk.drafts);
            assert!(chunk.drafts == 0 || chunk.scores.is_none() && chunk.choice.is_some());
            let end = chunk.past + chunk.tokens.len();
            assert_eq!(chunk.pages.len(), end.div_ceil(self.page_tokens));
            for page in &chunk.pages[chunk.past / self.page_tokens..] {
                assert!(written.insert(*page), "two chunks write page {page}");
            }
        }
        for chunk in chunks.iter() {
            let read = &chunk.pages[..chunk.past / self.page_tokens];
            let clash = read.iter().find(|page| written.contains(page));
            assert_eq!(clash, None, "a page is read while another chunk writes it");
        }
        if self.broken.load(Ordering::Relaxed) {
            self.slots.fill(None);
            return Err(Error::Cuda("the device fell off the bus".into()));
        }
        Ok(chunks.iter_mut().map(|chunk| self.compute(chunk)).collect())
    }
}

/// A request to the fake, which can be made again.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    pub(crate) prompt: Vec<u32>,
    pub(crate) most: usize,
    pub(crate) json: String,
    pub(crate) adjustments: Adjustments,
    pub(crate) stop_ids: Vec<u32>,
    pub(crate) log_probs: Option<usize>,
    pub(crate) prompt_log_probs: Option<usize>,
    pub(crate) seed: u64,
}

impl Asked {
    pub(crate) fn request(&self) -> Request {
        let mut request = Request::new(self.prompt.clone(), self.most);
        if !self.json.is_empty() {
            request.settings =
                smq_model::GenerationSettings::from_json(self.json.as_bytes()).unwrap();
        }
        request.adjustments = self.adjustments.clone();
        request.stop_ids = self.stop_ids.clone();
        request.log_probs = self.log_probs;
        request.prompt_log_probs = self.prompt_log_probs;
        request.seed = self.seed;
        request
    }
}

/// What a request has on a fake of its own, by the definition: every token anew from all tokens
/// before it, and LongRoPE's factors by their number.
pub(crate) fn alone(asked: &Asked, config: &ModelConfig, arena_tokens: usize) -> Output {
    let request = asked.request();
    let (n, limit) = (asked.prompt.len(), config.max_positions.min(arena_tokens));
    let mut output = Output::default();
    let not_finite = |error: Error| Some(error.to_string());
    if let Some(top) = request.prompt_log_probs {
        for i in 1..n {
            let state = state_of(&asked.prompt[..i], config.rope.is_long(n));
            match LogProbs::of(&logits(state), asked.prompt[i], top) {
                Ok(log_probs) => output.prompt.push(log_probs),
                Err(error) => {
                    output.failed = not_finite(error);
                    return output;
                }
            }
        }
    }
    let mut sampler = Sampler::new(
        &request.settings,
        &asked.prompt,
        asked.most,
        VOCAB,
        asked.seed,
    )
    .unwrap()
    .adjusted(&asked.adjustments, VOCAB)
    .unwrap();
    let mut tokens = asked.prompt.clone();
    let most = asked.most.min(limit - n + 1);
    while output.tokens.len() < most {
        let logits = logits(state_of(&tokens, config.rope.is_long(tokens.len())));
        let token = match sampler.sample(&logits) {
            Ok(token) => token,
            Err(error) => {
                output.failed = not_finite(error);
                return output;
            }
        };
        if asked.stop_ids.contains(&token) || request.settings.eos_ids.contains(&token) {
            (output.stop, output.ended_by) = (Some(Stop::EndOfSequence), Some(token));
            return output;
        }
        if let Some(top) = asked.log_probs {
            output
                .log_probs
                .push(LogProbs::of(&logits, token, top).unwrap());
        }
        output.tokens.push(token);
        tokens.push(token);
    }
    output.stop = Some(match most < asked.most {
        true => Stop::ContextFull,
        false => Stop::MaxNewTokens,
    });
    output
}
