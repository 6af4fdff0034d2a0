//! Calibration on a GPU.

use smq_engine::cuda::{self, CalibrationScales, Calibrator, Slot};
use smq_engine::model::Stage;
use smq_model::Source;

use super::CalibrationMethod;
use super::arithmetic::{Arithmetic, Inputs, Losses, Rounding, Scales, Sizes};
use super::factor::{COLUMN_DAMPING, TARGET_DAMPING, falling, raise};
use super::levels::Levels;
use super::texts::CalibrationText;
use crate::error::ConvertError;

/// The GPU's streams, and the matrix in hand.
pub(super) struct OnGpu {
    calibrator: Calibrator,
    w: Vec<f32>,
}

impl OnGpu {
    /// Copies the model to the GPU and embeds the windows.
    ///
    /// # Errors
    /// No usable GPU, too little of its memory, or a model that it does not run.
    pub(super) fn new(source: &Source, text: &CalibrationText) -> Result<Self, ConvertError> {
        Ok(Self {
            calibrator: Calibrator::new(source, &text.windows)?,
            w: Vec::new(),
        })
    }
}

impl Arithmetic for OnGpu {
    fn enter_layer(&mut self, layer: usize) -> Result<(), ConvertError> {
        Ok(self.calibrator.enter_layer(layer)?)
    }

    fn factorize(&mut self, stage: Stage) -> Result<Option<Inputs>, ConvertError> {
        let diagonal = self.calibrator.sum(stage)?;
        if !diagonal.iter().all(|v| v.is_finite()) {
            return Ok(None);
        }
        let order = falling(&diagonal);
        let calibrator = &mut self.calibrator;
        let columns = raise(&diagonal, COLUMN_DAMPING, |damping| {
            calibrator.factor_columns(&order, damping)
        })?;
        let target = raise(&diagonal, TARGET_DAMPING, |damping| {
            calibrator.factor_target(damping)
        })?;
        Ok(columns.zip(target).map(|((raised, _), _)| Inputs {
            squares: diagonal.iter().map(|&v| v as f32).collect(),
            raised,
        }))
    }

    fn begin(&mut self, w: Vec<f32>) -> Result<Sizes, ConvertError> {
        let [whole, at_weights] = self.calibrator.begin(&w)?;
        self.w = w;
        Ok(Sizes { whole, at_weights })
    }

    fn weights(&self) -> &[f32] {
        &self.w
    }

    fn target(&self) -> &[f32] {
        self.calibrator.target(self.w.len())
    }

    fn round(&mut self, rounding: Rounding, scales: &Scales<'_>) -> Result<Losses, ConvertError> {
        let of_scales = CalibrationScales {
            values: scales.values,
            run: scales.layout.run(),
            row_stride: scales.layout.row_stride(),
            table: match scales.levels {
                Levels::Int4 => None,
                Levels::Table(values) => Some(values),
            },
        };
        let losses = self.calibrator.round(on_device(rounding), &of_scales)?;
        Ok(Losses {
            output: losses.output,
            objective: losses.objective,
        })
    }

    fn keep(
        &mut self,
        rounding: Rounding,
        stage: Stage,
        index: usize,
    ) -> Result<Vec<i8>, ConvertError> {
        let slot = on_device(rounding).slot;
        Ok(self.calibrator.keep(slot, stage, index)?)
    }

    fn stand_in(
        &mut self,
        weights: Vec<f32>,
        stage: Stage,
        index: usize,
    ) -> Result<(), ConvertError> {
        Ok(self.calibrator.stand_in(&weights, stage, index)?)
    }

    fn pass(&mut self, layer: usize, stage: Stage) -> Result<(), ConvertError> {
        Ok(self.calibrator.pass(layer, stage)?)
    }
}

fn on_device(rounding: Rounding) -> cuda::Rounding {
    match rounding {
        Rounding::Nearest => cuda::Rounding {
            slot: Slot::A,
            of_target: false,
            in_columns: false,
        },
        Rounding::Calibrated(method) => cuda::Rounding {
            slot: Slot::B,
            of_target: match method {
                CalibrationMethod::Asymmetric => true,
                CalibrationMethod::Gptq | CalibrationMethod::Search => false,
            },
            in_columns: match method {
                CalibrationMethod::Asymmetric | CalibrationMethod::Gptq => true,
                CalibrationMethod::Search => false,
            },
        },
    }
}
