//! From raw lines to `report.md`, `findings.md`, `summary/*.csv` and `plots/*.svg`.

mod chart;
mod data;
mod errors;
mod findings;
mod labels;
mod log_axis;
mod online;
mod plots;
mod quality;
mod summary;
mod tables;

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Value, context};

use data::Data;
use errors::{CLAIM_PERCENT, Increase};
use plots::Plots;
use quality::Quality;

use crate::output::write_bytes;

const TEMPLATE: &str = include_str!("report.md.j2");
/// First line of both pages: whatever has it may be replaced.
const MARK: &str = "<!-- written by smq-run report; changes are lost -->";
/// A measured read rate, under the results directory.
const KERNELS: &str = "raw/kernels.json";

/// Writes the report of `out`, measured by `contract`, and returns its path.
///
/// # Errors
/// Raw lines that are missing, damaged or another contract's; a report.md that somebody wrote by
/// hand.
pub(crate) fn write(out: &Path, contract: &Path) -> anyhow::Result<PathBuf> {
    let data = Data::read(out, contract)?;
    let quality = Quality::read(out)?;
    let report = out.join("report.md");
    let findings = out.join("findings.md");
    for page in [&report, &findings] {
        if let Ok(text) = std::fs::read_to_string(page) {
            ensure!(
                text.starts_with(MARK),
                "{}: was not written by this program; move it away",
                page.display()
            );
        }
    }
    for dir in ["summary", "plots"] {
        let dir = out.join(dir);
        std::fs::create_dir_all(&dir)
            .with_context(|| format!("{}: cannot create it", dir.display()))?;
    }
    summary::write(&data, &out.join("summary"))?;
    let rate = read_rate(out, &data)?;
    let dir = out.join("plots");
    let mut plots = Plots { dir: &dir };
    let shown = plots::of_matrix(&data, rate.as_ref().map(|r| r.0), &mut plots)?;
    let sections = quality.sections(&mut plots)?;
    let note = data
        .environments
        .first()
        .map(|(e, _)| quality.note(&e.model.path));
    let text = render(&data, &shown, rate.as_ref(), &sections, note)?;
    write_bytes(&report, text.as_bytes())?;
    write_bytes(&findings, findings::page(&data, &quality)?.as_bytes())?;
    Ok(report)
}

/// The memory's read rate in 10^9 bytes a second and its source; none for what ran on a CPU.
fn read_rate(out: &Path, data: &Data) -> anyhow::Result<Option<(f64, String)>> {
    let path = out.join(KERNELS);
    if path.exists() {
        let context = || format!("{}: holds no read_gb_per_s", path.display());
        let json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path)?).with_context(context)?;
        let rate = json["read_gb_per_s"].as_f64().filter(|r| *r > 0.0);
        let source = format!("{KERNELS}, measured by smq-run kernels");
        return Ok(Some((rate.with_context(context)?, source)));
    }
    let on_gpu = |r: &data::Repeats| r.cells.iter().all(|c| c.device == "cuda");
    let constant = &data.contract.roofline;
    let rate = (constant.read_gb_per_s, constant.source.clone());
    Ok(data.workloads.iter().all(on_gpu).then_some(rate))
}

/// The claim about E5M5, on a file's statistics.
fn claim(data: &Data) -> Option<Value> {
    let files = errors::files(data);
    let (config, id, i) = files
        .iter()
        .find(|(c, _, _)| c.mantissa_bits() == Some(5))?;
    let Increase {
        mse_percent,
        rms_percent,
        worst_mse_percent,
        worst_rms_percent,
        ..
    } = i;
    let percent = |v: &f64| format!("{v:.4}");
    Some(context! {
        config => config.id.clone(),
        id => *id,
        mse => percent(mse_percent),
        rms => percent(rms_percent),
        points => format!("{:.5}", i.stored_rms_percent - i.exact_rms_percent),
        mse_holds => *mse_percent < CLAIM_PERCENT,
        rms_holds => *rms_percent < CLAIM_PERCENT,
        worst => i.worst.clone(),
        worst_mse => percent(worst_mse_percent),
        worst_rms => percent(worst_rms_percent),
        over => i.tensors_over,
        tensors => i.tensors,
    })
}

fn render(
    data: &Data,
    plots: &std::collections::BTreeMap<&'static str, String>,
    rate: Option<&(f64, String)>,
    quality: &str,
    note: Option<&str>,
) -> anyhow::Result<String> {
    let (shapes, c) = (data.shapes(false), &data.contract);
    let setups = |all: &[(crate::study::record::Environment, usize)]| -> Vec<Value> {
        let setups = all.iter();
        setups
            .map(|(e, lines)| context! { lines, e => Value::from(Serde(e)) })
            .collect()
    };
    let differ = |f: fn(&crate::study::record::Environment) -> &str| {
        let first = data.environments.first().map(|(e, _)| f(e));
        data.environments.iter().any(|(e, _)| Some(f(e)) != first)
    };
    let flagged = |flag: &str| {
        data.workloads
            .iter()
            .map(|r| r.flagged(flag))
            .sum::<usize>()
    };
    let by = |metric, digits| tables::by_workload(data, &shapes, metric, 1.0, digits);
    let first = data.workloads.first().and_then(|r| r.cells.first());
    render_template(
        TEMPLATE,
        context! {
            mark => MARK,
            plots,
            setups => setups(&data.environments),
            mixed => differ(|e| &e.commit) || differ(|e| &e.model.id) || differ(|e| &e.contract_blake3),
            contract => context! {
                path => c.path.display().to_string(),
                blake3 => c.blake3.clone(),
                warmup => Value::from(Serde(c.warmup)),
                energy => Value::from(Serde(c.energy)),
                repeats => c.workloads.repeats,
                long_repeats => c.long_context.repeats,
                rows => c.scale_errors.rows_per_tensor,
                error_target => c.scale_errors.target.clone(),
                group => c.quantization.group,
                rule => c.quantization.rule.name(),
                seed => c.decoding.seed,
                hot => c.flags.temperature_above_c,
            },
            device => first.map(|f| f.device.clone()),
            nvml_absent => first.and_then(|f| f.nvml_absent.clone()),
            energy_absent => data.absent.iter().find(|(id, _)| id.ends_with("/energy")).map(|a| a.1.clone()),
            energy_missing => data.absent.iter().filter_map(|(id, why)| {
            Some(format!("{} ({why})", id.strip_suffix("/energy")?))
        }).collect::<Vec<_>>(),
        model => data.model(),
        note,
        cells => data.workloads.iter().map(|r| r.cells.len()).sum::<usize>(),
            throttled => flagged("throttled"),
            hot => flagged("hot"),
            decode => by(&summary::DECODE, 1),
            ttft => by(&summary::TTFT, 2),
            all_cells => tables::cells(data, false),
            long_cells => (!data.shapes(true).is_empty()).then(|| tables::cells(data, true)),
            roofline => rate.zip(shapes.last()).map(|((rate, source), &shape)| context! {
                rate => smq_convert::number::fixed(*rate, 0),
                source,
                shape => shape.to_string(),
                table => tables::roofline(data, shape, *rate),
            }),
            energy => (!data.energy.is_empty()).then(|| tables::energy(data)),
            files => (!data.files.is_empty()).then(|| tables::files(data)),
            claim => claim(data),
            file_increases => (!errors::files(data).is_empty()).then(|| tables::file_increases(data)),
            sweep => (!errors::sweep(data).is_empty()).then(|| context! {
                table => tables::sweep(data),
                spots => tables::sweet_spots(data),
                reference => errors::sweet_spots(&errors::sweep(data))
                    .into_iter()
                    .find(|s| s.rule == data.contract.quantization.rule.name())
                    .map(|s| Value::from(Serde(s))),
            }),
            online => (!data.online.is_empty()).then(|| context! {
                workloads => data.online.workloads(),
                setups => setups(&data.online.environments),
                by_clients => data.online.by_clients(c),
                table => data.online.table(),
            }),
            absent => (!data.absent.is_empty()).then(|| tables::absent(data)),
            quality,
        },
    )
}

/// A page from its template.
fn render_template(template: &str, values: Value) -> anyhow::Result<String> {
    let mut jinja = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .keep_trailing_newline(true)
        .build()?;
    jinja.set_syntax(syntax);
    jinja.add_template("page", template)?;
    Ok(jinja.get_template("page")?.render(values)?)
}
