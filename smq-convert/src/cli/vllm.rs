//! `--for vllm`: what that server cannot read is refused before a file is made of it.

use anyhow::{bail, ensure};
use clap::ValueEnum;
use smq_format::Family;

use super::convert::ConvertArgs;
use super::task::Task;
use crate::{Checkpoint, Method, QuantizeOptions, ScaleChoice, Target};

/// Group sizes of its kernels (Marlin), largest first.
const GROUPS: [usize; 3] = [128, 64, 32];
/// Mantissa bits up to which every E5Mx scale is exact in bf16.
const EXACT_IN_BF16: u32 = 7;

/// Another program that is to read the file's export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Reader {
    /// vLLM, by --to compressed-tensors
    Vllm,
}

impl ConvertArgs {
    /// Takes the options of a file for `--for`, where none are given, and says which: int4 with
    /// E5M3 scales, in the largest groups that divide every row.
    pub(super) fn fit_reader(&mut self, checkpoint: &Checkpoint) -> String {
        let group = dividing(checkpoint, &Target::All).unwrap_or(GROUPS[0]);
        self.scheme = Some(Family::Int4);
        self.scales = Some(ScaleChoice::e5(3));
        self.group_size = Some(group);
        format!(
            "for vLLM: int4 with E5M3 scales in groups of {group}, all linear layers{}",
            match self.calibrate.is_empty() {
                true => "; a text, by --calibrate TEXT, makes it much better",
                false => ", calibrated on the text",
            }
        )
    }
}

/// Refuses a conversion whose file could not be exported for vLLM, or would not run there.
///
/// # Errors
/// What is in the way, with what to do.
pub(super) fn check(checkpoint: &Checkpoint, task: &Task) -> anyhow::Result<()> {
    let (target, method) = match task {
        Task::Uniform(options) | Task::Calibrated(options, _) => {
            (&options.target, options.quantize)
        }
        Task::Auto(..) => bail!(
            "--for vllm needs one scale format in one group size for every tensor, which --mbits \
             auto does not keep to; give --mbits a number"
        ),
    };
    let QuantizeOptions { group, scales, .. } = match method {
        Method::Int4(options) => options,
        // Codes and scales are kept as they are, and its kernels take every shape.
        Method::Fp8 => return Ok(()),
        Method::Lut4 { .. } | Method::Nf4 => bail!(
            "--for vllm takes int4 and FP8, which --to compressed-tensors exports; take --preset \
             best, which is FP8, or leave --preset and --scheme out, which is int4"
        ),
    };
    ensure!(
        GROUPS.contains(&group),
        "--for vllm: its kernels take groups of 128, 64 and 32, not of {group}"
    );
    let exact = match scales {
        ScaleChoice::F16 => true,
        ScaleChoice::F32 => false,
        ScaleChoice::Mini { mantissa_bits, .. } => mantissa_bits <= EXACT_IN_BF16,
    };
    ensure!(
        exact,
        "--for vllm: scales in {scales} are exact in neither bf16 nor f16, which is what it reads; \
         take --mbits 0 to {EXACT_IN_BF16}, or --scales f16"
    );
    let taken = |t: &&crate::SourceTensor| t.packed.is_none() && target.takes(t);
    let mut tensors = checkpoint.tensors().iter().filter(taken);
    let Some(short) = tensors.find(|t| !t.shape[1].is_multiple_of(group)) else {
        return Ok(());
    };
    let remedy = match dividing(checkpoint, target) {
        Some(group) => format!("--group-size {group} divides every row"),
        None => "a --target that leaves it out can be exported".to_owned(),
    };
    bail!(
        "--for vllm: {} has {} columns, which groups of {group} do not divide; {remedy}",
        short.name,
        short.shape[1]
    )
}

/// The largest group that divides the rows of all that `target` takes.
fn dividing(checkpoint: &Checkpoint, target: &Target) -> Option<usize> {
    let tensors = || checkpoint.tensors().iter().filter(|t| target.takes(t));
    let divides = |group: &usize| tensors().all(|t| t.shape[1].is_multiple_of(*group));
    GROUPS.into_iter().find(divides)
}
