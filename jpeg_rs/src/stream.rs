//! The data of a scan as decoding wants them. In: the file from its scan on. Out: the same bytes without stuffing, cut
//! at the restart markers. So the inner loop never looks for markers.

/// Clean data of a scan.
#[derive(Default)]
pub struct Stream {
    /// The bytes; longer than needed, since it is used again.
    pub data: Vec<u8>,
    /// Where each restart interval ends; the last is the end of the data.
    pub ends: Vec<usize>,
}

impl Stream {
    /// Takes the scan with which `scan` begins, up to a marker that is no restart, and says where that one stands. None
    /// where restarts are out of order, or fill bytes stand before a marker.
    pub fn take(&mut self, fast: bool, scan: &[u8]) -> Option<usize> {
        self.ends.clear();
        // Bits are read by the word, the last ones too.
        let len = scan.len() + size_of::<u64>();
        if self.data.len() < len {
            self.data.resize(len, 0);
        }
        let (mut from, mut to, mut restart) = (0, 0, 0xD0);
        loop {
            // As many bytes come out as go in at most, so there is always room.
            let (copied, found) = copy_clean(fast, &scan[from..], &mut self.data[to..]);
            (from, to) = (from + copied, to + copied);
            let byte = *scan.get(from)?;
            from += 1;
            if !found && byte != 0xFF {
                self.data[to] = byte;
                to += 1;
                continue;
            }
            match *scan.get(from)? {
                0x00 => {
                    self.data[to] = 0xFF;
                    to += 1;
                }
                code if code == restart => {
                    self.ends.push(to);
                    restart = 0xD0 + (restart + 1) % 8;
                }
                0x01..0xC0 | 0xD0..=0xD7 | 0xFF => return None,
                _ => break,
            }
            from += 1;
        }
        self.ends.push(to);
        Some(from - 1)
    }
}

/// Copies bytes up to the first 0xFF, or some of them where there is none near. Returns how many, and whether 0xFF
/// follows.
fn copy_clean(fast: bool, from: &[u8], to: &mut [u8]) -> (usize, bool) {
    #[cfg(target_arch = "x86_64")]
    if fast {
        // SAFETY: `fast` is only true where AVX2 was found.
        return unsafe { crate::avx2::copy_clean(from, to) };
    }
    let _ = fast;
    let mut copied = 0;
    for (from, to) in from.chunks_exact(8).zip(to.chunks_exact_mut(8)) {
        to.copy_from_slice(from);
        if from.contains(&0xFF) {
            return (copied + from.iter().take_while(|&&b| b != 0xFF).count(), true);
        }
        copied += 8;
    }
    (copied, false)
}
