use std::path::Path;

use super::*;

const SMALL: &str = include_str!("../../../../tests/fixtures/experiment-small.toml");

fn repository(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

/// What loading the small contract says after `from` became `to`.
fn refused(from: &str, to: &str) -> String {
    assert!(
        SMALL.contains(from),
        "{from:?} is not in the small contract"
    );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("experiment.toml");
    std::fs::write(&path, SMALL.replacen(from, to, 1)).unwrap();
    let message = Contract::load(&path).unwrap_err().to_string();
    let start = format!("{}: ", path.display());
    message.strip_prefix(&start).unwrap_or(&message).to_owned()
}

#[test]
fn the_frozen_contract_is_what_the_study_fixes() {
    let c = Contract::load(&repository("spec/experiment.toml")).unwrap();
    assert_eq!(
        (c.decoding.sampling.as_str(), c.decoding.seed),
        ("greedy", 42)
    );
    assert_eq!(
        (c.quantization.group, c.quantization.rule),
        (128, ScaleRule::Reference)
    );
    assert_eq!((c.warmup.prompt_tokens, c.warmup.output_tokens), (128, 32));
    assert_eq!(c.workloads.prompt_tokens, [128, 512, 2048]);
    assert_eq!(c.workloads.output_tokens, [64, 256]);
    assert_eq!((c.workloads.repeats, c.energy.sample_ms), (3, 100));
    assert_eq!(c.energy.decode_seconds, 10.0);
    assert_eq!(c.long_context.prompt_tokens, [8192, 32768]);
    assert_eq!(
        (
            c.long_context.configs.join(" ").as_str(),
            c.flags.temperature_above_c
        ),
        ("C0 C4 C6", 75)
    );
    assert_eq!(c.scale_errors.mantissa_bits, (0..=10).collect::<Vec<_>>());
    assert_eq!(c.scale_errors.rules, ScaleRule::OF_WEIGHTS);
    assert_eq!(
        c.ids(),
        "C0, C1, C1-all, C2, C2-all, C3, C4, C5-E5M5, C5-E5M3, C5-E5M0, C6"
    );
    let of = |id: &str| c.config(id).unwrap();
    assert!(of("C4").same_weights(of("C5-E5M5")) && !of("C4").same_weights(of("C6")));
    assert_eq!(of("C5-E5M0").mantissa_bits(), Some(0));
    assert_eq!(
        (of("C3").mantissa_bits(), of("C3").describe().as_str()),
        (None, "int4 f32, mlp")
    );
}

#[test]
fn every_key_is_required_and_no_other_allowed() {
    for line in SMALL.lines().filter(|l| l.contains(" = ")) {
        let key = line.split(" = ").next().unwrap();
        let without = refused(&format!("\n{line}\n"), "\n");
        let known =
            without.contains(&format!("`{key}`")) || without.contains(&format!(": {key} is"));
        assert!(known, "without {key}: {without}");
        let unknown = refused(&format!("\n{line}\n"), &format!("\n{line}\nnonsense = 1\n"));
        assert!(
            unknown.contains("unknown field `nonsense`") && unknown.contains("line "),
            "{unknown}"
        );
    }
}

#[test]
fn bad_values_name_key_value_and_what_is_allowed() {
    let cases = [
        ("version = 1", "version = 2", "version is 2; allowed is 1"),
        (
            "\"greedy\"",
            "\"top-k\"",
            "decoding.sampling is \"top-k\"; allowed is greedy",
        ),
        (
            "group = 128",
            "group = 0",
            "quantization.group is 0; allowed is 1 to 1048576",
        ),
        (
            "rule = \"reference\"",
            "rule = \"best\"",
            "line 10: unknown variant `best`, expected one of `reference`, `nearest`, `search`, `signed`, `weighted`",
        ),
        (
            "prompt_tokens = 8\n",
            "prompt_tokens = 0\n",
            "warmup.prompt_tokens is 0; allowed is 1 to 1048576",
        ),
        (
            "[8, 24]",
            "[24, 8]",
            "workloads.prompt_tokens is [24, 8]; allowed is at least one, ascending",
        ),
        (
            "[8, 24]",
            "[]",
            "workloads.prompt_tokens is []; allowed is at least one, ascending",
        ),
        (
            "[2, 5]",
            "[2, 2]",
            "workloads.output_tokens is [2, 2]; allowed is at least one, ascending",
        ),
        (
            "repeats = 2",
            "repeats = 0",
            "workloads.repeats is 0; allowed is 1 to 100",
        ),
        (
            "[64, 32768]",
            "[24, 64]",
            "long_context.prompt_tokens is 24; allowed is lengths that workloads.prompt_tokens does not have",
        ),
        (
            "[\"C0\", \"C4\"]",
            "[\"C9\"]",
            "long_context.configs is \"C9\"; allowed is C0, C3, C4, C5-E5M5, C6",
        ),
        (
            "decode_seconds = 0.2",
            "decode_seconds = nan",
            "energy.decode_seconds is NaN; allowed is 0.001 to 100000",
        ),
        (
            "sample_ms = 10",
            "sample_ms = 0",
            "energy.sample_ms is 0; allowed is 1 to 10000",
        ),
        (
            "mantissa_bits = [0, 3, 5]",
            "mantissa_bits = [11]",
            "scale_errors.mantissa_bits is 11; allowed is 0 to 10",
        ),
        (
            "\"signed\"]",
            "\"random\"]",
            "line 38: unknown variant `random`, expected one of `reference`, `nearest`, `search`, `signed`, `weighted`",
        ),
        (
            "scheme = \"bf16\"",
            "scheme = \"fp4\"",
            "line 52: scheme is \"fp4\", expected bf16, int4, lut4, nf4, fp8",
        ),
        (
            "scales = \"f32\"",
            "scales = \"e5m11\"",
            "line 57: invalid value: string \"e5m11\", expected f32, f16, or eXmY with X 2 to 8 and Y 0 to 10",
        ),
        (
            "scales = \"f32\"",
            "scales = \"E4M3\"",
            "config \"C3\": scales is \"e4m3\"; allowed is f32, or e5m0 to e5m10",
        ),
        (
            "scales = \"f32\"\n",
            "",
            "config \"C3\": scales is absent; allowed is f32, or e5m0 to e5m10",
        ),
        (
            "scheme = \"int4\"\nscales = \"f32\"",
            "scheme = \"nf4-dq\"\nscales = \"f32\"",
            "config \"C3\": scales is \"f32\"; allowed is none with scheme nf4",
        ),
        (
            "scheme = \"bf16\"",
            "scheme = \"bf16\"\ntarget = \"all\"",
            "config \"C0\": target is \"all\"; allowed is none with scheme bf16",
        ),
        (
            "scales = \"f32\"\ntarget = \"mlp\"",
            "scales = \"f32\"",
            "config \"C3\": target is absent; allowed is mlp, all",
        ),
        (
            "id = \"C3\"",
            "id = \"c0\"",
            "config.id is \"c0\" again; allowed is each id once",
        ),
        (
            "id = \"C3\"",
            "id = \"../C3\"",
            "config.id is \"../C3\"; allowed is letters, digits and hyphens: it becomes part of file names",
        ),
        (
            "seed = 42",
            "seed = \"x\"",
            "line 6: invalid type: string \"x\", expected u64",
        ),
    ];
    for (from, to, message) in cases {
        assert_eq!(refused(from, to), message);
    }
}

#[test]
fn a_missing_file_is_named() {
    let message = Contract::load(Path::new("no/such.toml"))
        .unwrap_err()
        .to_string();
    assert!(message.starts_with("no/such.toml: "), "{message}");
}

/// Outside of the repository the study's own contract is the one in the program.
#[test]
fn the_default_contract_needs_no_repository() {
    let given = Path::new(DEFAULT_PATH);
    assert!(!given.exists(), "tests run in the crate's directory");
    let built_in = Contract::load(given).unwrap();
    let file = Contract::load(&Path::new("..").join(DEFAULT_PATH)).unwrap();
    assert_eq!(built_in.blake3, file.blake3);
    assert!(Contract::load(Path::new("spec/other.toml")).is_err());
}
