//! Whether another decoder may be trusted with a file. In: encoded bytes and the size as indexed. Out: yes for a plain
//! JPEG whose structure is whole; anything else is for the decoders here, which know what to do with it.
//!
//! Other decoders (a GPU's above all) end a whole batch over one bad file, or invent the pixels that are missing, or
//! see colours otherwise. So they get what they agree with us on: 8 bits, grey or Y, Cb, Cr, baseline or progressive.
//! Walking the markers to the end of the image costs about a hundredth of decoding it. Damage inside a scan is not seen
//! here.

use super::scans::Scans;

/// As in the JPEG decoder here: progressive files of more scans are made to keep a decoder busy.
const MAX_SCANS: u32 = 500;

/// The size of a JPEG that is plain and whole, as stored (width, height); None for everything else.
pub fn plain_jpeg(data: &[u8]) -> Option<(u32, u32)> {
    if !data.starts_with(&[0xFF, 0xD8]) {
        return None;
    }
    let (mut at, mut size, mut adobe_rgb, mut jfif, mut scans) = (2, None, false, false, 0);
    loop {
        // A marker is one 0xFF or more, then its code.
        if *data.get(at)? != 0xFF {
            return None;
        }
        while *data.get(at)? == 0xFF {
            at += 1;
        }
        let code = data[at];
        at += 1;
        match code {
            // The end of the image; what follows it (previews, videos) is no part of it.
            0xD9 => {
                let whole = || Scans::of(data).is_some_and(|scans| scans.gap().is_none());
                return size.filter(|_| scans > 0 && whole());
            }
            0x01 | 0xD0..=0xD7 => return None,
            _ => {}
        }
        let length = usize::from(u16::from_be_bytes(data.get(at..at + 2)?.try_into().ok()?));
        let body = data.get(at + 2..at.checked_add(length.max(2))?)?;
        at += length.max(2);
        match code {
            0xC0..=0xC2 => {
                let &[8, h1, h0, w1, w0, components, ref each @ ..] = body else { return None };
                let ids: Vec<u8> = each.chunks_exact(3).map(|c| c[0]).collect();
                let named_rgb = ids == *b"RGB" && !jfif;
                if size.is_some() || !matches!(components, 1 | 3) || ids.len() != usize::from(components) || named_rgb {
                    return None;
                }
                let (w, h) = (u16::from_be_bytes([w1, w0]), u16::from_be_bytes([h1, h0]));
                if adobe_rgb && components == 3 || w == 0 || h == 0 {
                    return None;
                }
                size = Some((u32::from(w), u32::from(h)));
            }
            // Lossless, hierarchical, arithmetic.
            0xC3 | 0xC5..=0xC7 | 0xC9..=0xCB | 0xCD..=0xCF => return None,
            0xE0 => jfif |= body.starts_with(b"JFIF\0"),
            // Adobe's transform 0 says that three components are R, G, B. After the frame it would come too late to be
            // seen.
            0xEE if body.starts_with(b"Adobe") => {
                adobe_rgb = body.get(11) == Some(&0);
                if adobe_rgb && size.is_some() {
                    return None;
                }
            }
            0xDA => {
                size?;
                scans += 1;
                if scans > MAX_SCANS {
                    return None;
                }
                at = end_of_scan(data, at)?;
            }
            _ => {}
        }
    }
}

/// Where the marker behind the entropy-coded data stands that begin at `at`; None where they never end, or restart out
/// of order.
fn end_of_scan(data: &[u8], mut at: usize) -> Option<usize> {
    let mut restart = 0;
    loop {
        at += memchr::memchr(0xFF, data.get(at..)?)?;
        match *data.get(at + 1)? {
            0x00 => at += 2,
            code @ 0xD0..=0xD7 => {
                if code - 0xD0 != restart {
                    return None;
                }
                restart = (restart + 1) % 8;
                at += 2;
            }
            0xFF => at += 1,
            _ => return Some(at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(frame: &[u8], before: &[u8], scan: &[u8]) -> Vec<u8> {
        let parts: Vec<u8> = frame[6..].chunks_exact(3).flat_map(|c| [c[0], 0]).collect();
        let head = [0xFF, 0xDA, 0, 6 + parts.len() as u8, parts.len() as u8 / 2];
        let frame = [&[0xFF, 0xC0, 0, 2 + frame.len() as u8], frame].concat();
        [&[0xFF, 0xD8], before, &frame, &head, &parts, &[0, 63, 0], scan].concat()
    }

    const YCC: [u8; 15] = [8, 0, 9, 0, 7, 3, 1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1];
    const GREY: [u8; 9] = [8, 0, 9, 0, 7, 1, 1, 0x11, 0];

    #[test]
    fn plain_files_are_known_by_their_size() {
        for frame in [&YCC[..], &GREY] {
            for scan in [&b"\x12\xFF\x00\x34\xFF\xD9"[..], b"\xFF\xD0\xFF\xD1\xFF\xD9 and more", b"\xFF\xFF\xD9"] {
                assert_eq!(plain_jpeg(&file(frame, &[], scan)), Some((7, 9)));
            }
        }
    }

    #[test]
    fn every_cut_is_seen() {
        let whole = file(&YCC, b"\xFF\xE0\x00\x07JFIF\0", b"\x12\xFF\x00\x34\xFF\xDA\x00\x02\x99\xFF\xD9");
        assert!(plain_jpeg(&whole).is_some());
        for n in 0..whole.len() {
            assert_eq!(plain_jpeg(&whole[..n]), None, "{n}");
        }
    }

    #[test]
    fn other_colours_depths_and_orders_are_not_plain() {
        let end = b"\xFF\xD9";
        let mut frames = vec![YCC.to_vec(); 4];
        frames[0][0] = 12;
        frames[1][5] = 4;
        frames[2][3..5].fill(0);
        (frames[3][6], frames[3][9], frames[3][12]) = (b'R', b'G', b'B');
        for frame in frames {
            assert_eq!(plain_jpeg(&file(&frame, &[], end)), None);
        }
        let adobe = |transform| [&b"\xFF\xEE\x00\x0EAdobe\0d\0\0\0\0"[..], &[transform]].concat();
        assert_eq!(plain_jpeg(&file(&YCC, &adobe(0), end)), None);
        assert!(plain_jpeg(&file(&YCC, &adobe(1), end)).is_some());
        assert!(plain_jpeg(&file(&GREY, &adobe(0), end)).is_some());
        for scan in [&b"\xFF\xD1\xFF\xD9"[..], b"\xFF\xD0\xFF\xD0\xFF\xD9", b"\x00", b""] {
            assert_eq!(plain_jpeg(&file(&YCC, &[], scan)), None);
        }
        assert_eq!(plain_jpeg(b""), None);
        assert_eq!(plain_jpeg(b"\x89PNG\r\n\x1a\n"), None);
    }
}
