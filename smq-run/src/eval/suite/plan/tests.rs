//! Tests of reading a registered plan.

use super::*;

const SMALL: &str = include_str!("../../../../../tests/fixtures/calibration-small.toml");

fn load(text: &str) -> anyhow::Result<RegisteredPlan> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("plan.toml");
    std::fs::write(&path, text).unwrap();
    RegisteredPlan::load(&path)
}

/// What is registered is what is said in words there, and each cell has one name.
#[test]
fn the_registered_plan_is_whole() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../spec/calibration.toml");
    let plan = RegisteredPlan::load(path.as_ref()).unwrap();
    let count = |grid: &str| plan.variants(&[grid.to_owned()]).unwrap().len() - 1;
    assert_eq!(count("rounded"), 7 * 2);
    // Two methods.
    assert_eq!(count("less"), 7 * 2);
    // Two texts, two starts.
    assert_eq!(count("texts"), 3 * 2 * 2);
    let names: Vec<_> = plan.variants(&[]).unwrap();
    let names: Vec<_> = names.iter().map(|v| v.name.as_str()).collect();
    for name in [
        "C0",
        "mlp-e5m5",
        "all-e5m0-nearest",
        "all-f16-g64",
        "all-nf4",
        "all-lut4-e5m3-nearest",
        "all-e5m0-cal-mix-0-32768",
        "all-f32-signed-cal-mix-0-32768",
        "all-f32-weighted-g64-cal-mix-0-32768",
        "mlp-e5m2-weighted-cal-mix-0-32768",
        "all-e5m2-weighted-search-mix-0-32768",
        "all-e5m2-weighted-gptq-mix-0-32768",
        "all-e5m3-weighted-cal-story-50-32768",
        "all-e5m3-weighted-cal-mix-0-131072",
        "mlp-nf4-cal-mix-0-32768",
        "all-lut4-e5m3-weighted-cal-mix-0-32768",
    ] {
        assert!(names.contains(&name), "{name} of {names:?}");
    }
    assert!(plan.tasks.names.contains(&Task::Recall));
}

#[test]
fn neighbours_differ_in_their_scales_alone() {
    let plan = load(SMALL).unwrap();
    let variants = plan.variants(&["calibrated".to_owned()]).unwrap();
    let ladders: Vec<_> = variants.iter().filter_map(|v| v.ladder.clone()).collect();
    assert_eq!(ladders.len(), variants.len() - 1);
    let of = |key: &str| -> Vec<usize> {
        let own = ladders.iter().filter(|l| l.key == key);
        own.map(|l| l.step).collect()
    };
    assert_eq!(of("all-*-weighted-cal-sample-0-512"), [0, 1]);
    assert_eq!(of("all-*-weighted-cal-sample-50-512"), [0, 1]);
}

#[test]
fn a_plan_is_read_strictly() {
    let error = |from: &str, to: &str| {
        assert!(SMALL.contains(from), "{from}");
        let changed = load(&SMALL.replacen(from, to, 1));
        format!("{:#}", changed.unwrap_err())
    };
    for (from, to, said) in [
        ("version = 1", "version = 2", "version is 2; allowed is 1"),
        (
            "window = 128",
            "window = 1",
            "window is 1; allowed is at least 2",
        ),
        (
            "max_new_tokens = 8",
            "max_new_tokens = 8
extra = 1",
            "unknown field `extra`",
        ),
        ("scales = [", "scale = [", "unknown field `scale`"),
        ("starts = [0, 50]", "starts = [0, 0]", "0 is there twice"),
        (
            "starts = [0, 50]",
            "starts = [0, 100]",
            "allowed is 0 to 99",
        ),
        (
            "starts = [0, 50]",
            "starts = []",
            "calibrate.starts is empty",
        ),
        (
            "texts = [\"sample\"]",
            "texts = [\"x\"]",
            "no [[text]] of that id",
        ),
        (
            "targets = [\"all\"]",
            "targets = [\"lm_head\"]",
            "allowed are mlp and all",
        ),
        (
            "rules = [\"reference\"]",
            "rules = [\"weighted\"]",
            "give calibrate",
        ),
        ("groups = [128]", "groups = [0]", "groups has 0"),
        (
            "scheme = \"nf4\"",
            "scheme = \"nf4\"\ngroups = [64]",
            "leave out scales, groups",
        ),
        (
            "scheme = \"nf4\"",
            "scheme = \"int4\"",
            "needs scales, groups and rules",
        ),
        ("recall_passages = 0", "", "missing field `recall_passages`"),
        (
            "id = \"sample\"",
            "id = \"a-b\"",
            "lower-case letters and digits",
        ),
        ("tokens = [512]", "tokens = [100]", "needs at least"),
        (
            "id = \"calibrated\"",
            "id = \"rounded\"",
            "rounded is there twice",
        ),
    ] {
        let message = error(from, to);
        assert!(message.contains(said), "{from} -> {to}: {message}");
    }
    let twice = SMALL.replacen("starts = [0, 50]", "starts = [0]", 1);
    let grid = twice.split("[[grid]]").nth(1).unwrap();
    let grid = grid.replacen("rounded", "again", 1);
    let message = format!(
        "{:#}",
        load(&format!("{twice}\n[[grid]]{grid}")).unwrap_err()
    );
    assert!(message.contains("all-e5m0 is there twice"), "{message}");
}
