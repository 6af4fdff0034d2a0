//! What the headers and indices of two files say differently.

use std::collections::BTreeMap;

use smq_format::{Scheme, SmqFile, TensorEntry};

use super::super::overview::short;
use super::super::report::{OutputReport, Report, StatisticsState, TensorReport, number_of};
use super::{BlobCounts, Change, Fact};

/// Adds a change where the two are not equal.
fn note(changes: &mut Vec<Change>, what: impl Into<String>, a: Option<Fact>, b: Option<Fact>) {
    if a != b {
        let what = what.into();
        changes.push(Change { what, a, b });
    }
}

/// Everything but the tensors; counts the embedded files.
pub(super) fn file_changes(
    a: &SmqFile,
    b: &SmqFile,
    report_a: &Report,
    report_b: &Report,
    blobs: &mut BlobCounts,
) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut both = |what: &str, of: &dyn Fn(&Report) -> Fact| {
        note(&mut changes, what, Some(of(report_a)), Some(of(report_b)));
    };
    both("version", &|r| r.header.version.clone().into());
    both("file length", &|r| Fact::Bytes(r.header.file_bytes));
    both("incompatible feature bits", &|r| {
        r.header.incompatible_feature_bits.clone().into()
    });
    both("compatible feature bits", &|r| {
        r.header.compatible_feature_bits.clone().into()
    });
    both("statistics", &statistics);
    both("producer", &|r| r.provenance.producer.clone().into());
    let receipts = |r: &Report| {
        let receipts = r.receipts.iter();
        let of = receipts.map(|r| {
            let figures = Fact::Receipt {
                mean_kl_nats: r.mean_kl_nats,
                kl_stderr_nats: r.kl_stderr_nats,
                perplexity: r.perplexity,
            };
            (format!("{} {}", r.text, short(&r.blake3)), figures)
        });
        of.collect::<BTreeMap<_, _>>()
    };
    note_maps(
        &mut changes,
        "measured on",
        receipts(report_a),
        receipts(report_b),
    );
    let parameters = |r: &Report| {
        let parameters = r.provenance.parameters.iter();
        let of = parameters.map(|(name, value)| {
            let number = number_of(value).map(Fact::Number);
            (
                name.clone(),
                number.unwrap_or_else(|| Fact::Text(value.clone())),
            )
        });
        of.collect::<BTreeMap<_, _>>()
    };
    note_maps(
        &mut changes,
        "parameter",
        parameters(report_a),
        parameters(report_b),
    );
    let sources = |r: &Report| {
        let sources = r.provenance.sources.iter();
        let of = sources.map(|s| (s.name.clone(), contents(s.length_bytes, &s.blake3)));
        of.collect::<BTreeMap<_, _>>()
    };
    note_maps(&mut changes, "source", sources(report_a), sources(report_b));
    let embedded = |r: &Report| {
        let files = r.embedded_files.iter();
        let of = files.map(|f| {
            let section = &f.section;
            let contents = contents(section.length_bytes, &section.blake3);
            (f.name.clone(), contents)
        });
        of.collect::<BTreeMap<_, _>>()
    };
    let (files_a, files_b) = (embedded(report_a), embedded(report_b));
    for (name, contents) in &files_a {
        match files_b.get(name) {
            None => blobs.only_in_a += 1,
            Some(other) if other == contents => blobs.equal += 1,
            Some(_) => blobs.differing += 1,
        }
    }
    blobs.only_in_b += files_b
        .keys()
        .filter(|name| !files_a.contains_key(*name))
        .count();
    note_maps(&mut changes, "embedded file", files_a, files_b);
    let order = |x: &SmqFile, y: &SmqFile| {
        let shared = x.tensors().filter(|t| y.tensor(t.name()).is_some());
        shared.map(|t| t.name().to_owned()).collect::<Vec<_>>()
    };
    let (order_a, order_b) = (order(a, b), order(b, a));
    let names = order_a.into_iter().zip(order_b);
    if let Some((first_a, first_b)) = names.into_iter().find(|(a, b)| a != b) {
        note(
            &mut changes,
            "order from tensor",
            Some(first_a.into()),
            Some(first_b.into()),
        );
    }
    changes
}

fn contents(length_bytes: u64, blake3: &str) -> Fact {
    Fact::Contents {
        length_bytes,
        blake3: blake3.to_owned(),
    }
}

fn statistics(report: &Report) -> Fact {
    match (&report.statistics, &report.header.statistics) {
        (StatisticsState::Damaged { .. }, _) => "damaged".into(),
        (StatisticsState::Present | StatisticsState::Absent, Some(section)) => {
            contents(section.length_bytes, &section.blake3)
        }
        (StatisticsState::Present | StatisticsState::Absent, None) => "none".into(),
    }
}

fn note_maps(
    changes: &mut Vec<Change>,
    kind: &str,
    a: BTreeMap<String, Fact>,
    mut b: BTreeMap<String, Fact>,
) {
    for (name, value) in a {
        let other = b.remove(&name);
        note(changes, format!("{kind} {name}"), Some(value), other);
    }
    for (name, value) in b {
        note(changes, format!("{kind} {name}"), None, Some(value));
    }
}

/// Counts the blobs of a tensor in both files and returns the roles of those that are not the same.
pub(super) fn count_blobs(
    a: &TensorEntry,
    b: &TensorEntry,
    counts: &mut BlobCounts,
) -> Vec<String> {
    let mut roles = Vec::new();
    for blob in &a.blobs {
        match b.blobs.iter().find(|other| other.role == blob.role) {
            Some(other) if (other.length, other.blake3) == (blob.length, blob.blake3) => {
                counts.equal += 1;
                continue;
            }
            Some(_) => counts.differing += 1,
            None => counts.only_in_a += 1,
        }
        roles.push(blob.role.name().to_owned());
    }
    for blob in &b.blobs {
        if a.blobs.iter().all(|other| other.role != blob.role) {
            counts.only_in_b += 1;
            roles.push(blob.role.name().to_owned());
        }
    }
    roles
}

/// What the index and the statistics say of a tensor in both files.
pub(super) fn tensor_changes(
    a: &TensorEntry,
    b: &TensorEntry,
    report_a: &TensorReport,
    report_b: &TensorReport,
) -> Vec<Change> {
    let mut changes = Vec::new();
    let both = [(a, report_a), (b, report_b)];
    let mut pair = |what: &str, of: &dyn Fn(&TensorEntry, &TensorReport) -> Option<Fact>| {
        let [a, b] = both.map(|(entry, report)| of(entry, report));
        note(&mut changes, what, a, b);
    };
    pair("shape", &|t, _| Some(Fact::Shape(t.shape.clone())));
    pair("source_dtype", &|t, _| Some(t.source_dtype.name().into()));
    pair("scheme", &|t, _| Some(t.scheme.name().into()));
    pair("dtype", &|t, _| match t.scheme {
        Scheme::Raw(dtype) => Some(dtype.name().into()),
        Scheme::Int4 { .. } | Scheme::Lut4 { .. } | Scheme::Nf4 { .. } | Scheme::Fp8 => None,
    });
    pair("group", &|_, r| {
        r.group_elems.map(|n| Fact::Number(n.into()))
    });
    pair("scale_format", &|_, r| {
        r.scale_format.clone().map(Fact::Text)
    });
    pair("offset_bits", &|t, _| match t.scheme {
        Scheme::Nf4 { offset_bits } => Some(Fact::Number(offset_bits.into())),
        Scheme::Raw(_) | Scheme::Int4 { .. } | Scheme::Lut4 { .. } | Scheme::Fp8 => None,
    });
    pair("levels", &|_, r| r.levels.map(Fact::Levels));
    pair("bias", &|_, r| {
        r.scale_bias.map(|bias| Fact::Number(bias.into()))
    });
    pair("output error", &|_, r| {
        let of = |o: OutputReport| Fact::OutputError {
            rounded: o.rounded,
            stored: o.stored,
        };
        r.output_error.map(of)
    });
    let recorded = report_a.errors.as_ref().zip(report_b.errors.as_ref());
    if recorded.is_some_and(|(a, b)| a != b) {
        changes.push(Change {
            what: "statistics".to_owned(),
            a: Some("these".into()),
            b: Some("others".into()),
        });
    }
    changes
}

/// `e5m5/128`, `lut4 e5m5/128`, `bf16`.
pub(super) fn stored(entry: &TensorEntry) -> String {
    match entry.scheme {
        Scheme::Raw(dtype) => dtype.name().to_owned(),
        Scheme::Int4 { scales, group } => format!("{scales}/{group}"),
        Scheme::Lut4 { scales, group, .. } => format!("lut4 {scales}/{group}"),
        Scheme::Nf4 { .. } | Scheme::Fp8 => entry.scheme.name().to_owned(),
    }
}
