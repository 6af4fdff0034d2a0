use super::*;

const RAW: Scheme = Scheme::Raw(Dtype::F32);

fn provenance() -> Provenance {
    Provenance {
        parameters: Default::default(),
        producer: "test".to_owned(),
        sources: Vec::new(),
    }
}

/// Tensor `i` of four.
fn contents(i: usize) -> (String, [usize; 1], Vec<u8>) {
    let elems = [3, 100, 1, 70_000][i];
    let bytes = (0..4 * elems).map(|at| (at * (i + 3)) as u8 & 0x3f);
    (format!("t{i}"), [elems], bytes.collect())
}

#[test]
fn tensors_filled_in_any_order_are_those_added_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let mut one = SmqWriter::create(&path("one"), false).unwrap();
    let mut other = SmqWriter::create(&path("other"), false).unwrap();
    one.add_file("config.json", b"{}").unwrap();
    other.add_file("config.json", b"{}").unwrap();
    for i in 0..4 {
        let (name, shape, bytes) = contents(i);
        one.add_tensor(&name, &shape, Dtype::F32, RAW, &[&bytes])
            .unwrap();
        assert_eq!(other.reserve(&name, &shape, Dtype::F32, RAW).unwrap(), i);
    }
    other.preallocate().unwrap();
    let sealed: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = [2, 0, 3, 1]
            .into_iter()
            .map(|i| {
                let other = &other;
                scope.spawn(move || {
                    let bytes = contents(i).2;
                    let sealed = other.seal(i, RAW, &[&bytes]).unwrap();
                    other.write(&sealed, &[&bytes]).unwrap();
                    sealed
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    sealed.into_iter().for_each(|sealed| other.settle(sealed));
    one.finish(provenance(), None).unwrap();
    other.finish(provenance(), None).unwrap();
    let read = |name| std::fs::read(path(name)).unwrap();
    assert!(read("one") == read("other"));
    let file = SmqFile::open(&path("other")).unwrap();
    assert_eq!(file.verify(|_| ()), []);
    assert_eq!(file.tensors().len(), 4);
}

#[test]
fn a_place_that_was_not_filled_and_blobs_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = SmqWriter::create(&dir.path().join("a"), false).unwrap();
    let refused = |error: Error| error.to_string();
    // Of the wrong length: no tensor, and the next one takes its place.
    let error = writer.add_tensor("w", &[2], Dtype::F32, RAW, &[&[0; 4]]);
    let error = refused(error.unwrap_err());
    assert!(error.contains("length 4 bytes, expected 8"), "{error}");
    writer
        .add_tensor("w", &[2], Dtype::F32, RAW, &[&[0; 8]])
        .unwrap();
    // Of a scheme with as many bytes, but another one than the place is for.
    let place = writer.reserve("v", &[4], Dtype::F32, RAW).unwrap();
    let error = writer.seal(place, Scheme::Raw(Dtype::F16), &[&[0; 8]]);
    let error = refused(error.unwrap_err());
    assert!(error.contains("length 8 bytes, expected 16"), "{error}");
    let error = refused(writer.seal(place, RAW, &[]).unwrap_err());
    assert!(error.contains("0 blobs"), "{error}");
    let error = refused(writer.finish(provenance(), None).unwrap_err());
    assert!(error.contains("\"v\": blobs are 0 blobs"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
