//! What a member of a container is known again by. In: its bytes. Out: a CRC-32 of the first and the last few. Apart,
//! since the probe notes it and the renderer compares it: a container may be written anew with the same length.

use flate2::Crc;

use crate::fetch::window::{ReadAt, Unread, Window};

/// Bytes at either end. The end of a compressed image differs wherever its pixels do.
const END: usize = 256;

/// The check of a member that is in memory.
pub fn check(bytes: &[u8]) -> u32 {
    let head = bytes.len().min(END);
    let mut crc = Crc::new();
    crc.update(&bytes[..head]);
    crc.update(&bytes[(bytes.len() - head).max(head)..]);
    crc.sum()
}

/// The same of a member that is not.
pub(crate) fn check_window<R: ReadAt + ?Sized>(member: &mut Window<'_, R>) -> Result<u32, Unread> {
    let (length, end) = (member.len(), END as u64);
    let head = length.min(end);
    let mut crc = Crc::new();
    crc.update(member.get(0, head as usize)?);
    let tail = (length - head).max(head);
    crc.update(member.get(tail, (length - tail) as usize)?);
    Ok(crc.sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_has_one_check_wherever_it_is() {
        let bytes: Vec<u8> = (0..2000u32).map(|n| (n * 7 % 251) as u8).collect();
        for length in [1, 255, 256, 257, 511, 512, 513, 1500] {
            let mut scratch = Vec::new();
            let member = check_window(&mut Window::new(&bytes[..], 100, length, &mut scratch)).ok();
            let own = &bytes[100..100 + length as usize];
            assert_eq!(member, Some(check(own)), "{length}");
            let mut changed = own.to_vec();
            for at in [0, own.len() - 1] {
                changed[at] ^= 1;
                assert_ne!(check(&changed), check(own));
                changed[at] ^= 1;
            }
        }
    }
}
