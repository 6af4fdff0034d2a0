//! Runs the experiment: makes what is missing, starts a process for each repeat, writes down what
//! it says.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use smq_convert::cli::print_notes;
use smq_convert::{Checkpoint, ConvertOptions};
use smq_format::SmqFile;

use super::contract::Contract;
use super::conversion::Conversion;
use super::gpu_state::Meter;
use super::identity::{self, Surroundings};
use super::log::{Log, RAW};
use super::plan::{Group, Kind, Plan, Process, Selection, cell_id, energy_id, file_id};
use super::record::{
    Body, CellRecord, EnergyRecord, FileRecord, Line, ModelIdentity, TensorErrors,
};
use super::scale_errors::Sample;
use super::weights::{self, Weights, hex};
use super::worker::{ON_CPU, Reply};
use smq_engine::Device;
use smq_engine::GpuInfo;
use smq_model::ModelConfig;

/// What to run, and where results go.
#[derive(Debug, Clone)]
pub(crate) struct MatrixOptions {
    /// The file of the contract.
    pub contract: PathBuf,
    /// The directory of the checkpoint.
    pub model: PathBuf,
    /// The directory of the results.
    pub out: PathBuf,
    /// Where converted files are kept while they are needed.
    pub work: PathBuf,
    /// What of the experiment.
    pub selection: Selection,
    /// What to run on.
    pub device: Device,
    /// Worker threads of each process.
    pub threads: Option<u16>,
    /// Add to results of another model, commit or contract.
    pub allow_mixed: bool,
    /// The executable of this program, which measures in processes of its own.
    pub program: PathBuf,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Lines that were added.
    pub measured: usize,
    /// What could not be measured: id and reason.
    pub absent: Vec<(String, String)>,
    /// Processes that failed: what and why.
    pub failed: Vec<(String, String)>,
}

/// What every run begins with.
pub(super) struct Start {
    pub(super) contract: Contract,
    pub(super) checkpoint: Checkpoint,
    pub(super) model: ModelIdentity,
    pub(super) config: ModelConfig,
    /// What is asked for, each config by its id.
    pub(super) selection: Selection,
}

impl Start {
    /// Reads the contract and opens the checkpoint.
    ///
    /// # Errors
    /// If one of them cannot be read, or the contract lacks a config that is asked for.
    pub(super) fn of(options: &MatrixOptions) -> anyhow::Result<Self> {
        let contract = Contract::load(&options.contract)?;
        let mut selection = options.selection.clone();
        for id in &mut selection.only {
            let Some(config) = contract.meant(id) else {
                bail!(
                    "--only: there is no config {id:?} in {}; it has {}",
                    contract.path.display(),
                    contract.ids()
                );
            };
            id.clone_from(&config.id);
        }
        ensure!(
            options.model.is_dir(),
            "{}: is no checkpoint directory, which the matrix starts from",
            options.model.display()
        );
        let checkpoint = Checkpoint::open(&options.model)?;
        print_notes(checkpoint.notes());
        let model = identity::checkpoint(&checkpoint)?;
        let config = ModelConfig::from_json(&std::fs::read(checkpoint.config_path())?)?;
        Ok(Self {
            contract,
            checkpoint,
            model,
            config,
            selection,
        })
    }
}

/// Measures everything that is asked for and not measured yet.
///
/// # Errors
/// A contract or selection that is wrong, results that are something else's, a conversion or the
/// log that fails. A process that fails does not end the run: the outcome names it.
pub(crate) fn run(options: &MatrixOptions) -> anyhow::Result<Outcome> {
    let Start {
        contract,
        checkpoint,
        model,
        config,
        selection,
    } = Start::of(options)?;
    let surroundings = Surroundings::new(&contract, model);
    let log = Log::open(&options.out, RAW, &surroundings, options.allow_mixed)?;
    let no_meter = match options.device {
        Device::Cpu => Some(ON_CPU.to_owned()),
        Device::Auto | Device::Cuda => Meter::open().err(),
    };
    let plan = Plan::new(
        &contract,
        &selection,
        config.max_positions,
        no_meter.as_deref(),
        |id| log.has(id),
    );
    let progress = bar(plan.steps())?;
    let mut run = Run {
        options,
        contract: &contract,
        checkpoint: &checkpoint,
        surroundings,
        log,
        progress,
        outcome: Outcome::default(),
    };
    for (id, reason) in &plan.absent {
        run.absent(id, reason)?;
    }
    for group in &plan.groups {
        run.group(group)?;
    }
    run.errors(&plan)?;
    run.progress.finish_and_clear();
    // Only where nothing else is in it.
    let _ = std::fs::remove_dir(&options.work);
    Ok(run.outcome)
}

struct Run<'a> {
    options: &'a MatrixOptions,
    contract: &'a Contract,
    checkpoint: &'a Checkpoint,
    surroundings: Surroundings,
    log: Log,
    progress: ProgressBar,
    outcome: Outcome,
}

impl Run<'_> {
    fn group(&mut self, group: &Group) -> anyhow::Result<()> {
        let Some(first) = group.configs.first() else {
            return Ok(());
        };
        let made = match &group.conversion {
            Conversion::Checkpoint => None,
            Conversion::File(how) => Some(self.convert(&first.id, how)?),
            // The plan lists it as absent.
            Conversion::Unsupported(_) => return Ok(()),
        };
        if group.describe {
            let record = match &made {
                None => FileRecord {
                    configs: group.configs.clone(),
                    file_bytes: self.checkpoint.total_bytes(),
                    scale_bytes: None,
                    index_blake3: None,
                    sources_blake3: Default::default(),
                    convert_seconds: None,
                    tensors: Vec::new(),
                },
                Some((path, took)) => describe(path, group, *took)?,
            };
            self.append(
                file_id(&first.id),
                Body::File(Box::new(record)),
                &identity::command(),
                None,
            )?;
        }
        self.step(&format!("{}: weights ready", first.id));
        let weights = match &made {
            None => Weights::of_checkpoint(&self.options.model),
            Some((path, _)) => Weights::of_file(path)?,
        };
        let mut broken: Vec<&str> = Vec::new();
        for process in &group.processes {
            // A config that does not run fails alike every time.
            if !broken.contains(&process.config.as_str()) && !self.process(process, &weights)? {
                broken.push(&process.config);
            }
            self.step(&describe_process(process));
        }
        if let Some((path, _)) = &made {
            weights::delete(path)?;
        }
        Ok(())
    }

    /// The file of a config, and how long it took to make.
    fn convert(
        &self,
        id: &str,
        how: &ConvertOptions,
    ) -> anyhow::Result<(PathBuf, Option<Duration>)> {
        self.progress.set_message(format!("{id}: converting"));
        let from = (self.checkpoint, self.surroundings.model());
        weights::make(&self.options.work, from, id, how, || self.progress.tick())
    }

    /// Runs a process and writes down what it says; false if it fails.
    fn process(&mut self, process: &Process, weights: &Weights) -> anyhow::Result<bool> {
        let what = describe_process(process);
        self.progress.set_message(what.clone());
        self.progress.tick();
        let args = arguments(self.options, self.contract, &process.kind, &weights.path);
        let mut stderr = tempfile::tempfile()?;
        let mut child = Command::new(&self.options.program)
            .args(&args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr.try_clone()?)
            .spawn()
            .with_context(|| format!("{}: cannot start it", self.options.program.display()))?;
        let mut command = vec!["smq-run".to_owned()];
        command.extend(args);
        if let Some(stdout) = child.stdout.take() {
            for line in BufReader::new(stdout).lines() {
                let line = line?;
                let reply = serde_json::from_str(&line)
                    .with_context(|| format!("{what}: the process said {line:?}"))?;
                self.reply(process, reply, weights, &command)?;
            }
        }
        let status = child.wait()?;
        if status.success() {
            return Ok(true);
        }
        let reason = why(&mut stderr, status)?;
        self.absent(&process.config, &reason)?;
        self.outcome.failed.push((what, reason));
        Ok(false)
    }

    fn reply(
        &mut self,
        process: &Process,
        reply: Reply,
        weights: &Weights,
        command: &[String],
    ) -> anyhow::Result<()> {
        let config = process.config.clone();
        let index_blake3 = weights.index_blake3.clone();
        match (reply, &process.kind) {
            (
                Reply::Timed { gpu, timed },
                Kind::Cells {
                    workloads,
                    repeat,
                    long_context,
                },
            ) => {
                let of = |w: &&super::worker::Workload| {
                    (w.prompt_tokens, w.output_tokens) == (timed.prompt_tokens, timed.output_tokens)
                };
                let workload = workloads.iter().find(of);
                let workload = *workload.context("the process measured what was not asked for")?;
                let id = cell_id(&config, workload, *repeat);
                let record = CellRecord {
                    config,
                    long_context: *long_context,
                    repeat: *repeat,
                    index_blake3,
                    timed: *timed,
                };
                self.append(id, Body::Cell(Box::new(record)), command, gpu)
            }
            (Reply::Energy { gpu, energy }, Kind::Energy) => {
                let id = energy_id(&config);
                let record = EnergyRecord {
                    config,
                    index_blake3,
                    measured: *energy,
                };
                self.append(id, Body::Energy(Box::new(record)), command, gpu)
            }
            (Reply::Absent { reason }, Kind::Energy) => self.absent(&energy_id(&config), &reason),
            (reply, _) => bail!("the process measured what was not asked for: {reply:?}"),
        }
    }

    fn errors(&mut self, plan: &Plan) -> anyhow::Result<()> {
        if plan.errors.is_empty() {
            return Ok(());
        }
        let sample = match Sample::read(self.checkpoint, &self.contract.scale_errors) {
            Ok(sample) => sample,
            Err(reason) => return self.absent("errors", &reason.to_string()),
        };
        for item in &plan.errors {
            self.progress.set_message(item.id());
            let record = sample.measure(self.contract, item)?;
            let body = Body::ScaleErrors(Box::new(record));
            self.append(item.id(), body, &identity::command(), None)?;
            self.step(&item.id());
        }
        Ok(())
    }

    fn absent(&mut self, id: &str, reason: &str) -> anyhow::Result<()> {
        let reason = reason.to_owned();
        self.outcome.absent.push((id.to_owned(), reason.clone()));
        let environment = self.surroundings.environment(&identity::command(), None);
        self.log.append(Line {
            id: id.to_owned(),
            body: Body::Absent { reason },
            environment,
        })
    }

    fn append(
        &mut self,
        id: String,
        body: Body,
        command: &[String],
        gpu: Option<GpuInfo>,
    ) -> anyhow::Result<()> {
        let environment = self.surroundings.environment(command, gpu);
        self.outcome.measured += 1;
        self.log.append(Line {
            id,
            body,
            environment,
        })
    }

    fn step(&self, what: &str) {
        step(&self.progress, what);
    }
}

/// A bar over so many steps.
pub(super) fn bar(steps: usize) -> anyhow::Result<ProgressBar> {
    let style =
        ProgressStyle::with_template("{bar:24} {pos}/{len} {msg}, {elapsed} elapsed, {eta} left")?;
    Ok(ProgressBar::new(steps as u64).with_style(style))
}

/// A step is done. Where there is no terminal to draw on, a line says so.
pub(super) fn step(progress: &ProgressBar, what: &str) {
    progress.inc(1);
    if progress.is_hidden() {
        let (done, all) = (progress.position(), progress.length().unwrap_or(0));
        let left = progress.eta().as_secs();
        smq_convert::cli::tell(&format!("{done}/{all} {what}, {left} s left"));
    }
}

/// Why a process failed: the last line of its standard error, or its status.
///
/// # Errors
/// If its standard error cannot be read.
pub(super) fn why(stderr: &mut File, status: ExitStatus) -> std::io::Result<String> {
    let mut text = String::new();
    stderr.rewind()?;
    stderr.read_to_string(&mut text)?;
    let said = text.lines().rfind(|l| !l.trim().is_empty());
    Ok(match said {
        Some(said) => said.trim_start_matches("error: ").to_owned(),
        None => format!("the process ended with {status}"),
    })
}

fn describe_process(process: &Process) -> String {
    match &process.kind {
        Kind::Cells {
            repeat,
            long_context,
            ..
        } => {
            let long = if *long_context {
                " of long contexts"
            } else {
                ""
            };
            format!("{}: repeat {repeat}{long}", process.config)
        }
        Kind::Energy => format!("{}: energy", process.config),
    }
}

/// The command line of `smq-run cells` that does a process's work.
fn arguments(
    options: &MatrixOptions,
    contract: &Contract,
    kind: &Kind,
    model: &Path,
) -> Vec<String> {
    let mut args = vec!["cells".to_owned(), model.display().to_string()];
    let mut add = |name: &str, value: String| args.extend([format!("--{name}"), value]);
    match kind {
        Kind::Cells { workloads, .. } => {
            let list: Vec<_> = workloads.iter().map(ToString::to_string).collect();
            add("workloads", list.join(","));
        }
        Kind::Energy => {
            let e = &contract.energy;
            add("energy", format!("{}x{}", e.prompt_tokens, e.output_tokens));
            add("sample-ms", e.sample_ms.to_string());
            add("decode-seconds", e.decode_seconds.to_string());
            add("prefill-seconds", e.prefill_seconds.to_string());
            add("settle-seconds", e.settle_seconds.to_string());
            add("idle-seconds", e.idle_seconds.to_string());
        }
    }
    let w = &contract.warmup;
    add("warmup", format!("{}x{}", w.prompt_tokens, w.output_tokens));
    add("seed", contract.decoding.seed.to_string());
    add("hot-above", contract.flags.temperature_above_c.to_string());
    add("device", options.device.name().to_owned());
    if let Some(threads) = options.threads {
        add("threads", threads.to_string());
    }
    if w.each_prompt_length {
        args.push("--each-prompt-length".to_owned());
    }
    args
}

fn describe(path: &Path, group: &Group, took: Option<Duration>) -> anyhow::Result<FileRecord> {
    let file = SmqFile::open(path)?;
    // A quantized tensor's first blob is its codes, the others are its scales.
    let tensors = file.index().tensors.iter();
    let quantized = tensors.filter(|t| t.scheme.is_quantized());
    let scale_bytes = quantized
        .flat_map(|t| t.blobs.iter().skip(1))
        .map(|b| b.length)
        .sum();
    let sources = file.index().provenance.sources.iter();
    let statistics = file.statistics()?;
    let tensors = statistics.iter().flat_map(|s| &s.tensors);
    let record = FileRecord {
        configs: group.configs.clone(),
        file_bytes: file.header().file_bytes,
        scale_bytes: Some(scale_bytes),
        index_blake3: Some(hex(&file.header().index.hash)),
        sources_blake3: sources.map(|s| (s.name.clone(), hex(&s.blake3))).collect(),
        convert_seconds: took.map(|t| t.as_secs_f64()),
        tensors: tensors.map(TensorErrors::from).collect(),
    };
    Ok(record)
}
