//! The CPU reference decoder: Phi-3 and Llama families in f32 arithmetic, or with activations
//! rounded to bf16 where a GPU engine rounds them.

mod attention;
mod batch;
mod limits;
mod mlp;
mod norm;
mod precision;
mod rope;
mod stages;
mod values;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::linear::{self, Matrix, load_vector};
use attention::{KvCache, ONE_PAGE};
pub(crate) use batch::{Arena, Part};
pub(crate) use limits::check;
use norm::rms_norm;
pub use precision::Precision;
use rope::RopeTable;
use smq_model::architecture::{Activation, NormWeight};
use smq_model::{LayerNames, LayerNorms, ModelConfig, NamedMatrix, Source};
pub use stages::{Stage, Window};
use std::slice;

/// Positions that go through the layers together; bounds the activations' memory.
const CHUNK: usize = 512;

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

/// Projections that a family fuses are one matrix, separate ones several to be stacked.
#[derive(Debug)]
struct Layer<'a> {
    input_norm: Vec<f32>,
    qkv: Vec<Matrix<'a>>,
    o: Matrix<'a>,
    post_attention_norm: Vec<f32>,
    gate_up: Vec<Matrix<'a>>,
    down: Matrix<'a>,
}

/// Consecutive positions of one sequence, among the rows that go through a layer together.
#[derive(Debug, Clone, Copy)]
struct Rows<'a> {
    count: usize,
    /// Positions before them, which are in the cache.
    past: usize,
    /// Pages of the sequence in the cache.
    table: &'a [u32],
    rope: &'a RopeTable,
}

/// A growing sequence: its position, its cached keys and values, its rotary table.
#[derive(Debug)]
pub struct Sequence {
    len: usize,
    caches: Vec<KvCache>,
    rope: RopeTable,
}

impl Sequence {
    /// An empty sequence with room for `capacity` positions (it grows if need be); `long` picks
    /// LongRoPE's long factors.
    #[must_use]
    pub fn new(config: &ModelConfig, capacity: usize, long: bool) -> Self {
        let caches = (0..config.layers)
            .map(|_| KvCache::new(config, 1, capacity))
            .collect();
        Self {
            len: 0,
            caches,
            rope: RopeTable::new(&config.rope, long),
        }
    }

    /// Tokens in the cache.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
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
        self.rope.extend_to(len);
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
        limits::check(c)?;
        let table = |name| {
            let matrix = Matrix::load(source, name, [c.vocab, c.hidden])?;
            Ok::<_, Error>(precision.weights(matrix))
        };
        let embedding = table(c.embedding())?;
        let head = c.own_head().map(table).transpose()?;
        let layers = (0..c.layers)
            .map(|i| Layer::load(source, precision, c, i))
            .collect::<Result<_>>()?;
        let norm = load_norm(source, c.architecture.last_norm, c)?;
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
        let layers = self
            .layers
            .iter()
            .flat_map(|l| l.qkv.iter().chain(&l.gate_up).chain([&l.o, &l.down]));
        layers.chain([self.head()]).map(Matrix::weight_bytes).sum()
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
            kept.extend(rms_norm(
                &x[(chunk.len() - wanted) * self.config.hidden..],
                &self.norm,
                self.config.rms_norm_eps,
            ));
        }
        self.precision.round(&mut kept);
        Ok(kept)
    }

    /// Logits of `x`, `[m, hidden]` after the final norm: `[m, vocab]`.
    #[must_use]
    pub fn logits(&self, x: &[f32]) -> Vec<f32> {
        let m = x.len() / self.config.hidden;
        let mut out = vec![0.0; m * self.config.vocab];
        linear::product(x, m, self.head(), &mut out);
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
        Ok(x)
    }
}

impl<'a> Layer<'a> {
    fn load(
        source: &'a Source,
        precision: Precision,
        c: &ModelConfig,
        index: usize,
    ) -> Result<Self> {
        let names = LayerNames::of(c, index);
        let LayerNorms::BeforeBlocks { attention, mlp } = &names.norms;
        let matrix = |m: &NamedMatrix| {
            let matrix = Matrix::load(source, &m.name, [m.rows, m.cols])?;
            Ok(precision.weights(matrix))
        };
        let matrices = |list: &[NamedMatrix]| list.iter().map(matrix).collect::<Result<Vec<_>>>();
        Ok(Self {
            input_norm: load_norm(source, attention, c)?,
            qkv: matrices(&names.qkv)?,
            o: matrix(&names.o)?,
            post_attention_norm: load_norm(source, mlp, c)?,
            gate_up: matrices(&names.gate_up)?,
            down: matrix(&names.down)?,
        })
    }

    /// One pre-norm block: attention and MLP, each added to `x`, `[m, hidden]`.
    fn forward(
        &self,
        c: &ModelConfig,
        precision: Precision,
        x: &mut [f32],
        cache: &mut KvCache,
        parts: &[Rows<'_>],
    ) {
        let m = x.len() / c.hidden;
        let h = normed(x, &self.input_norm, c, precision);
        let mut qkv = linear::stacked(&h, m, &self.qkv);
        let attended = rotated_and_attended(c, precision, &mut qkv, cache, parts);
        add(x, &linear::stacked(&attended, m, slice::from_ref(&self.o)));
        let h = normed(x, &self.post_attention_norm, c, precision);
        let mut gate_up = linear::stacked(&h, m, &self.gate_up);
        let activated = activated(c, precision, &mut gate_up);
        add(
            x,
            &linear::stacked(&activated, m, slice::from_ref(&self.down)),
        );
    }
}

/// The input of the products behind a norm, `[m, hidden]`.
fn normed(x: &[f32], weight: &[f32], c: &ModelConfig, precision: Precision) -> Vec<f32> {
    let mut h = rms_norm(x, weight, c.rms_norm_eps);
    precision.round(&mut h);
    h
}

/// The input of o, `[m, heads * head_dim]`, from queries, keys and values, one row a position, the
/// parts' one after another; keys and values go into the cache.
fn rotated_and_attended(
    c: &ModelConfig,
    precision: Precision,
    qkv: &mut [f32],
    cache: &mut KvCache,
    parts: &[Rows<'_>],
) -> Vec<f32> {
    precision.round(qkv);
    let (q_len, kv_len) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let stride = q_len + 2 * kv_len;
    let mut rows = qkv.chunks_exact_mut(stride);
    for part in parts {
        for (position, row) in (part.past..part.past + part.count).zip(&mut rows) {
            // Queries and keys lie side by side, so all their heads are rotated in one go.
            for head in row[..q_len + kv_len].chunks_exact_mut(c.head_dim) {
                part.rope.rotate(&mut head[..c.rope.rotary_dim], position);
            }
            precision.round(&mut row[..q_len + kv_len]);
            let (keys, values) = row[q_len..].split_at(kv_len);
            cache.store(part.table, position, keys, values);
        }
    }
    let mut rest = &*qkv;
    let each = parts.iter().map(|part| {
        let (own, others) = rest.split_at(part.count * stride);
        rest = others;
        (part, own)
    });
    let each: Vec<_> = each.collect();
    let cache = &*cache;
    let attend = |(part, rows): (&Rows<'_>, &[f32])| {
        attention::attend(c, precision, rows, stride, (cache, part.table), part.past)
    };
    let mut attended = match each[..] {
        [only] => attend(only),
        _ => {
            let parts: Vec<_> = each.into_par_iter().map(attend).collect();
            parts.concat()
        }
    };
    precision.round(&mut attended);
    attended
}

/// The input of down, `[m, intermediate]`.
fn activated(c: &ModelConfig, precision: Precision, gate_up: &mut [f32]) -> Vec<f32> {
    precision.round(gate_up);
    let mut activated = match c.activation {
        Activation::Silu => mlp::swiglu(gate_up, c.intermediate),
    };
    precision.round(&mut activated);
    activated
}

/// What a norm multiplies with, `[hidden]`.
fn load_norm(source: &Source, name: &str, c: &ModelConfig) -> Result<Vec<f32>> {
    match c.architecture.norm_weight {
        NormWeight::AsStored => load_vector(source, name, c.hidden),
    }
}

fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}
