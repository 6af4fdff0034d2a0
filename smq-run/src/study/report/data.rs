//! The raw lines, sorted by what they are.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{bail, ensure};

use super::online::Online;
use super::summary::METRICS;
use crate::eval::suite::file_name;
use crate::study::contract::{Config, Contract};
use crate::study::log;
use crate::study::plan::{Kind, Plan, Selection, cell_id, energy_id};
use crate::study::record::{
    Body, CellRecord, EnergyRecord, Environment, FileRecord, Line, ScaleErrorsRecord, Timed,
};
use crate::study::worker::Workload;

/// Refuses figures that no measurement has: a time, a rate or a size that is negative or no number.
fn check(out: &Path, id: &str, body: &Body) -> anyhow::Result<()> {
    let refuse = |what: &str, value: f64| {
        bail!(
            "{}: {id} has a {what} of {value}, which cannot have been measured; remove its line to \
             measure it again",
            out.join(log::RAW).display()
        )
    };
    let possible = |value: f64| value.is_finite() && value >= 0.0;
    match body {
        Body::Cell(record) => {
            for metric in METRICS {
                if let Some(value) = metric.of(&record.timed)
                    && !possible(value)
                {
                    return refuse(metric.name, value);
                }
            }
            match record.timed.token_ms.iter().find(|ms| !possible(**ms)) {
                Some(ms) => refuse("token_ms", *ms),
                None => Ok(()),
            }
        }
        Body::File(record) => match record.convert_seconds.filter(|s| !possible(*s)) {
            Some(seconds) => refuse("convert_seconds", seconds),
            None => Ok(()),
        },
        Body::Energy(_) | Body::ScaleErrors(_) | Body::Online(_) | Body::Absent { .. } => Ok(()),
    }
}

/// What was measured, ready to be told.
#[derive(Debug)]
pub(crate) struct Data {
    /// What was to be measured.
    pub contract: Contract,
    /// Repeats of each workload of each config, in the contract's order of configs, then by size.
    pub workloads: Vec<Repeats>,
    /// Energy runs, with their ids.
    pub energy: Vec<(String, EnergyRecord)>,
    /// Files, with their ids.
    pub files: Vec<(String, FileRecord)>,
    /// Weights' errors, with their ids.
    pub errors: Vec<(String, ScaleErrorsRecord)>,
    /// What is absent, and why.
    pub absent: Vec<(String, String)>,
    /// Environments that differ in more than the time and the command, and how many lines have
    /// each.
    pub environments: Vec<(Environment, usize)>,
    /// What was measured online, in a file and perhaps on a machine of its own.
    pub online: Online,
}

/// The repeats of a workload.
#[derive(Debug)]
pub(crate) struct Repeats {
    /// Id of the config.
    pub config: String,
    /// The workload that was timed.
    pub workload: Workload,
    /// Whether it is one of the long contexts.
    pub long_context: bool,
    /// Ids of the raw lines.
    pub ids: Vec<String>,
    /// What each of the repeats came to.
    pub cells: Vec<Timed>,
}

impl Repeats {
    /// How many repeats have a flag.
    #[must_use]
    pub(crate) fn flagged(&self, flag: &str) -> usize {
        let has = |c: &&Timed| c.flags.iter().any(|f| f == flag);
        self.cells.iter().filter(has).count()
    }
}

/// The last body of each id, but nothing measured gives way to an absence; `seen` is told each
/// line's environment.
pub(super) fn latest(
    lines: Vec<Line>,
    mut seen: impl FnMut(Environment),
) -> BTreeMap<String, Body> {
    let mut last: BTreeMap<String, Body> = BTreeMap::new();
    for line in lines {
        seen(line.environment);
        if !matches!(line.body, Body::Absent { .. }) || !last.contains_key(&line.id) {
            last.insert(line.id, line.body);
        }
    }
    last
}

/// Counts a line's environment among those that differ in more than the time and the command.
pub(super) fn add_environment(all: &mut Vec<(Environment, usize)>, environment: Environment) {
    let plain = Environment {
        command: Vec::new(),
        time: String::new(),
        ..environment
    };
    match all.iter_mut().find(|(e, _)| *e == plain) {
        Some((_, n)) => *n += 1,
        None => all.push((plain, 1)),
    }
}

impl Data {
    /// Reads the raw lines of `out`.
    ///
    /// # Errors
    /// Lines that are missing, damaged, or of another contract than `contract`.
    pub(crate) fn read(out: &Path, contract: &Path) -> anyhow::Result<Self> {
        let contract = Contract::load(contract)?;
        let online = Online::read(out, &contract)?;
        // The online half may be all that there is.
        let lines = match !online.is_empty() && !log::exists(out, log::RAW) {
            true => Vec::new(),
            false => log::read(out, log::RAW)?,
        };
        ensure!(
            !lines.is_empty() || !online.is_empty(),
            "{}: nothing is measured yet; `smq-run matrix` does it",
            out.join(log::RAW).display()
        );
        let ours = |l: &Line| l.environment.contract_blake3 == contract.blake3;
        ensure!(
            lines.is_empty() || lines.iter().any(ours),
            "{}: was measured by another contract than {}; pass the right one as --config",
            out.join(log::RAW).display(),
            contract.path.display()
        );
        let mut data = Self {
            contract,
            workloads: Vec::new(),
            energy: Vec::new(),
            files: Vec::new(),
            errors: Vec::new(),
            absent: Vec::new(),
            environments: Vec::new(),
            online,
        };
        let last = latest(lines, |environment| {
            add_environment(&mut data.environments, environment);
        });
        let left = data.left(&last.keys().map(String::as_str).collect::<Vec<_>>());
        for (id, body) in last {
            check(out, &id, &body)?;
            data.add(id, body);
        }
        data.sort();
        data.absent.extend(left);
        data.absent.append(&mut data.online.absent.clone());
        Ok(data)
    }

    /// What of the contract has no line at all.
    fn left(&self, ids: &[&str]) -> Vec<(String, String)> {
        // A line may stand for all whose id continues its own.
        let done = |id: &str| {
            let rest = ids.iter().filter_map(|done| id.strip_prefix(done));
            rest.into_iter().any(|r| r.is_empty() || r.starts_with('/'))
        };
        let plan = Plan::new(
            &self.contract,
            &Selection::default(),
            usize::MAX,
            None,
            done,
        );
        let mut left: Vec<String> = Vec::new();
        for process in plan.groups.iter().flat_map(|g| &g.processes) {
            match &process.kind {
                Kind::Energy => left.push(energy_id(&process.config)),
                Kind::Cells {
                    workloads, repeat, ..
                } => left.extend(
                    workloads
                        .iter()
                        .map(|w| cell_id(&process.config, *w, *repeat)),
                ),
            }
        }
        left.into_iter()
            .map(|id| (id, "not run yet".to_owned()))
            .collect()
    }

    fn add(&mut self, id: String, body: Body) {
        match body {
            Body::File(record) => self.files.push((id, *record)),
            Body::Energy(record) => self.energy.push((id, *record)),
            Body::ScaleErrors(record) => self.errors.push((id, *record)),
            Body::Absent { reason } => self.absent.push((id, reason)),
            // They are in a file of their own.
            Body::Online(_) => {}
            Body::Cell(record) => {
                let CellRecord {
                    config,
                    long_context,
                    timed,
                    ..
                } = *record;
                let workload = Workload {
                    prompt_tokens: timed.prompt_tokens,
                    output_tokens: timed.output_tokens,
                };
                let same = |r: &&mut Repeats| r.config == config && r.workload == workload;
                match self.workloads.iter_mut().find(same) {
                    Some(repeats) => {
                        repeats.ids.push(id);
                        repeats.cells.push(timed);
                    }
                    None => self.workloads.push(Repeats {
                        config,
                        workload,
                        long_context,
                        ids: vec![id],
                        cells: vec![timed],
                    }),
                }
            }
        }
    }

    fn sort(&mut self) {
        let ids: Vec<_> = self.contract.configs.iter().map(|c| c.id.clone()).collect();
        let at = |id: &str| ids.iter().position(|c| c == id).unwrap_or(ids.len());
        self.workloads
            .sort_by_key(|r| (at(&r.config), r.long_context, r.workload));
        self.energy.sort_by_key(|(_, e)| at(&e.config));
        self.files
            .sort_by_key(|(_, f)| f.configs.first().map_or(ids.len(), |c| at(&c.id)));
        let rules = &self.contract.scale_errors.rules;
        let rule = |name: &str| rules.iter().position(|r| r.name() == name);
        self.errors
            .sort_by_key(|(_, e)| (rule(&e.rule), e.mantissa_bits));
        // What was measured after all, at another try, is not absent.
        let measured = |id: &str| self.workloads.iter().any(|r| r.config == id);
        self.absent.retain(|(id, _)| !measured(id));
    }

    /// The checkpoint directory's name, of the first lines.
    #[must_use]
    pub(crate) fn model(&self) -> Option<String> {
        let first = self.environments.first();
        let first = first.or(self.online.environments.first());
        first.map(|(e, _)| file_name(Path::new(&e.model.path)))
    }

    /// The repeats of a workload of a config.
    #[must_use]
    pub(crate) fn repeats(&self, config: &str, workload: Workload) -> Option<&Repeats> {
        let same = |r: &&Repeats| r.config == config && r.workload == workload;
        self.workloads.iter().find(same)
    }

    /// The workloads that some config has.
    #[must_use]
    pub(crate) fn shapes(&self, long_context: bool) -> Vec<Workload> {
        let of = self.workloads.iter();
        let mut shapes: Vec<_> = of
            .filter(|r| r.long_context == long_context)
            .map(|r| r.workload)
            .collect();
        shapes.sort();
        shapes.dedup();
        shapes
    }

    /// Configs with at least one workload.
    #[must_use]
    pub(crate) fn configs(&self) -> Vec<&Config> {
        let has = |c: &&Config| self.workloads.iter().any(|r| r.config == c.id);
        self.contract.configs.iter().filter(has).collect()
    }

    /// The file that a config runs from.
    #[must_use]
    pub(crate) fn file(&self, config: &str) -> Option<&(String, FileRecord)> {
        let of = |f: &&(String, FileRecord)| f.1.configs.iter().any(|c| c.id == config);
        self.files.iter().find(of)
    }
}
