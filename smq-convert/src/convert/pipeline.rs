//! Every tensor from the source to its place in the file, several at once.
//!
//! Where a tensor lies is known before any weight is read, so no tensor waits for another one:
//! while one is at the work that a single thread does (its scales' bias, its record), the other
//! threads are at the rows of the next. What is held at once is limited by bytes and not by
//! tensors, since those of one model differ a thousandfold.
//!
//! File systems let one thread at a time write to a file. So that none waits for another, what is
//! ready goes into a queue, and whoever finds nobody writing writes all that is in it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rayon::Scope;
use smq_format::statistics::{OutputError, TensorStatistics};
use smq_format::{Scheme, Sealed, SmqWriter};

use super::finite::check_finite;
use crate::apply::{not_quantized, quantize_tensor};
use crate::calibrate::{Calibration, Outcome, finite_error};
use crate::choice::Choice;
use crate::error::ConvertError;
use crate::plan::{likely_scheme, stored_bytes};
use crate::quantize::{Method, Quantized};
use crate::source::Checkpoint;
use crate::source_hash::SourceHasher;
use crate::tensor::SourceTensor;
use crate::work::Progress;

/// Bytes that the tensors in flight may take together; one that takes more goes alone.
const IN_FLIGHT_BYTES: u64 = 512 << 20;
/// Bytes that a group takes until its tensor's record is made.
const GROUP_BYTES: u64 = 80;

/// What the tensors leave to be told.
#[derive(Default)]
pub(super) struct Done {
    /// Statistics of the quantized tensors, in file order.
    pub(super) statistics: Vec<TensorStatistics>,
    /// Bytes of all scale blobs together.
    pub(super) scale_bytes: u64,
    /// Tensors that are no weights and not finite.
    pub(super) not_finite: Vec<String>,
}

/// Quantizes every tensor as `choice` says, or takes it from `calibration`, and writes it.
///
/// Runs on the threads of the pool that it is called in, and returns where all are done.
///
/// # Errors
/// That of the first tensor that has one, whatever order they were done in; `progress` returning
/// false.
pub(super) fn write_tensors(
    checkpoint: &Checkpoint,
    choice: &Choice,
    calibration: &mut Calibration,
    writer: &mut SmqWriter,
    hasher: &SourceHasher,
    progress: Progress,
) -> Result<Done, ConvertError> {
    let tensors = checkpoint.tensors();
    for (tensor, method) in tensors.iter().zip(&choice.methods) {
        let scheme = method.map_or(Scheme::Raw(tensor.dtype), likely_scheme);
        writer.reserve(&tensor.name, &tensor.shape, tensor.dtype, scheme)?;
    }
    writer.preallocate()?;
    let pipeline = Pipeline {
        checkpoint,
        choice,
        outcomes: &calibration.outcomes,
        writer,
        hasher,
        progress,
        state: Mutex::new(State {
            calibrated: tensors
                .iter()
                .map(|tensor| calibration.tensors.remove(&tensor.name))
                .collect(),
            written: tensors.iter().map(|_| None).collect(),
            ..State::default()
        }),
        queue: Mutex::default(),
        writing: Mutex::default(),
    };
    rayon::scope(|scope| pipeline.feed(scope));
    let state = pipeline.state.into_inner();
    let state = state.unwrap_or_else(PoisonError::into_inner);
    if let Some((_, error)) = state.error {
        return Err(error);
    }
    let mut done = Done::default();
    for (tensor, written) in tensors.iter().zip(state.written) {
        let Some(written) = written else { continue };
        writer.settle(written.sealed);
        done.scale_bytes += written.scale_bytes;
        done.statistics.extend(written.statistics);
        if !written.finite {
            done.not_finite.push(tensor.name.clone());
        }
    }
    Ok(done)
}

struct Pipeline<'a> {
    checkpoint: &'a Checkpoint,
    choice: &'a Choice,
    outcomes: &'a [(String, Outcome)],
    writer: &'a SmqWriter,
    hasher: &'a SourceHasher<'a>,
    progress: Progress<'a>,
    state: Mutex<State>,
    /// Tensors that are ready to be written.
    queue: Mutex<VecDeque<Ready<'a>>>,
    /// Held by whoever writes.
    writing: Mutex<()>,
}

#[derive(Default)]
struct State {
    /// The next tensor to begin.
    next: usize,
    in_flight: usize,
    in_flight_bytes: u64,
    /// Bytes of the source that were converted so far.
    done_bytes: u64,
    /// What calibration made of each tensor.
    calibrated: Vec<Option<Quantized>>,
    written: Vec<Option<Written>>,
    /// Of the first tensor that has one. Tensors begin in order, so that all before it are done.
    error: Option<(usize, ConvertError)>,
}

/// A tensor that was begun.
struct Begun {
    tensor: usize,
    bytes: u64,
    calibrated: Option<Quantized>,
}

/// A tensor that is ready to be written.
struct Ready<'a> {
    tensor: usize,
    bytes: u64,
    contents: Contents<'a>,
    sealed: Sealed,
}

enum Contents<'a> {
    Raw { bytes: &'a [u8], finite: bool },
    Quantized(Box<Quantized>),
}

impl Contents<'_> {
    fn blobs(&self) -> Vec<&[u8]> {
        match self {
            Contents::Raw { bytes, .. } => vec![bytes],
            Contents::Quantized(quantized) => quantized.blobs.iter().map(Vec::as_slice).collect(),
        }
    }
}

/// A tensor in the file.
struct Written {
    sealed: Sealed,
    statistics: Option<TensorStatistics>,
    scale_bytes: u64,
    finite: bool,
}

impl<'a> Pipeline<'a> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Ready<'a>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins tensors as long as there is room for them.
    fn feed<'s>(&'s self, scope: &Scope<'s>) {
        while let Some(begun) = self.begin() {
            scope.spawn(move |scope| {
                let (tensor, bytes) = (begun.tensor, begun.bytes);
                match self.make(begun) {
                    Ok(ready) => {
                        self.queue().push_back(ready);
                        self.write_queue(scope);
                    }
                    Err(error) => self.end(tensor, bytes, Err(error)),
                }
                self.feed(scope);
            });
        }
    }

    /// Writes what is in the queue, unless another thread does.
    fn write_queue<'s>(&'s self, scope: &Scope<'s>) {
        // Looked at again once nobody writes: what came in between has been left to this thread.
        while !self.queue().is_empty() {
            let Ok(_writing) = self.writing.try_lock() else {
                return;
            };
            loop {
                let Some(ready) = self.queue().pop_front() else {
                    break;
                };
                let (tensor, bytes) = (ready.tensor, ready.bytes);
                self.end(tensor, bytes, self.write(ready));
                self.feed(scope);
            }
        }
    }

    /// The next tensor, unless there is none, it has to wait, or something went wrong.
    fn begin(&self) -> Option<Begun> {
        let mut state = self.state();
        let tensor = state.next;
        let source = self.checkpoint.tensors().get(tensor)?;
        let bytes = self.bytes_held(source, self.choice.methods[tensor]);
        let has_room = state.in_flight == 0
            || (state.in_flight < rayon::current_num_threads()
                && state.in_flight_bytes + bytes <= IN_FLIGHT_BYTES);
        if state.error.is_some() || !has_room {
            return None;
        }
        state.next += 1;
        state.in_flight += 1;
        state.in_flight_bytes += bytes;
        Some(Begun {
            tensor,
            bytes,
            calibrated: state.calibrated[tensor].take(),
        })
    }

    fn end(&self, tensor: usize, bytes: u64, written: Result<Written, ConvertError>) {
        let mut state = self.state();
        state.in_flight -= 1;
        state.in_flight_bytes -= bytes;
        state.done_bytes += self.checkpoint.tensors()[tensor].range.len() as u64;
        // Told under the lock, so that what is told never goes back.
        let goes_on = (self.progress)(state.done_bytes);
        let error = match written {
            Err(error) => error,
            Ok(_) if !goes_on => ConvertError::Interrupted,
            Ok(written) => {
                state.written[tensor] = Some(written);
                return;
            }
        };
        if state
            .error
            .as_ref()
            .is_none_or(|(first, _)| tensor < *first)
        {
            state.error = Some((tensor, error));
        }
    }

    /// Makes what the file will hold of a tensor.
    fn make(&self, begun: Begun) -> Result<Ready<'a>, ConvertError> {
        let tensor = &self.checkpoint.tensors()[begun.tensor];
        let (contents, ()) = rayon::join(
            || match begun.calibrated {
                Some(mut quantized) => {
                    quantized.statistics.output = output_error(self.outcomes, &tensor.name);
                    Ok(Contents::Quantized(Box::new(quantized)))
                }
                None => prepare(self.checkpoint, tensor, self.choice.methods[begun.tensor]),
            },
            || self.hasher.read(tensor),
        );
        let contents = contents?;
        let scheme = match &contents {
            Contents::Raw { .. } => Scheme::Raw(tensor.dtype),
            Contents::Quantized(quantized) => quantized.scheme,
        };
        Ok(Ready {
            tensor: begun.tensor,
            bytes: begun.bytes,
            sealed: self.writer.seal(begun.tensor, scheme, &contents.blobs())?,
            contents,
        })
    }

    fn write(&self, ready: Ready) -> Result<Written, ConvertError> {
        let blobs = ready.contents.blobs();
        self.writer.write(&ready.sealed, &blobs)?;
        let scale_bytes = blobs[1..].iter().map(|b| b.len() as u64).sum();
        let (statistics, finite) = match ready.contents {
            Contents::Raw { finite, .. } => (None, finite),
            Contents::Quantized(quantized) => (Some(quantized.statistics), true),
        };
        Ok(Written {
            sealed: ready.sealed,
            statistics,
            scale_bytes,
            finite,
        })
    }

    /// About as many bytes as a tensor takes until it is written: its blobs, what is known of each
    /// group, and the weights of one whose integers are made anew.
    fn bytes_held(&self, tensor: &SourceTensor, method: Option<Method>) -> u64 {
        let Some(method) = method else { return 0 };
        let stored = stored_bytes(self.checkpoint, tensor, method).unwrap_or(u64::MAX / 4);
        let groups = likely_scheme(method).groups(&tensor.shape) as u64;
        let weights = match tensor.packed.is_some() && !self.checkpoint.keeps_codes() {
            true => 4 * tensor.elems() as u64,
            false => 0,
        };
        stored + GROUP_BYTES * groups + weights
    }
}

fn prepare<'a>(
    checkpoint: &'a Checkpoint,
    tensor: &SourceTensor,
    method: Option<Method>,
) -> Result<Contents<'a>, ConvertError> {
    let bytes = checkpoint.bytes(tensor);
    let columns = tensor.shape.last().copied().unwrap_or(1);
    let located = |error| not_quantized(checkpoint, tensor, error);
    let Some(method) = method else {
        let finite = match check_finite(bytes, tensor.dtype, columns) {
            Err(error) if tensor.reader.needs_numbers() => return Err(located(error)),
            checked => checked.is_ok(),
        };
        return Ok(Contents::Raw { bytes, finite });
    };
    let result = quantize_tensor(checkpoint, tensor, method).map_err(located)?;
    Ok(Contents::Quantized(Box::new(result)))
}

/// The output error of a tensor that was calibrated, for its record.
fn output_error(outcomes: &[(String, Outcome)], tensor: &str) -> Option<OutputError> {
    let (_, outcome) = outcomes.iter().find(|(name, _)| name == tensor)?;
    Some(OutputError {
        rounded: finite_error(outcome.rounded),
        stored: finite_error(outcome.stored),
        is_rounded: outcome.fell_back,
    })
}
