//! Statistics of version 2, which has output errors of calibrated tensors and receipts.

use std::error::Error;

use smq_format::Statistics;
use smq_format::statistics::{MAX_RECEIPTS, OutputError, Receipt};

use super::{Add, Made, Sample};

/// Where the first record ends: version, count, and a record of 438 bytes.
const FIRST_OPTION: usize = 4 + 8 + 438;
/// Bytes of a receipt after its text's name.
const RECEIPT_TAIL: usize = 32 + 2 * 8 + 5 * 8;
/// Its text's name.
const TEXT: &str = "text.txt";

fn receipt() -> Receipt {
    Receipt {
        text: TEXT.to_owned(),
        blake3: smq_format::hash(b"text"),
        window: 512,
        tokens_scored: 10_220,
        mean_kl: 0.0125,
        kl_stderr: 0.0005,
        perplexity: 6.25,
        base_perplexity: 6.125,
        top1_agreement: 0.96875,
    }
}

pub(super) fn statistics(sample: &Sample, add: Add) -> Result<(), Box<dyn Error>> {
    let mut whole = Statistics::decode(sample.statistics_bytes())?;
    whole.receipts.push(receipt());
    whole.tensors[0].output = Some(OutputError {
        rounded: 0.015625,
        stored: 0.0078125,
        is_rounded: false,
    });
    bytes(sample, &whole.encode()?, add)?;
    let with = |edit: &dyn Fn(&mut Statistics)| -> Made {
        let mut statistics = whole.clone();
        edit(&mut statistics);
        let encoded = statistics.encode()?;
        Ok(sample.statistics(|b| *b = encoded))
    };
    let mut of = |name: &str, edit: &dyn Fn(&mut Statistics)| {
        add(&format!("statistics 2 {name}"), with(edit))
    };
    of("whole", &|_| ())?;
    of("without receipts", &|s| s.receipts.clear())?;
    of("without output errors", &|s| s.tensors[0].output = None)?;
    of("of a file without records", &|s| s.tensors.clear())?;
    of("with as many receipts as may be", &|s| {
        s.receipts = vec![receipt(); MAX_RECEIPTS];
    })?;
    of("with a receipt too many", &|s| {
        s.receipts = vec![receipt(); MAX_RECEIPTS + 1];
    })?;
    of("with a group too few", &|s| s.tensors[0].groups = 5)?;
    for (name, rounded, stored, is_rounded) in [
        ("with an output error of NaN", f64::NAN, 0.5, false),
        ("with an infinite output error", 0.5, f64::INFINITY, false),
        ("with an output error below zero", 0.5, -0.5, false),
        ("rounded, with another error", 0.5, 0.25, true),
        ("rounded", 0.5, 0.5, true),
        ("with an output error of -0", -0.0, 0.0, true),
        ("worse than rounded", 0.5, 0.75, false),
    ] {
        let output = OutputError {
            rounded,
            stored,
            is_rounded,
        };
        of(name, &|s| s.tensors[0].output = Some(output))?;
    }
    let mut receipt =
        |name: &str, edit: &dyn Fn(&mut Receipt)| of(name, &|s| edit(&mut s.receipts[0]));
    receipt("of a text without a name", &|r| r.text.clear())?;
    receipt("of a text with a name of 512 bytes", &|r| {
        r.text = "t".repeat(512);
    })?;
    receipt("of a text with a name of 513 bytes", &|r| {
        r.text = "t".repeat(513);
    })?;
    receipt("with windows of one token", &|r| r.window = 1)?;
    receipt("of no token", &|r| r.tokens_scored = 0)?;
    receipt("with a divergence below zero", &|r| r.mean_kl = -1e-9)?;
    receipt("with a standard error of NaN", &|r| r.kl_stderr = f64::NAN)?;
    receipt("with an infinite perplexity", &|r| {
        r.perplexity = f64::INFINITY;
    })?;
    receipt("with a base perplexity of NaN", &|r| {
        r.base_perplexity = f64::NAN;
    })?;
    receipt("with a share over one", &|r| r.top1_agreement = 1.0625)
}

/// Edits of the encoded section `whole`.
fn bytes(sample: &Sample, whole: &[u8], add: Add) -> Result<(), Box<dyn Error>> {
    let mut edit = |name: &str, edit: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = whole.to_vec();
        edit(&mut bytes);
        add(
            &format!("statistics 2 {name}"),
            Ok(sample.statistics(|b| *b = bytes)),
        )
    };
    let receipts = whole.len() - RECEIPT_TAIL - TEXT.len() - 2 * 8;
    let put = |b: &mut Vec<u8>, at: usize, value: u64| {
        b[at..at + 8].copy_from_slice(&value.to_le_bytes());
    };
    edit("that say 1", &|b| b[0] = 1)?;
    edit("with an option that is neither 0 nor 1", &|b| {
        b[FIRST_OPTION] = 2;
    })?;
    edit("with an option fewer", &|b| b[FIRST_OPTION] = 0)?;
    edit("with a flag that is neither 0 nor 1", &|b| {
        b[FIRST_OPTION + 17] = 2;
    })?;
    edit("with one receipt too few", &|b| put(b, receipts, 0))?;
    edit("with one receipt too many", &|b| put(b, receipts, 2))?;
    edit("with 2^64 - 1 receipts", &|b| put(b, receipts, u64::MAX))?;
    edit("with 2^32 receipts", &|b| put(b, receipts, 1 << 32))?;
    edit("with 2^64 - 1 records", &|b| put(b, 4, u64::MAX))?;
    edit("with a text's name of 2^63 bytes", &|b| {
        put(b, receipts + 8, 1 << 63);
    })?;
    edit("with a text's name not UTF-8", &|b| {
        b[receipts + 16] = 0xff;
    })?;
    edit("cut by a byte", &|b| b.truncate(b.len() - 1))?;
    edit("cut before the receipts", &|b| b.truncate(receipts))?;
    edit("and one byte", &|b| b.push(0))?;
    edit("with nothing that 1 has not", &|b| {
        b.truncate(receipts);
        b.drain(FIRST_OPTION + 1..FIRST_OPTION + 18);
        b[FIRST_OPTION] = 0;
        b.extend([0; 8]);
    })
}
