//! Starts a server for each repeat of each config, asks it, and writes down what its clients saw.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use indicatif::ProgressBar;
use smq_convert::{Checkpoint, ConvertOptions};
use smq_engine::{Device, GpuInfo};

use super::Online;
use super::contract::Workload;
use super::plan::{Start, configs, level_id, server_id, servers};
use super::server::Server;
use crate::load::{Goodput, Level, LoadOptions, load};
use crate::study::contract::Contract;
use crate::study::conversion::{Conversion, conversion};
use crate::study::gpu_state::{GpuState, Meter};
use crate::study::identity::{self, Surroundings};
use crate::study::log::{Log, RAW_ONLINE};
use crate::study::record::{Body, Line, OnlineRecord};
use crate::study::runner::{self, MatrixOptions, Outcome};
use crate::study::weights::{self, Weights};

/// The longest that a request may take.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Measures every level of the file `online` that is asked for and not measured yet.
///
/// # Errors
/// A contract or selection that is wrong, results that are something else's, a conversion or the
/// log that fails. A server that fails does not end the run: the outcome names it.
pub(crate) fn run(options: &MatrixOptions, online: &Path) -> anyhow::Result<Outcome> {
    let runner::Start {
        contract,
        checkpoint,
        model,
        config,
        selection,
    } = runner::Start::of(options)?;
    let online = Online::load(online, &contract)?;
    for id in &selection.only {
        if !online.configs.contains(id) {
            let (path, all) = (online.path.display(), online.configs.join(", "));
            bail!("--only: {id:?} is not served by {path}; it has {all}");
        }
    }
    let Workload {
        prompt_tokens,
        output_tokens,
        ..
    } = online.workload;
    let (tokens, most) = (prompt_tokens + output_tokens, config.max_positions);
    if tokens > most {
        bail!(
            "{prompt_tokens} prompt and {output_tokens} output tokens exceed the model's longest \
             context of {most}; give a file with shorter ones, --online=FILE"
        );
    }
    let surroundings = Surroundings::new(&contract, model).online(&online);
    let log = Log::open(&options.out, RAW_ONLINE, &surroundings, options.allow_mixed)?;
    let left = |id: &str| servers(&online, &selection, id, |id| log.has(id));
    let plan: Vec<(&String, Vec<Start>)> = configs(&online, &selection)
        .map(|id| (id, left(id)))
        .collect();
    let levels = plan.iter().flat_map(|(_, starts)| starts);
    let steps = levels.map(|start| start.levels.len()).sum();
    let meter = match options.device {
        Device::Cpu => None,
        Device::Auto | Device::Cuda => Meter::open().ok(),
    };
    let mut run = Run {
        options,
        contract: &contract,
        online: &online,
        checkpoint: &checkpoint,
        vocab: u32::try_from(config.vocab).unwrap_or(u32::MAX),
        surroundings,
        log,
        meter,
        progress: runner::bar(steps)?,
        outcome: Outcome::default(),
    };
    for (id, starts) in plan.iter().filter(|(_, starts)| !starts.is_empty()) {
        run.config(id, starts)?;
    }
    run.progress.finish_and_clear();
    // Only where nothing else is in it.
    let _ = std::fs::remove_dir(&options.work);
    Ok(run.outcome)
}

struct Run<'a> {
    options: &'a MatrixOptions,
    contract: &'a Contract,
    online: &'a Online,
    checkpoint: &'a Checkpoint,
    vocab: u32,
    surroundings: Surroundings,
    log: Log,
    meter: Option<Meter>,
    progress: ProgressBar,
    outcome: Outcome,
}

impl Run<'_> {
    fn config(&mut self, id: &str, starts: &[Start]) -> anyhow::Result<()> {
        let config = self.contract.config(id).context("the config is gone")?;
        let made = match conversion(config, &self.contract.quantization) {
            Conversion::Checkpoint => None,
            Conversion::File(how) => Some(self.convert(id, &how)?),
            Conversion::Unsupported(reason) => return self.absent(id, &reason),
        };
        let weights = match &made {
            None => Weights::of_checkpoint(&self.options.model),
            Some(path) => Weights::of_file(path)?,
        };
        for start in starts {
            let what = format!("{id}: server {}", start.repeat);
            if let Err(error) = self.server(id, start, &weights) {
                let reason = format!("{error:#}");
                self.absent(&server_id(id, start.repeat), &reason)?;
                self.outcome.failed.push((what, reason));
                // A config that is not served fails alike every time.
                break;
            }
        }
        match &made {
            Some(path) => weights::delete(path),
            None => Ok(()),
        }
    }

    fn convert(&self, id: &str, how: &ConvertOptions) -> anyhow::Result<PathBuf> {
        self.progress.set_message(format!("{id}: converting"));
        let from = (self.checkpoint, self.surroundings.model());
        let (path, _) = weights::make(&self.options.work, from, id, how, || self.progress.tick())?;
        Ok(path)
    }

    /// Asks one server for everything that is left of its levels.
    fn server(&mut self, id: &str, start: &Start, weights: &Weights) -> anyhow::Result<()> {
        self.progress
            .set_message(format!("{id}: server {} starts", start.repeat));
        self.progress.tick();
        let server = Server::start(self.options, &weights.path, id)?;
        self.warm_up(&server)?;
        for &(place, clients) in &start.levels {
            let what = format!("{id}: server {}, {clients} clients", start.repeat);
            self.progress.set_message(what.clone());
            let options = LoadOptions {
                concurrency: vec![clients],
                num_prompts: self.online.workload.num_prompts,
                warmup: self.online.warmup.each_level,
                ..self.load(place as u64)
            };
            let command = options.command(&server.url);
            let before = self.state();
            let level = ask(&server, options)?;
            let after = self.state();
            let limit = self.contract.flags.temperature_above_c;
            let flags = match (&before, &after) {
                (Some(before), Some(after)) => GpuState::flags(before, after, limit),
                (_, _) => Vec::new(),
            };
            let workload = &self.online.workload;
            let record = OnlineRecord {
                config: id.to_owned(),
                repeat: start.repeat,
                index_blake3: weights.index_blake3.clone(),
                server: server.command.clone(),
                device: server.version.device.clone(),
                prompt_tokens: workload.prompt_tokens,
                output_tokens: workload.output_tokens,
                num_prompts: workload.num_prompts,
                figures: level.figures(),
                gpu_before: before,
                gpu_after: after,
                flags,
            };
            let gpu = server.version.gpu.clone();
            self.append(
                level_id(id, clients, start.repeat),
                Body::Online(Box::new(record)),
                &command,
                gpu,
            )?;
            self.outcome.measured += 1;
            runner::step(&self.progress, &what);
        }
        server.end()
    }

    /// Requests that are not counted, at the most clients, so that every number of rows was seen.
    fn warm_up(&self, server: &Server) -> anyhow::Result<()> {
        let (workload, warmup) = (&self.online.workload, &self.online.warmup);
        if warmup.num_prompts == 0 {
            return Ok(());
        }
        // No level has this seed.
        let options = LoadOptions {
            concurrency: workload
                .concurrency
                .iter()
                .max()
                .copied()
                .into_iter()
                .collect(),
            num_prompts: warmup.num_prompts,
            warmup: 0,
            ..self.load(workload.concurrency.len() as u64)
        };
        ask(server, options).map(|_| ())
    }

    /// What all requests have in common; the prompts are those of a level's place.
    fn load(&self, place: u64) -> LoadOptions {
        let workload = &self.online.workload;
        LoadOptions {
            concurrency: Vec::new(),
            rate: None,
            prompt_len: workload.prompt_tokens,
            output_len: workload.output_tokens,
            num_prompts: 0,
            warmup: 0,
            data: None,
            vocab: self.vocab,
            seed: workload.seed.wrapping_add(place),
            ignore_eos: true,
            goodput: Goodput::default(),
            timeout: TIMEOUT,
        }
    }

    fn state(&self) -> Option<GpuState> {
        self.meter.as_ref().map(Meter::state)
    }

    fn absent(&mut self, id: &str, reason: &str) -> anyhow::Result<()> {
        let reason = reason.to_owned();
        self.outcome.absent.push((id.to_owned(), reason.clone()));
        let body = Body::Absent { reason };
        self.append(id.to_owned(), body, &identity::command(), None)
    }

    fn append(
        &mut self,
        id: String,
        body: Body,
        command: &[String],
        gpu: Option<GpuInfo>,
    ) -> anyhow::Result<()> {
        let environment = self.surroundings.environment(command, gpu);
        self.log.append(Line {
            id,
            body,
            environment,
        })
    }
}

/// One level. A request that fails makes figures of the others worthless: they had less company.
fn ask(server: &Server, options: LoadOptions) -> anyhow::Result<Level> {
    let sent = options.num_prompts;
    let report = load(&server.client()?, options, |_| (), || ())?;
    let level = report.levels.into_iter().next();
    let level = level.context("the load has no level")?;
    if level.failed > 0 {
        let (failed, error) = (level.failed, level.first_error.unwrap_or_default());
        bail!("{failed} of {sent} requests failed, the first one so: {error}");
    }
    Ok(level)
}
