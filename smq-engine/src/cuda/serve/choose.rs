//! Choosing tokens on the GPU (`choose.cu`): what is asked for each row, and what comes back.

use std::sync::Arc;

use bytemuck::{NoUninit, Pod, Zeroable};

use crate::cuda::args::Args;
use crate::cuda::contract::Defines;
use crate::cuda::kernels::{Call, Kernels};
use crate::cuda::launch::Launch;
use crate::cuda::memory::DeviceBuffer;
use crate::cuda::module::Kernel;
use crate::error::Result;
use crate::sample::{Came, Penalties, Plan, Selection, not_finite, nothing_left};
use crate::serve::LogProbs;

/// The most likely tokens that the GPU lists beside a chosen one.
pub(super) const MOST_TOPS: usize = 32;
const THREADS: u32 = 1024;
/// In place of a token.
pub(super) const NOT_FINITE: i32 = -1;
pub(super) const NONE_LEFT: i32 = -2;

/// What is asked for a row.
#[derive(Debug, Clone, Copy, PartialEq, NoUninit)]
#[repr(C)]
struct Row {
    kind: i32,
    token: i32,
    top: i32,
    top_k: i32,
    temperature: f32,
    excluded: f32,
    min_p: f32,
    first_edit: i32,
    edits: i32,
    mask: i32,
    at: f64,
}

/// `Row::kind`.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Greedy,
    Draw,
    Given,
}

/// A change of one token's logit.
#[derive(Debug, Clone, Copy, PartialEq, NoUninit)]
#[repr(C)]
struct Edit {
    id: u32,
    add: f32,
    repetition: f32,
    subtract: f32,
}

/// A token with its log-probability.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Scored {
    pub token: i32,
    pub log_prob: f32,
}

/// What is asked for the rows of logits that are computed together.
#[derive(Debug, Default)]
pub(super) struct Rows {
    rows: Vec<Row>,
    edits: Vec<Edit>,
    masks: Vec<u32>,
}

impl Rows {
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Asks for the log-probability of a token.
    pub(super) fn score(&mut self, token: u32, top: usize) {
        self.rows.push(Row {
            token: token as i32,
            ..self.row(Kind::Given, top)
        });
    }

    /// Asks for a token, among those of `vocab` whose bit is set.
    pub(super) fn choose(
        &mut self,
        plan: &Plan<'_>,
        allowed: Option<&[u32]>,
        top: usize,
        vocab: usize,
    ) {
        let first_edit = self.edits.len();
        add_edits(plan, vocab, &mut self.edits);
        let row = match plan.selection {
            Selection::Greedy => self.row(Kind::Greedy, top),
            Selection::Draw {
                temperature,
                top_k,
                top_p,
                min_p,
                at,
            } => Row {
                top_k: i32::try_from(top_k).unwrap_or(i32::MAX),
                temperature,
                excluded: (1.0 - top_p) as f32,
                min_p,
                at,
                ..self.row(Kind::Draw, top)
            },
        };
        let mask = match allowed {
            None => -1,
            Some(allowed) => {
                self.masks.extend_from_slice(allowed);
                (self.masks.len() - allowed.len()) as i32
            }
        };
        self.rows.push(Row {
            first_edit: first_edit as i32,
            edits: (self.edits.len() - first_edit) as i32,
            mask,
            ..row
        });
    }

    fn row(&self, kind: Kind, top: usize) -> Row {
        Row {
            kind: kind as i32,
            token: 0,
            top: top.min(MOST_TOPS) as i32,
            top_k: 0,
            temperature: 1.0,
            excluded: 0.0,
            min_p: 0.0,
            first_edit: 0,
            edits: 0,
            mask: -1,
            at: 0.0,
        }
    }

    /// Asks for nothing; the memory stays, since penalties of long texts take much of it.
    pub(super) fn clear(&mut self) {
        self.rows.clear();
        self.edits.clear();
        self.masks.clear();
    }
}

/// Adds the changes of a plan, a token each.
fn add_edits(plan: &Plan<'_>, vocab: usize, to: &mut Vec<Edit>) {
    let neutral = Penalties {
        repetition: 1.0,
        presence: 0.0,
        frequency: 0.0,
        came: &[],
    };
    let Penalties {
        repetition,
        presence,
        frequency,
        came,
    } = plan.penalties.unwrap_or(neutral);
    // Those of the prompt alone are only penalized as repetitions.
    let counts = |came: &Came| came.chosen > 0 || repetition != 1.0;
    let inside = |id: u32| (id as usize) < vocab;
    to.reserve(came.len() + plan.bias.len());
    for came in came.iter().filter(|came| counts(came) && inside(came.id)) {
        to.push(Edit {
            id: came.id,
            add: match plan.bias.is_empty() {
                true => 0.0,
                false => plan.bias.get(&came.id).copied().unwrap_or(0.0),
            },
            repetition,
            subtract: match came.chosen {
                0 => 0.0,
                count => presence + frequency * count as f32,
            },
        });
    }
    for (id, bias) in &plan.bias {
        let at = came.binary_search_by_key(id, |came| came.id);
        if inside(*id) && !at.is_ok_and(|at| counts(&came[at])) {
            to.push(Edit {
                id: *id,
                add: *bias,
                repetition: 1.0,
                subtract: 0.0,
            });
        }
    }
}

/// The kernel, and memory for what it is asked and what it says.
#[derive(Debug)]
pub(super) struct Chooser {
    kernel: Arc<Kernel>,
    /// [`Rows`], grown as needed.
    asked: DeviceBuffer,
    chosen: DeviceBuffer,
    tops: DeviceBuffer,
}

/// The macros of `choose.cu`.
pub fn choose_defines(vocab: usize) -> Defines {
    vec![
        ("VOCAB", vocab as i64),
        ("CHOOSE_THREADS", THREADS.into()),
        ("MOST_TOPS", MOST_TOPS as i64),
        ("GREEDY", Kind::Greedy as i64),
        ("DRAW", Kind::Draw as i64),
        ("GIVEN", Kind::Given as i64),
        ("NOT_FINITE", NOT_FINITE.into()),
        ("NONE_LEFT", NONE_LEFT.into()),
    ]
}

impl Chooser {
    /// For up to `rows` rows of logits at a time.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda) from compiling, or if the memory is not there.
    pub(super) fn new(kernels: &Kernels, vocab: usize, rows: usize) -> Result<Self> {
        let gpu = kernels.gpu();
        let what = "a step's choices";
        let scored = size_of::<Scored>() * rows;
        Ok(Self {
            kernel: kernels.get("choose.cu", choose_defines(vocab), "choose_rows")?,
            asked: DeviceBuffer::new(gpu, size_of::<Row>() * rows, what)?,
            chosen: DeviceBuffer::new(gpu, scored, what)?,
            tops: DeviceBuffer::new(gpu, scored * MOST_TOPS, what)?,
        })
    }

    /// Asks for tokens of the rows of `logits`, waits, and returns them and the most likely ones,
    /// [`MOST_TOPS`] a row where `tops` are wanted; `meanwhile` is done once all is queued.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda) if the driver fails.
    ///
    /// # Safety
    /// `logits` is f32 `[rows, vocab]` of device memory that nobody else uses meanwhile.
    pub(super) unsafe fn run(
        &mut self,
        kernels: &Kernels,
        rows: &Rows,
        logits: u64,
        tops: bool,
        meanwhile: &mut dyn FnMut(),
    ) -> Result<(Vec<Scored>, Vec<Scored>)> {
        let (gpu, stream) = (kernels.gpu(), kernels.gpu().main());
        let parts: [&[u8]; 3] = [
            bytemuck::cast_slice(&rows.rows),
            bytemuck::cast_slice(&rows.edits),
            bytemuck::cast_slice(&rows.masks),
        ];
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        if bytes > self.asked.bytes() {
            stream.synchronize()?;
            self.asked = DeviceBuffer::new(gpu, 2 * bytes, "a step's choices")?;
        }
        let asked = self.asked.span().part(0, bytes)?;
        let edits = asked.ptr() + parts[0].len() as u64;
        let masks = edits + parts[1].len() as u64;
        let call = Call {
            kernel: self.kernel.clone(),
            launch: Launch::new(rows.len(), THREADS).overlap(),
            args: Args::new()
                .ptr(logits)
                .ptr(asked.ptr())
                .ptr(edits)
                .ptr(masks)
                .ptr(self.chosen.ptr())
                .ptr(self.tops.ptr()),
        };
        let nothing = Scored {
            token: 0,
            log_prob: 0.0,
        };
        let mut chosen = vec![nothing; rows.len()];
        let mut most_likely = vec![nothing; if tops { rows.len() * MOST_TOPS } else { 0 }];
        // SAFETY: the caller's promise for the logits; the rest is this object's, and large enough.
        // What is copied to the GPU is pageable, and so read before the call returns; the stream is
        // waited for before what comes back is read.
        unsafe {
            let mut at = 0;
            for part in parts.into_iter().filter(|part| !part.is_empty()) {
                asked.part(at, part.len())?.copy_from(stream, part)?;
                at += part.len();
            }
            call.run(stream)?;
            // Copies to pageable memory return once they are done.
            meanwhile();
            self.chosen
                .span()
                .part(0, size_of_val(&chosen[..]))?
                .copy_to(stream, &mut chosen)?;
            if tops {
                self.tops
                    .span()
                    .part(0, size_of_val(&most_likely[..]))?
                    .copy_to(stream, &mut most_likely)?;
            }
        }
        stream.synchronize()?;
        Ok((chosen, most_likely))
    }
}

/// The token of a row, or why there is none.
pub(super) fn token(scored: Scored) -> Result<u32> {
    match scored.token {
        NOT_FINITE => Err(not_finite()),
        NONE_LEFT => Err(nothing_left()),
        token => Ok(token as u32),
    }
}

/// A row's log-probability, and `top` of the largest.
pub(super) fn log_probs(scored: Scored, tops: &[Scored], top: usize) -> Result<LogProbs> {
    token(scored)?;
    Ok(LogProbs {
        log_prob: scored.log_prob,
        top: tops
            .iter()
            .take(top)
            .map(|s| (s.token as u32, s.log_prob))
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use smq_model::GenerationSettings;

    use super::*;
    use crate::sample::{Adjustments, Sampler};

    /// Each token once, with all that is to be done to its logit.
    #[test]
    fn edits_are_a_tokens_bias_and_penalties() {
        let vocab = 10;
        let mut settings = GenerationSettings::default();
        for repetition in [1.0, 1.5] {
            settings.repetition_penalty = repetition;
            let sampler = Sampler::new(&settings, &[1, 7, 7, 2], 9, vocab, 0).unwrap();
            let adjustments = Adjustments {
                presence_penalty: 0.5,
                frequency_penalty: 0.25,
                logit_bias: vec![(1, 3.0), (3, -1.0), (9, 2.0)],
            };
            let mut sampler = sampler.adjusted(&adjustments, vocab).unwrap();
            for id in [3, 7, 3] {
                sampler.plan().unwrap();
                sampler.accept(id);
            }
            let plan = sampler.plan().unwrap();
            let mut found = Vec::new();
            add_edits(&plan, vocab, &mut found);
            let r = repetition as f32;
            let mut expected = BTreeMap::from([
                (1, (3.0, r, 0.0)),
                (3, (-1.0, r, 1.0)),
                (7, (0.0, r, 0.75)),
                (9, (2.0, 1.0, 0.0)),
            ]);
            if repetition != 1.0 {
                expected.insert(2, (0.0, r, 0.0));
            }
            assert_eq!(found.len(), expected.len(), "{found:?}");
            let found = found
                .iter()
                .map(|e| (e.id, (e.add, e.repetition, e.subtract)));
            assert_eq!(found.collect::<BTreeMap<_, _>>(), expected);
        }
    }
}
