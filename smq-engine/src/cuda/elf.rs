//! Whether bytes are machine code for a GPU, and all of it.

/// Length of a 64-bit ELF header.
const HEADER: usize = 64;
/// `e_machine` of NVIDIA's GPUs.
const CUDA: u64 = 190;
/// `sh_type` of a section that takes no bytes of the file.
const NO_BITS: u64 = 8;

/// Whether `bytes` are a 64-bit little-endian ELF file for NVIDIA's GPUs, whose tables, sections and
/// segments all lie within it.
pub(super) fn is_whole_cubin(bytes: &[u8]) -> bool {
    check(bytes).is_some()
}

fn check(bytes: &[u8]) -> Option<()> {
    // Class 2 is 64 bits, data 1 little-endian.
    let known = bytes.starts_with(b"\x7fELF\x02\x01") && bytes.len() >= HEADER;
    (known && word(bytes, 18, 2)? == CUDA).then_some(())?;
    let table = |offset: usize, size: usize, count: usize, least: usize| {
        let (offset, size, count) = (
            usize::try_from(word(bytes, offset, 8)?).ok()?,
            word(bytes, size, 2)? as usize,
            word(bytes, count, 2)? as usize,
        );
        let end = offset.checked_add(size.checked_mul(count)?)?;
        let fits = count == 0 || (size >= least && end <= bytes.len());
        fits.then(|| (0..count).map(move |i| offset + i * size))
    };
    for section in table(40, 58, 60, 64)? {
        let kind = word(bytes, section + 4, 4)?;
        if kind != NO_BITS {
            within(
                bytes,
                word(bytes, section + 24, 8)?,
                word(bytes, section + 32, 8)?,
            )?;
        }
    }
    for segment in table(32, 54, 56, 56)? {
        within(
            bytes,
            word(bytes, segment + 8, 8)?,
            word(bytes, segment + 32, 8)?,
        )?;
    }
    Some(())
}

/// A number of `width` bytes.
fn word(bytes: &[u8], at: usize, width: usize) -> Option<u64> {
    let mut word = [0; 8];
    word[..width].copy_from_slice(bytes.get(at..at.checked_add(width)?)?);
    Some(u64::from_le_bytes(word))
}

fn within(bytes: &[u8], offset: u64, length: u64) -> Option<()> {
    (offset.checked_add(length)? <= bytes.len() as u64).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header, a section of 8 bytes and its table.
    fn image() -> Vec<u8> {
        let mut bytes = vec![0; HEADER + 8 + 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18] = CUDA as u8;
        bytes[40] = (HEADER + 8) as u8;
        bytes[58] = 64;
        bytes[60] = 1;
        let section = HEADER + 8;
        bytes[section + 4] = 1;
        bytes[section + 24] = HEADER as u8;
        bytes[section + 32] = 8;
        bytes
    }

    #[test]
    fn what_points_beyond_the_end_is_refused() {
        let whole = image();
        assert!(is_whole_cubin(&whole));
        for length in 0..whole.len() {
            assert!(!is_whole_cubin(&whole[..length]), "{length}");
        }
        // Magic, class, machine, table, its entries' size and number, a section's place and length.
        for at in [0, 4, 18, 47, 58, 60, 96 + 7, 104 + 7] {
            let mut changed = whole.clone();
            changed[at] ^= 0x7f;
            assert!(!is_whole_cubin(&changed), "{at}");
        }
        assert!(!is_whole_cubin(b"\x7fELF"));
    }
}
