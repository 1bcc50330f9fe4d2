//! Members of a plain tar, found by their headers and read in place: image members are probed where they lie, small
//! text members are returned whole. In: a path. Out: entries in the order of the tar, and what is wrong with it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::headers::{Header, probe_header};
use super::open::{io_reason, open};
use crate::fetch::check::check_window;
use crate::fetch::window::{ReadAt, Unread, Window};
use crate::pixels::decode::foreign::Helpers;

const BLOCK: u64 = 512;
/// Long names, pax headers and label files beyond this are refused: no honest one comes near.
const TEXT_BYTES: u64 = 1 << 20;
/// How far behind the end mark is looked for data; tars are padded by some KiB.
const TAIL_BYTES: u64 = 1 << 20;

/// What a member holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// An image, by its extension, with its header or the reason why it cannot be used.
    Image(Result<Header, String>),
    /// The whole of a label or caption file, or the reason why it was not read.
    Text(Result<Vec<u8>, String>),
}

/// One member of interest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Raw name as the tar has it.
    pub name: Vec<u8>,
    /// First byte of its content in the tar.
    pub offset: u64,
    /// Bytes of content.
    pub length: u64,
    /// What it is known again by; 0 for texts and what is broken.
    pub check: u32,
    /// Content.
    pub payload: Payload,
}

/// One tar, scanned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Members of interest, in order.
    pub entries: Vec<Entry>,
    /// Regular members of other kinds, by the lower-case end of their names (`.` for hidden ones): how many, and the first of
    /// them.
    pub others: BTreeMap<Vec<u8>, (u64, Vec<u8>)>,
    /// Bytes of the tar.
    pub length: u64,
    /// What ended the scan early or is missing at the end; the entries before it are good.
    pub fault: Option<String>,
}

/// Scans a tar, a file or at a URL. `images` and `texts` are the lower-case ends of names (behind the last dot) to probe
/// and to read; a fault of the tar is part of the result, never an error.
pub fn scan_tar(path: &Path, images: &[&[u8]], texts: &[&[u8]], helpers: &Helpers) -> Scan {
    let failed = |fault: String| Scan { fault: Some(fault), ..Scan::default() };
    match open(path) {
        Ok((source, length)) => scan(&*source, length, images, texts, helpers),
        Err(e) => failed(io_reason(&e)),
    }
}

fn scan<R: ReadAt + ?Sized>(source: &R, length: u64, images: &[&[u8]], texts: &[&[u8]], helpers: &Helpers) -> Scan {
    let mut links = Links::default();
    let mut found = walk(source, length, images, texts, helpers, &mut links);
    links.follow(source, &mut found, images, texts, helpers);
    found
}

fn walk<R: ReadAt + ?Sized>(
    source: &R,
    length: u64,
    images: &[&[u8]],
    texts: &[&[u8]],
    helpers: &Helpers,
    links: &mut Links,
) -> Scan {
    let (mut outer, mut inner) = (Vec::new(), Vec::new());
    let mut headers = Window::new(source, 0, length, &mut outer);
    let mut found = Scan { length, ..Scan::default() };
    let (mut at, mut long_name, mut long_size, mut last) = (0u64, None::<Vec<u8>>, None::<u64>, None::<Member>);
    let (mut long_target, mut in_pax) = (None::<Vec<u8>>, false);
    loop {
        let block = match next_header(&mut headers, at, last.as_ref()) {
            Ok(Some(block)) => block,
            Ok(None) => return found,
            Err((fault, lied)) => {
                // The member before an unreadable header is the one whose length cannot be trusted.
                if let (true, Some(entry), Some(member)) = (lied, found.entries.last_mut(), &last)
                    && entry.offset == member.offset
                {
                    entry.payload = match entry.payload {
                        Payload::Image(_) => Payload::Image(Err(fault.clone())),
                        Payload::Text(_) => Payload::Text(Err(fault.clone())),
                    };
                }
                found.fault = Some(fault);
                return found;
            }
        };
        let kind = block[156];
        let Some(stated) = number(&block[124..136]) else {
            found.fault = Some(format!("the header at byte {at} has no readable length"));
            return found;
        };
        // Where GNU tar's map of a sparse member runs on in blocks of its own, its data come after them.
        let mut offset = at + BLOCK;
        let mut goes_on = kind == b'S' && block[482] != 0;
        while goes_on {
            goes_on = headers.array::<512>(offset).is_ok_and(|block| block[504] != 0);
            offset += BLOCK;
        }
        let regular = matches!(kind, b'0' | b'\0' | b'7');
        let named = regular || matches!(kind, b'1' | b'2' | b'S');
        let size = match (kind, long_size) {
            (b'1'..=b'6', _) => 0,
            (b'L' | b'K' | b'x' | b'g', _) | (_, None) => stated,
            (_, Some(size)) => size,
        };
        let name = if named { long_name.take().unwrap_or_else(|| short_name(&block)) } else { short_name(&block) };
        if offset.checked_add(size).is_none_or(|end| end > length) {
            let shown = String::from_utf8_lossy(&name);
            found.fault = Some(format!(
                "truncated tar: member '{shown}' claims bytes {offset} to {} of {length}",
                u128::from(offset) + u128::from(size)
            ));
            return found;
        }
        match kind {
            b'L' | b'K' | b'x' if size > TEXT_BYTES => {
                found.fault = Some(format!("the extended header at byte {at} claims {size} bytes"));
                return found;
            }
            b'L' => long_name = headers.get(offset, size as usize).ok().map(|b| until_nul(b).to_vec()),
            b'x' => {
                let records = headers.get(offset, size as usize).map(<[u8]>::to_vec).unwrap_or_default();
                let said = pax(&records);
                long_name = said.path.or(long_name);
                long_size = said.size;
                long_target = said.target.or(long_target);
                in_pax = said.sparse;
            }
            b'K' => long_target = headers.get(offset, size as usize).ok().map(|b| until_nul(b).to_vec()),
            b'g' => {}
            _ => {
                if matches!(kind, b'1' | b'2') {
                    let target = long_target.take().unwrap_or_else(|| until_nul(&block[157..257]).to_vec());
                    links.found.push((found.entries.len(), name.clone(), resolved(&name, &target, kind == b'2')));
                } else if kind == b'S' || regular && in_pax {
                    let why = "a sparse member, whose bytes do not lie together; write the tar anew without --sparse";
                    let refused = refusal(&name, images, texts, why.into());
                    found.entries.extend(refused.map(|payload| Entry::without(&name, payload)));
                } else if regular {
                    links.members.push((name.clone(), offset, size));
                    let mut content = Window::new(source, offset, size, &mut inner);
                    match payload(&name, &mut content, images, texts, helpers) {
                        Some(payload) => {
                            let image = matches!(payload, Payload::Image(Ok(_)));
                            let check = if image { check_window(&mut content).unwrap_or(0) } else { 0 };
                            found.entries.push(Entry { name: name.clone(), offset, length: size, check, payload });
                        }
                        None => {
                            found.others.entry(end(&name)).or_insert_with(|| (0, name.clone())).0 += 1;
                        }
                    }
                }
                (long_name, long_size, long_target, in_pax) = (None, None, None, false);
            }
        }
        last = Some(Member { name, offset });
        at = offset + size.div_ceil(BLOCK) * BLOCK;
    }
}

impl Entry {
    /// A member of which nothing can be read in place.
    fn without(name: &[u8], payload: Payload) -> Self {
        Self { name: name.to_vec(), offset: 0, length: 0, check: 0, payload }
    }
}

/// Links, and the members that they may lead to.
#[derive(Default)]
struct Links {
    /// Where among the entries, its name, and that of what it leads to.
    found: Vec<(usize, Vec<u8>, Vec<u8>)>,
    /// Name, offset and length.
    members: Vec<(Vec<u8>, u64, u64)>,
}

impl Links {
    /// Makes an entry of each link of interest, with the bytes of the member that it leads to. What a name means twice
    /// is the last member of that name, as it is for whoever extracts the tar.
    fn follow<R: ReadAt + ?Sized>(
        self,
        source: &R,
        found: &mut Scan,
        images: &[&[u8]],
        texts: &[&[u8]],
        helpers: &Helpers,
    ) {
        /// More links in a row than any honest tar has.
        const HOPS: usize = 8;
        if self.found.is_empty() {
            return;
        }
        let members: HashMap<_, _> =
            self.members.iter().map(|(name, at, size)| (resolved(b"", name, false), (*at, *size))).collect();
        let further: HashMap<_, _> =
            self.found.iter().map(|(_, name, target)| (resolved(b"", name, false), target.as_slice())).collect();
        let mut made = Vec::new();
        for (at, name, target) in &self.found {
            let mut end = target.as_slice();
            for _ in 0..HOPS {
                match further.get(end) {
                    Some(next) if !members.contains_key(end) => end = next,
                    _ => break,
                }
            }
            let entry = match members.get(end) {
                Some(&(offset, length)) => {
                    let mut scratch = Vec::new();
                    let mut content = Window::new(source, offset, length, &mut scratch);
                    payload(name, &mut content, images, texts, helpers).map(|payload| {
                        let image = matches!(payload, Payload::Image(Ok(_)));
                        let check = if image { check_window(&mut content).unwrap_or(0) } else { 0 };
                        Entry { name: name.clone(), offset, length, check, payload }
                    })
                }
                None => {
                    let why =
                        format!("a link to '{}', which is no member of this tar", String::from_utf8_lossy(target));
                    refusal(name, images, texts, why).map(|payload| Entry::without(name, payload))
                }
            };
            made.extend(entry.map(|entry| (*at, entry)));
        }
        // Each at its place in the tar.
        let mut made = made.into_iter().peekable();
        let others = std::mem::take(&mut found.entries);
        for (n, entry) in others.into_iter().enumerate() {
            while let Some((_, link)) = made.next_if(|&(at, _)| at <= n) {
                found.entries.push(link);
            }
            found.entries.push(entry);
        }
        found.entries.extend(made.map(|(_, link)| link));
    }
}

/// A name without `.` and `..`; a symbolic link's is taken from the folder of the link.
fn resolved(link: &[u8], target: &[u8], symbolic: bool) -> Vec<u8> {
    let folder = link.iter().rposition(|&b| b == b'/').map_or(&b""[..], |slash| &link[..slash]);
    let start = if symbolic && !target.starts_with(b"/") { folder } else { b"" };
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in start.split(|&b| b == b'/').chain(target.split(|&b| b == b'/')) {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

/// The payload of a member of interest whose bytes cannot be had.
fn refusal(name: &[u8], images: &[&[u8]], texts: &[&[u8]], why: String) -> Option<Payload> {
    let nothing: &[u8] = &[];
    let mut scratch = Vec::new();
    let kind = payload(name, &mut Window::new(nothing, 0, 0, &mut scratch), images, texts, &Helpers::default())?;
    Some(match kind {
        Payload::Image(_) => Payload::Image(Err(why)),
        Payload::Text(_) => Payload::Text(Err(why)),
    })
}

struct Member {
    name: Vec<u8>,
    offset: u64,
}

/// The header block at `at`; `None` at the end mark; else what is wrong, and whether the member before it is suspect.
fn next_header<R: ReadAt + ?Sized>(
    headers: &mut Window<'_, R>,
    at: u64,
    last: Option<&Member>,
) -> Result<Option<[u8; 512]>, (String, bool)> {
    let block: [u8; 512] = match headers.array(at) {
        Ok(block) => block,
        Err(Unread::Io(e)) => return Err((io_reason(&e), false)),
        Err(Unread::Short) if at == 0 => return Err(("not a tar: shorter than one header of 512 bytes".into(), false)),
        Err(Unread::Short) => {
            return Err((
                "truncated tar: it has no end mark; the images before its end are in, copy it anew for the rest".into(),
                false,
            ));
        }
    };
    if block.iter().all(|&b| b == 0) {
        // Padding follows the end mark; anything else means joined tars, or a length that led into zeros.
        return match first_non_zero(headers, at) {
            Some(byte) => Err((format!("broken tar: data at byte {byte}, behind the end mark at byte {at}"), false)),
            None => Ok(None),
        };
    }
    if checks(&block) {
        return Ok(Some(block));
    }
    Err(match last {
        Some(member) => {
            let shown = String::from_utf8_lossy(&member.name);
            (format!("broken tar: the length of member '{shown}' leads to byte {at}, where there is no header"), true)
        }
        None => (not_a_tar(&block).into(), false),
    })
}

/// The block that holds the first byte other than 0 at `at` or behind it, as far as `TAIL_BYTES` reach.
fn first_non_zero<R: ReadAt + ?Sized>(w: &mut Window<'_, R>, at: u64) -> Option<u64> {
    let end = w.len().min(at + TAIL_BYTES) / BLOCK * BLOCK;
    (at..end).step_by(BLOCK as usize).find(|&at| w.array::<512>(at).is_ok_and(|block| block.iter().any(|&b| b != 0)))
}

fn not_a_tar(block: &[u8; 512]) -> &'static str {
    match block {
        [0x1F, 0x8B, ..] | [b'B', b'Z', b'h', ..] | [0x28, 0xB5, 0x2F, 0xFD, ..] | [0xFD, b'7', b'z', ..] => {
            "a compressed tar, whose members cannot be read in place; decompress it first"
        }
        _ => "not a tar: its first header has a wrong checksum",
    }
}

/// The checksum counts the header's bytes with its own field as spaces; old writers summed them as signed.
fn checks(block: &[u8; 512]) -> bool {
    let byte = |i: usize| if (148..156).contains(&i) { b' ' } else { block[i] };
    let unsigned: i64 = (0..512).map(|i| i64::from(byte(i))).sum();
    let signed: i64 = (0..512).map(|i| i64::from(byte(i) as i8)).sum();
    let stated = number(&block[148..156]).and_then(|n| i64::try_from(n).ok());
    stated == Some(unsigned) || stated == Some(signed)
}

/// Octal digits between blanks, or GNU's base 256 with the top bit set.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let head = u64::from(field[0] & 0x7F);
        return field[1..].iter().try_fold(head, |n, &b| n.checked_mul(256)?.checked_add(u64::from(b)));
    }
    let text = std::str::from_utf8(until_nul(field)).ok()?.trim();
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&b| b == 0).next().unwrap_or(bytes)
}

fn short_name(block: &[u8; 512]) -> Vec<u8> {
    let name = until_nul(&block[..100]);
    // Only POSIX headers have a prefix; GNU's keep times in its place.
    let prefix = if &block[257..263] == b"ustar\0" { until_nul(&block[345..500]) } else { b"" };
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

/// What pax records say of the member behind them.
#[derive(Default)]
struct Pax {
    path: Option<Vec<u8>>,
    size: Option<u64>,
    /// What a link leads to.
    target: Option<Vec<u8>>,
    /// Whether its data are a map of a sparse file and its pieces.
    sparse: bool,
}

/// Reads pax records, each `LENGTH KEY=VALUE\n`.
fn pax(mut records: &[u8]) -> Pax {
    let mut said = Pax::default();
    let mut real_name = None;
    while let Some(space) = records.iter().position(|&b| b == b' ') {
        let length = std::str::from_utf8(&records[..space]).ok().and_then(|t| t.parse::<usize>().ok());
        let Some(record) = length.and_then(|n| records.get(space + 1..n)) else { break };
        records = &records[space + 1 + record.len()..];
        let record = record.strip_suffix(b"\n").unwrap_or(record);
        if let Some(value) = record.strip_prefix(b"path=") {
            said.path = Some(value.to_vec());
        } else if let Some(value) = record.strip_prefix(b"size=") {
            said.size = std::str::from_utf8(value).ok().and_then(|t| t.parse().ok());
        } else if let Some(value) = record.strip_prefix(b"linkpath=") {
            said.target = Some(value.to_vec());
        } else if let Some(value) = record.strip_prefix(b"GNU.sparse.name=") {
            real_name = Some(value.to_vec());
        }
        said.sparse |= record.starts_with(b"GNU.sparse.");
    }
    said.path = real_name.or(said.path);
    said
}

/// The lower-case end of a member's name, behind the last dot; `.` where it is hidden, which no image or text is.
fn end(name: &[u8]) -> Vec<u8> {
    let base = name.rsplit(|&b| b == b'/').next().unwrap_or(name);
    let end = base.iter().rposition(|&b| b == b'.').map_or(&b""[..], |dot| &base[dot + 1..]);
    if base.starts_with(b".") { b".".to_vec() } else { end.to_ascii_lowercase() }
}

fn payload<R: ReadAt + ?Sized>(
    name: &[u8],
    content: &mut Window<'_, R>,
    images: &[&[u8]],
    texts: &[&[u8]],
    helpers: &Helpers,
) -> Option<Payload> {
    let extension = end(name);
    if images.contains(&extension.as_slice()) {
        return Some(Payload::Image(probe_header(content, helpers)));
    }
    if !texts.contains(&extension.as_slice()) {
        return None;
    }
    let length = content.len();
    if length > TEXT_BYTES {
        return Some(Payload::Text(Err(format!("{length} bytes, at most {TEXT_BYTES} are read"))));
    }
    Some(Payload::Text(match content.get(0, length as usize) {
        Ok(bytes) => Ok(bytes.to_vec()),
        Err(Unread::Short) => Err("cut short".into()),
        Err(Unread::Io(e)) => Err(io_reason(&e)),
    }))
}
