use smq_format::scale::{MiniFloat, ScaleFormat};

use super::*;
use crate::cuda::arena::Arena;
use crate::cuda::contract::BLOCK_SHARED_BYTES;
use crate::cuda::weights::{Format, GROUPS};

/// Blocks of a cluster that every GPU with clusters has.
const CLUSTER: usize = 8;

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

fn nf4(rows: usize, cols: usize) -> DeviceMatrix {
    let mut arena = Arena::sizes();
    DeviceMatrix {
        rows,
        cols,
        data: arena.take(rows * cols / 2).unwrap(),
        format: Format::Nf4 {
            absmax: arena.take(rows * cols / 64).unwrap(),
            nested_absmax: arena.take((rows * cols / 64).div_ceil(256) * 4).unwrap(),
            offset: 0.0,
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
        [16, 32, 64, WIDE_TILE, 128].contains(&tile),
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
    let y = if swiglu && m > tile {
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
    let taken = cut.shared as usize + find("NF4_TABLE_BYTES").unwrap_or(0);
    assert!(taken <= BLOCK_SHARED_BYTES, "{what}: {taken} bytes");
    assert!(stages >= 3, "{what}: {stages} stages");
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
        for group in GROUPS.into_iter().map(Some).chain([None]) {
            let name = match group {
                Some(group) => format!("{name}, groups of {group}"),
                None => format!("{name}, NF4"),
            };
            let of = |rows, cols| match group {
                Some(group) => int4_of(rows, cols, group),
                None => nf4(rows, cols),
            };
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
    let from = int4_widened_from(fused[0].rows, LARGEST_GROUP);
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
    let sooner = int4_widened_from(256, 64);
    assert!(is_int4_product(&small, sooner - 1) && !is_int4_product(&small, sooner));
    assert!(!reads_int4_order(&small, 1));
    assert_eq!(scratch_bytes(&small, sooner - 1), 0);
    assert_eq!(scratch_bytes(&small, sooner), 2 * 256 * 128);
    assert_eq!(scratch_bytes(&fused, from), 2 * 256 * 128);
    assert_eq!(scratch_bytes(&apart, from), 2 * 128 * 128);
    let bf16 = DeviceMatrix {
        format: Format::Bf16,
        ..fused[0]
    };
    assert!(!reads_int4_order(&[bf16], 1));
    assert_eq!(scratch_bytes(&[bf16], 2048), 0);
    let nf4 = nf4(256, 128);
    let fp8 = DeviceMatrix {
        format: Format::Fp8 {
            scales: fused[0].data,
        },
        ..fused[0]
    };
    // NF4 goes there in blocks of 64, unless one runs from a row into the next.
    assert!(!reads_int4_order(&[nf4], 1) && !reads_int4_order(&[fp8], 1));
    assert!(is_int4_product(&[nf4], 1) && !is_int4_product(&[nf4, fused[0]], 1));
    assert_eq!(scratch_bytes(&[nf4], WIDENED_FROM - 1), 0);
    assert_eq!(scratch_bytes(&[nf4], WIDENED_FROM), 2 * 256 * 128);
    let running_on = DeviceMatrix { cols: 96, ..nf4 };
    assert_eq!(scratch_bytes(&[running_on], 1), 2 * 256 * 96);
    assert_eq!(scratch_bytes(&[fp8, fp8], 100), 512 + 100 * 128);
    let memory = Arena::sizes().take(scratch_bytes(&[fp8], 100)).unwrap();
    let rows = QuantizedRows::place(memory, 100, 128).unwrap();
    assert_eq!((rows.scales.ptr(), rows.codes.ptr()), (0, 512));
    assert!(QuantizedRows::place(memory, 101, 128).is_err());
}

/// The rounds that Phi-3.5's products take of an H100's blocks choose the tile: 512 tokens are five
/// tiles of 104 in three rounds for q, k and v (four of 128 would be three, too, and longer) and one
/// round for o and down; gate_up's blocks loop over tiles, and four of 128 take no longer than five
/// of 104.
#[test]
fn tiles_fill_rounds() {
    let tile = |w: &DeviceMatrix, m, target| Cut::new(w, m, target, SMS).tile;
    let (qkv, o, gate_up) = (int4(9216, 3072), int4(3072, 3072), int4(16384, 3072));
    let swiglu = Target::Swiglu(0, true, Activation::Silu);
    assert_eq!(tile(&qkv, 512, Target::Bf16(0, 9216)), 104);
    assert_eq!(tile(&o, 512, Target::Add(0)), 104);
    for (m, expected) in [(8, 16), (17, 32), (64, 64), (65, 104), (104, 104)] {
        assert_eq!(tile(&gate_up, m, swiglu), expected, "{m} tokens");
    }
    for (m, expected) in [(105, 128), (128, 128), (150, 104), (256, 128), (512, 128)] {
        assert_eq!(tile(&gate_up, m, swiglu), expected, "{m} tokens");
    }
    // One round of tiles is not left to cuBLASLt.
    assert_eq!(int4_widened_from(3072, 128), 521);
    assert_eq!(int4_widened_from(3072, 64), 384);
    assert_eq!(int4_widened_from(6144, 128), 384);
    assert_eq!(int4_widened_from(256, 128), 1024);
    assert_eq!(int4_widened_from(9216, 64), 1024);
}
