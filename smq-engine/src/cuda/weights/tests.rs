use std::path::Path;

use super::*;

/// The kernels' groups of matrices with such groups and columns, placed one after the other; or the
/// last's error.
fn groups(matrices: &[(usize, usize)]) -> std::result::Result<Vec<usize>, String> {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/phi3-tiny");
    let source = Source::open(&fixture).unwrap();
    let mut placer = Placer {
        source: &source,
        arena: &mut Arena::sizes(),
        pieces: &mut Vec::new(),
        scales: &mut Vec::new(),
        grouped: None,
    };
    let mut place = |(i, &(group, cols)): (usize, &(usize, usize))| {
        let name = format!("m{i}");
        let matrix = NamedMatrix {
            name,
            rows: 8,
            cols,
            bias: None,
        };
        placer.group(&matrix, group).map_err(|e| e.to_string())
    };
    matrices.iter().enumerate().map(&mut place).collect()
}

#[test]
fn groups_are_those_of_the_kernels_and_of_one_size() {
    assert_eq!(groups(&[(64, 576), (64, 64)]), Ok(vec![64, 64]));
    // One group a row is the first part of a larger one.
    assert_eq!(groups(&[(128, 576), (1024, 96)]), Ok(vec![128, 128]));
    for (matrices, words) in [
        (
            &[(48, 576)][..],
            &["m0", "groups of 48", "--group-size 128"][..],
        ),
        (&[(1024, 576)], &["m0", "groups of 576"]),
        (
            &[(64, 576), (128, 576)],
            &["m1", "groups of 128, and m0 has groups of 64"],
        ),
    ] {
        let error = groups(matrices).unwrap_err();
        assert!(words.iter().all(|w| error.contains(w)), "{error}");
    }
}
