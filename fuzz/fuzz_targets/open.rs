//! Opens a file: header, index, layout, padding. What opens is used as a reader would, blobs
//! unread.
#![no_main]

use smq_format::SmqFile;
use smq_fuzz::{Hashes, mutate_smq, scratch};

smq_fuzz::target! {
    mutate: |file, limit, random, mutate| mutate_smq(file, limit, random, Hashes::Stale, mutate),
    run: run,
}

fn run(data: &[u8]) {
    let dir = scratch();
    let path = dir.path().join("open.smq");
    std::fs::write(&path, data).expect("the scratch file can be written");
    match SmqFile::open(&path) {
        Ok(file) => {
            let header = file.header();
            let (start, end) = (
                header.index.offset as usize,
                header.index.offset + header.index.length,
            );
            let again = file
                .index()
                .encode()
                .expect("an index that was read can be written");
            assert_eq!(
                again,
                &file.bytes()[start..end as usize],
                "the index is its canonical form"
            );
            for tensor in file.tensors() {
                let found = file
                    .tensor(tensor.name())
                    .expect("a listed tensor is found");
                assert_eq!(found.entry(), tensor.entry());
                let _ = (
                    tensor.matrix_shape(),
                    tensor.entry().elems(),
                    tensor.entry().stored_bytes(),
                );
            }
            for embedded in &file.index().files {
                let bytes = file
                    .embedded(&embedded.name)
                    .expect("a listed file is found");
                assert_eq!(bytes.len() as u64, embedded.length);
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
