//! The CPU reference decoder: every family of the table of architectures in f32 arithmetic, or with
//! activations rounded to bf16 where a GPU engine rounds them.

mod attention;
mod batch;
mod cache;
mod layer;
mod mlp;
mod norm;
mod precision;
mod rope;
mod stages;
mod values;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::kv::KvCacheFormat;
use crate::linear::{self, Matrix};
pub(crate) use batch::{Arena, Part};
use cache::{KvCache, ONE_PAGE};
use layer::Layer;
pub(crate) use layer::load_norm;
use norm::rms_norm;
pub use precision::Precision;
use rope::RopeTables;
use smq_model::{ModelConfig, Source};
pub use stages::{Stage, Window};

/// Positions that go through the layers together; bounds the activations' memory.
const CHUNK: usize = 512;
/// Logits that are scaled or capped by one task.
const LOGIT_TASK: usize = 1 << 14;

/// A decoder whose weights stay mapped in its [`Source`].
#[derive(Debug)]
pub struct Decoder<'a> {
    config: ModelConfig,
    precision: Precision,
    embedding: Matrix<'a>,
    layers: Vec<Layer<'a>>,
    norm: Vec<f32>,
    /// `None`: the embedding is the head.
    head: Option<Matrix<'a>>,
}

/// Consecutive positions of one sequence, among the rows that go through a layer together.
#[derive(Debug, Clone, Copy)]
struct Rows<'a> {
    count: usize,
    /// Positions before them, which are in the cache.
    past: usize,
    /// Pages of the sequence in the cache.
    table: &'a [u32],
    rope: &'a RopeTables,
}

/// A growing sequence: its position, its cached keys and values, its rotary tables.
#[derive(Debug)]
pub struct Sequence {
    len: usize,
    caches: Vec<KvCache>,
    rope: RopeTables,
}

impl Sequence {
    /// An empty sequence with room for `capacity` positions (it grows if need be); `long` picks
    /// LongRoPE's long factors.
    #[must_use]
    pub fn new(config: &ModelConfig, capacity: usize, long: bool) -> Self {
        Self::with_cache(config, KvCacheFormat::F32, capacity, long)
    }

    /// As [`Sequence::new`], with keys and values held in this format.
    #[must_use]
    pub fn with_cache(
        config: &ModelConfig,
        format: KvCacheFormat,
        capacity: usize,
        long: bool,
    ) -> Self {
        let caches = (0..config.layers)
            .map(|_| KvCache::new(config, format, 1, capacity))
            .collect();
        Self {
            len: 0,
            caches,
            rope: RopeTables::new(config, long),
        }
    }

    /// Tokens in the cache.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Positions that the cache has room for.
    pub(crate) fn capacity(&self) -> usize {
        self.caches.first().map_or(0, KvCache::page_tokens)
    }

    /// Whether no token is in the cache.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether it uses LongRoPE's long factors.
    #[must_use]
    pub fn is_long(&self) -> bool {
        self.rope.is_long()
    }

    /// Forgets all but the first `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    fn reserve(&mut self, len: usize) {
        for cache in &mut self.caches {
            if cache.page_tokens() < len {
                cache.grow(len.max(2 * cache.page_tokens()), self.len);
            }
        }
        self.rope.extend_to(self.len, len);
    }
}

impl<'a> Decoder<'a> {
    /// Finds every tensor and checks its shape against config.json.
    ///
    /// # Errors
    /// [`Error::Model`] of a config or a tensor that does not fit.
    pub fn load(source: &'a Source) -> Result<Self> {
        Self::load_with(source, Precision::F32)
    }

    /// As [`Decoder::load`], with activations of this precision.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn load_with(source: &'a Source, precision: Precision) -> Result<Self> {
        let config = ModelConfig::of(source)?;
        let c = &config;
        let table = |name| {
            let matrix = Matrix::load(source, name, [c.vocab, c.hidden])?;
            Ok::<_, Error>(precision.weights(matrix))
        };
        let embedding = table(c.embedding())?;
        let head = c.own_head().map(table).transpose()?;
        let layers = (0..c.layers)
            .map(|i| Layer::load(source, precision, c, i))
            .collect::<Result<_>>()?;
        let norm = load_norm(source, c.architecture.last_norm, c.hidden, c)?;
        Ok(Self {
            embedding,
            layers,
            norm,
            head,
            config,
            precision,
        })
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Shortens the longest context.
    pub(crate) fn limit(&mut self, max_tokens: usize) {
        self.config.max_positions = self.config.max_positions.min(max_tokens);
    }

    /// Weight bytes that one decoded token reads (scales as f32, as the kernels hold them).
    #[must_use]
    pub fn bytes_per_token(&self) -> usize {
        let projections = self
            .layers
            .iter()
            .flat_map(|l| [&l.qkv, &l.gate_up, &l.o, &l.down]);
        let matrices = projections.flat_map(|projection| &projection.matrices);
        matrices
            .chain([self.head()])
            .map(Matrix::weight_bytes)
            .sum()
    }

    /// Appends `tokens` to the sequence and returns the last `keep` positions after the final
    /// norm, `[keep, hidden]`.
    ///
    /// # Errors
    /// [`Error::Input`] for a token outside the vocabulary.
    pub fn extend(&self, sequence: &mut Sequence, tokens: &[u32], keep: usize) -> Result<Vec<f32>> {
        sequence.reserve(sequence.len + tokens.len());
        let mut kept = Vec::new();
        let mut done = 0;
        for chunk in tokens.chunks(CHUNK) {
            let x = self.layers_forward(sequence, chunk)?;
            done += chunk.len();
            let wanted = (done + keep).saturating_sub(tokens.len()).min(chunk.len());
            kept.extend(self.last_normed(&x[(chunk.len() - wanted) * self.config.hidden..]));
        }
        Ok(kept)
    }

    /// What the head reads, from the residual stream behind the last layer.
    fn last_normed(&self, x: &[f32]) -> Vec<f32> {
        let mut normed = rms_norm(x, &self.norm, self.config.rms_norm_eps);
        self.precision.round(&mut normed);
        normed
    }

    /// Logits of `x`, `[m, hidden]` after the final norm: `[m, vocab]`.
    #[must_use]
    pub fn logits(&self, x: &[f32]) -> Vec<f32> {
        let m = x.len() / self.config.hidden;
        let mut out = vec![0.0; m * self.config.vocab];
        linear::product(x, m, self.head(), &mut out);
        let (divisor, cap) = (
            self.config.multipliers.logits_divisor,
            self.config.soft_caps.logits,
        );
        if divisor != 1.0 || cap.is_some() {
            out.par_chunks_mut(LOGIT_TASK).for_each(|logits| {
                for logit in logits {
                    *logit /= divisor;
                    if let Some(cap) = cap {
                        *logit = (*logit / cap).tanh() * cap;
                    }
                }
            });
        }
        out
    }

    fn head(&self) -> &Matrix<'a> {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    fn layers_forward(&self, sequence: &mut Sequence, tokens: &[u32]) -> Result<Vec<f32>> {
        let rows = Rows {
            count: tokens.len(),
            past: sequence.len,
            table: ONE_PAGE,
            rope: &sequence.rope,
        };
        let mut x = self.embed(tokens)?;
        for (layer, cache) in self.layers.iter().zip(&mut sequence.caches) {
            layer.forward(&self.config, self.precision, &mut x, cache, &[rows]);
        }
        sequence.len += tokens.len();
        Ok(x)
    }

    fn embed(&self, tokens: &[u32]) -> Result<Vec<f32>> {
        let hidden = self.config.hidden;
        let mut x = vec![0.0; tokens.len() * hidden];
        for (&token, row) in tokens.iter().zip(x.chunks_exact_mut(hidden)) {
            let id = token as usize;
            if id >= self.config.vocab {
                let message = format!(
                    "token id {id} is outside the model's vocabulary of {}",
                    self.config.vocab
                );
                return Err(Error::Input(message));
            }
            self.embedding.dequantize(id..id + 1, row);
        }
        let factor = self.config.multipliers.embedding;
        if factor != 1.0 {
            x.iter_mut().for_each(|v| *v *= factor);
        }
        Ok(x)
    }
}
