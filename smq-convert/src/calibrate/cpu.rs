//! Calibration on the CPU: the reference, and a GPU's twin.

use std::fs::File;
use std::path::Path;

use rayon::prelude::*;
use smq_engine::linear::{Matrix, Weights};
use smq_engine::model::{Decoder, Stage, Window};
use smq_format::Dtype;

use super::CalibrationMethod;
use super::arithmetic::{Arithmetic, Inputs, Losses, Rounding, Scales, Sizes};
use super::columns::round_columns;
use super::factor::Factor;
use super::memory::States;
use super::moments::Moments;
use super::run::Streams;
use crate::error::ConvertError;

/// Tokens whose products are summed in f32 before they join the sums in f64.
const BLOCK_TOKENS: usize = 2048;

/// Both streams, and the matrix in hand.
pub(super) struct Cpu<'a> {
    decoder: &'a Decoder<'a>,
    plain: Vec<Window>,
    quantized: Vec<Window>,
    /// The factor of the stage that was summed last.
    factor: Option<Factor>,
    w: Vec<f32>,
    target: Vec<f32>,
    /// The target less the weights.
    shift: Vec<f32>,
    nearest: Candidate,
    calibrated: Candidate,
    /// By matrix of the stage: f32 bytes of what stands in for it.
    stand_ins: Vec<Option<Vec<u8>>>,
}

/// A rounding of the matrix in hand.
#[derive(Default)]
struct Candidate {
    codes: Vec<i8>,
    /// What they stand for, `[rows, in]`.
    weights: Vec<f32>,
}

impl<'a> Cpu<'a> {
    /// Embeds the windows.
    ///
    /// # Errors
    /// A token outside the vocabulary; too little disk where hidden states go there.
    pub(super) fn new(decoder: &'a Decoder<'a>, of: &Streams<'_>) -> Result<Self, ConvertError> {
        let all = &of.text.windows;
        let windows = || -> Result<Vec<Window>, ConvertError> {
            match of.states {
                States::InMemory => all.iter().map(|ids| Ok(decoder.window(ids)?)).collect(),
                States::OnDisk => {
                    let bytes = decoder.window_file_bytes(all[0].len());
                    let file = state_file(of.directory, bytes * all.len() as u64)?;
                    let window = |(i, ids): (usize, &Vec<u32>)| {
                        Ok(decoder.window_in_file(ids, &file, bytes * i as u64)?)
                    };
                    all.iter().enumerate().map(window).collect()
                }
            }
        };
        Ok(Self {
            decoder,
            plain: windows()?,
            quantized: windows()?,
            factor: None,
            w: Vec::new(),
            target: Vec::new(),
            shift: Vec::new(),
            nearest: Candidate::default(),
            calibrated: Candidate::default(),
            stand_ins: Vec::new(),
        })
    }

    /// The sums over all windows, of the inputs that both streams give the next products.
    fn moments(&self, features: usize) -> Moments {
        let mut moments = Moments::new(features);
        let step = BLOCK_TOKENS.div_ceil(self.plain[0].tokens());
        let rows = |windows: &[Window]| -> Vec<f32> {
            windows.iter().flat_map(Window::input).copied().collect()
        };
        for (plain, quantized) in self.plain.chunks(step).zip(self.quantized.chunks(step)) {
            moments.add(&rows(plain), &rows(quantized));
        }
        moments
    }

    fn factor(&self) -> Result<&Factor, ConvertError> {
        // `factorize` comes before everything that asks for it.
        let missing = || smq_engine::Error::Input("the stage's inputs were not summed".into());
        Ok(self.factor.as_ref().ok_or_else(missing)?)
    }

    fn candidate(&mut self, rounding: Rounding) -> &mut Candidate {
        match rounding {
            Rounding::Nearest => &mut self.nearest,
            Rounding::Calibrated(_) => &mut self.calibrated,
        }
    }

    fn place(&mut self, weights: &[f32], index: usize) {
        let bytes = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
        if self.stand_ins.len() <= index {
            self.stand_ins.resize(index + 1, None);
        }
        self.stand_ins[index] = Some(bytes);
    }
}

/// A file of so many bytes in `directory`, without a name, so that nothing is left of it.
fn state_file(directory: &Path, bytes: u64) -> Result<File, ConvertError> {
    let failed = |error: std::io::Error| ConvertError::Calibration {
        path: directory.to_path_buf(),
        problem: format!(
            "cannot hold {:.1} GB of hidden states ({error}); free so much there, give fewer \
             --calibrate-tokens, or more --calibrate-memory",
            bytes as f64 / 1e9
        ),
    };
    let file = tempfile::tempfile_in(directory).map_err(failed)?;
    // A disk that fills up later would end the process at a write to the map.
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes)
        .map_err(|error| failed(error.into()))?;
    Ok(file)
}

impl Arithmetic for Cpu<'_> {
    fn enter_layer(&mut self, layer: usize) -> Result<(), ConvertError> {
        for windows in [&mut self.plain, &mut self.quantized] {
            let enter = |window| self.decoder.enter_layer(layer, window);
            windows.par_iter_mut().for_each(enter);
        }
        Ok(())
    }

    fn factorize(&mut self, _: Stage) -> Result<Option<Inputs>, ConvertError> {
        // A former stage's is large.
        self.factor = None;
        let first = &self.plain[0];
        self.factor = Factor::new(&self.moments(first.input().len() / first.tokens()));
        Ok(self.factor.as_ref().map(|factor| Inputs {
            squares: factor.diagonal.clone(),
            raised: factor.raised,
        }))
    }

    fn begin(&mut self, w: Vec<f32>) -> Result<Sizes, ConvertError> {
        let factor = self.factor()?;
        let (target, sizes) = (factor.target(&w), factor.sizes(&w));
        self.shift = target.iter().zip(&w).map(|(t, w)| t - w).collect();
        (self.w, self.target) = (w, target);
        Ok(sizes)
    }

    fn weights(&self) -> &[f32] {
        &self.w
    }

    fn target(&self) -> &[f32] {
        &self.target
    }

    fn round(&mut self, rounding: Rounding, scales: &Scales<'_>) -> Result<Losses, ConvertError> {
        let factor = self.factor()?;
        let n = factor.order.len();
        let mut codes = vec![0; self.w.len()];
        let in_columns = |from: &[f32], codes: &mut [i8]| {
            round_columns(
                from,
                scales.values,
                scales.layout,
                scales.levels,
                factor,
                codes,
            );
        };
        match rounding {
            Rounding::Nearest | Rounding::Calibrated(CalibrationMethod::Search) => {
                let rows = codes.par_chunks_mut(n).zip(self.w.par_chunks(n));
                rows.enumerate().for_each(|(row, (codes, w))| {
                    for (c, (q, w)) in codes.iter_mut().zip(w).enumerate() {
                        let scale = scales.values[scales.layout.index(row, c)];
                        *q = scales.levels.round(*w, scale).0;
                    }
                });
            }
            Rounding::Calibrated(CalibrationMethod::Gptq) => in_columns(&self.w, &mut codes),
            Rounding::Calibrated(CalibrationMethod::Asymmetric) => {
                in_columns(&self.target, &mut codes);
            }
        }
        let mut weights = vec![0.0; self.w.len()];
        let rows = weights.par_chunks_mut(n).zip(codes.par_chunks(n));
        rows.enumerate().for_each(|(row, (weights, codes))| {
            for (c, (v, q)) in weights.iter_mut().zip(codes).enumerate() {
                *v = scales.levels.value(*q) * scales.values[scales.layout.index(row, c)];
            }
        });
        let error: Vec<f32> = weights.iter().zip(&self.w).map(|(v, w)| v - w).collect();
        let losses = factor.losses(&error, &self.shift);
        *self.candidate(rounding) = Candidate { codes, weights };
        Ok(losses)
    }

    fn keep(
        &mut self,
        rounding: Rounding,
        _: Stage,
        index: usize,
    ) -> Result<Vec<i8>, ConvertError> {
        let chosen = std::mem::take(self.candidate(rounding));
        self.place(&chosen.weights, index);
        Ok(chosen.codes)
    }

    fn stand_in(&mut self, weights: Vec<f32>, _: Stage, index: usize) -> Result<(), ConvertError> {
        self.place(&weights, index);
        Ok(())
    }

    fn pass(&mut self, layer: usize, stage: Stage) -> Result<(), ConvertError> {
        let matrices = self.decoder.stage_matrices(layer, stage);
        let stand_ins = std::mem::take(&mut self.stand_ins);
        let stand_ins: Vec<Matrix<'_>> = matrices
            .iter()
            .enumerate()
            .map(|(i, matrix)| match stand_ins.get(i) {
                Some(Some(bytes)) => Matrix {
                    data: Weights::Dense {
                        dtype: Dtype::F32,
                        bytes,
                    },
                    ..*matrix
                },
                Some(None) | None => matrix.clone(),
            })
            .collect();
        self.decoder.pass(layer, stage, matrices, &mut self.plain);
        self.decoder
            .pass(layer, stage, &stand_ins, &mut self.quantized);
        Ok(())
    }
}
