//! Quality: what the results' `quality` folder holds becomes part of the report.
//!
//! ```text
//!   suite*.json        `smq-run eval suite`: plots, tables, findings
//!   calibration*.json  `smq-run eval suite --plan`: findings
//!   sensitivity*.json  `smq-run eval sensitivity`: a scatter plot
//!   notes.json         {"MODEL": "what a reader must know of it"}
//!   *.json             {"title", "note", "columns", "rows"}: a table; in any other form left alone
//!   *.md               a page, but README.md and what a suite's JSON of the same name has
//! ```

mod forest;
mod plots;
pub(super) mod verdict;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::plots::Plots;
use super::tables::markdown;
use crate::eval::sensitivity::Sensitivity;
use crate::eval::suite::{self, Summary};

/// What was measured of quality, by file name.
#[derive(Debug, Default)]
pub(crate) struct Quality {
    /// Suites, each with the name of its file.
    pub suites: Vec<(String, Summary)>,
    /// Suites of a registered plan of calibrations.
    pub calibrations: Vec<(String, Summary)>,
    /// What units cost that were quantized alone, each with the name of its file.
    pub sensitivities: Vec<(String, Sensitivity)>,
    /// Tables and pages as Markdown.
    pages: Vec<String>,
    /// What a reader must know, by model.
    notes: BTreeMap<String, String>,
}

/// A table that something else measured.
#[derive(Debug, Deserialize)]
struct Table {
    title: String,
    #[serde(default)]
    note: Option<String>,
    columns: Vec<String>,
    rows: Vec<Vec<serde_json::Value>>,
}

impl Quality {
    /// Reads the `quality` folder of `out`; empty without one.
    ///
    /// # Errors
    /// A folder or file that cannot be read, and a suite, sensitivity or note that is none.
    pub(crate) fn read(out: &Path) -> anyhow::Result<Self> {
        let mut quality = Self::default();
        let paths = files(&out.join("quality"))?;
        for path in &paths {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("{}: cannot read it", path.display()))?;
            let name = suite::file_name(path);
            let json = name.ends_with(".json");
            if json && name.starts_with("suite") {
                quality.suites.push((name, parse(path, &text)?));
            } else if json && name.starts_with("calibration") {
                quality.calibrations.push((name, parse(path, &text)?));
            } else if json && name.starts_with("sensitivity") {
                quality.sensitivities.push((name, parse(path, &text)?));
            } else if name == "notes.json" {
                quality.notes = parse(path, &text)?;
            } else if json {
                let table = serde_json::from_str::<Table>(&text).ok();
                quality.pages.extend(table.map(|t| t.page(&name)));
            } else if !(name.starts_with("suite") && paths.contains(&path.with_extension("json"))) {
                quality.pages.push(page(&format!("quality/{name}"), &text));
            }
        }
        Ok(quality)
    }

    /// What a reader must know of a model; empty where nothing is said.
    #[must_use]
    pub(crate) fn note(&self, model: &str) -> &str {
        self.notes.get(model).map_or("", String::as_str)
    }

    /// Everything as Markdown, its plots drawn; empty without anything.
    ///
    /// # Errors
    /// A plot that cannot be drawn or written.
    pub(crate) fn sections(&self, plots: &mut Plots<'_>) -> anyhow::Result<String> {
        let mut text = String::new();
        for (at, (name, summary)) in self.suites.iter().enumerate() {
            text += &self.suite(at, name, summary, plots)?;
        }
        for (name, sensitivity) in &self.sensitivities {
            text += &self.sensitivity(name, sensitivity, plots)?;
        }
        Ok(text + &self.pages.concat())
    }

    fn suite(
        &self,
        at: usize,
        name: &str,
        summary: &Summary,
        plots: &mut Plots<'_>,
    ) -> anyhow::Result<String> {
        let stem = name.trim_end_matches(".json");
        let model = &summary.parameters.model;
        let mut shown = summary.clone();
        let mut figures = self.note(model).to_owned();
        let elsewhere = self.distances_elsewhere(at);
        if elsewhere.is_some() {
            shown.parameters.text = None;
        }
        let mut add = |figure: String| {
            if !figures.is_empty() && !figure.is_empty() {
                figures += "\n\n";
            }
            figures += &figure;
        };
        let drawn = forest::tasks(summary)?;
        add(plots.add(
            &format!("tasks-{stem}.svg"),
            format!(
                "{model}: change of each task's accuracy against C0, in percent of C0's, with 95 % \
                 intervals, of the {} variants of each target that lose least; the triangle is the \
                 mean over tasks, which the study accepts down to -{:.0} % (dashed). The table has \
                 all variants.",
                forest::ROWS,
                100.0 * summary.accepted_relative_drop
            ),
            drawn,
        )?);
        match elsewhere {
            Some(other) => add(format!(
                "Its distances from C0 are those of `quality/{other}`."
            )),
            None => {
                add(plots.add(
                    &format!("kl-{stem}.svg"),
                    format!(
                        "{model}: mean KL divergence from C0 by the format of the scales; a colour \
                         a rule, circles MLP only, triangles all linears, bars 95 % intervals."
                    ),
                    plots::distances(summary)?,
                )?);
                let rows = verdict::automatic(summary);
                add(plots.add(
                    &format!("auto-{stem}.svg"),
                    format!(
                        "{model}: a width and rule for each tensor (auto) against the best uniform \
                         int4 of each size."
                    ),
                    plots::automatic(summary)?,
                )?);
                if !rows.is_empty() {
                    add(automatic_table(&rows));
                }
            }
        }
        let page = page(&format!("quality/{name}"), &suite::page(&shown));
        let (heading, rest) = page.split_once("\n\n").unwrap_or((page.as_str(), ""));
        let figures = if figures.is_empty() {
            String::new()
        } else {
            format!("{figures}\n\n")
        };
        Ok(format!("{heading}\n\n{figures}{rest}"))
    }

    /// The suite, other than the one `at`, whose distances from C0 include all of its own.
    fn distances_elsewhere(&self, at: usize) -> Option<&str> {
        let own = &self.suites[at].1;
        let names = |s: &Summary| -> Vec<String> {
            let has = s.variants.iter().filter(|v| v.kl.is_some());
            has.map(|v| v.variant.name.clone()).collect()
        };
        let of_own = names(own);
        let text = |s: &Summary| {
            let p = &s.parameters;
            (
                p.model_blake3.clone(),
                p.text.clone(),
                p.window,
                p.text_tokens,
                p.device.clone(),
            )
        };
        let covers = |i: usize, other: &Summary| {
            let theirs = names(other);
            text(own) == text(other)
                && of_own.iter().all(|n| theirs.contains(n))
                && (theirs.len(), at) > (of_own.len(), i)
        };
        if of_own.is_empty() {
            return None;
        }
        let mut others = self.suites.iter().enumerate();
        others
            .find(|(i, (_, other))| *i != at && covers(*i, other))
            .map(|(_, (name, _))| name.as_str())
    }

    fn sensitivity(
        &self,
        name: &str,
        s: &Sensitivity,
        plots: &mut Plots<'_>,
    ) -> anyhow::Result<String> {
        let stem = name.trim_end_matches(".json");
        let rank = |error: &str| {
            let rho = s.rank_correlation.get(&format!("{error} ~ mean_kl"));
            rho.copied()
                .flatten()
                .map_or("absent".to_owned(), |r| format!("{r:+.2}"))
        };
        let caption = format!(
            "{}: one {} quantized at a time ({}, rule {}): its weight error against the KL \
             divergence that it causes. Spearman's rank correlation is {} for the relative error, \
             {} for the squared error. The number beside a point is its layer.",
            s.model,
            unit(s),
            s.scales,
            s.rule,
            rank("relative_error"),
            rank("squared_error"),
        );
        let figure = plots.add(&format!("{stem}.svg"), caption, plots::sensitivity(s)?)?;
        let mut points: Vec<_> = s.points.iter().collect();
        points.sort_by(|a, b| b.mean_kl.value.total_cmp(&a.mean_kl.value));
        let rows = points.iter().take(5).map(|p| {
            let percent = 100.0 * (p.perplexity_ratio.value - 1.0);
            vec![
                format!("`{}`", p.name),
                format!("{:.5}", p.mean_kl.value),
                format!("{percent:+.2}"),
                format!("{:.6}", p.relative_error),
                format!("{:.4}", p.squared_error),
            ]
        });
        let columns = [
            "most sensitive",
            "mean KL, nats",
            "perplexity, %",
            "rel. squared error",
            "squared error",
        ];
        let note = self.note(&s.model);
        Ok(format!(
            "\n### {}: one {} at a time\n\nFrom `quality/{name}`: {} units over {} positions of \
             {}, on {}. {note}\n\n{figure}\n\n{}\n",
            s.model,
            unit(s),
            s.points.len(),
            s.tokens_scored,
            s.text,
            s.device,
            markdown(&columns, rows.collect())
        ))
    }
}

/// What was quantized at a time.
#[must_use]
pub(crate) fn unit(s: &Sensitivity) -> &'static str {
    match s.unit {
        crate::eval::sensitivity::Unit::Layer => "layer",
        crate::eval::sensitivity::Unit::Product => "product",
        crate::eval::sensitivity::Unit::Projection => "projection",
        crate::eval::sensitivity::Unit::Kind => "kind of projection",
        crate::eval::sensitivity::Unit::ProductKind => "kind of product",
    }
}

/// The folder's JSON files and pages, by name.
fn files(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    if !dir.is_dir() {
        return Ok(paths);
    }
    let context = || format!("{}: cannot read it", dir.display());
    for entry in std::fs::read_dir(dir).with_context(context)? {
        let path = entry.with_context(context)?.path();
        let is_page = path.extension().is_some_and(|e| e == "md") && !path.ends_with("README.md");
        if is_page || path.extension().is_some_and(|e| e == "json") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> anyhow::Result<T> {
    serde_json::from_str(text)
        .with_context(|| format!("{}: is not what its name says", path.display()))
}

impl Table {
    fn page(self, name: &str) -> String {
        let cell = |v: &serde_json::Value| match v {
            serde_json::Value::String(s) => s.clone(),
            serde_json::Value::Null => String::new(),
            other => other.to_string(),
        };
        let columns: Vec<_> = self.columns.iter().map(String::as_str).collect();
        let rows = self.rows.iter();
        let rows = rows.map(|r| r.iter().map(cell).collect()).collect();
        let note = self.note.map_or(String::new(), |n| format!("{n} "));
        format!(
            "\n### {}\n\n{note}From `quality/{name}`.\n\n{}\n",
            self.title,
            markdown(&columns, rows)
        )
    }
}

/// A page as a part of the report: its headings two levels down.
fn page(from: &str, text: &str) -> String {
    let (heading, rest) = text.split_once('\n').unwrap_or((text, ""));
    let down = |line: &str| match line.starts_with('#') {
        true => format!("##{line}\n"),
        false => format!("{line}\n"),
    };
    let rest: String = rest.lines().map(down).collect();
    format!("\n{}\nFrom `{from}`.\n{rest}", down(heading))
}

/// Auto beside the best uniform int4 variant of its size.
#[must_use]
pub(crate) fn automatic_table(rows: &[verdict::Automatic]) -> String {
    let columns = [
        "auto",
        "bits/weight",
        "mean KL",
        "best uniform int4 no larger",
        "bits/weight",
        "mean KL",
        "auto / uniform",
        "",
    ];
    let rows = rows.iter().map(|r| {
        let mut row = vec![
            r.auto.name.clone(),
            format!("{:.3}", r.auto.bits),
            r.auto.text(),
        ];
        match &r.uniform {
            Some(u) => row.extend([
                u.name.clone(),
                format!("{:.3}", u.bits),
                u.text(),
                format!("{:.3}", r.auto.kl / u.kl),
                r.verdict().to_owned(),
            ]),
            None => {
                row.push("none".to_owned());
                row.resize(columns.len(), String::new());
            }
        }
        row
    });
    markdown(&columns, rows.collect())
}
