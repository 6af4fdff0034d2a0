//! Many sequences on the GPU: keys and values in pages, one step for all of them.
//!
//! A step runs the kernels of prompts over the rows of all its chunks. Attention takes each
//! sequence's rows in tiles of 64 over keys in pages of 64, from the first page on, and products add
//! up in one order for any number of rows: those of FP8 by cuBLASLt's algorithm for one number of
//! rows, which would choose another one for another number. So a row's result has the same bits
//! whatever it is computed beside. Only with `BatchOptions::fast_nondeterministic` does a sequence
//! that is alone take another kernel, in an arithmetic of its own (`alone.rs`).
//!
//! Steps of single tokens are recorded as CUDA graphs, one for each number of rows up to 8, then in
//! steps of 8 and of 32, apart for steps with drafts among them. Rows that fill a recorded step up
//! write to a page of their own.

mod alone;
mod choose;
mod inputs;
mod load;

use std::collections::HashMap;

use super::decode::Parts;
use super::graph::Graph;
use super::kernels::Kernels;
use super::kv::Cache;
use super::memory::{DeviceBuffer, Span};
use super::pinned::PinnedBuffer;
use super::prefill::attention::KEYS;
use super::prefill::{Prefill, STEP_ROWS, StepInputs, Tiles, WANTED_ROWS};
use super::state::State;
use super::weights::DeviceModel;
use crate::engine::{check_ids, check_len};
use crate::error::{Error, Result};
use crate::kv::KvCacheFormat;
use crate::report::GpuInfo;
use crate::sample::{Sampler, not_finite};
use crate::serve::{BatchEngine, Chosen, Chunk, Computed, choose};
use alone::Alone;
pub use choose::choose_defines;
use choose::{Chooser, MOST_TOPS, Rows, log_probs, token};
use inputs::{Inputs, Layout, bucket};
use smq_model::ModelConfig;

/// What a draft's token adds to a step of one token, as a part of it. A step of 64 sequences takes
/// 3.6 times as long as one of a single sequence (int4 on an H200, results/h200-serve.md), 0.04 for
/// each further row.
const DRAFT_COST: f64 = 0.05;

/// A model on an NVIDIA GPU, with the pages of many sequences.
#[derive(Debug)]
pub struct CudaBatch {
    config: ModelConfig,
    info: GpuInfo,
    // Before the memory and the kernels that are recorded in them.
    /// By their numbers of rows, and whether drafts are among them.
    graphs: HashMap<(usize, bool), Recorded>,
    /// Runs a sequence alone, where it may take an arithmetic of its own.
    alone: Option<Alone>,
    /// Of the last step, f32 `[wanted, vocab]`.
    logits_at: Span,
    chooser: Chooser,
    prefill: Prefill,
    kernels: Kernels,
    model: DeviceModel,
    state: State,
    cache: Cache,
    pages: usize,
    max_rows: usize,
    inv_freq: DeviceBuffer,
    /// A step's arrays on the host, and there.
    staged: PinnedBuffer,
    arrays: DeviceBuffer,
    /// A row of logits that the host chooses from.
    logits: Vec<f32>,
    /// What is asked of rows of logits.
    asked: Rows,
    _pages: DeviceBuffer,
}

/// A step of so many rows.
#[derive(Debug)]
enum Recorded {
    /// It ran once, so that everything is compiled.
    Seen,
    Graph(Graph),
}

/// What a chunk's rows of logits are for.
enum Wanted {
    /// Scores of a chunk, one row each.
    Score(usize),
    /// The choice of a chunk's token behind `row` tokens of its draft: on the GPU, or from logits on
    /// the host.
    Choice {
        chunk: usize,
        row: usize,
        on_host: bool,
    },
}

impl CudaBatch {
    fn parts(&self) -> Parts<'_> {
        Parts {
            kernels: &self.kernels,
            config: &self.config,
            model: &self.model,
            state: &self.state,
            cache: &self.cache,
        }
    }

    /// Copies the arrays of a step to the GPU and queues its layers, and the logits of its first
    /// wanted rows.
    fn queue(&mut self, inputs: &mut Inputs, wants: usize) -> Result<()> {
        let single = inputs.tiles.len() == inputs.tokens.len()
            && inputs.wanted.len() == inputs.tokens.len()
            && inputs.tokens.len() <= WANTED_ROWS;
        if single {
            inputs.fill_up(bucket(inputs.tokens.len()), self.pages * KEYS);
        }
        let (rows, tiles) = (inputs.tokens.len(), inputs.tiles.len());
        let layout = Layout::new(rows, tiles, inputs.wanted.len())?;
        let bytes = layout.write(inputs, self.staged.as_mut_slice())?;
        let stream = self.kernels.gpu().main().clone();
        let arrays = self.arrays.span().part(0, bytes)?;
        // SAFETY: nothing writes to the pinned memory before the stream was waited for, at the end
        // of every step.
        unsafe { arrays.copy_from(&stream, &self.staged.as_slice::<u8>()[..bytes])? };
        if let (true, [token], [place]) = (single, &inputs.tokens[..], &inputs.places[..])
            && let Some(mut alone) = self.alone.take()
        {
            let place = (*token, place.position, place.long != 0);
            let logits = alone.run(&self.parts(), place);
            self.alone = Some(alone);
            self.logits_at = logits?;
            return Ok(());
        }
        self.logits_at = self.prefill.logits_span()?;
        let at = |offset: usize| arrays.ptr() + offset as u64;
        let step = StepInputs {
            rows,
            single,
            drafted: inputs.drafted,
            tokens: at(layout.tokens),
            places: at(layout.places),
            tiles: Tiles {
                tiles: at(layout.tiles),
                count: tiles,
                tables: at(layout.tables),
            },
            inv_freq: [0, 1].map(|i| {
                let of_one = 4 * 2 * (self.config.rope.rotary_dim / 2);
                self.inv_freq.ptr() + (i * of_one) as u64
            }),
        };
        let count = if single { rows } else { wants.min(WANTED_ROWS) };
        let queue = |this: &Self| {
            let parts = this.parts();
            this.prefill.step(&parts, &step)?;
            match count {
                0 => Ok(()),
                _ => this.prefill.step_logits(&parts, at(layout.wanted), count),
            }
        };
        if !single {
            return queue(self);
        }
        let shape = (rows, inputs.drafted);
        match self.graphs.get(&shape) {
            Some(Recorded::Graph(graph)) => graph.launch(&stream),
            Some(Recorded::Seen) => {
                // What another engine of the process asks of the driver meanwhile can spoil a
                // recording. Then this step is queued as it is, and the next one is recorded.
                let Ok(graph) = Graph::capture(&stream, |_| queue(self)) else {
                    return queue(self);
                };
                graph.launch(&stream)?;
                self.graphs.insert(shape, Recorded::Graph(graph));
                Ok(())
            }
            None => {
                queue(self)?;
                self.graphs.insert(shape, Recorded::Seen);
                Ok(())
            }
        }
    }

    fn run(
        &mut self,
        chunks: &mut [Chunk<'_>],
        meanwhile: &mut dyn FnMut(),
    ) -> Result<Vec<Result<Computed>>> {
        let mut out: Vec<Result<Computed>> = Vec::with_capacity(chunks.len());
        let (mut inputs, mut wanted) = (Inputs::default(), Vec::new());
        for (index, chunk) in chunks.iter().enumerate() {
            out.push(self.check(chunk).map(|()| Computed::default()));
            if out[index].is_err() {
                continue;
            }
            let first = inputs.push(chunk);
            if let Some(scores) = &chunk.scores {
                for i in 0..scores.targets.len() {
                    inputs.wanted.push((first + i) as i32);
                    wanted.push(Wanted::Score(index));
                }
            }
            if chunk.choice.is_some() {
                let first = first + chunk.tokens.len() - 1 - chunk.drafts;
                for row in 0..=chunk.drafts {
                    inputs.wanted.push((first + row) as i32);
                    wanted.push(Wanted::Choice {
                        chunk: index,
                        row,
                        on_host: false,
                    });
                }
            }
        }
        if inputs.tokens.is_empty() {
            return Ok(out);
        }
        let rows: Vec<i32> = inputs.wanted.clone();
        self.queue(&mut inputs, rows.len())?;
        for (block, wanted) in wanted.chunks_mut(WANTED_ROWS).enumerate() {
            if block > 0 {
                self.next_logits(&rows[block * WANTED_ROWS..][..wanted.len()])?;
            }
            self.choose(chunks, wanted, &mut out, meanwhile)?;
        }
        if wanted.is_empty() {
            meanwhile();
        }
        self.kernels.gpu().main().synchronize()?;
        Ok(out)
    }

    /// Queues the logits of these rows of the step.
    fn next_logits(&mut self, rows: &[i32]) -> Result<()> {
        let stream = self.kernels.gpu().main();
        let at = self.arrays.span().part(0, size_of_val(rows))?;
        // SAFETY: pageable memory is read before the call returns; the step's arrays are not needed
        // any more, which the stream's order sees to.
        unsafe { at.copy_from(stream, rows)? };
        self.prefill
            .step_logits(&self.parts(), at.ptr(), rows.len())
    }

    /// Chooses and scores by the rows of logits that are queued.
    fn choose(
        &mut self,
        chunks: &mut [Chunk<'_>],
        wanted: &mut [Wanted],
        out: &mut [Result<Computed>],
        meanwhile: &mut dyn FnMut(),
    ) -> Result<()> {
        let vocab = self.config.vocab;
        let mut rows = std::mem::take(&mut self.asked);
        rows.clear();
        let mut most = 0;
        let mut scored = vec![0; chunks.len()];
        let mut ahead = None;
        for want in wanted.iter_mut() {
            match want {
                Wanted::Score(chunk) => {
                    let (Some(scores), Ok(done)) = (&chunks[*chunk].scores, &out[*chunk]) else {
                        rows.score(0, 0);
                        continue;
                    };
                    let target = scores.targets[done.scores.len() + scored[*chunk]];
                    scored[*chunk] += 1;
                    rows.score(target, scores.top);
                    most = most.max(scores.top);
                }
                Wanted::Choice {
                    chunk: index,
                    row,
                    on_host,
                } => {
                    let chunk = &mut chunks[*index];
                    let done = out[*index].as_ref().map_or(&[][..], |done| &done.chosen);
                    let goes_on = out[*index].is_ok() && done.len() <= *row && chunk.goes_on(done);
                    let draft = &chunk.tokens[chunk.tokens.len() - chunk.drafts..];
                    let Some(choice) = chunk.choice.as_mut().filter(|_| goes_on) else {
                        rows.score(0, 0);
                        continue;
                    };
                    let top = choice.top.unwrap_or(0);
                    let allowed = choice.allowed_at(*row, vocab);
                    let sampler = sampler_at(choice.sampler, draft, (done.len(), *row), &mut ahead);
                    match sampler.plan() {
                        Some(plan) if top <= MOST_TOPS => {
                            rows.choose(&plan, allowed, top, vocab);
                            most = most.max(top);
                        }
                        Some(_) | None => {
                            *on_host = true;
                            rows.score(0, 0);
                        }
                    }
                }
            }
        }
        let logits = self.logits_at;
        // SAFETY: the logits are this engine's, and hold WANTED_ROWS rows, or the one that is
        // wanted.
        let (chosen, tops) = unsafe {
            self.chooser
                .run(&self.kernels, &rows, logits.ptr(), most > 0, meanwhile)?
        };
        self.asked = rows;
        for (row, (want, chosen)) in wanted.iter().zip(chosen).enumerate() {
            let tops = tops.get(row * MOST_TOPS..).unwrap_or(&[]);
            match *want {
                Wanted::Score(chunk) => {
                    let Some(scores) = &chunks[chunk].scores else {
                        continue;
                    };
                    let result = log_probs(chosen, tops, scores.top);
                    let computed = std::mem::replace(&mut out[chunk], Err(not_finite()));
                    out[chunk] = computed.and_then(|mut computed| {
                        computed.scores.push(result?);
                        Ok(computed)
                    });
                }
                Wanted::Choice {
                    chunk,
                    row: behind,
                    on_host,
                } => {
                    let counts = matches!(&out[chunk], Ok(done)
                        if done.chosen.len() == behind && chunks[chunk].goes_on(&done.chosen));
                    let Some(choice) = chunks[chunk].choice.as_mut().filter(|_| counts) else {
                        continue;
                    };
                    let result = if on_host {
                        self.logits.resize(vocab, 0.0);
                        let stream = self.kernels.gpu().main();
                        let from = logits.part(4 * row * vocab, 4 * vocab)?;
                        // SAFETY: the stream is waited for before the row is read.
                        unsafe { from.copy_to(stream, &mut self.logits)? };
                        stream.synchronize()?;
                        choose(choice, behind, &self.logits)
                    } else {
                        let top = choice.top;
                        token(chosen)
                            .map(|token| {
                                choice.sampler.accept(token);
                                let log_probs = top.map(|top| log_probs(chosen, tops, top));
                                (token, log_probs)
                            })
                            .and_then(|(token, log_probs)| {
                                Ok(Chosen {
                                    token,
                                    log_probs: log_probs.transpose()?,
                                })
                            })
                    };
                    match (&mut out[chunk], result) {
                        (Ok(computed), Ok(chosen)) => computed.chosen.push(chosen),
                        // What came before it counts; this row is the next step's first, and fails
                        // there.
                        (Ok(_), Err(_)) if behind > 0 => {}
                        (out, Err(error)) => *out = Err(error),
                        (Err(_), Ok(_)) => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// Refuses what is not a chunk of this model.
    fn check(&self, chunk: &Chunk<'_>) -> Result<()> {
        let targets = chunk.scores.as_ref().map_or(&[][..], |s| s.targets);
        check_ids(&self.config, chunk.tokens.iter().chain(targets))?;
        let len = chunk.past + chunk.tokens.len();
        check_len(&self.config, len)?;
        let inside = chunk.pages.iter().all(|page| (*page as usize) < self.pages);
        let scored = targets.len() <= chunk.tokens.len();
        if chunk.tokens.len() <= chunk.drafts
            || chunk.pages.len() * KEYS < len
            || !inside
            || !scored
        {
            return Err(Error::Input(format!(
                "a chunk of {} tokens behind {}, of which {} are scored and {} a draft, has {} pages of {KEYS} tokens among {}",
                chunk.tokens.len(),
                chunk.past,
                targets.len(),
                chunk.drafts,
                chunk.pages.len(),
                self.pages
            )));
        }
        Ok(())
    }
}

impl BatchEngine for CudaBatch {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn device(&self) -> &'static str {
        "cuda"
    }

    fn gpu(&self) -> Option<&GpuInfo> {
        Some(&self.info)
    }

    fn page_tokens(&self) -> usize {
        KEYS
    }

    fn pages(&self) -> usize {
        self.pages
    }

    fn kv_format(&self) -> KvCacheFormat {
        KvCacheFormat::Coded(self.cache.code)
    }

    fn max_rows(&self) -> usize {
        self.max_rows
    }

    fn step_tokens(&self) -> usize {
        STEP_ROWS
    }

    fn draft_cost(&self) -> f64 {
        DRAFT_COST
    }

    fn step(&mut self, chunks: &mut [Chunk<'_>]) -> Result<Vec<Result<Computed>>> {
        self.step_while(chunks, &mut || ())
    }

    fn step_while(
        &mut self,
        chunks: &mut [Chunk<'_>],
        meanwhile: &mut dyn FnMut(),
    ) -> Result<Vec<Result<Computed>>> {
        let rows: usize = chunks.iter().map(|c| c.tokens.len()).sum();
        if chunks.len() > WANTED_ROWS || rows > STEP_ROWS {
            return Err(Error::Input(format!(
                "a step of {} sequences and {rows} tokens was asked for, expected at most {WANTED_ROWS} and {STEP_ROWS}",
                chunks.len()
            )));
        }
        self.run(chunks, meanwhile)
    }
}

/// The sampler of a chunk, as it will be behind `row` tokens of its draft if all of them are chosen;
/// it is behind `done` of them now. Rows of one chunk come one after the other, and `ahead` goes
/// from one to the next.
fn sampler_at<'s>(
    sampler: &'s mut Sampler,
    draft: &[u32],
    (done, row): (usize, usize),
    ahead: &'s mut Option<Sampler>,
) -> &'s mut Sampler {
    if row == done {
        *ahead = None;
        return sampler;
    }
    let known = ahead.is_some();
    let ahead = ahead.get_or_insert_with(|| sampler.clone());
    let from = if known { row - 1 } else { done };
    for token in &draft[from..row] {
        ahead.accept(*token);
    }
    ahead
}

impl Drop for CudaBatch {
    fn drop(&mut self) {
        // What was queued before an error uses memory that goes next.
        let _ = self.kernels.gpu().main().synchronize();
    }
}

#[cfg(test)]
mod tests;
