use smq_format::scale::{MiniFloat, ScaleFormat};

use super::*;
use crate::cuda::arena::Arena;
use crate::cuda::contract::BLOCK_SHARED_BYTES;
use crate::cuda::weights::{Format, GROUPS};

/// Blocks of a cluster that every GPU with clusters has.
const CLUSTER: usize = 8;
const SMS: usize = 132;

fn int4(rows: usize, cols: usize) -> DeviceMatrix {
    int4_of(rows, cols, LARGEST_GROUP)
}

fn int4_of(rows: usize, cols: usize, group: usize) -> DeviceMatrix {
    let mut arena = Arena::sizes();
    let format = MiniFloat::new(5, 5, 100).map(ScaleFormat::Mini).unwrap();
    DeviceMatrix {
        rows,
        cols,
        data: arena.take(rows * cols / 2).unwrap(),
        format: Format::Int4 {
            scales: arena.take(rows * cols.div_ceil(group) * 2).unwrap(),
            format,
            group,
        },
    }
}

/// What `gemm_int4.cu` asks of its macros and its launch.
fn check(what: &str, w: &DeviceMatrix, m: usize, target: Target) {
    let what = &format!("{what}, {m} rows");
    let cut = Cut::new(w, m, target, SMS);
    let find = |name: &str| {
        cut.defines
            .iter()
            .find(|d| d.0 == name)
            .map(|d| d.1 as usize)
    };
    let get = |name| find(name).unwrap_or_else(|| panic!("{what}: no {name}"));
    let (tile, warpgroups, split) = (get("TILE_M"), get("WARPGROUPS"), get("SPLIT_K"));
    let stages = get("STAGES");
    let swiglu = matches!(target, Target::Swiglu(..));

    assert_eq!((get("K"), get("ROWS")), (w.cols, w.rows), "{what}");
    assert_eq!(cut.tile, tile, "{what}");
    assert!(
        [16, 32, 64, 96, 128].contains(&tile),
        "{what}: tiles of {tile}"
    );
    assert_eq!(w.cols % 32, 0, "{what}");
    assert_eq!(w.rows % if swiglu { 64 } else { 8 }, 0, "{what}");
    assert_eq!(cut.threads as usize, 128 * (warpgroups + 1), "{what}");

    let units = if swiglu {
        (w.rows / 2).div_ceil(128) * 4
    } else {
        w.rows.div_ceil(64)
    };
    let x = units.div_ceil(warpgroups) * split;
    // SwiGLU's blocks loop over several token tiles, which asks for no split.
    let y = if swiglu && m > 128 {
        1
    } else {
        m.div_ceil(tile)
    };
    assert!(y == m.div_ceil(tile) || split == 1, "{what}");
    assert_eq!(cut.grid, [x as u32, y as u32], "{what}");
    assert!(split <= CLUSTER && x % split == 0, "{what}");
    assert!(
        split <= w.cols.div_ceil(128),
        "{what}: a group for each of {split}"
    );
    assert!(split == 1 || (stages >= warpgroups && !swiglu), "{what}");

    let columns = if swiglu { 32 } else { 64 } + 8;
    let staged = match target {
        Target::Add(_) => 0,
        _ => warpgroups * tile * columns * 2,
    };
    // Tokens, nibbles and a scale a group of each row of 128 columns.
    let row = 64 + 4 * (128 / get("GROUP"));
    let needed = stages * (tile * 256 + warpgroups * 64 * row) + staged + 16 * stages + 1024;
    assert!(cut.shared as usize >= needed, "{what}: {needed} bytes");
    assert!(
        cut.shared as usize <= BLOCK_SHARED_BYTES,
        "{what}: {} bytes",
        cut.shared
    );
}

#[test]
fn every_product_of_the_tested_models_fits() {
    // Hidden, rows of qkv, attention's width, intermediate.
    for (name, [hidden, qkv, width, inner]) in [
        ("phi3-tiny", [256, 768, 256, 768]),
        ("SmolLM2-135M", [576, 960, 576, 1536]),
        ("Phi-3.5-mini", [3072, 9216, 3072, 8192]),
        ("Llama-3-8B", [4096, 6144, 4096, 14336]),
    ] {
        for group in GROUPS {
            let name = format!("{name}, groups of {group}");
            let of = |rows, cols| int4_of(rows, cols, group);
            let (qkv_w, o) = (of(qkv, hidden), of(hidden, width));
            let (gate_up, down) = (of(2 * inner, hidden), of(hidden, inner));
            for m in [
                1, 2, 15, 16, 17, 32, 33, 64, 65, 127, 128, 129, 200, 257, 700, 1023,
            ] {
                check(&format!("{name}, qkv"), &qkv_w, m, Target::Bf16(0, qkv));
                check(&format!("{name}, o"), &o, m, Target::Add(0));
                check(&format!("{name}, down"), &down, m, Target::Add(0));
                for target in [
                    Target::Swiglu(0, false, Activation::Silu),
                    Target::Swiglu(0, true, Activation::GeluTanh),
                    Target::Bf16(0, 2 * inner),
                ] {
                    check(&format!("{name}, gate_up"), &gate_up, m, target);
                }
            }
        }
    }
}

/// The rows of log-probabilities come in blocks, and every route has room for what it widens or
/// quantizes.
#[test]
fn every_route_has_scratch() {
    let (fused, apart) = (
        [int4(256, 128)],
        [int4(128, 128), int4(64, 128), int4(64, 128)],
    );
    let from = int4_widened_from(fused[0].rows);
    for m in [1, 128, from - 1] {
        for matrices in [&fused[..], &apart] {
            assert!(reads_int4_order(matrices, m));
            assert_eq!(scratch_bytes(matrices, m), 0);
        }
    }
    for matrices in [&fused[..], &apart] {
        assert!(!reads_int4_order(matrices, from));
        // Where the number of rows may not matter, the int4 kernel takes any.
        let alike = RowCount {
            m: from,
            alike: true,
        };
        assert!(reads_int4_order(matrices, alike));
        assert_eq!(scratch_bytes(matrices, alike), 0);
        let split = |n: RowCount| {
            let cut = Cut::new(&matrices[0], n, Target::Add(0), SMS);
            cut.defines.iter().find(|d| d.0 == "SPLIT_K").map(|d| d.1)
        };
        let one = RowCount { m: 1, alike: true };
        assert_eq!(split(alike), split(one));
    }
    // Smaller groups go through the same kernel, in plain order.
    let small = [int4_of(256, 128, 64)];
    assert!(is_int4_product(&small, from - 1) && !is_int4_product(&small, from));
    assert!(!reads_int4_order(&small, 1));
    assert_eq!(scratch_bytes(&small, from - 1), 0);
    assert_eq!(scratch_bytes(&small, from), 2 * 256 * 128);
    assert_eq!(scratch_bytes(&fused, from), 2 * 256 * 128);
    assert_eq!(scratch_bytes(&apart, from), 2 * 128 * 128);
    let bf16 = DeviceMatrix {
        format: Format::Bf16,
        ..fused[0]
    };
    assert!(!reads_int4_order(&[bf16], 1));
    assert_eq!(scratch_bytes(&[bf16], 2048), 0);
    let nowhere = fused[0].data;
    let nf4 = DeviceMatrix {
        format: Format::Nf4 {
            absmax: nowhere,
            nested_absmax: nowhere,
            offset: 0.0,
        },
        ..fused[0]
    };
    let fp8 = DeviceMatrix {
        format: Format::Fp8 { scales: nowhere },
        ..fused[0]
    };
    assert!(!reads_int4_order(&[nf4], 1) && !reads_int4_order(&[fp8], 1));
    assert_eq!(scratch_bytes(&[nf4], 1), 2 * 256 * 128);
    assert_eq!(scratch_bytes(&[fp8, fp8], 100), 512 + 100 * 128);
    let memory = Arena::sizes().take(scratch_bytes(&[fp8], 100)).unwrap();
    let rows = QuantizedRows::place(memory, 100, 128).unwrap();
    assert_eq!((rows.scales.ptr(), rows.codes.ptr()), (0, 512));
    assert!(QuantizedRows::place(memory, 101, 128).is_err());
}
