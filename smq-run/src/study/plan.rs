//! What is left to do: which files, which processes for each, which lines of the error sweep.

use clap::ValueEnum;

use super::contract::{Config, Contract};
use super::conversion::{Conversion, conversion};
use super::scale_errors::Item;
use super::worker::Workload;

/// Parts of the experiment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Section {
    /// The cells that are timed: a config, a prompt and an output length
    Cells,
    /// Joules that a token takes
    Energy,
    /// Memory and TPOT at long contexts
    LongContext,
    /// Weights' errors by scale rule and width, on the CPU
    ScaleErrors,
}

/// What of the experiment is asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selection {
    /// Ids of configs; empty for all.
    pub only: Vec<String>,
    /// Empty for all; but with `only`, no scale errors, which belong to no config.
    pub sections: Vec<Section>,
    /// Repeats of the cells, in place of the contract's.
    pub repeats: Option<usize>,
}

impl Selection {
    fn has(&self, section: Section) -> bool {
        match self.sections.is_empty() {
            true => section != Section::ScaleErrors || self.only.is_empty(),
            false => self.sections.contains(&section),
        }
    }
}

/// A process to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    /// Id of the config that it measures.
    pub config: String,
    /// What it measures of that config.
    pub kind: Kind,
}

/// What a process measures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Workloads, each of them once.
    Cells {
        /// The workloads that are not measured yet.
        workloads: Vec<Workload>,
        /// Number of the process, from 1.
        repeat: usize,
        /// Whether they are the long contexts.
        long_context: bool,
    },
    /// Joules that a token takes.
    Energy,
}

/// Configs that run from the same weights.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    /// The configs, those that were not asked for too.
    pub configs: Vec<Config>,
    /// How the weights are made.
    pub conversion: Conversion,
    /// Whether the file is to be described.
    pub describe: bool,
    /// What runs from them.
    pub processes: Vec<Process>,
}

/// Everything left to do.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plan {
    /// Files and processes, in the contract's order.
    pub groups: Vec<Group>,
    /// Lines of the error sweep.
    pub errors: Vec<Item>,
    /// What cannot be measured: id and reason.
    pub absent: Vec<(String, String)>,
}

/// Id of a timed cell.
#[must_use]
pub(crate) fn cell_id(config: &str, workload: Workload, repeat: usize) -> String {
    format!("{}/r{repeat}", workload_id(config, workload))
}

/// Id of all repeats of a workload.
#[must_use]
pub(crate) fn workload_id(config: &str, workload: Workload) -> String {
    format!(
        "{config}/p{}/o{}",
        workload.prompt_tokens, workload.output_tokens
    )
}

/// Id of a config's energy run.
#[must_use]
pub(crate) fn energy_id(config: &str) -> String {
    format!("{config}/energy")
}

/// Id of the description of a file, by the first config that runs from it.
#[must_use]
pub(crate) fn file_id(config: &str) -> String {
    format!("{config}/file")
}

impl Plan {
    /// What of `selection` is left where `done` says which ids are measured, on a model of
    /// `max_positions`; `no_meter` says why energy cannot be measured.
    #[must_use]
    pub(crate) fn new(
        contract: &Contract,
        selection: &Selection,
        max_positions: usize,
        no_meter: Option<&str>,
        done: impl Fn(&str) -> bool,
    ) -> Self {
        let model = Model {
            max_positions,
            no_meter,
        };
        let mut plan = Self::default();
        let wanted = |c: &Config| selection.only.is_empty() || selection.only.contains(&c.id);
        for (i, first) in contract.configs.iter().enumerate() {
            let same = |c: &&Config| c.same_weights(first);
            if contract.configs[..i].iter().any(|c| same(&c)) {
                continue;
            }
            let configs: Vec<_> = contract.configs.iter().filter(same).cloned().collect();
            if !configs.iter().any(wanted) {
                continue;
            }
            let conversion = conversion(first, &contract.quantization);
            if let Conversion::Unsupported(reason) = &conversion {
                let absent = configs.iter().filter(|c| wanted(c));
                plan.absent
                    .extend(absent.map(|c| (c.id.clone(), reason.clone())));
                continue;
            }
            let mut group = Group {
                describe: !done(&file_id(&first.id)),
                configs,
                conversion,
                processes: Vec::new(),
            };
            for config in group.configs.clone().iter().filter(|c| wanted(c)) {
                plan.add_processes(&mut group, contract, selection, config, &model, &done);
            }
            let errors_only = selection.sections == [Section::ScaleErrors];
            if !group.processes.is_empty() || (group.describe && !errors_only) {
                plan.groups.push(group);
            }
        }
        if selection.has(Section::ScaleErrors) {
            let items = Item::all(&contract.scale_errors).into_iter();
            plan.errors = items.filter(|item| !done(&item.id())).collect();
        }
        plan
    }

    fn add_processes(
        &mut self,
        group: &mut Group,
        contract: &Contract,
        selection: &Selection,
        config: &Config,
        model: &Model<'_>,
        done: &impl Fn(&str) -> bool,
    ) {
        let Model {
            max_positions,
            no_meter,
        } = *model;
        let mut add = |prompts: &[usize], outputs: &[usize], repeats, long_context| {
            let mut fitting = Vec::new();
            for &prompt_tokens in prompts {
                for &output_tokens in outputs {
                    let workload = Workload {
                        prompt_tokens,
                        output_tokens,
                    };
                    match prompt_tokens + output_tokens <= max_positions {
                        true => fitting.push(workload),
                        false => self.absent.push((
                            workload_id(&config.id, workload),
                            too_long(prompt_tokens, output_tokens, max_positions),
                        )),
                    }
                }
            }
            for repeat in 1..=repeats {
                let left = |w: &Workload| !done(&cell_id(&config.id, *w, repeat));
                let workloads: Vec<_> = fitting.iter().copied().filter(left).collect();
                if !workloads.is_empty() {
                    group.processes.push(Process {
                        config: config.id.clone(),
                        kind: Kind::Cells {
                            workloads,
                            repeat,
                            long_context,
                        },
                    });
                }
            }
        };
        if selection.has(Section::Cells) {
            let w = &contract.workloads;
            let repeats = selection.repeats.unwrap_or(w.repeats);
            add(&w.prompt_tokens, &w.output_tokens, repeats, false);
        }
        let l = &contract.long_context;
        if selection.has(Section::LongContext) && l.configs.contains(&config.id) {
            let repeats = selection.repeats.unwrap_or(l.repeats);
            add(&l.prompt_tokens, &l.output_tokens, repeats, true);
        }
        let e = &contract.energy;
        if selection.has(Section::Energy) && !done(&energy_id(&config.id)) {
            let too_long = (e.prompt_tokens + e.output_tokens > max_positions)
                .then(|| too_long(e.prompt_tokens, e.output_tokens, max_positions));
            match no_meter.map(str::to_owned).or(too_long) {
                Some(reason) => self.absent.push((energy_id(&config.id), reason)),
                None => group.processes.push(Process {
                    config: config.id.clone(),
                    kind: Kind::Energy,
                }),
            }
        }
    }

    /// Conversions, processes and lines of the sweep.
    #[must_use]
    pub(crate) fn steps(&self) -> usize {
        let of_group = |g: &Group| 1 + g.processes.len();
        self.groups.iter().map(of_group).sum::<usize>() + self.errors.len()
    }
}

/// What the plan has to know of model and machine.
struct Model<'a> {
    max_positions: usize,
    no_meter: Option<&'a str>,
}

fn too_long(prompt: usize, output: usize, max: usize) -> String {
    format!(
        "{prompt} prompt and {output} output tokens exceed the model's longest context of {max}"
    )
}

#[cfg(test)]
mod tests;
