//! Opens a file, verifies it and reads its statistics. What verifies without a defect dequantizes.
#![no_main]

use smq_format::SmqFile;
use smq_fuzz::{Hashes, mutate_smq, scratch};

smq_fuzz::target! {
    mutate: |file, limit, random, mutate| mutate_smq(file, limit, random, Hashes::Half, mutate),
    run: run,
}

fn run(data: &[u8]) {
    let dir = scratch();
    let path = dir.path().join("verify.smq");
    std::fs::write(&path, data).expect("the scratch file can be written");
    let Ok(file) = SmqFile::open(&path) else {
        return;
    };
    let defects = file.verify(|_| ());
    for defect in &defects {
        assert!(!defect.to_string().is_empty());
    }
    let statistics = file.statistics();
    if defects.is_empty() {
        if let Some(statistics) = statistics.expect("verified statistics are read") {
            let again = statistics
                .encode()
                .expect("statistics that were read can be written");
            let section = &file.header().statistics;
            assert_eq!(
                again,
                &file.bytes()[section.offset as usize..],
                "statistics have one form"
            );
            for tensor in &statistics.tensors {
                let _ = (tensor.stored.sqnr_db(), tensor.exact.sqnr_db());
            }
        }
        for tensor in file.tensors() {
            assert!(
                tensor.dequantize().is_ok(),
                "{} verifies and does not decode",
                tensor.name()
            );
        }
    }
}
