//! One function per container: each follows the container's own chunks to the size and to the orientation, wherever
//! they stand, and refuses what no decoder could use.

use std::io::Read;

use flate2::bufread::ZlibDecoder;

use super::open::io_reason;
use crate::failure::caught;
use crate::fetch::window::{ReadAt, Unread, Window};
use crate::pixels::decode::foreign::Helpers;
use crate::pixels::decode::jxl;
use crate::pixels::format::{Format, is_jxl};
use crate::pixels::items::{self, Picture};
use crate::pixels::orient::{exif_orientation, raw_profile, xmp_orientation};

/// What an image's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Width after orientation, in pixels, at least 1.
    pub width: i32,
    /// Height after orientation, in pixels, at least 1.
    pub height: i32,
    /// EXIF orientation, 1 to 8.
    pub orientation: u8,
    /// Container.
    pub format: Format,
}

type Found = Result<(u32, u32, u8), Stop>;

/// Why a container could not be followed to its size.
enum Stop {
    Unread(Unread),
    Reason(String),
}

impl From<Unread> for Stop {
    fn from(unread: Unread) -> Self {
        Self::Unread(unread)
    }
}

impl From<&str> for Stop {
    fn from(reason: &str) -> Self {
        Self::Reason(reason.into())
    }
}

/// What stands beyond this in an EXIF block or in what stands in for it is not read: the orientation is near the start
/// in every writer.
const EXIF_BYTES: u64 = 256 * 1024;
/// Stray bytes between JPEG segments that are skipped, as libjpeg does, before the file is given up.
const STRAY_BYTES: u64 = 1 << 20;

/// A file that goes to a helper is read whole, up to this.
const FOREIGN_BYTES: u64 = 1 << 30;

/// Size, orientation and format of the image in the window, or one phrase that says why there is none. `helpers` are
/// asked about the formats that are not read here.
pub fn probe_header<R: ReadAt + ?Sized>(window: &mut Window<'_, R>, helpers: &Helpers) -> Result<Header, String> {
    if window.is_empty() {
        return Err("empty file (0 bytes)".into());
    }
    let length = window.len();
    let (format, name, found) = match window.get(0, length.min(64) as usize) {
        Err(Unread::Io(e)) => return Err(io_reason(&e)),
        Err(Unread::Short) => return Err(format!("shorter than its stated {length} bytes")),
        Ok(magic) => match Magic::of(magic) {
            Magic::Jpeg => (Format::Jpeg, "JPEG", jpeg(window)),
            Magic::Png => (Format::Png, "PNG", png(window)),
            Magic::Webp => (Format::Webp, "WebP", webp(window)),
            Magic::Gif => (Format::Gif, "GIF", gif(window)),
            Magic::Bmp => (Format::Bmp, "BMP", bmp(window)),
            Magic::Tiff => (Format::Tiff, "TIFF", tiff(window)),
            Magic::Jxl => (Format::Jxl, "JPEG XL", jxl(window)),
            Magic::Foreign(Format::Avif) => (Format::Avif, "avif", avif(window, helpers)),
            Magic::Foreign(format) => (format, format.name(), foreign(window, helpers)),
            Magic::Other(reason) => return Err(reason.into()),
        },
    };
    let (width, height, orientation) = found.map_err(|stop| match stop {
        Stop::Unread(Unread::Short) => format!("truncated {name}: ends inside its headers, after {length} bytes"),
        Stop::Unread(Unread::Io(e)) => io_reason(&e),
        Stop::Reason(reason) => format!("broken {name}: {reason}"),
    })?;
    let (Ok(width), Ok(height)) = (i32::try_from(width), i32::try_from(height)) else {
        return Err(format!("broken {name}: claims {width} × {height} pixels"));
    };
    if width == 0 || height == 0 {
        return Err(format!("broken {name}: claims {width} × {height} pixels"));
    }
    let (width, height) = if orientation >= 5 { (height, width) } else { (width, height) };
    Ok(Header { width, height, orientation, format })
}

enum Magic {
    Jpeg,
    Png,
    Webp,
    Gif,
    Bmp,
    Tiff,
    Jxl,
    Foreign(Format),
    Other(&'static str),
}

impl Magic {
    fn of(bytes: &[u8]) -> Self {
        match bytes {
            [0xFF, 0xD8, 0xFF, ..] => Self::Jpeg,
            b if b.starts_with(b"\x89PNG\r\n\x1a\n") => Self::Png,
            b if b.starts_with(b"RIFF") && b.get(8..12) == Some(b"WEBP") => Self::Webp,
            b if b.starts_with(b"GIF87a") || b.starts_with(b"GIF89a") => Self::Gif,
            b if b.starts_with(b"BM") => Self::Bmp,
            b if b.starts_with(b"II*\0") || b.starts_with(b"MM\0*") => Self::Tiff,
            b if b.starts_with(b"II+\0") || b.starts_with(b"MM\0+") => Self::Tiff,
            b if is_jxl(b) => Self::Jxl,
            b if b.starts_with(b"\xFF\xD8") => Self::Other("truncated JPEG: ends after its first marker"),
            b => match Format::foreign(b) {
                Some(format) => Self::Foreign(format),
                None => Self::Other("not an image (its first bytes are of no format that is read)"),
            },
        }
    }
}

/// A format that a helper reads: the whole file is handed over, since its library may look anywhere in it.
fn foreign<R: ReadAt + ?Sized>(w: &mut Window<'_, R>, helpers: &Helpers) -> Found {
    let length = w.len();
    if length > FOREIGN_BYTES {
        return Err(Stop::Reason(format!("{length} bytes, at most {FOREIGN_BYTES} are read")));
    }
    let reply = helpers.header(w.get(0, length as usize)?, &mut Vec::new()).map_err(|e| Stop::Reason(e.detail))?;
    Ok((reply.size.0, reply.size.1, reply.orientation))
}

/// A header of JPEG XL with its profile, and what may stand before it, are looked for in so much of a file.
const JXL_BYTES: u64 = 1 << 26;

/// Its header is packed, and a profile in it has any length: more of the file is looked at until it is whole.
fn jxl<R: ReadAt + ?Sized>(w: &mut Window<'_, R>) -> Found {
    let mut some = 4096;
    loop {
        let length = w.len().min(some);
        let bytes = w.get(0, length as usize)?;
        match caught(|| jxl::header(bytes)).unwrap_or_else(Err).map_err(Stop::Reason)? {
            Some(found) => return Ok(found),
            None if length == w.len() => return Err(Unread::Short.into()),
            None if some >= JXL_BYTES => return Err("no header in 64 MiB".into()),
            None => some *= 4,
        }
    }
}

/// A plain file's own answer, or a helper's.
fn avif<R: ReadAt + ?Sized>(w: &mut Window<'_, R>, helpers: &Helpers) -> Found {
    match plain_avif(w) {
        Ok(Some(found)) => Ok(found),
        Ok(None) | Err(Unread::Short) => foreign(w, helpers),
        Err(e) => Err(e.into()),
    }
}

fn plain_avif<R: ReadAt + ?Sized>(w: &mut Window<'_, R>) -> Result<Option<(u32, u32, u8)>, Unread> {
    let length = w.len();
    let start = w.get(0, length.min(64) as usize)?.to_vec();
    let Some(meta) = items::meta(&start, length, |at| w.array(at))? else { return Ok(None) };
    let Some(picture) = Picture::of(w.get(meta.start, (meta.end - meta.start) as usize)?, length) else {
        return Ok(None);
    };
    let orientation = picture.orientation(|at| {
        let bytes = (at.end - at.start).min(EXIF_BYTES);
        w.get(at.start, bytes as usize).map(<[u8]>::to_vec)
    })?;
    Ok(orientation.map(|orientation| (picture.size.0, picture.size.1, orientation)))
}

/// What an XMP segment of JPEG begins with.
const XMP: &[u8; 29] = b"http://ns.adobe.com/xap/1.0/\0";

fn jpeg<R: ReadAt + ?Sized>(w: &mut Window<'_, R>) -> Found {
    let (mut at, mut size, mut stray) = (2u64, None, 0u64);
    let (mut exif, mut xmp) = (None, None);
    loop {
        let [byte] = w.array(at)?;
        at += 1;
        if byte != 0xFF {
            stray += 1;
            if stray > STRAY_BYTES {
                return Err("no marker in 1 MiB".into());
            }
            continue;
        }
        let [mut marker] = w.array(at)?;
        at += 1;
        while marker == 0xFF {
            [marker] = w.array(at)?;
            at += 1;
        }
        match marker {
            0x00 => {
                stray += 2;
                continue;
            }
            0x01 | 0xD0..=0xD8 => continue,
            0xD9 => return Err("ends before its scan".into()),
            _ => {}
        }
        let length = u64::from(u16::from_be_bytes(w.array(at)?));
        if length < 2 {
            return Err(Stop::Reason(format!("segment FF{marker:02X} has length {length}")));
        }
        match marker {
            // Start of scan: the tables and the frame are behind us, and from here on there are only pixels.
            0xDA => {
                let (width, height) = size.ok_or("a scan before its frame header")?;
                return Ok((width, height, exif.flatten().or(xmp).unwrap_or(1)));
            }
            0xC0..=0xCF if !matches!(marker, 0xC4 | 0xC8 | 0xCC) => {
                let [_, h1, h0, w1, w0] = w.array(at + 2)?;
                size = Some((u32::from(u16::from_be_bytes([w1, w0])), u32::from(u16::from_be_bytes([h1, h0]))));
            }
            // The first EXIF block counts, as it does for decoders; XMP shares the marker, and is not read where EXIF
            // has the word already. Of it the last counts, as in Pillow.
            0xE1 if exif.is_none() && length >= 8 && w.array(at + 2)? == *b"Exif\0\0" => {
                exif = Some(exif_orientation(w.get(at + 2, length as usize - 2)?));
            }
            0xE1 if exif.flatten().is_none() && length > 31 && w.array(at + 2)? == *XMP => {
                xmp = xmp_orientation(w.get(at + 31, length as usize - 31)?);
            }
            _ => {}
        }
        at += length;
    }
}

/// What the chunks of PNG begin with that stand in for EXIF.
const RAW_PROFILE: &[u8; 22] = b"Raw profile type exif\0";
const PNG_XMP: &[u8; 18] = b"XML:com.adobe.xmp\0";

/// As much as is read of a text that PNG holds compressed.
fn inflated(text: Option<&[u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    // What is cut or damaged ends early.
    let _ = ZlibDecoder::new(text.unwrap_or(&[])).take(EXIF_BYTES).read_to_end(&mut out);
    out
}

fn png<R: ReadAt + ?Sized>(w: &mut Window<'_, R>) -> Found {
    let head: [u8; 16] = w.array(8)?;
    let [_, _, _, _, b'I', b'H', b'D', b'R', w3, w2, w1, w0, h3, h2, h1, h0] = head else {
        return Err("its first chunk is not IHDR".into());
    };
    let (width, height) = (u32::from_be_bytes([w3, w2, w1, w0]), u32::from_be_bytes([h3, h2, h1, h0]));
    let (mut at, mut pixels) = (8u64, false);
    let (mut exif, mut raw, mut xmp) = (None, None, None);
    loop {
        let [l3, l2, l1, l0, kind @ ..] = w.array::<8>(at)?;
        let length = u64::from(u32::from_be_bytes([l3, l2, l1, l0]));
        match &kind {
            b"IEND" if pixels => {
                let exif = exif.unwrap_or_else(|| raw.as_deref().and_then(exif_orientation));
                return Ok((width, height, exif.or(xmp).unwrap_or(1)));
            }
            b"IEND" => return Err("ends before its pixels".into()),
            b"IDAT" => pixels = true,
            b"eXIf" => exif = Some(exif_orientation(w.get(at + 8, length.min(EXIF_BYTES) as usize)?)),
            b"tEXt" | b"zTXt" if length >= 22 && w.array(at + 8)? == *RAW_PROFILE => {
                let text = w.get(at + 30, length.min(EXIF_BYTES) as usize - 22)?;
                raw = Some(if &kind == b"tEXt" { raw_profile(text) } else { raw_profile(&inflated(text.get(1..))) });
            }
            b"iTXt" if length >= 22 && w.array(at + 8)? == *PNG_XMP => {
                // Flag, method, two texts that end in a zero, and the packet.
                let rest = w.get(at + 26, length.min(EXIF_BYTES) as usize - 18)?;
                let packet = rest.get(2..).and_then(|texts| texts.splitn(3, |&b| b == 0).nth(2));
                xmp = if rest[0] == 0 { packet.and_then(xmp_orientation) } else { xmp_orientation(&inflated(packet)) };
            }
            _ => {}
        }
        at += 12 + length;
    }
}

fn webp<R: ReadAt + ?Sized>(w: &mut Window<'_, R>) -> Found {
    let end = 8 + u64::from(u32::from_le_bytes(w.array(4)?));
    if end > w.len() {
        return Err(Unread::Short.into());
    }
    let kind: [u8; 4] = w.array(12)?;
    match &kind {
        b"VP8 " => {
            let [_, _, _, 0x9D, 0x01, 0x2A, w0, w1, h0, h1] = w.array::<10>(20)? else {
                return Err("no VP8 start code".into());
            };
            let side = |low, high| u32::from(u16::from_le_bytes([low, high]) & 0x3FFF);
            Ok((side(w0, w1), side(h0, h1), 1))
        }
        b"VP8L" => {
            let [0x2F, bits @ ..] = w.array::<5>(20)? else { return Err("no VP8L signature".into()) };
            let bits = u32::from_le_bytes(bits);
            Ok(((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, 1))
        }
        b"VP8X" => {
            let [flags, _, _, _, w0, w1, w2, h0, h1, h2] = w.array::<10>(20)?;
            let side = |a, b, c| u32::from_le_bytes([a, b, c, 0]) + 1;
            // Flags say whether there is EXIF or XMP at all.
            let orientation = if flags & 0x0C != 0 { webp_orientation(w, end)? } else { 1 };
            Ok((side(w0, w1, w2), side(h0, h1, h2), orientation))
        }
        _ => Err("its first chunk is none of VP8, VP8L, VP8X".into()),
    }
}

/// The orientation in the EXIF or XMP chunk, which usually are the last.
fn webp_orientation<R: ReadAt + ?Sized>(w: &mut Window<'_, R>, end: u64) -> Result<u8, Stop> {
    let (mut at, mut exif, mut xmp) = (12u64, None, None);
    while at + 8 <= end {
        let [k0, k1, k2, k3, length @ ..] = w.array::<8>(at)?;
        let length = u64::from(u32::from_le_bytes(length));
        match &[k0, k1, k2, k3] {
            b"EXIF" if exif.is_none() => exif = Some(exif_orientation(w.get(at + 8, length.min(EXIF_BYTES) as usize)?)),
            b"XMP " => xmp = xmp_orientation(w.get(at + 8, length.min(EXIF_BYTES) as usize)?),
            _ => {}
        }
        at += 8 + length + length % 2;
    }
    Ok(exif.flatten().or(xmp).unwrap_or(1))
}

fn gif<R: ReadAt + ?Sized>(w: &mut Window<'_, R>) -> Found {
    let side = |low, high| u32::from(u16::from_le_bytes([low, high]));
    let [w0, w1, h0, h1, flags] = w.array(6)?;
    // The first frame may be larger than the screen, which then grows.
    let table = |flags: u8| if flags & 0x80 == 0 { 0 } else { 6 << (flags & 7) };
    let mut at = 13 + table(flags);
    loop {
        match w.array(at)? {
            [0x21] => at += 2,
            [0x2C] => {
                let [x0, x1, y0, y1, a0, a1, b0, b1] = w.array(at + 1)?;
                let right = side(w0, w1).max(side(x0, x1) + side(a0, a1));
                return Ok((right, side(h0, h1).max(side(y0, y1) + side(b0, b1)), 1));
            }
            _ => return Err("no frame in it".into()),
        }
        // An extension is a chain of blocks of up to 255 bytes.
        loop {
            let [length] = w.array(at)?;
            at += 1 + u64::from(length);
            if length == 0 {
                break;
            }
        }
    }
}

fn bmp<R: ReadAt + ?Sized>(w: &mut Window<'_, R>) -> Found {
    match u32::from_le_bytes(w.array(14)?) {
        12 => {
            let [w0, w1, h0, h1] = w.array(18)?;
            Ok((u32::from(u16::from_le_bytes([w0, w1])), u32::from(u16::from_le_bytes([h0, h1])), 1))
        }
        16 | 40.. => {
            let width = i32::from_le_bytes(w.array(18)?);
            // A negative height means that rows run from the top.
            let height = i32::from_le_bytes(w.array(22)?).unsigned_abs();
            Ok((u32::try_from(width).map_err(|_| "negative width")?, height, 1))
        }
        size => Err(Stop::Reason(format!("unknown header size {size}"))),
    }
}

fn tiff<R: ReadAt + ?Sized>(w: &mut Window<'_, R>) -> Found {
    let head: [u8; 8] = w.array(0)?;
    let (little, big_tiff) = (head[0] == b'I', head[2] == b'+' || head[3] == b'+');
    let u16_of = |b: [u8; 2]| if little { u16::from_le_bytes(b) } else { u16::from_be_bytes(b) };
    let u32_of = |b: [u8; 4]| if little { u32::from_le_bytes(b) } else { u32::from_be_bytes(b) };
    let u64_of = |b: [u8; 8]| if little { u64::from_le_bytes(b) } else { u64::from_be_bytes(b) };
    let (first, count, entry) = if big_tiff {
        let first = u64_of(w.array(8)?);
        (first.saturating_add(8), u64_of(w.array(first)?), 20)
    } else {
        let first = u64::from(u32_of([head[4], head[5], head[6], head[7]]));
        (first + 2, u64::from(u16_of(w.array(first)?)), 12)
    };
    let (mut width, mut height, mut orientation) = (0, 0, 1);
    for i in 0..count.min(4096) {
        let at = first.saturating_add(i * entry);
        let [t0, t1, k0, k1] = w.array(at)?;
        let value_at = at + if big_tiff { 12 } else { 8 };
        let tag = u16_of([t0, t1]);
        if !matches!(tag, 256 | 257 | 274) {
            continue;
        }
        let value = match u16_of([k0, k1]) {
            3 => u32::from(u16_of(w.array(value_at)?)),
            4 => u32_of(w.array(value_at)?),
            16 => u32::try_from(u64_of(w.array(value_at)?)).unwrap_or(u32::MAX),
            1 | 6 => u32::from(w.array::<1>(value_at)?[0]),
            8 => u32::from(u16_of(w.array(value_at)?)),
            9 => u32_of(w.array(value_at)?),
            17 => u32::try_from(u64_of(w.array(value_at)?)).unwrap_or(u32::MAX),
            _ if tag == 274 => continue,
            kind => return Err(Stop::Reason(format!("tag {tag} has type {kind}"))),
        };
        match tag {
            256 => width = value,
            257 => height = value,
            _ if (1..=8).contains(&value) => orientation = value as u8,
            _ => {}
        }
    }
    Ok((width, height, orientation))
}
