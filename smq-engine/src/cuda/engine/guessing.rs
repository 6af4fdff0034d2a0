//! Steps of one sequence that compute a guess, too: the engine as a scheduler drives it that has
//! its next tokens guessed. What it chooses is bit for bit what [`CudaEngine`] chooses without
//! guesses.

use std::sync::Arc;

use super::CudaEngine;
use crate::cuda::decode::{GuessingStep, Parts, STEP_ROWS, guessing_plan};
use crate::cuda::device::Gpu;
use crate::cuda::family::beyond_one_kernel;
use crate::cuda::limits;
use crate::cuda::weights::DeviceModel;
use crate::engine::{Engine, check_ids};
use crate::error::{Error, Result};
use crate::kv::{KvCacheFormat, KvCacheReport};
use crate::load::LoadOptions;
use crate::report::GpuInfo;
use crate::serve::{BatchEngine, BatchOptions, Chosen, Chunk, Computed, choose};
use smq_model::{ModelConfig, Source};

impl CudaEngine {
    /// Whether a guess can be computed behind `past` tokens and the one that follows them: behind
    /// many tokens, and where LongRoPE's factors change, a step of each would have another
    /// arithmetic.
    fn can_guess(&self, past: usize) -> bool {
        let step = self.sequence.as_ref().and_then(|s| s.step.as_ref());
        step.is_some_and(|step| past + STEP_ROWS <= step.alike_below())
            && self.has_room(past + STEP_ROWS)
    }

    /// Has the step with guesses of the cache that there is.
    fn prepare_guessing(&mut self) -> Result<()> {
        let gpu = self.kernels.gpu();
        let state = match &mut self.guessing {
            Some(state) => state,
            none => none.insert(self.state.beside(gpu, &self.config, STEP_ROWS)?),
        };
        if let Some(sequence) = &mut self.sequence
            && sequence.guessing.is_none()
        {
            sequence.guessing = Some(GuessingStep::new(&Parts {
                kernels: &self.kernels,
                config: &self.config,
                model: &self.model,
                state,
                cache: &sequence.cache,
            })?);
        }
        Ok(())
    }

    /// Queues a step of `token` and `guess`, which are appended. The step before is done.
    fn append_guessing(&mut self, token: u32, guess: u32) -> Result<()> {
        check_ids(&self.config, &[token, guess])?;
        self.prepare_guessing()?;
        self.go_to([self.tokens.len() as u32, self.steps, token])?;
        let step = self.sequence.as_ref().and_then(|s| s.guessing.as_ref());
        let step = step.ok_or_else(|| Error::Cuda("the sequence has no cache".into()))?;
        step.run(self.kernels.gpu().main(), guess)?;
        self.place = None;
        self.tokens.extend([token, guess]);
        Ok(())
    }
}

/// [`CudaEngine`] with guesses, for a scheduler of one sequence at a time.
#[derive(Debug)]
pub struct CudaGuessing {
    engine: CudaEngine,
    /// Of a guess, as a part of a step.
    cost: f64,
    /// Positions that there is room for at first.
    capacity: usize,
    logits: Vec<f32>,
}

impl CudaGuessing {
    /// Loads a model, as [`CudaEngine::load`] does; `None` for one that has no steps with guesses.
    ///
    /// # Errors
    /// As [`CudaEngine::load`].
    pub(crate) fn load_on(
        gpu: &Arc<Gpu>,
        source: &Source,
        options: &BatchOptions,
    ) -> Result<Option<Self>> {
        let sms = gpu.sm_count() as usize;
        let config = limits::config(source, options.max_tokens, sms)?;
        let sizes = DeviceModel::sizes(source, &config)?;
        let in_one_kernel = beyond_one_kernel(&config, sms).is_empty();
        // Where its scratch leaves the ring no room there is none.
        let Some(plan) = guessing_plan(&config, &sizes, sms)
            .ok()
            .filter(|_| in_one_kernel)
        else {
            return Ok(None);
        };
        let load = LoadOptions {
            max_tokens: options.max_tokens,
            kv_cache: options.kv_cache,
        };
        let mut engine = CudaEngine::load_on(gpu.clone(), source, &load)?;
        let capacity = options.kv_tokens.unwrap_or(config.max_positions);
        engine.start(capacity)?;
        engine.prepare_guessing()?;
        Ok(Some(Self {
            engine,
            cost: plan.guess_cost(),
            capacity,
            logits: Vec::new(),
        }))
    }

    /// Computes a chunk. The outer error is the device's.
    fn compute(&mut self, chunk: &mut Chunk<'_>) -> Result<Result<Computed>> {
        if chunk.scores.is_some() {
            let message = "the engine of one sequence with guesses scores no prompts";
            return Ok(Err(Error::Input(message.into())));
        }
        match chunk.past {
            0 => self.engine.start(self.capacity)?,
            past => self.engine.tokens.truncate(past),
        }
        let (tokens, draft) = chunk.tokens.split_at(chunk.tokens.len() - chunk.drafts);
        let guess = match (tokens, draft) {
            // A first token alone is a prompt, which has another arithmetic.
            ([token], [guess, ..]) if chunk.past > 0 && self.engine.can_guess(chunk.past) => {
                self.engine.append_guessing(*token, *guess)?;
                Some(*guess)
            }
            _ => {
                self.engine.append(tokens)?;
                None
            }
        };
        let Some(choice) = &chunk.choice else {
            return Ok(Ok(Computed::default()));
        };
        let plain = choice.sampler.is_greedy() && choice.allowed.is_none() && choice.top.is_none();
        match plain {
            true => match self.most_likely(guess) {
                Err(error @ Error::Input(_)) => Ok(Err(error)),
                computed => computed.map(Ok),
            },
            false => self.by_logits(chunk, guess),
        }
    }

    /// The token that the GPU found most likely behind the last step's, and behind `guess` if that
    /// is it; [`Error::Input`] where a logit is not finite.
    fn most_likely(&mut self, guess: Option<u32>) -> Result<Computed> {
        let engine = &mut self.engine;
        // Of a step without a guess it has been counted.
        engine.steps = engine.steps.wrapping_add(u32::from(guess.is_some()));
        let token = engine.token(engine.steps.wrapping_sub(1))?;
        // A guess that was wrong is no part of the sequence.
        let is_wrong = guess.is_some_and(|guess| guess != token);
        let position = (engine.tokens.len() - usize::from(is_wrong)) as u32;
        engine.place = Some([position, engine.steps, token]);
        let mut chosen = vec![token];
        if guess == Some(token) {
            engine.place = None;
            engine.steps = engine.steps.wrapping_add(1);
            match engine.token(engine.steps.wrapping_sub(1)) {
                Ok(next) => {
                    engine.place = Some([position, engine.steps, next]);
                    chosen.push(next);
                }
                // What came before it counts; it is the next step's first, and fails there.
                Err(Error::Input(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let of = |token| Chosen {
            token,
            log_probs: None,
        };
        Ok(Computed {
            chosen: chosen.into_iter().map(of).collect(),
            ..Computed::default()
        })
    }

    /// What the sequence's own sampler chooses behind the last step's token, and behind `guess` as
    /// long as that is what was chosen.
    fn by_logits(&mut self, chunk: &mut Chunk<'_>, guess: Option<u32>) -> Result<Result<Computed>> {
        let engine = &mut self.engine;
        let state = match (&engine.guessing, guess) {
            (Some(state), Some(_)) => state,
            (_, _) => &engine.state,
        };
        let (rows, vocab) = (1 + usize::from(guess.is_some()), engine.config.vocab);
        self.logits.resize(rows * vocab, 0.0);
        let stream = engine.kernels.gpu().main();
        // SAFETY: the host array is waited for right below.
        unsafe { state.logits.copy_to(stream, &mut self.logits)? };
        stream.synchronize()?;
        if guess.is_some() {
            // The GPU may have counted one token or two, which its place then corrects.
            engine.steps = engine.steps.wrapping_add(STEP_ROWS as u32);
        }
        let mut computed = Computed::default();
        for (row, logits) in self.logits.chunks_exact(vocab).enumerate() {
            if !chunk.goes_on(&computed.chosen) {
                break;
            }
            let Some(choice) = &mut chunk.choice else {
                break;
            };
            match choose(choice, row, logits) {
                Ok(chosen) => computed.chosen.push(chosen),
                // What came before it counts; this row is the next step's first, and fails there.
                Err(_) if row > 0 => break,
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(computed))
    }
}

impl BatchEngine for CudaGuessing {
    fn config(&self) -> &ModelConfig {
        &self.engine.config
    }

    fn device(&self) -> &'static str {
        self.engine.device()
    }

    fn gpu(&self) -> Option<&GpuInfo> {
        Engine::gpu(&self.engine)
    }

    /// More than any sequence has: none is ever full, so that what one leaves is never taken for
    /// another's.
    fn page_tokens(&self) -> usize {
        self.engine.config.max_positions + 1
    }

    fn pages(&self) -> usize {
        1
    }

    fn kv_format(&self) -> KvCacheFormat {
        KvCacheFormat::Coded(self.engine.code)
    }

    fn max_rows(&self) -> usize {
        1
    }

    fn step_tokens(&self) -> usize {
        self.page_tokens()
    }

    fn draft_cost(&self) -> f64 {
        self.cost
    }

    fn most_drafts(&self) -> usize {
        STEP_ROWS - 1
    }

    fn kv_cache(&self) -> KvCacheReport {
        Engine::kv_cache(&self.engine)
    }

    fn step(&mut self, chunks: &mut [Chunk<'_>]) -> Result<Vec<Result<Computed>>> {
        let results = chunks.iter_mut().map(|chunk| self.compute(chunk));
        results.collect()
    }
}
