//! Tags of a TIFF file or of an EXIF block. In: the block. Out: the first value of a tag in the first directory, or all
//! bytes of one. Apart, since the decoders ask about samples, `orient` about the orientation and `profile` about colours.

/// The first value of a tag of any integer type; None where there is none, or the block is damaged. Where a tag stands
/// twice, the last counts.
pub fn tag(block: &[u8], wanted: u16) -> Option<u64> {
    let (place, bytes, _, little) = entry_of(block, wanted, |kind| match kind {
        1 | 6 => Some(1),
        3 | 8 => Some(2),
        4 | 9 | 13 => Some(4),
        16..=18 => Some(8),
        _ => None,
    })?;
    let value = block.get(place..place.checked_add(bytes)?)?.iter();
    let join = |n: u64, &byte: &u8| n << 8 | u64::from(byte);
    Some(if little { value.rev().fold(0, join) } else { value.fold(0, join) })
}

/// All bytes of a tag whose values are bytes.
pub fn bytes_of(block: &[u8], wanted: u16) -> Option<&[u8]> {
    let (place, _, count, _) = entry_of(block, wanted, |kind| matches!(kind, 1 | 2 | 6 | 7).then_some(1))?;
    block.get(place..place.checked_add(usize::try_from(count).ok()?)?)
}

/// Where the values of a tag stand, the bytes of one, how many there are, and whether the low byte is first. `size` says
/// how many bytes a type takes, None for one that is passed over.
fn entry_of(block: &[u8], wanted: u16, size: impl Fn(u64) -> Option<u64>) -> Option<(usize, usize, u64, bool)> {
    let (little, big) = match block.get(..4)? {
        b"II*\0" => (true, false),
        b"MM\0*" => (false, false),
        b"II+\0" => (true, true),
        b"MM\0+" => (false, true),
        _ => return None,
    };
    let number = |at: usize, bytes: usize| {
        let bytes = block.get(at..at.checked_add(bytes)?)?.iter();
        let join = |n: u64, &byte: &u8| n << 8 | u64::from(byte);
        Some(if little { bytes.rev().fold(0, join) } else { bytes.fold(0, join) })
    };
    // Bytes of an offset, of the number of entries, and of an entry.
    let (wide, count, entry) = if big { (8, 8, 20) } else { (4, 2, 12) };
    let directory = usize::try_from(number(wide, wide)?).ok()?;
    let entries = usize::try_from(number(directory, count)?).ok()?.min(4096);
    let mut found = None;
    for i in 0..entries {
        let at = directory.checked_add(count)?.checked_add(i * entry)?;
        let Some(name) = number(at, 2) else { break };
        if name != u64::from(wanted) {
            continue;
        }
        let Some(bytes) = size(number(at + 2, 2)?) else { continue };
        let values = number(at + 4, wide)?;
        if values == 0 {
            continue;
        }
        let value = at + 4 + wide;
        let inside = values.checked_mul(bytes).is_some_and(|all| all <= wide as u64);
        let place = if inside { value } else { usize::try_from(number(value, wide)?).ok()? };
        found = Some((place, bytes as usize, values, little));
    }
    found
}
