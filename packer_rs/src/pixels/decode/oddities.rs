//! A JPEG file without what libjpeg warns of although no pixel depends on it. In: a file that it stopped at for such a
//! warning. Out: the same file, in which it finds none of them, so that its next warning is one of damage.
//!
//! Apart from the decoder, since it reads markers alone. It exists because libjpeg puts only the first warning of a
//! file into words: letting a harmless one pass would hide all that come after it.

/// Whether a warning is about something that is taken out here.
pub fn is_odd(warning: &str) -> bool {
    let known = [
        "extraneous bytes before marker",
        "unknown JFIF revision",
        "Unknown Adobe color transform",
        "Invalid SOS parameters for sequential JPEG",
    ];
    known.iter().any(|words| warning.contains(words))
}

/// The file without stray bytes before its first scan, of JFIF 1, with the colour transform that libjpeg assumes for an
/// unknown one, and with 0, 63, 0 in the scans of a sequential file. What ends early is left as it is.
pub fn without(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len());
    let (mut at, mut components, mut sequential, mut scanning) = (data.len().min(2), 0, false, false);
    let mut transforms = Vec::new();
    out.extend_from_slice(&data[..at]);
    while let Some((start, code)) = marker(data, at) {
        // Bytes in a scan are its data, and stray ones behind it are damage.
        let from = if scanning { at } else { start };
        let end = match code {
            0x01 | 0xD0..=0xD7 => Some(start + 2),
            0xD8 | 0xD9 => None,
            _ => {
                data.get(start + 2..start + 4).map(|l| start + 2 + usize::from(u16::from_be_bytes([l[0], l[1]])).max(2))
            }
        };
        let Some(piece) = end.and_then(|end| data.get(from..end)) else {
            at = from;
            break;
        };
        at = from + piece.len();
        out.extend_from_slice(piece);
        let first = out.len() - (at - start) + 4;
        let body = out.get_mut(first..).unwrap_or_default();
        match (code, body) {
            (0xE0, [b'J', b'F', b'I', b'F', 0, major, ..]) => *major = 1,
            (0xEE, [b'A', b'd', b'o', b'b', b'e', _, _, _, _, _, _, _, ..]) => transforms.push(first + 11),
            (0xC0..=0xCF, [_, _, _, _, _, count, ..]) if !scanning && !matches!(code, 0xC4 | 0xC8 | 0xCC) => {
                (components, sequential) = (*count, matches!(code, 0xC0 | 0xC1 | 0xC9));
            }
            (0xDA, [.., from, to, bits]) => {
                scanning = true;
                if sequential {
                    (*from, *to, *bits) = (0, 63, 0);
                }
            }
            _ => {}
        }
    }
    out.extend_from_slice(&data[at..]);
    for place in transforms {
        match (components, out[place]) {
            (3, 2..) => out[place] = 1,
            (4, 1 | 3..) => out[place] = 2,
            _ => {}
        }
    }
    out
}

/// The next marker from `at` on: where its last 0xFF stands, and its code.
pub fn marker(data: &[u8], mut at: usize) -> Option<(usize, u8)> {
    loop {
        at += memchr::memchr(0xFF, data.get(at..)?)?;
        match *data.get(at + 1)? {
            0x00 => at += 2,
            0xFF => at += 1,
            code => return Some((at, code)),
        }
    }
}
