//! The online half: what clients of a server saw, in a table and a plot of its own.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{bail, ensure};

use super::chart::{Axes, Series, interval, plot};
use super::data::{add_environment, latest};
use super::summary::{Rows, optional, text};
use super::tables::{estimate, markdown};
use crate::study::contract::Contract;
use crate::study::log::{self, RAW_ONLINE};
use crate::study::online::level_ids;
use crate::study::record::{Body, Environment, Line, OnlineRecord};
use crate::study::statistics::Estimate;
use smq_convert::number::count;

/// What was measured online.
#[derive(Debug, Default)]
pub(crate) struct Online {
    /// By the contract's order of configs, then by clients.
    pub(super) levels: Vec<Level>,
    /// What is absent, and why.
    pub(super) absent: Vec<(String, String)>,
    /// The setups that were measured in, as those of the matrix.
    pub(super) environments: Vec<(Environment, usize)>,
}

/// The repeats of a number of clients of a config.
#[derive(Debug)]
pub(super) struct Level {
    config: String,
    clients: usize,
    ids: Vec<String>,
    records: Vec<OnlineRecord>,
}

/// A figure in the tables.
struct Figure {
    /// What `vllm bench serve` calls it.
    name: &'static str,
    title: &'static str,
    digits: usize,
}

/// What answers are worth to those who wait.
const OUTPUT: Figure = Figure {
    name: "output_throughput",
    title: "output, tokens/s",
    digits: 1,
};

const FIGURES: [Figure; 10] = [
    Figure {
        name: "request_throughput",
        title: "requests/s",
        digits: 2,
    },
    OUTPUT,
    Figure {
        name: "median_ttft_ms",
        title: "TTFT p50, ms",
        digits: 1,
    },
    Figure {
        name: "p95_ttft_ms",
        title: "p95",
        digits: 1,
    },
    Figure {
        name: "median_tpot_ms",
        title: "TPOT p50, ms",
        digits: 2,
    },
    Figure {
        name: "p95_tpot_ms",
        title: "p95",
        digits: 2,
    },
    Figure {
        name: "median_itl_ms",
        title: "ITL p50, ms",
        digits: 2,
    },
    Figure {
        name: "p95_itl_ms",
        title: "p95",
        digits: 2,
    },
    Figure {
        name: "median_e2el_ms",
        title: "E2EL p50, ms",
        digits: 0,
    },
    Figure {
        name: "p95_e2el_ms",
        title: "p95",
        digits: 0,
    },
];

impl Level {
    fn over(&self, name: &str) -> Option<Estimate> {
        let values: Vec<f64> = self.records.iter().filter_map(|r| r.figure(name)).collect();
        Estimate::of(&values)
    }
}

impl Online {
    /// Reads the online lines of `out`; nothing where there are none.
    ///
    /// # Errors
    /// Lines that are damaged, of another contract than `contract`, or have figures that cannot
    /// have been measured.
    pub(super) fn read(out: &Path, contract: &Contract) -> anyhow::Result<Self> {
        let mut online = Self::default();
        if !log::exists(out, RAW_ONLINE) {
            return Ok(online);
        }
        let lines = log::read(out, RAW_ONLINE)?;
        let ours = |l: &Line| l.environment.contract_blake3 == contract.blake3;
        ensure!(
            lines.is_empty() || lines.iter().any(ours),
            "{}: was measured by another contract than {}; pass the right one as --config",
            out.join(RAW_ONLINE).display(),
            contract.path.display()
        );
        let last = latest(lines, |environment| {
            add_environment(&mut online.environments, environment);
        });
        for (id, body) in last {
            online.add(out, id, body)?;
        }
        let place = |id: &str| contract.configs.iter().position(|c| c.id == id);
        online
            .levels
            .sort_by_key(|level| (place(&level.config), level.clients));
        // What was measured after all, at another try, is not absent.
        let levels = &online.levels;
        let is_measured = |id: &str| {
            let config = id.split('/').next();
            levels.iter().any(|level| Some(&level.config[..]) == config)
        };
        online.absent.retain(|(id, _)| !is_measured(id));
        Ok(online)
    }

    fn add(&mut self, out: &Path, id: String, body: Body) -> anyhow::Result<()> {
        let record = match body {
            Body::Online(record) => *record,
            Body::Absent { reason } => {
                self.absent.push((id, reason));
                return Ok(());
            }
            Body::File(_) | Body::Cell(_) | Body::Energy(_) | Body::ScaleErrors(_) => {
                let path = out.join(RAW_ONLINE);
                bail!("{}: {id} is not of the online half", path.display());
            }
        };
        let figures = record.figures.iter();
        let mut numbers = figures.filter_map(|(name, value)| Some((name, value.as_f64()?)));
        if let Some((name, value)) = numbers.find(|(_, v)| !v.is_finite() || *v < 0.0) {
            bail!(
                "{}: {id} has a {name} of {value}, which cannot have been measured; remove its \
                 line to measure it again",
                out.join(RAW_ONLINE).display()
            );
        }
        let clients = record.figure("max_concurrency").unwrap_or(0.0) as usize;
        let same = |l: &&mut Level| (&l.config, l.clients) == (&record.config, clients);
        match self.levels.iter_mut().find(same) {
            Some(level) => {
                level.ids.push(id);
                level.records.push(record);
            }
            None => self.levels.push(Level {
                config: record.config.clone(),
                clients,
                ids: vec![id],
                records: vec![record],
            }),
        }
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.levels.is_empty()
    }

    /// What was asked: the distinct workloads, in words.
    pub(super) fn workloads(&self) -> Vec<String> {
        let records = self.levels.iter().flat_map(|level| &level.records);
        let mut all: Vec<String> = records
            .map(|r| {
                format!(
                    "{} requests of {} prompt and {} output tokens",
                    count(r.num_prompts),
                    count(r.prompt_tokens),
                    count(r.output_tokens)
                )
            })
            .collect();
        all.sort();
        all.dedup();
        all
    }

    fn configs(&self) -> Vec<&str> {
        let mut configs: Vec<_> = self.levels.iter().map(|l| l.config.as_str()).collect();
        configs.dedup();
        configs
    }

    /// A row a config, a column a number of clients: output tokens a second.
    pub(super) fn by_clients(&self, contract: &Contract) -> String {
        let mut clients: Vec<usize> = self.levels.iter().map(|l| l.clients).collect();
        clients.sort_unstable();
        clients.dedup();
        let mut columns = vec!["config".to_owned(), "weights".to_owned()];
        columns.extend(clients.iter().map(usize::to_string));
        let rows = self.configs().into_iter().map(|config| {
            let weights = contract.config(config).map(|c| c.describe());
            let mut row = vec![config.to_owned(), weights.unwrap_or_default()];
            row.extend(clients.iter().map(|clients| {
                let same = |l: &&Level| l.config == config && l.clients == *clients;
                let level = self.levels.iter().find(same);
                estimate(level.and_then(|l| l.over(OUTPUT.name)), 1.0, OUTPUT.digits)
            }));
            row
        });
        let rows = rows.collect();
        markdown(
            &columns.iter().map(String::as_str).collect::<Vec<_>>(),
            rows,
        )
    }

    /// Every figure of every level: a row each.
    pub(super) fn table(&self) -> String {
        let mut columns = vec!["raw lines", "clients", "n"];
        columns.extend(FIGURES.map(|figure| figure.title));
        columns.push("flags");
        let rows = self.levels.iter().map(|level| {
            let mut row = vec![
                format!("`{}`", level_ids(&level.config, level.clients)),
                level.clients.to_string(),
                level.records.len().to_string(),
            ];
            row.extend(
                FIGURES
                    .iter()
                    .map(|figure| estimate(level.over(figure.name), 1.0, figure.digits)),
            );
            let flag = |name: &str| {
                let has = |r: &&OnlineRecord| r.flags.iter().any(|f| f == name);
                match level.records.iter().filter(has).count() {
                    0 => None,
                    n => Some(format!("{name} {n} of {}", level.records.len())),
                }
            };
            let flags: Vec<_> = ["throttled", "hot"].into_iter().filter_map(flag).collect();
            row.push(flags.join(", "));
            row
        });
        markdown(&columns, rows.collect())
    }

    /// Output tokens a second by clients, a line a config.
    ///
    /// # Errors
    /// If the plotting library fails.
    pub(super) fn plot(&self) -> anyhow::Result<Option<String>> {
        let series: Vec<Series> = self
            .configs()
            .into_iter()
            .map(|config| Series {
                label: config.to_owned(),
                points: self
                    .levels
                    .iter()
                    .filter(|level| level.config == config)
                    .filter_map(|level| {
                        let e = level.over(OUTPUT.name)?;
                        let ends = e.ci95_half_width.and_then(|half| interval(e.mean, half));
                        Some((level.clients as f64, e.mean, ends))
                    })
                    .collect(),
                line: true,
                ..Series::default()
            })
            .collect();
        let axes = Axes {
            title: "Tokens generated a second by a server, all clients together (more is better)",
            x_title: "clients",
            y_title: "output tokens/s",
            log_x: true,
            from_zero: true,
            ..Axes::default()
        };
        plot("online output rate", &axes, &series)
    }

    /// Every figure as rows of a CSV file. A cell that is empty was not measured.
    pub(super) fn rows(&self) -> Rows {
        let mut rows = vec![text(&[
            "config",
            "clients",
            "figure",
            "n",
            "mean",
            "sd",
            "ci95_half_width",
            "raw_ids",
            "absent",
        ])];
        for level in &self.levels {
            let names = level.records.iter().flat_map(|r| r.figures.keys());
            // By name: what a record lacks is not measured.
            let names: BTreeMap<&str, ()> = names.map(|name| (name.as_str(), ())).collect();
            for name in names.into_keys() {
                let Some(e) = level.over(name) else {
                    continue;
                };
                rows.push(vec![
                    level.config.clone(),
                    level.clients.to_string(),
                    name.to_owned(),
                    e.n.to_string(),
                    e.mean.to_string(),
                    optional(e.sd),
                    optional(e.ci95_half_width),
                    level.ids.join(" "),
                    String::new(),
                ]);
            }
        }
        for (id, reason) in &self.absent {
            rows.push(super::summary::absent(rows[0].len(), id, reason));
        }
        rows
    }
}
