//! What stands for keys that config.json leaves out.

use serde_json::json;

use crate::architecture::{Activation, Rotations};
use crate::config::{ModelConfig, Tables};

/// `Qwen3Config()` and so on: sizes, base, epsilon, whether tied, windows, and which layers rotate.
#[test]
fn defaults_of_the_other_families() {
    type Sizes = [usize; 8];
    type Row = (
        &'static str,
        Sizes,
        f32,
        f32,
        bool,
        fn(usize) -> Option<usize>,
    );
    let all: fn(usize) -> Option<usize> = |_| None;
    let rows: [Row; 9] = [
        (
            "qwen3",
            [151_936, 4096, 22016, 32, 32, 32, 128, 32768],
            1e4,
            1e-6,
            false,
            all,
        ),
        (
            "qwen2",
            [151_936, 4096, 22016, 32, 32, 32, 128, 32768],
            1e4,
            1e-6,
            false,
            all,
        ),
        (
            "mistral",
            [32000, 4096, 14336, 32, 32, 8, 128, 131_072],
            1e4,
            1e-6,
            false,
            |_| Some(4096),
        ),
        (
            "smollm3",
            [128_256, 2048, 11008, 36, 16, 4, 128, 32768],
            2e6,
            1e-6,
            true,
            all,
        ),
        (
            "gemma3_text",
            [262_208, 2304, 9216, 26, 8, 4, 256, 131_072],
            1e6,
            1e-6,
            true,
            |layer| (layer % 6 != 5).then_some(4096),
        ),
        (
            "gemma2",
            [256_000, 2304, 9216, 26, 8, 4, 256, 8192],
            1e4,
            1e-6,
            true,
            |layer| (layer % 2 == 0).then_some(4096),
        ),
        (
            "granite",
            [32000, 4096, 11008, 32, 32, 32, 128, 2048],
            1e4,
            1e-6,
            false,
            all,
        ),
        (
            "olmo2",
            [50304, 4096, 11008, 32, 32, 32, 128, 2048],
            1e4,
            1e-5,
            false,
            all,
        ),
        (
            "olmo3",
            [50304, 4096, 11008, 32, 32, 32, 128, 2048],
            5e5,
            1e-5,
            false,
            |layer| (layer % 4 != 3).then_some(4096),
        ),
    ];
    for (family, sizes, theta, eps, tied, window) in rows {
        let json = json!({"model_type": family}).to_string();
        let c = ModelConfig::from_json(json.as_bytes()).unwrap();
        assert_eq!(super::sizes(&c), sizes, "{family}");
        assert_eq!((c.rope.theta, c.rms_norm_eps), (theta, eps), "{family}");
        assert_eq!(c.tables == Tables::Embedding, tied, "{family}");
        for layer in 0..c.layers {
            assert_eq!(c.windows.layer(layer), window(layer), "{family} {layer}");
            let rotates = family != "smollm3" || layer % 4 != 3;
            assert_eq!(c.rope_of(layer).is_some(), rotates, "{family} {layer}");
        }
        let gemma = family.starts_with("gemma");
        assert_eq!(c.activation == Activation::GeluTanh, gemma, "{family}");
        let local = match &c.rotations {
            Rotations::Windowed(rope) => Some(rope.theta),
            Rotations::Alike | Rotations::Listed(_) => None,
        };
        assert_eq!(local, (family == "gemma3_text").then_some(1e4), "{family}");
    }
}
