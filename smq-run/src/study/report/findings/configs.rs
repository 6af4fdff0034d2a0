//! Speed, memory and energy of the configs side by side, and what the width of the scales has to do
//! with it.

use minijinja::{Value, context};
use smq_format::ScaleChoice;

use super::super::data::Data;
use super::super::summary::{DECODE, DEVICE_MEMORY, Metric, PEAK_RSS, TPOT, TTFT};
use super::super::tables::markdown;
use crate::study::contract::{Config, Stored};
use crate::study::worker::Workload;
use smq_convert::number::{count, fixed_or};

/// A config's figures; what was not measured is none.
struct Row<'a> {
    config: &'a Config,
    file_bytes: Option<f64>,
    decode: Option<f64>,
    ttft_ms: Option<f64>,
    memory_bytes: Option<f64>,
    joules: Option<f64>,
}

fn rows<'a>(data: &'a Data, decode: Workload, prompt: Workload) -> Vec<Row<'a>> {
    let memory = memory(data);
    let row = |config: &'a Config| {
        let of = |metric: &Metric, shape| Some(metric.over(data.repeats(&config.id, shape)?)?.mean);
        let energy = data.energy.iter().find(|(_, e)| e.config == config.id);
        let methods = energy.map(|(_, e)| &e.measured.joules_per_token);
        let joules = methods.and_then(|m| m.get("counter").or_else(|| m.get("trapezoid")));
        Row {
            config,
            file_bytes: data.file(&config.id).map(|f| f.1.file_bytes as f64),
            decode: of(&DECODE, decode),
            ttft_ms: of(&TTFT, prompt),
            memory_bytes: of(memory, prompt),
            joules: joules.map(|j| j.with_prefill),
        }
    };
    data.configs().into_iter().map(row).collect()
}

/// The GPU's memory where there is one, else the process's.
fn memory(data: &Data) -> &'static Metric {
    match data
        .workloads
        .iter()
        .any(|r| DEVICE_MEMORY.over(r).is_some())
    {
        true => &DEVICE_MEMORY,
        false => &PEAK_RSS,
    }
}

/// Everything of the page's section; none where nothing was timed.
pub(super) fn values(data: &Data) -> Option<Value> {
    let shapes = data.shapes(false);
    let prompt = *shapes.last()?;
    let energy = Workload {
        prompt_tokens: data.contract.energy.prompt_tokens,
        output_tokens: data.contract.energy.output_tokens,
    };
    let decode = if shapes.contains(&energy) {
        energy
    } else {
        prompt
    };
    let rows = rows(data, decode, prompt);
    let base = rows.iter().find(|r| r.config.scheme == Stored::Bf16);
    let memory = match memory(data).name {
        "device_memory" => "device memory, GB",
        _ => "host RSS, GB",
    };
    Some(context! {
        table => table(&rows, base, decode, prompt, memory),
        summary => base.map(|b| summary(&rows, b)).unwrap_or_default(),
        base => base.map(|b| b.config.id.clone()),
        widths => widths(&rows),
        noise => noise(data),
        long => long(data),
        no_energy => rows.iter().filter(|r| r.joules.is_none()).map(|r| r.config.id.clone()).collect::<Vec<_>>(),
        device => data.workloads.first().and_then(|r| r.cells.first()).map(|c| c.device.clone()),
    })
}

fn text(value: Option<f64>, digits: usize) -> String {
    fixed_or(value, digits, "absent")
}

fn table(
    rows: &[Row<'_>],
    base: Option<&Row<'_>>,
    decode: Workload,
    prompt: Workload,
    memory: &str,
) -> String {
    let decode = format!(
        "decode, tokens/s ({} + {})",
        count(decode.prompt_tokens),
        count(decode.output_tokens)
    );
    let ttft = format!("TTFT, ms ({})", count(prompt.prompt_tokens));
    let columns = [
        "config",
        "weights",
        "file, GB",
        &decode,
        "of C0",
        &ttft,
        memory,
        "J a token",
        "of C0",
    ];
    let of_base = |value: Option<f64>, get: fn(&Row<'_>) -> Option<f64>| {
        let ratio = value.zip(base.and_then(get)).map(|(v, b)| v / b);
        ratio.map_or("absent".to_owned(), |r| format!("{r:.2}x"))
    };
    let cells = rows.iter().map(|r| {
        vec![
            r.config.id.clone(),
            r.config.describe(),
            text(r.file_bytes.map(|b| b * 1e-9), 2),
            text(r.decode, 1),
            of_base(r.decode, |r| r.decode),
            text(r.ttft_ms, 1),
            text(r.memory_bytes.map(|b| b * 1e-9), 2),
            text(r.joules, 3),
            of_base(r.joules, |r| r.joules),
        ]
    });
    markdown(&columns, cells.collect())
}

/// The main int4 config of each target, in terms of `base`.
fn summary(rows: &[Row<'_>], base: &Row<'_>) -> Vec<Value> {
    let mut targets: Vec<&str> = Vec::new();
    let int4 = || rows.iter().filter(|r| r.config.is_int4());
    for r in int4() {
        let target = r.config.target.as_deref().unwrap_or_default();
        if !targets.contains(&target) {
            targets.push(target);
        }
    }
    let of = |target: &&str| {
        let of = int4().filter(|r| r.config.target.as_deref() == Some(*target));
        // The study's main config of a target is its widest E5Mx, the first of equals.
        let main = of.rev().max_by_key(|r| r.config.mantissa_bits())?;
        let ratio = |get: fn(&Row<'_>) -> Option<f64>| {
            let r = get(main).zip(get(base)).map(|(v, b)| v / b);
            r.map_or("absent".to_owned(), |r| format!("{r:.2}x"))
        };
        Some(context! {
            config => main.config.id.clone(),
            weights => main.config.describe(),
            decode => ratio(|r| r.decode),
            memory => ratio(|r| r.memory_bytes),
            file => ratio(|r| r.file_bytes),
            joules => ratio(|r| r.joules),
            ttft => ratio(|r| r.ttft_ms),
        })
    };
    targets.iter().filter_map(of).collect()
}

/// Each E5Mx config beside the one with exact scales of its target: what the width saves.
fn widths(rows: &[Row<'_>]) -> Option<Value> {
    let exact = rows
        .iter()
        .find(|r| r.config.is_int4() && r.config.scales == Some(ScaleChoice::F32))?;
    let same = |r: &&Row<'_>| r.config.target == exact.config.target;
    let mut largest = 0.0_f64;
    let mut lines = Vec::new();
    for r in rows.iter().filter(same) {
        let Some(x) = r.config.mantissa_bits() else {
            continue;
        };
        let percent = |get: fn(&Row<'_>) -> Option<f64>| {
            get(r).zip(get(exact)).map(|(v, e)| 100.0 * (v / e - 1.0))
        };
        let signed = |p: Option<f64>| p.map_or("absent".to_owned(), |p| format!("{p:+.1}"));
        let decode = percent(|r| r.decode);
        largest = largest.max(decode.unwrap_or(0.0).abs());
        lines.push(vec![
            r.config.id.clone(),
            (6 + x).to_string(),
            signed(percent(|r| r.file_bytes)),
            signed(decode),
            signed(percent(|r| r.joules)),
        ]);
    }
    let columns = [
        "config",
        "scale bits",
        "file, %",
        "decode rate, %",
        "J a token, %",
    ];
    (!lines.is_empty()).then(|| {
        context! {
            exact => exact.config.id.clone(),
            table => markdown(&columns, lines),
            largest => format!("{largest:.1}"),
            small => largest < 3.0,
        }
    })
}

/// By how much two configs that share a file differ in decode rate, percent, in the workload where
/// they differ most.
fn noise(data: &Data) -> Option<Value> {
    for (_, f) in &data.files {
        let [a, b, ..] = f.configs.as_slice() else {
            continue;
        };
        let rate = |id: &str, shape| Some(DECODE.over(data.repeats(id, shape)?)?.mean);
        let difference = |&shape: &Workload| {
            let ratio = rate(&a.id, shape)? / rate(&b.id, shape)?;
            Some(100.0 * (ratio - 1.0).abs())
        };
        let shapes = data.shapes(false);
        if let Some(most) = shapes.iter().filter_map(difference).reduce(f64::max) {
            let percent = format!("{most:.1}");
            return Some(context! { a => a.id.clone(), b => b.id.clone(), percent });
        }
    }
    None
}

/// TPOT and memory at the longest prompts; none where there are none.
fn long(data: &Data) -> Option<String> {
    let shapes = data.shapes(true);
    let memory = memory(data);
    let mut columns = vec!["config".to_owned()];
    for w in &shapes {
        columns.push(format!("TPOT, ms, at {}", count(w.prompt_tokens)));
        columns.push(format!("memory, GB, at {}", count(w.prompt_tokens)));
    }
    let rows = data.configs().into_iter().filter_map(|c| {
        let all: Vec<_> = shapes.iter().map(|w| data.repeats(&c.id, *w)).collect();
        all.iter().any(Option::is_some).then(|| {
            let mut row = vec![c.id.clone()];
            for r in all {
                let mean = |m: &Metric| Some(m.over(r?)?.mean);
                row.push(text(mean(&TPOT), 2));
                row.push(text(mean(memory).map(|b| b * 1e-9), 2));
            }
            row
        })
    });
    let rows: Vec<_> = rows.collect();
    let columns: Vec<_> = columns.iter().map(String::as_str).collect();
    (!rows.is_empty()).then(|| markdown(&columns, rows))
}
