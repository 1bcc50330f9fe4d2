//! AVIF's container. In: a file's boxes. Out: of a plain file the picture's size and orientation, and where its AV1 data,
//! its alpha and what describes it lie.
//!
//! Plain is one picture of one item, whole, upright or turned by boxes, with everything said once. Whatever else there
//! is (grids, films, crops, layers, boxes unknown here, damage) is None, and a helper's to judge: so nothing is refused
//! or accepted here that its library, libavif, would not.
//!
//! Apart from the decoder, since the header probe asks as well, and both must agree.

use std::ops::Range;

use crate::pixels::orient::{exif_orientation, xmp_orientation};

/// The box of all that describes the picture is not larger in a plain file, whose items are few.
const META_BYTES: u64 = 1 << 20;
const MOST_ITEMS: u64 = 64;
/// libavif's limits.
const MOST_PIXELS: u64 = 1 << 28;
const LONGEST_SIDE: u32 = 32_768;

/// What a plain file says of its picture. Ranges are of the file, but for the profile's.
#[derive(Clone, Debug)]
pub struct Picture {
    /// Width and height as stored.
    pub size: (u32, u32),
    /// AV1 data.
    pub colour: Range<u64>,
    /// AV1 data whose Y is alpha.
    pub alpha: Option<Range<u64>>,
    /// Matrix coefficients and whether they are of the full range, where a box says so.
    pub colours: Option<(u16, bool)>,
    /// Bits a sample.
    pub bits: u8,
    /// Whether there is Y alone.
    pub grey: bool,
    /// A colour profile, in the box `meta`.
    profile: Option<Range<usize>>,
    /// EXIF orientation that the boxes come to.
    turned: u8,
    exif: Option<Range<u64>>,
    xmp: Option<Range<u64>>,
}

/// Where the body of the box `meta` lies in a file of `length` bytes that begins with `start`, 64 of them if there are as
/// many; None where it may not be plain. `head` reads the first bytes of a box.
pub fn meta<E>(
    start: &[u8],
    length: u64,
    mut head: impl FnMut(u64) -> Result<[u8; 8], E>,
) -> Result<Option<Range<u64>>, E> {
    let major = start.get(8..12);
    // Films have the last brand, and their first picture may be another one than the still.
    if major != Some(b"avif") && major != Some(b"mif1") || start.chunks_exact(4).any(|brand| brand == b"avis") {
        return Ok(None);
    }
    let mut at = 0;
    while at + 8 <= length {
        let [s3, s2, s1, s0, kind @ ..] = head(at)?;
        let size = u64::from(u32::from_be_bytes([s3, s2, s1, s0]));
        let end = at + size;
        match &kind {
            _ if size < 8 || end > length => break,
            b"meta" if at > 0 && size <= META_BYTES => return Ok(Some(at + 8..end)),
            b"ftyp" if at == 0 && size <= 64 => {}
            b"free" | b"skip" | b"mdat" if at > 0 => {}
            _ => break,
        }
        at = end;
    }
    Ok(None)
}

/// The body of the box `meta` of a whole file, and its picture.
pub fn picture(bytes: &[u8]) -> Option<(&[u8], Picture)> {
    let length = bytes.len() as u64;
    let head = |at: u64| bytes[at as usize..].first_chunk().copied().ok_or(());
    let at = meta(&bytes[..bytes.len().min(64)], length, head).ok()??;
    let meta = &bytes[at.start as usize..at.end as usize];
    Some((meta, Picture::of(meta, length)?))
}

/// The colour profile that a plain file embeds.
pub fn profile(bytes: &[u8]) -> Option<&[u8]> {
    let (meta, picture) = picture(bytes)?;
    meta.get(picture.profile?)
}

impl Picture {
    /// From the body of the box `meta`, in a file of `length` bytes.
    pub fn of(meta: &[u8], length: u64) -> Option<Self> {
        let mut rest = Bytes(meta);
        plain(rest.number(4)? == 0)?;
        let [mut handler, mut primary, mut places, mut infos, mut relations, mut properties] = [None::<Bytes>; 6];
        while !rest.0.is_empty() {
            let (kind, body) = rest.boxed()?;
            let slot = match &kind {
                b"hdlr" => &mut handler,
                _ if handler.is_none() => return None,
                b"pitm" => &mut primary,
                b"iloc" => &mut places,
                b"iinf" => &mut infos,
                b"iref" => &mut relations,
                b"iprp" => &mut properties,
                _ => return None,
            };
            plain(slot.replace(body).is_none())?;
        }
        let mut handler = handler?;
        plain(handler.take(24)? == b"\0\0\0\0\0\0\0\0pict\0\0\0\0\0\0\0\0\0\0\0\0")?;
        handler.text()?;
        let mut primary = primary?;
        let (version, _) = primary.versioned(1)?;
        let primary = primary.number(if version == 0 { 2 } else { 4 })?;
        let items = Items {
            kinds: kinds(infos?)?,
            places: places_of(places?, length)?,
            relations: relations.map_or(Some(Vec::new()), relations_of)?,
            properties: Properties::of(properties?, meta)?,
        };
        items.picture(primary)
    }

    /// EXIF orientation by Pillow's rule: the boxes count, and where they leave the picture upright, XMP, unless EXIF
    /// has a word of its own, which boxes overrule. `read` gives the bytes of a range. EXIF that is damaged or without
    /// orientation is for the helper.
    pub fn orientation<E>(&self, mut read: impl FnMut(&Range<u64>) -> Result<Vec<u8>, E>) -> Result<Option<u8>, E> {
        if let Some(exif) = &self.exif {
            let exif = read(exif)?;
            // Where the block begins, counted from behind that number.
            let found = match exif.get(..10) {
                Some([0, 0, 0, 0, b'I' | b'M', ..] | [0, 0, 0, 6, b'E', b'x', b'i', b'f', 0, 0]) => {
                    exif_orientation(&exif[4..])
                }
                _ => None,
            };
            return Ok(found.map(|_| self.turned));
        }
        match &self.xmp {
            Some(xmp) if self.turned == 1 => Ok(Some(xmp_orientation(&read(xmp)?).unwrap_or(1))),
            _ => Ok(Some(self.turned)),
        }
    }
}

fn plain(so: bool) -> Option<()> {
    so.then_some(())
}

/// Bytes that are read from the front.
#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self, bytes: usize) -> Option<u64> {
        Some(self.take(bytes)?.iter().fold(0, |n, &byte| n << 8 | u64::from(byte)))
    }

    fn kind(&mut self) -> Option<[u8; 4]> {
        self.take(4)?.first_chunk().copied()
    }

    /// Up to a zero, which is skipped.
    fn text(&mut self) -> Option<&'a [u8]> {
        let text = self.take(self.0.iter().position(|&b| b == 0)?)?;
        self.take(1)?;
        Some(text)
    }

    fn boxed(&mut self) -> Option<([u8; 4], Self)> {
        let size = self.number(4)? as usize;
        let kind = self.kind()?;
        Some((kind, Self(self.take(size.checked_sub(8)?)?)))
    }

    /// The body of a box that must be of this kind.
    fn named(&mut self, wanted: &[u8; 4]) -> Option<Self> {
        self.boxed().filter(|(kind, _)| kind == wanted).map(|(_, body)| body)
    }

    /// Version, up to `most`, and flags.
    fn versioned(&mut self, most: u64) -> Option<(u64, u64)> {
        let (version, flags) = (self.number(1)?, self.number(3)?);
        (version <= most).then_some((version, flags))
    }
}

struct Kind {
    id: u64,
    kind: [u8; 4],
    xmp: bool,
}

fn kinds(mut body: Bytes) -> Option<Vec<Kind>> {
    let (version, _) = body.versioned(1)?;
    let count = body.number(if version == 0 { 2 } else { 4 })?;
    plain(count <= MOST_ITEMS)?;
    let mut found: Vec<Kind> = Vec::new();
    for _ in 0..count {
        let mut body = body.named(b"infe")?;
        let (version, _) = body.versioned(3)?;
        plain(version >= 2)?;
        let id = body.number(if version == 2 { 2 } else { 4 })?;
        let (protection, kind) = (body.number(2)?, body.kind()?);
        body.text()?;
        let xmp = kind == *b"mime" && body.text()? == b"application/rdf+xml";
        plain(id > 0 && protection == 0 && matches!(&kind, b"av01" | b"Exif" | b"mime"))?;
        plain(found.iter().all(|other| other.id != id))?;
        found.push(Kind { id, kind, xmp });
    }
    plain(body.0.is_empty())?;
    Some(found)
}

/// Items of one piece, and where in the file it lies.
fn places_of(mut body: Bytes, length: u64) -> Option<Vec<(u64, Range<u64>)>> {
    let (version, _) = body.versioned(2)?;
    let (sizes, more) = (body.number(1)?, body.number(1)?);
    let wide = |bits: u64| matches!(bits, 0 | 4 | 8).then_some(bits as usize);
    let (offset, extent, base) = (wide(sizes >> 4)?, wide(sizes & 15)?, wide(more >> 4)?);
    plain(more & 15 == 0)?;
    let count = body.number(if version < 2 { 2 } else { 4 })?;
    plain(count <= MOST_ITEMS)?;
    let mut found: Vec<(u64, Range<u64>)> = Vec::new();
    for _ in 0..count {
        let id = body.number(if version < 2 { 2 } else { 4 })?;
        // Where offsets count from: 0 is the file's start.
        plain(version == 0 || body.number(2)? == 0)?;
        let reference = body.number(2)?;
        let start = body.number(base)?;
        let extents = body.number(2)?;
        plain(reference == 0 && extents == 1)?;
        let start = start.checked_add(body.number(offset)?)?;
        let bytes = body.number(extent)?;
        let end = start.checked_add(bytes)?;
        plain(bytes > 0 && end <= length && found.iter().all(|other| other.0 != id))?;
        found.push((id, start..end));
    }
    plain(body.0.is_empty())?;
    Some(found)
}

/// What items are to others: kind, from, to.
fn relations_of(mut body: Bytes) -> Option<Vec<([u8; 4], u64, u64)>> {
    let (version, _) = body.versioned(1)?;
    let wide = if version == 0 { 2 } else { 4 };
    let mut found = Vec::new();
    while !body.0.is_empty() {
        let (kind, mut body) = body.boxed()?;
        plain(matches!(&kind, b"auxl" | b"cdsc" | b"thmb"))?;
        let (from, count) = (body.number(wide)?, body.number(2)?);
        plain(count <= MOST_ITEMS)?;
        for _ in 0..count {
            let to = body.number(wide)?;
            plain(from > 0 && to > 0)?;
            found.push((kind, from, to));
        }
        plain(body.0.is_empty() && found.len() as u64 <= MOST_ITEMS)?;
    }
    Some(found)
}

/// What is said of one item.
#[derive(Clone, Default)]
struct Said {
    size: Option<(u32, u32)>,
    /// Bits a sample, and whether there is Y alone, by the codec's own box.
    codec: Option<(u8, bool)>,
    /// Bits of each channel.
    channels: Option<Vec<u8>>,
    colours: Option<(u16, bool)>,
    profile: Option<Range<usize>>,
    alpha: Option<bool>,
    rotation: Option<u8>,
    mirror: Option<u8>,
}

struct Properties {
    of: Vec<(u64, Said)>,
}

impl Properties {
    fn of(mut body: Bytes, meta: &[u8]) -> Option<Self> {
        let (mut listed, mut given) = (body.named(b"ipco")?, body.named(b"ipma")?);
        let mut all = Vec::new();
        while !listed.0.is_empty() {
            all.push(listed.boxed()?);
            plain(all.len() as u64 <= MOST_ITEMS)?;
        }
        plain(body.0.is_empty())?;
        let (version, flags) = given.versioned(1)?;
        let (wide, bytes) = (if version == 0 { 2 } else { 4 }, 1 + (flags as usize & 1));
        let count = given.number(4)?;
        plain(count <= MOST_ITEMS)?;
        let mut of: Vec<(u64, Said)> = Vec::new();
        for _ in 0..count {
            let (id, count) = (given.number(wide)?, given.number(1)?);
            plain(of.last().is_none_or(|other| other.0 < id))?;
            let mut said = Said::default();
            for _ in 0..count {
                let link = given.number(bytes)?;
                let essential = link >> (8 * bytes - 1) == 1;
                let index = (link & ((1 << (8 * bytes - 1)) - 1)) as usize;
                let (kind, body) = all.get(index.checked_sub(1)?)?;
                said.add(*kind, *body, essential, meta)?;
            }
            of.push((id, said));
        }
        plain(given.0.is_empty())?;
        Some(Self { of })
    }
}

impl Said {
    fn add(&mut self, kind: [u8; 4], mut body: Bytes, essential: bool, meta: &[u8]) -> Option<()> {
        fn once<T>(slot: &mut Option<T>, value: T) -> Option<()> {
            plain(slot.replace(value).is_none())
        }
        match &kind {
            b"ispe" => {
                body.versioned(0)?;
                let (width, height) = (body.number(4)? as u32, body.number(4)? as u32);
                once(&mut self.size, (width, height))?;
            }
            b"av1C" => {
                plain(body.number(1)? == 0x81)?;
                let (_, form) = (body.number(1)?, body.number(1)?);
                let bits = match (form >> 6 & 1, form >> 5 & 1) {
                    (0, 0) => 8,
                    (1, 0) => 10,
                    (1, 1) => 12,
                    _ => return None,
                };
                once(&mut self.codec, (bits, form >> 4 & 1 == 1))?;
                return plain(!body.0.is_empty());
            }
            b"pixi" => {
                body.versioned(0)?;
                let count = body.number(1)? as usize;
                once(&mut self.channels, body.take(count)?.to_vec())?;
            }
            b"colr" => match &body.kind()? {
                b"nclx" => {
                    let (_, matrix, range) = (body.number(4)?, body.number(2)?, body.number(1)?);
                    plain(range & 0x7F == 0)?;
                    once(&mut self.colours, (matrix as u16, range >> 7 == 1))?;
                }
                b"prof" | b"rICC" => {
                    let start = body.0.as_ptr() as usize - meta.as_ptr() as usize;
                    return once(&mut self.profile, start..start + body.0.len());
                }
                _ => return None,
            },
            b"auxC" => {
                body.versioned(0)?;
                let alpha = [&b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha"[..], b"urn:mpeg:hevc:2015:auxid:1"];
                let what = body.text()?;
                return once(&mut self.alpha, alpha.contains(&what));
            }
            b"irot" if essential && self.mirror.is_none() => {
                once(&mut self.rotation, body.number(1).filter(|&turns| turns < 4)? as u8)?;
            }
            b"imir" if essential => once(&mut self.mirror, body.number(1).filter(|&axis| axis < 2)? as u8)?,
            // What the pixels' values mean does not reach them here, as in Pillow.
            b"pasp" | b"clli" | b"mdcv" if !essential => return Some(()),
            _ => return None,
        }
        plain(body.0.is_empty())
    }

    /// EXIF orientation: anticlockwise quarters of a turn, then a mirror, of which 0 puts the top at the bottom.
    fn turned(&self) -> u8 {
        match (self.rotation.unwrap_or(0), self.mirror) {
            (0, None) => 1,
            (1, None) => 8,
            (2, None) => 3,
            (_, None) => 6,
            (0, Some(0)) | (2, Some(1)) => 4,
            (0, Some(_)) | (2, Some(_)) => 2,
            (1, Some(0)) | (3, Some(1)) => 5,
            (_, Some(_)) => 7,
        }
    }
}

struct Items {
    kinds: Vec<Kind>,
    places: Vec<(u64, Range<u64>)>,
    relations: Vec<([u8; 4], u64, u64)>,
    properties: Properties,
}

impl Items {
    fn picture(&self, primary: u64) -> Option<Picture> {
        let alpha = self.related(primary, b"auxl", |kind| kind.kind == *b"av01")?;
        let exif = self.related(primary, b"cdsc", |kind| kind.kind == *b"Exif")?;
        let xmp = self.related(primary, b"cdsc", |kind| kind.xmp)?;
        let (colour, said, (bits, grey)) = self.coded(primary)?;
        let size = said.size?;
        plain(said.alpha.is_none())?;
        let alpha = match alpha {
            Some(id) => {
                let (alpha, other, (depth, _)) = self.coded(id)?;
                let same = other.size == said.size && depth == bits;
                let turns = (other.rotation, other.mirror);
                let upright = turns == (None, None) || turns == (said.rotation, said.mirror);
                plain(same && upright && other.alpha == Some(true) && other.profile.is_none())?;
                Some(alpha)
            }
            None => None,
        };
        let at = |id: Option<u64>| id.map_or(Some(None), |id| self.place(id).map(Some));
        Some(Picture {
            size,
            colour,
            alpha,
            colours: said.colours,
            bits,
            grey,
            profile: said.profile.clone(),
            turned: said.turned(),
            exif: at(exif)?,
            xmp: at(xmp)?,
        })
    }

    /// An item of AV1 data: where it lies, and what is said of it.
    fn coded(&self, id: u64) -> Option<(Range<u64>, &Said, (u8, bool))> {
        plain(self.kinds.iter().any(|kind| kind.id == id && kind.kind == *b"av01"))?;
        let (_, said) = self.properties.of.iter().find(|of| of.0 == id)?;
        let (bits, grey) = said.codec?;
        let (width, height) = said.size?;
        plain(width > 0 && height > 0 && width <= LONGEST_SIDE && height <= LONGEST_SIDE)?;
        plain(u64::from(width) * u64::from(height) <= MOST_PIXELS)?;
        if let Some(channels) = &said.channels {
            plain(channels.len() == if grey { 1 } else { 3 } && channels.iter().all(|&channel| channel == bits))?;
        }
        Some((self.place(id)?, said, (bits, grey)))
    }

    fn place(&self, id: u64) -> Option<Range<u64>> {
        self.places.iter().find(|place| place.0 == id).map(|place| place.1.clone())
    }

    /// The one item of a kind that is something to `primary`; Some(None) where there is none.
    fn related(&self, primary: u64, relation: &[u8; 4], wanted: impl Fn(&Kind) -> bool) -> Option<Option<u64>> {
        let is = |id: u64| self.relations.contains(&(*relation, id, primary));
        let mut found = self.kinds.iter().filter(|kind| wanted(kind) && is(kind.id)).map(|kind| kind.id);
        let first = found.next();
        found.next().is_none().then_some(first)
    }
}
