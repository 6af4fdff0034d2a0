//! Copies, pinned memory, and what is said when memory runs out.

use smq_engine::cuda::{
    Arena, Args, DeviceBuffer, Gpu, Launch, Piece, PinnedBuffer, Staging, pinned_copy_rate, upload,
};

use super::{Outcome, equal, kernel};

pub(crate) fn copies_round_trip(gpu: &Gpu) -> Outcome {
    let stream = gpu.main();
    let (arena, (a, b)) = Arena::build(gpu, "a test", |a| Ok((a.take(1000)?, a.take(4000)?)))?;
    let buffer = arena.buffer().ok_or("no buffer")?;
    equal(
        (b.ptr() - a.ptr(), a.ptr() % 256, buffer.bytes()),
        (1024, 0, 1024 + 4096),
    )?;
    buffer.fill(stream, 0xff)?;
    let values: Vec<u32> = (0..1000).collect();
    buffer.upload(stream, 1024, &values)?;
    // SAFETY: both are parts of the arena, and do not overlap.
    unsafe { a.copy_within(stream, b.part(400, 1000)?) }?;
    let mut got = vec![0_u32; 256];
    buffer.download(stream, 0, &mut got)?;
    equal(&got[..250], &values[100..350])?;
    equal(&got[250..], &[u32::MAX; 6])?;
    equal(
        buffer
            .upload(stream, 1024 + 4096 - 8, &values[..3])
            .is_err(),
        true,
    )
}

pub(crate) fn mapped_memory_is_seen_by_both(gpu: &Gpu) -> Outcome {
    let link = kernel(gpu, "link")?;
    let mut host = PinnedBuffer::mapped(gpu, 4096)?;
    host.as_mut_slice::<u32>()[0] = 5;
    let args = Args::new().ptr(host.device_ptr()).u32(2);
    // SAFETY: as the kernel declares them.
    unsafe { link.launch(gpu.main(), &Launch::new(1_u32, 32), &args) }?;
    gpu.main().synchronize()?;
    equal(host.as_slice::<u32>()[0], 17)
}

pub(crate) fn out_of_memory_says_so(gpu: &Gpu) -> Outcome {
    let message = match DeviceBuffer::new(gpu, 1 << 40, "the KV cache") {
        Ok(_) => "allocated".into(),
        Err(e) => e.to_string(),
    };
    println!("{message}");
    equal(
        message.starts_with("out of GPU memory: the KV cache needs 1099.51 GB, "),
        true,
    )
}

pub(crate) fn uploads_arrive_whole(gpu: &Gpu) -> Outcome {
    // More than all pinned memory, so that it is used again.
    let bytes: Vec<u8> = (0..200_u32 << 18)
        .flat_map(|i| i.wrapping_mul(0x9e37_79b9).to_le_bytes())
        .collect();
    let buffer = DeviceBuffer::new(gpu, bytes.len(), "a test")?;
    buffer.fill(gpu.copy(), 0)?;
    let (mut pieces, mut at) = (Vec::new(), 0);
    for len in (0..).map(|i: usize| [6144, 3, (9 << 20) + 5, 1][i % 4]) {
        let len = len.min(bytes.len() - at);
        if len == 0 {
            break;
        }
        pieces.push(Piece {
            source: &bytes[at..at + len],
            to: buffer.span().part(at, len)?,
        });
        at += len;
    }
    let mut staging = Staging::new(gpu, bytes.len())?;
    // SAFETY: the places are parts of the buffer.
    let report = unsafe { upload(gpu, &mut staging, &pieces) }?;
    equal(report.bytes, bytes.len())?;
    let mut got = vec![0; bytes.len()];
    buffer.download(gpu.main(), 0, &mut got)?;
    equal(got == bytes, true)?;
    println!("pinned copy {:.1} GB/s; {report:?}", pinned_copy_rate(gpu)?);
    Ok(())
}
