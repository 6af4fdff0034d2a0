//! Calibration on a GPU against its twin on the CPU; where there is no GPU the tests count as
//! ignored. They read the repository's fixture; `SMQ_REPOSITORY` says where it is, if not where
//! this was built.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use smq_convert::{
    Auto, AutoOptions, CalibrateOptions, CalibrationMethod, Checkpoint, ChooseBy, ConvertOptions,
    Goal, LevelChoice, Method, QuantizeOptions, ScaleChoice, ScaleRule, convert_calibrated,
    dry_run_auto_calibrated,
};
use smq_engine::Device;
use smq_engine::cuda::Gpu;
use smq_format::SmqFile;
use tempfile::TempDir;

type Outcome = Result<(), Failed>;
type Test = fn() -> Outcome;

fn main() -> ExitCode {
    let mut args = Arguments::from_args();
    // Each fills the GPU.
    args.test_threads = Some(1);
    let is_present = Gpu::open(0).is_ok();
    let tests: [(&str, Test); 4] = [
        ("scales_and_first_layers_are_the_cpus", first_layers),
        ("outputs_are_as_near_as_on_the_cpu", outputs),
        ("the_same_bytes_every_time", same_bytes),
        ("storage_is_chosen_by_the_same_errors", chosen_by_outputs),
    ];
    let trials = tests.into_iter().map(|(name, test)| {
        Trial::ignorable_test(name, move || match is_present {
            true => test().map(|()| Completion::Completed),
            false => Ok(Completion::ignored_with("no GPU")),
        })
    });
    libtest_mimic::run(&args, trials.collect()).exit_code()
}

fn fixtures() -> PathBuf {
    let repository = std::env::var_os("SMQ_REPOSITORY").map(PathBuf::from);
    let repository = repository.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    repository.join("tests/fixtures")
}

fn options(quantize: Method) -> ConvertOptions {
    ConvertOptions {
        target: "all".parse().unwrap(),
        quantize,
        overwrite: true,
        jobs: 0,
    }
}

fn texts(method: CalibrationMethod, device: Device) -> CalibrateOptions {
    CalibrateOptions {
        texts: vec![fixtures().join("sample.txt")],
        tokens: 4096,
        window: 256,
        method,
        device,
        memory_bytes: None,
        resume: false,
    }
}

/// A group that does not divide every row, so that the last ones are short.
fn int4() -> QuantizeOptions {
    QuantizeOptions {
        group: 128,
        scales: ScaleChoice::e5(3),
        rule: ScaleRule::Weighted,
    }
}

fn schemes() -> [(&'static str, Method); 3] {
    let lut4 = Method::Lut4 {
        options: int4(),
        levels: LevelChoice::Learned,
    };
    [
        ("int4", Method::Int4(int4())),
        ("lut4", lut4),
        ("nf4", Method::Nf4),
    ]
}

fn calibrated(dir: &TempDir, method: Method, texts: &CalibrateOptions) -> SmqFile {
    let checkpoint = Checkpoint::open(&fixtures().join("phi3-tiny")).unwrap();
    let path = dir.path().join(format!("{:?}.smq", texts.device));
    let go_on = (|_, _| true, |_| true);
    convert_calibrated(
        &checkpoint,
        &path,
        &options(method),
        texts,
        &go_on.0,
        &go_on.1,
    )
    .unwrap();
    SmqFile::open(&path).unwrap()
}

/// The share of the tensor's weights that differ.
fn differing(a: &SmqFile, b: &SmqFile, name: &str) -> f64 {
    let weights = |file: &SmqFile| file.tensor(name).unwrap().dequantize().unwrap();
    let (a, b) = (weights(a), weights(b));
    let differ = a.iter().zip(&b).filter(|(a, b)| a != b).count();
    differ as f64 / a.len() as f64
}

/// What goes into the first product is the same but for its rounding to bf16, which moves a sum
/// over thousands of tokens by some 1e-4: few weights lie so near to a midpoint. By rounding to
/// nearest that holds for every layer; by columns a weight that differs moves those behind it.
fn first_layers() -> Outcome {
    let first = "model.layers.0.self_attn.qkv_proj.weight";
    let last = "model.layers.3.mlp.down_proj.weight";
    for (scheme, quantize) in schemes() {
        for (method, tensor, limit) in [
            (CalibrationMethod::Search, first, 0.005),
            (CalibrationMethod::Search, last, 0.02),
            (CalibrationMethod::Gptq, first, 0.03),
            (CalibrationMethod::Asymmetric, first, 0.03),
        ] {
            let dir = TempDir::new()?;
            let cpu = calibrated(&dir, quantize, &texts(method, Device::Cpu));
            let gpu = calibrated(&dir, quantize, &texts(method, Device::Cuda));
            let share = differing(&cpu, &gpu, tensor);
            println!("{scheme} {method:?} {tensor}: {share:.5} of the weights differ");
            if share > limit {
                return Err(format!("{scheme}, {method:?}, {tensor}: {share}").into());
            }
        }
    }
    Ok(())
}

/// Which of two weights next to a midpoint is taken is chance, and so is what follows of it: the
/// outputs' errors are alike, within what two runs on the CPU with other block sizes differ by.
fn outputs() -> Outcome {
    for (scheme, quantize) in schemes() {
        let dir = TempDir::new()?;
        let method = CalibrationMethod::Asymmetric;
        let cpu = calibrated(&dir, quantize, &texts(method, Device::Cpu));
        let gpu = calibrated(&dir, quantize, &texts(method, Device::Cuda));
        let (cpu, gpu) = (cpu.statistics()?.unwrap(), gpu.statistics()?.unwrap());
        for (cpu, gpu) in cpu.tensors.iter().zip(&gpu.tensors) {
            let (c, g) = (cpu.output.unwrap(), gpu.output.unwrap());
            for (what, c, g) in [
                ("rounded", c.rounded, g.rounded),
                ("stored", c.stored, g.stored),
            ] {
                if (c - g).abs() > 0.15 * c {
                    let name = &cpu.name;
                    return Err(format!("{scheme}, {name}, {what}: {c} on the CPU, {g}").into());
                }
            }
        }
    }
    Ok(())
}

fn same_bytes() -> Outcome {
    for (scheme, quantize) in schemes() {
        let (a, b) = (TempDir::new()?, TempDir::new()?);
        let texts = texts(CalibrationMethod::Asymmetric, Device::Cuda);
        let (a, b) = (
            calibrated(&a, quantize, &texts),
            calibrated(&b, quantize, &texts),
        );
        if a.bytes() != b.bytes() {
            return Err(format!("{scheme}: two runs differ").into());
        }
    }
    Ok(())
}

/// Both streams are the unquantized model's, so that what outputs cost in a storage differs by the
/// rounding of activations to bf16, 2^-9 of each, and by little that chance decides.
fn chosen_by_outputs() -> Outcome {
    let checkpoint = Checkpoint::open(&fixtures().join("phi3-tiny")).unwrap();
    let options = AutoOptions {
        target: "all".parse().unwrap(),
        group: 128,
        rule: None,
        goal: Goal::Budget(4.09),
        choose_by: ChooseBy::Outputs,
        sensitivity: None,
        mixed_widths: false,
        overwrite: false,
        jobs: 0,
    };
    let chosen = |device| -> Auto {
        let texts = texts(CalibrationMethod::Asymmetric, device);
        let go_on = |_: usize, _: usize| true;
        dry_run_auto_calibrated(&checkpoint, &options, &texts, &go_on, &|_| true)
            .unwrap()
            .0
    };
    let (cpu, gpu) = (chosen(Device::Cpu), chosen(Device::Cuda));
    for (cpu, gpu) in cpu.tensors.iter().zip(&gpu.tensors) {
        let name = &cpu.name;
        let [c, g] = [cpu, gpu].map(|t| t.squared_error / t.squared_whole);
        println!("{name}: {c} on the CPU, {g} on the GPU");
        if cpu.options.is_some() != gpu.options.is_some() || (c - g).abs() > 0.05 * c {
            return Err(format!("{name}: {cpu:?} on the CPU, {gpu:?}").into());
        }
    }
    Ok(())
}
