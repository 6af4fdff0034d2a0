use super::*;
use crate::study::contract::Contract;
use crate::study::record::ModelIdentity;

fn here() -> Surroundings {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let contract = Contract::load(&root.join("tests/fixtures/experiment-small.toml")).unwrap();
    let model = ModelIdentity {
        path: "model".into(),
        id: "1234".into(),
    };
    Surroundings::new(&contract, model)
}

fn absent(id: &str, reason: &str) -> Line {
    Line {
        id: id.into(),
        body: Body::Absent {
            reason: reason.into(),
        },
        environment: here().environment(&[], None),
    }
}

fn measured(id: &str) -> Line {
    let record = crate::study::record::ScaleErrorsRecord {
        rule: "exact".into(),
        mantissa_bits: None,
        group: 128,
        target: "all".into(),
        rows_per_tensor: 1,
        tensors: Vec::new(),
    };
    Line {
        body: Body::ScaleErrors(Box::new(record)),
        ..absent(id, "")
    }
}

fn text(out: &Path) -> String {
    std::fs::read_to_string(out.join(RAW)).unwrap()
}

#[test]
fn lines_come_back_as_they_were_written() {
    let dir = tempfile::tempdir().unwrap();
    let lines = [measured("a"), absent("b", "no")];
    let mut log = Log::open(dir.path(), RAW, &here(), false).unwrap();
    for line in lines.clone() {
        log.append(line).unwrap();
    }
    drop(log);
    assert_eq!(read(dir.path(), RAW).unwrap(), lines);
    let log = Log::open(dir.path(), RAW, &here(), false).unwrap();
    assert!(log.has("a") && !log.has("b") && !log.has("c"));
}

#[test]
fn an_absence_is_said_once_and_never_after_a_figure() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::open(dir.path(), RAW, &here(), false).unwrap();
    for line in [
        absent("a", "x"),
        absent("a", "x"),
        absent("a", "y"),
        measured("a"),
        absent("a", "z"),
    ] {
        log.append(line).unwrap();
    }
    assert_eq!(text(dir.path()).lines().count(), 3);
    assert!(log.has("a"));
}

#[test]
fn a_line_cut_off_anywhere_is_dropped_and_the_rest_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::open(dir.path(), RAW, &here(), false).unwrap();
    log.append(measured("a")).unwrap();
    let first = text(dir.path());
    log.append(measured("b")).unwrap();
    drop(log);
    let both = text(dir.path());
    for end in [
        first.len(),
        first.len() + 1,
        first.len() + 20,
        both.len() - 1,
    ] {
        std::fs::write(dir.path().join(RAW), &both[..end]).unwrap();
        let read_first = read(dir.path(), RAW).unwrap();
        assert_eq!(read_first, [measured("a")]);
        let mut log = Log::open(dir.path(), RAW, &here(), false).unwrap();
        assert!(log.has("a") && !log.has("b"));
        assert_eq!(text(dir.path()), first);
        log.append(measured("b")).unwrap();
        assert_eq!(text(dir.path()), both);
    }
}

/// A program that is started meanwhile has a copy of the open file until it runs.
#[test]
fn a_log_that_is_done_with_may_be_opened_though_a_copy_of_its_file_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Log::open(dir.path(), RAW, &here(), false);
    let log = open().unwrap();
    let copy = log.file.try_clone().unwrap();
    let error = open().unwrap_err().to_string();
    assert!(error.contains("another run writes to it"), "{error}");
    drop(log);
    open().unwrap();
    drop(copy);
}

#[test]
fn a_damaged_line_is_named_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    Log::open(dir.path(), RAW, &here(), false)
        .unwrap()
        .append(measured("a"))
        .unwrap();
    let bad = format!("{}{{\"id\":1}}\n{{\"half", text(dir.path()));
    std::fs::write(dir.path().join(RAW), &bad).unwrap();
    let error = Log::open(dir.path(), RAW, &here(), false)
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with("matrix.jsonl: line 2 is no record of this program"),
        "{error}"
    );
    assert_eq!(text(dir.path()), bad);
}

#[test]
fn lines_of_another_model_commit_or_contract_are_refused_and_kept() {
    let fields: [fn(&mut Line); 3] = [
        |l| l.environment.model.id = "other".into(),
        |l| l.environment.commit = "other".into(),
        |l| l.environment.contract_blake3 = "other".into(),
    ];
    for (key, change) in ["model", "commit", "contract"].into_iter().zip(fields) {
        let dir = tempfile::tempdir().unwrap();
        let mut line = measured("a");
        change(&mut line);
        std::fs::create_dir(dir.path().join("raw")).unwrap();
        let json = serde_json::to_string(&line).unwrap() + "\n{\"unfinished";
        std::fs::write(dir.path().join(RAW), &json).unwrap();
        let error = Log::open(dir.path(), RAW, &here(), false)
            .unwrap_err()
            .to_string();
        let said = format!("a was measured with {key} other, this is ");
        assert!(
            error.contains(&said) && error.contains("--allow-mixed"),
            "{error}"
        );
        assert_eq!(text(dir.path()), json, "a refused file was changed");
        assert!(Log::open(dir.path(), RAW, &here(), true).unwrap().has("a"));
    }
}

#[test]
fn one_run_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let first = Log::open(dir.path(), RAW, &here(), false).unwrap();
    let error = Log::open(dir.path(), RAW, &here(), false)
        .unwrap_err()
        .to_string();
    assert!(error.contains("another run writes to it"), "{error}");
    drop(first);
    assert!(Log::open(dir.path(), RAW, &here(), false).is_ok());
}

#[test]
fn a_packed_log_is_read_and_not_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::open(dir.path(), RAW, &here(), false).unwrap();
    log.append(measured("a")).unwrap();
    drop(log);
    let path = packed(dir.path(), RAW);
    let mut packer =
        flate2::write::GzEncoder::new(File::create(&path).unwrap(), flate2::Compression::default());
    packer.write_all(text(dir.path()).as_bytes()).unwrap();
    packer.finish().unwrap();
    std::fs::remove_file(dir.path().join(RAW)).unwrap();
    assert_eq!(read(dir.path(), RAW).unwrap(), [measured("a")]);
    let error = Log::open(dir.path(), RAW, &here(), false)
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with("is packed; unpack it to go on (gunzip)"),
        "{error}"
    );
    assert!(!dir.path().join(RAW).exists());
}
