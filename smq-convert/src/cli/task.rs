//! What a command line of `smq-convert` asks for, once its options are put together.

use super::auto::Width;
use super::convert::ConvertArgs;
use crate::apply::exact_scales;
use crate::import::Grouping;
use crate::{
    AutoOptions, CalibrateOptions, Checkpoint, ConvertOptions, LevelChoice, Method,
    QuantizeOptions, ScaleChoice, ScaleRule, Target,
};
use smq_format::Family;

/// Elements a group where neither the user nor the checkpoint says.
const DEFAULT_GROUP: usize = 128;
/// Scales of int4 and lut4 where the user does not say.
const DEFAULT_SCALES: ScaleChoice = ScaleChoice::e5(5);
/// The option that only code books have.
const LEVELS: &str = "--levels";

/// What to do, as the command line says it.
pub(super) enum Task {
    Uniform(ConvertOptions),
    Auto(AutoOptions, Option<CalibrateOptions>),
    Calibrated(ConvertOptions, CalibrateOptions),
}

impl Task {
    /// Whether it goes on with a calibration that was killed.
    pub(super) fn resumes(&self) -> bool {
        match self {
            Self::Uniform(_) | Self::Auto(_, None) => false,
            Self::Auto(_, Some(texts)) | Self::Calibrated(_, texts) => texts.resume,
        }
    }
}

impl ConvertArgs {
    /// Puts the options together into what is to be done with `checkpoint`.
    ///
    /// # Errors
    /// Options that do not go together.
    pub(super) fn task(self, checkpoint: &Checkpoint) -> anyhow::Result<Task> {
        let import = checkpoint.import();
        let target = self.target.clone().unwrap_or(match import {
            Some(_) => Target::Imported,
            None => Target::All,
        });
        let group = match (self.group_size, import.map(|import| import.grouping)) {
            (Some(group), Some(Grouping::Row))
                if checkpoint.keeps_codes() && self.target.is_none() =>
            {
                anyhow::bail!(
                    "--group-size {group}: the checkpoint's integers have one group a row, and \
                     are kept; pass --requantize to make new ones"
                )
            }
            (Some(group), _) | (None, Some(Grouping::Runs(group))) => group,
            (None, Some(Grouping::Row) | None) => DEFAULT_GROUP,
        };
        let int4 = self.scheme() == Family::Int4;
        if self.mbits == Some(Width::Auto) && self.scales.is_none() && int4 {
            anyhow::ensure!(
                self.levels.is_none(),
                "{LEVELS} is for --scheme lut4; int4's levels are -8 to 7"
            );
            let (rule, force, jobs) = (self.scale_rule, self.force, self.jobs());
            let options = self
                .auto
                .options(checkpoint, target, group, rule, force, jobs)?;
            let texts = self.texts()?;
            let choose_by = self.auto.choose_by(texts.is_some());
            let options = AutoOptions {
                choose_by,
                ..options
            };
            return Ok(Task::Auto(options, texts));
        }
        let quantize = self.method(checkpoint, group)?;
        self.auto.refuse()?;
        let calibrate = self.calibration(quantize)?;
        let options = ConvertOptions {
            quantize,
            target,
            overwrite: self.force,
            jobs: self.jobs(),
        };
        Ok(match calibrate {
            Some(texts) => Task::Calibrated(options, texts),
            None => Task::Uniform(options),
        })
    }

    /// What to calibrate on; `None` without --calibrate.
    ///
    /// # Errors
    /// A scheme or a rule that calibration does not go with.
    fn calibration(&self, quantize: Method) -> anyhow::Result<Option<CalibrateOptions>> {
        let texts = self.texts()?;
        anyhow::ensure!(
            texts.is_none() || quantize != Method::Fp8,
            "--calibrate is for int4, lut4 and nf4; FP8 is rounded to nearest: leave it out"
        );
        Ok(texts)
    }

    /// The calibration's options as the command line has them; `None` without --calibrate.
    ///
    /// # Errors
    /// A limit of memory that is no positive number.
    fn texts(&self) -> anyhow::Result<Option<CalibrateOptions>> {
        if self.calibrate.is_empty() {
            return Ok(None);
        }
        Ok(Some(CalibrateOptions {
            texts: self.calibrate.clone(),
            tokens: self.calibrate_tokens,
            window: self.calibrate_window,
            method: self.calibrate_method,
            device: self.device,
            memory_bytes: self.memory_bytes()?,
            resume: self.resume,
        }))
    }

    /// The memory that calibrating on the CPU may take; `None` leaves that to the machine.
    ///
    /// # Errors
    /// A number that is not positive.
    fn memory_bytes(&self) -> anyhow::Result<Option<u64>> {
        let Some(gb) = self.calibrate_memory else {
            return Ok(None);
        };
        anyhow::ensure!(
            gb > 0.0 && gb.is_finite(),
            "--calibrate-memory {gb}: must be a positive number of GB"
        );
        Ok(Some((gb * 1e9) as u64))
    }

    /// How weights are quantized where the method is the same for all of them.
    ///
    /// # Errors
    /// An option that the scheme does not have.
    fn method(&self, checkpoint: &Checkpoint, group: usize) -> anyhow::Result<Method> {
        let options = |rule| QuantizeOptions {
            group,
            scales: match (self.scales, self.mbits) {
                (Some(scales), _) => scales,
                (None, Some(Width::Given(bits))) => bits.into(),
                (None, _) if checkpoint.keeps_codes() => exact_scales(checkpoint),
                // `auto` is taken care of by now.
                (None, Some(Width::Auto) | None) => DEFAULT_SCALES,
            },
            rule: self.scale_rule.unwrap_or(match self.calibrate.is_empty() {
                true => rule,
                false => ScaleRule::Weighted,
            }),
        };
        let (method, refused) = match self.scheme() {
            Family::Int4 => (Method::Int4(options(ScaleRule::Reference)), self.levels()),
            Family::Lut4 => {
                let auto = self.mbits == Some(Width::Auto) && self.scales.is_none();
                anyhow::ensure!(
                    !auto,
                    "--mbits auto is for --scheme int4; give --scheme lut4 a number, or leave \
                     --mbits out"
                );
                let method = Method::Lut4 {
                    options: options(ScaleRule::Nearest),
                    levels: self.levels.unwrap_or(LevelChoice::Learned),
                };
                (method, None)
            }
            Family::Nf4 => (Method::Nf4, self.option_of_groups().or(self.levels())),
            Family::Fp8 => (Method::Fp8, self.option_of_groups().or(self.levels())),
        };
        match (refused, self.scheme()) {
            (None, _) => Ok(method),
            (Some(option), Family::Int4 | Family::Lut4) => {
                anyhow::bail!("{option} is for --scheme lut4; int4's levels are -8 to 7")
            }
            (Some(option), Family::Nf4 | Family::Fp8) => anyhow::bail!(
                "{option} is for --scheme {}; --scheme {} has one form: leave {option} out",
                if option == LEVELS { "lut4" } else { "int4" },
                self.scheme()
            ),
        }
    }

    /// What the weights become: int4 where options are given and `--scheme` is not among them.
    fn scheme(&self) -> Family {
        self.scheme.unwrap_or(Family::Int4)
    }

    /// Worker threads; 0 is one for each core.
    fn jobs(&self) -> usize {
        self.threads.map_or(0, |threads| threads as usize)
    }

    /// The first option given that only schemes with groups have.
    fn option_of_groups(&self) -> Option<&'static str> {
        let given = [
            ("--mbits", self.mbits.is_some()),
            ("--scales", self.scales.is_some()),
            ("--group-size", self.group_size.is_some()),
            ("--scale-rule", self.scale_rule.is_some()),
        ];
        let found = given.into_iter().find(|(_, given)| *given);
        found.map(|(option, _)| option)
    }

    /// The option that only code books have, where it is given.
    fn levels(&self) -> Option<&'static str> {
        self.levels.map(|_| LEVELS)
    }
}
