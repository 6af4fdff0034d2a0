//! The CPU engine for many sequences.

use rayon::prelude::*;
use smq_model::{ModelConfig, Source};

use super::batch::{BatchEngine, Chunk, Computed, LogProbs, choose};
use super::load::{BatchOptions, CPU_KV_TOKENS};
use crate::error::{Error, Result};
use crate::kv::KvCacheFormat;
use crate::model::{Arena, Decoder, Part};

/// Rows of logits that are held at a time: a vocabulary is wide.
const LOGIT_ROWS: usize = 64;
/// What a draft's token adds to a step of one token, as a part of it: 0.4 each of eight and 0.7 of
/// one, as measured (results/speculate).
const DRAFT_COST: f64 = 0.5;

/// The CPU reference with an arena of pages.
#[derive(Debug)]
pub struct CpuBatch<'a> {
    decoder: Decoder<'a>,
    arena: Arena,
    format: KvCacheFormat,
    pages: usize,
    options: BatchOptions,
}

impl<'a> CpuBatch<'a> {
    /// Loads a model; weights stay mapped. The arena takes memory as it is used.
    ///
    /// # Errors
    /// As [`Decoder::load`]; [`Error::Input`] for options that leave no room for a token.
    pub fn load(source: &'a Source, options: &BatchOptions) -> Result<Self> {
        let BatchOptions {
            page_tokens,
            kv_tokens,
            kv_cache,
            max_rows,
            step_tokens: _,
            max_tokens: _,
            fast_nondeterministic,
        } = *options;
        if fast_nondeterministic {
            return Err(Error::Input(
                "--fast-nondeterministic is of steps on a GPU; on the CPU nothing would be faster by it".into(),
            ));
        }
        let kv_tokens = kv_tokens.unwrap_or(CPU_KV_TOKENS);
        let format = kv_cache.unwrap_or(KvCacheFormat::F32);
        let pages = kv_tokens.checked_div(page_tokens).unwrap_or(0);
        if pages == 0 || max_rows == 0 {
            return Err(Error::Input(format!(
                "a cache of {kv_tokens} tokens in pages of {page_tokens} for {max_rows} sequences \
                 has no room, expected at least one page and one sequence"
            )));
        }
        let mut decoder = Decoder::load(source)?;
        if let Some(max_tokens) = options.max_tokens {
            decoder.limit(max_tokens);
        }
        let c = decoder.config();
        if let Some(limit) = c.rope.fixed_up_to().filter(|most| c.max_positions > *most) {
            // Each length has frequencies of its own there, so that what is cached of a sequence
            // depends on how it was cut.
            return Err(Error::Input(format!(
                "the model's dynamic rotary embedding changes with every token beyond {limit}, which \
                 many sequences at once do not do; give --context {limit}"
            )));
        }
        Ok(Self {
            arena: Arena::new(decoder.config(), format, pages, page_tokens),
            format,
            decoder,
            pages,
            options: options.clone(),
        })
    }

    /// Checks what indices would be made of.
    fn check(&self, chunks: &[Chunk<'_>]) -> Result<()> {
        for (i, chunk) in chunks.iter().enumerate() {
            let tokens = chunk.past + chunk.tokens.len();
            let room = chunk.pages.len() * self.options.page_tokens;
            if chunk.tokens.is_empty() || tokens > room {
                return Err(Error::Input(format!(
                    "chunk {i} has {} tokens behind {} others and pages for {room}, expected at \
                     least one token and room for all",
                    chunk.tokens.len(),
                    chunk.past
                )));
            }
            if let Some(page) = chunk
                .pages
                .iter()
                .find(|page| **page as usize >= self.pages)
            {
                let count = self.pages;
                return Err(Error::Input(format!(
                    "chunk {i} has page {page}, the cache has {count}"
                )));
            }
            if let Some(scores) = &chunk.scores
                && scores.targets.len() > chunk.tokens.len()
            {
                return Err(Error::Input(format!(
                    "chunk {i} has {} tokens to be scored behind {}",
                    scores.targets.len(),
                    chunk.tokens.len()
                )));
            }
            if chunk.drafts >= chunk.tokens.len() {
                return Err(Error::Input(format!(
                    "chunk {i} is a draft of {} tokens among {}, expected one token before it",
                    chunk.drafts,
                    chunk.tokens.len()
                )));
            }
            let vocab = self.decoder.config().vocab;
            let targets = chunk.scores.as_ref().map_or(&[][..], |s| s.targets);
            let mut ids = chunk.tokens.iter().chain(targets);
            if let Some(id) = ids.find(|id| **id as usize >= vocab) {
                return Err(Error::Input(format!(
                    "chunk {i} holds token id {id}, which is outside the model's vocabulary of \
                     {vocab}"
                )));
            }
        }
        Ok(())
    }
}

impl BatchEngine for CpuBatch<'_> {
    fn config(&self) -> &ModelConfig {
        self.decoder.config()
    }

    fn device(&self) -> &'static str {
        "cpu"
    }

    fn page_tokens(&self) -> usize {
        self.options.page_tokens
    }

    fn pages(&self) -> usize {
        self.pages
    }

    fn kv_format(&self) -> KvCacheFormat {
        self.format
    }

    fn max_rows(&self) -> usize {
        self.options.max_rows
    }

    fn step_tokens(&self) -> usize {
        self.options.step_tokens
    }

    fn draft_cost(&self) -> f64 {
        DRAFT_COST
    }

    fn step(&mut self, chunks: &mut [Chunk<'_>]) -> Result<Vec<Result<Computed>>> {
        self.check(chunks)?;
        let parts: Vec<_> = chunks
            .iter()
            .map(|chunk| Part {
                pages: chunk.pages,
                past: chunk.past,
                tokens: chunk.tokens,
                long: chunk.long,
                keep: match (&chunk.scores, &chunk.choice) {
                    (Some(_), _) => chunk.tokens.len(),
                    (None, Some(_)) => 1 + chunk.drafts,
                    (None, None) => 0,
                },
            })
            .collect();
        let keep: Vec<usize> = parts.iter().map(|part| part.keep).collect();
        let (decoder, arena) = (&self.decoder, &mut self.arena);
        let hidden = rayon::scope(|_| decoder.extend_many(arena, &parts))?;
        let mut results: Vec<Result<Computed>> =
            chunks.iter().map(|_| Ok(Computed::default())).collect();
        // Each chunk's rows, and how many are left of them.
        let mut rest: Vec<Taken<'_, '_>> = chunks
            .iter_mut()
            .zip(&mut results)
            .zip(keep)
            .map(|((chunk, result), left)| Taken {
                chunk,
                result,
                left,
            })
            .collect();
        let (width, vocab) = (decoder.config().hidden, decoder.config().vocab);
        for x in hidden.chunks(LOGIT_ROWS * width) {
            let logits = rayon::scope(|_| decoder.logits(x));
            let mut logits = &logits[..];
            let mut rows = Vec::new();
            for taken in rest.iter_mut().filter(|taken| taken.left > 0) {
                let count = taken.left.min(logits.len() / vocab);
                let (own, others) = logits.split_at(count * vocab);
                logits = others;
                rows.push((taken, own));
            }
            rows.into_par_iter()
                .for_each(|(taken, logits)| taken.take(logits, vocab));
        }
        Ok(results)
    }
}

/// A chunk whose logits come.
struct Taken<'c, 'a> {
    chunk: &'c mut Chunk<'a>,
    result: &'c mut Result<Computed>,
    /// Rows of logits that are still to come.
    left: usize,
}

impl Taken<'_, '_> {
    /// Takes the next rows of logits.
    fn take(&mut self, logits: &[f32], vocab: usize) {
        for logits in logits.chunks_exact(vocab) {
            self.left -= 1;
            if let Err(error) = self.row(logits) {
                *self.result = Err(error);
            }
        }
    }

    /// Takes the row behind which `left` others come.
    fn row(&mut self, logits: &[f32]) -> Result<()> {
        let Ok(computed) = &mut *self.result else {
            return Ok(());
        };
        let at = self.chunk.tokens.len() - 1 - self.left;
        if let Some(scores) = &self.chunk.scores
            && let Some(target) = scores.targets.get(at)
        {
            let log_probs = LogProbs::of(logits, *target, scores.top)?;
            computed.scores.push(log_probs);
        }
        let Some(row) = self.chunk.drafts.checked_sub(self.left) else {
            return Ok(());
        };
        if row == computed.chosen.len()
            && self.chunk.goes_on(&computed.chosen)
            && let Some(choice) = &mut self.chunk.choice
        {
            match choose(choice, row, logits) {
                Ok(chosen) => computed.chosen.push(chosen),
                // What came before it counts; this row is the next step's first, and fails there.
                Err(_) if row > 0 => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
