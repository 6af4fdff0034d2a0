//! The CUDA runtime layer on a real GPU; where there is none the tests count as ignored.

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use smq_engine::cuda::compile::compile_text;
use smq_engine::cuda::{
    Args, BLOCK_SHARED_BYTES, DeviceBuffer, Gpu, Graph, Kernel, Launch, Module, TensorMap, time_us,
};

mod memory;
mod products;

type Outcome = Result<(), Failed>;
type Test = fn(&Gpu) -> Outcome;

const SOURCE: &str = include_str!("kernels.cu");

fn main() -> ExitCode {
    let mut args = Arguments::from_args();
    // They share a stream, which may be recording.
    args.test_threads = Some(1);
    let gpu = Gpu::open(0);
    if !args.list {
        match &gpu {
            Ok(gpu) => println!("{:?}", gpu.info()),
            Err(why) => println!("not run: {why}"),
        }
    }
    let gpu = gpu.ok();
    let tests: [(&str, Test); 14] = [
        ("arguments_arrive", arguments_arrive),
        ("other_arguments_are_refused", other_arguments_are_refused),
        (
            "overlapping_launches_keep_their_order",
            overlapping_launches_keep_their_order,
        ),
        ("shared_memory", shared_memory),
        (
            "a_failed_recording_leaves_the_stream_usable",
            a_failed_recording_leaves_the_stream_usable,
        ),
        ("boxes_of_a_matrix", boxes_of_a_matrix),
        ("copies_round_trip", memory::copies_round_trip),
        (
            "mapped_memory_is_seen_by_both",
            memory::mapped_memory_is_seen_by_both,
        ),
        ("out_of_memory_says_so", memory::out_of_memory_says_so),
        ("products_match_f64", products::match_f64),
        ("products_repeat_to_the_bit", products::repeat_to_the_bit),
        (
            "fp8_rows_do_not_depend_on_others",
            products::fp8_rows_do_not_depend_on_others,
        ),
        ("uploads_arrive_whole", memory::uploads_arrive_whole),
        ("an_absent_gpu_is_named", an_absent_gpu_is_named),
    ];
    let trials = tests.into_iter().map(|(name, test)| {
        let gpu: Option<Arc<Gpu>> = gpu.clone();
        Trial::ignorable_test(name, move || match gpu {
            Some(gpu) => test(&gpu).map(|()| Completion::Completed),
            None => Ok(Completion::ignored_with("no GPU")),
        })
    });
    libtest_mimic::run(&args, trials.collect()).exit_code()
}

fn equal<T: PartialEq + std::fmt::Debug>(got: T, expected: T) -> Outcome {
    match got == expected {
        true => Ok(()),
        false => Err(format!("got {got:?}, expected {expected:?}").into()),
    }
}

fn kernel(gpu: &Gpu, name: &str) -> Result<Kernel, Failed> {
    let cubin = compile_text(&gpu.arch(), "runtime_test.cu", SOURCE, &[])?;
    Ok(Module::load(gpu, &cubin)?.kernel(name)?)
}

fn arguments_arrive(gpu: &Gpu) -> Outcome {
    let kernel = kernel(gpu, "arguments")?;
    let out = DeviceBuffer::new(gpu, 24, "a test")?;
    // int, float and two halves of a word.
    let three = [7_u32, 1.5_f32.to_bits(), 9 << 16 | 8];
    let args = Args::new()
        .ptr(out.ptr())
        .i32(-5)
        .f32(0.25)
        .u64(1 << 40)
        .value(&three);
    // SAFETY: as the kernel declares them.
    unsafe { kernel.launch(gpu.main(), &Launch::new(1_u32, 1), &args) }?;
    let mut got = [0.0_f32; 6];
    out.download(gpu.main(), 0, &mut got)?;
    equal(got, [-5.0, 0.25, (1_u64 << 40) as f32, 7.0, 1.5, 9.0])
}

fn other_arguments_are_refused(gpu: &Gpu) -> Outcome {
    let kernel = kernel(gpu, "link")?;
    let launch = Launch::new(1_u32, 32);
    for args in [
        Args::new().ptr(8),
        Args::new().ptr(8).u64(1),
        Args::new().ptr(8).u32(1).u32(1),
    ] {
        // SAFETY: refused before it is launched.
        let refused = unsafe { kernel.launch(gpu.main(), &launch, &args) };
        let message = refused.err().map(|e| e.to_string()).unwrap_or_default();
        equal(
            message.starts_with("kernel link takes arguments of [8, 4] bytes"),
            true,
        )?;
    }
    Ok(())
}

fn overlapping_launches_keep_their_order(gpu: &Gpu) -> Outcome {
    const LINKS: u32 = 500;
    const BLOCKS: u32 = 200;
    let kernel = kernel(gpu, "link")?;
    let state = DeviceBuffer::new(gpu, 4 * BLOCKS as usize, "a test")?;
    let stream = gpu.main();
    let launch = Launch::new(BLOCKS, 128).overlap();
    let graph = Graph::capture(stream, |s| {
        (0..LINKS).try_for_each(|i| {
            // SAFETY: as the kernel declares them.
            unsafe { kernel.launch(s, &launch, &Args::new().ptr(state.ptr()).u32(i)) }
        })
    })?;
    state.fill(stream, 0)?;
    graph.launch(stream)?;
    graph.launch(stream)?;
    let mut got = vec![0_u32; BLOCKS as usize];
    state.download(stream, 0, &mut got)?;
    let links = (0..LINKS).chain(0..LINKS);
    let expected = links.fold(0_u32, |s, i| s.wrapping_mul(3).wrapping_add(i));
    equal(got, vec![expected; BLOCKS as usize])?;
    let nothing = self::kernel(gpu, "nothing")?;
    for (name, launch) in [
        ("plain", Launch::new(132_u32, 128)),
        ("overlapping", launch),
    ] {
        // SAFETY: the kernel takes nothing and does nothing.
        let queue = |s: &_, _| unsafe { nothing.launch(s, &launch, &Args::new()) };
        println!(
            "an empty {name} kernel of a graph: {:.2} us",
            time_us(stream, 500, 11, queue)?
        );
    }
    Ok(())
}

fn shared_memory(gpu: &Gpu) -> Outcome {
    let sum = kernel(gpu, "shared_sum")?;
    let out = DeviceBuffer::new(gpu, 16, "a test")?;
    let bytes = BLOCK_SHARED_BYTES as u32;
    let words = bytes / 4;
    let launch = Launch::new(1_u32, 256).shared(bytes);
    // SAFETY: as the kernel declares them.
    unsafe { sum.launch(gpu.main(), &launch, &Args::new().ptr(out.ptr()).u32(words)) }?;
    let mut got = [0_u32];
    out.download(gpu.main(), 0, &mut got)?;
    equal(got[0], (0..words).sum())?;
    let launch = Launch::new(1_u32, 256).shared(bytes + 1);
    // SAFETY: refused before it is launched.
    let refused =
        unsafe { sum.launch(gpu.main(), &launch, &Args::new().ptr(out.ptr()).u32(words)) };
    equal(refused.is_err(), true)
}

fn boxes_of_a_matrix(gpu: &Gpu) -> Outcome {
    let (columns, rows) = (72, 21);
    let kernel = kernel(gpu, "box")?;
    let matrix = DeviceBuffer::new(gpu, 2 * columns * rows, "a test")?;
    let out = DeviceBuffer::new(gpu, 2 * 8 * 64, "a test")?;
    let values: Vec<u16> = (1..=(columns * rows) as u16).collect();
    matrix.upload(gpu.main(), 0, &values)?;
    let map = TensorMap::bf16(matrix.span(), columns, rows, (64, 8))?;
    let (column, row) = (16, 16);
    let args = Args::new()
        .value(&map.words())
        .i32(column as i32)
        .i32(row as i32)
        .ptr(out.ptr());
    // SAFETY: as the kernel declares them.
    unsafe { kernel.launch(gpu.main(), &Launch::new(1_u32, 64), &args) }?;
    let mut got = vec![0_u16; 8 * 64];
    out.download(gpu.main(), 0, &mut got)?;
    for (r, line) in got.chunks(64).enumerate() {
        for c in 0..64 {
            let inside = row + r < rows && column + c < columns;
            let expected = if inside {
                values[(row + r) * columns + column + c]
            } else {
                0
            };
            // Chunks of 8 lie at their number xor the row's.
            equal(line[((c / 8) ^ (r % 8)) * 8 + c % 8], expected)?;
        }
    }
    equal(
        TensorMap::bf16(matrix.span(), columns, rows + 1, (64, 8)).is_err(),
        true,
    )?;
    equal(
        TensorMap::bf16(matrix.span(), columns, rows, (72, 8)).is_err(),
        true,
    )
}

fn a_failed_recording_leaves_the_stream_usable(gpu: &Gpu) -> Outcome {
    let link = kernel(gpu, "link")?;
    let state = DeviceBuffer::new(gpu, 4, "a test")?;
    // Not the stream of the tests beside this one.
    let stream = &smq_engine::cuda::Stream::new(gpu.context())?;
    state.fill(stream, 0)?;
    let args = Args::new().ptr(state.ptr()).u32(1);
    let failed = Graph::capture(stream, |s| {
        // SAFETY: as the kernel declares them.
        unsafe { link.launch(s, &Launch::new(1_u32, 32), &args) }?;
        Err(smq_engine::Error::Input("no".into()))
    });
    equal(failed.err().map(|e| e.to_string()), Some("no".into()))?;
    // SAFETY: as the kernel declares them.
    unsafe { link.launch(stream, &Launch::new(1_u32, 32), &args) }?;
    let mut got = [9_u32];
    state.download(stream, 0, &mut got)?;
    equal(got, [1])
}

fn an_absent_gpu_is_named(_: &Gpu) -> Outcome {
    let message = Gpu::open(99)
        .err()
        .map(|e| e.to_string())
        .unwrap_or_default();
    println!("{message}");
    equal(message.starts_with("GPU 99 was asked for, but there"), true)
}
