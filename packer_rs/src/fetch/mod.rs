//! Locator → bytes. Takes a row of an index. Gives the image's encoded bytes in a buffer that is used again, or a fault
//! that says whether it may pass. Files in folders and members of container files; anything remote through `remote`.
//!
//! May not know what the bytes mean: formats, pixels, plans and batches are for other rooms.

pub mod cache;
pub mod pages;
pub mod remote;
pub mod retry;
pub mod waits;
pub mod window;

mod budget;
pub mod check;
mod containers;
mod file;
mod spans;

use std::io::Read as _;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::columns::{Boxes, BytesColumn, Captions, Column, Locations};
use crate::failure::{Failure, Fault, Reason};
use crate::fetch::remote::{is_remote, without_secrets};
use budget::Budget;
use cache::{Cache, Shelf, Use, used};
use check::check;
use containers::Containers;
use file::{changed, open_file};
use retry::fault;
use spans::{Cut, Spans};
pub use spans::{Foreseen, Read};

/// The offset of a value that does not lie in its container as it is: it is decoded from a page of Parquet.
pub const IN_PAGES: i64 = -1;

/// What says of which class or region each pixel of an image is.
#[derive(Default)]
pub enum Masks {
    /// Nothing.
    #[default]
    None,
    /// A PNG for each image.
    Files {
        /// Where they are; of no bytes where an image has none.
        files: Box<Source>,
        /// Whether their pixels are the ids of the image's boxes, in place of classes.
        panoptic: bool,
        /// How many classes there are; 0 where that is not known.
        classes: u32,
    },
    /// The runs of each box's region, in the oriented image.
    Regions(BytesColumn),
}

/// What reading an image takes besides its own buffer, used again.
#[derive(Default)]
pub struct Scratch {
    /// A path.
    pub path: String,
    mask: Vec<u8>,
}

/// One index of the mixture, as the renderer reads it.
pub struct Source {
    /// Width after orientation.
    pub width: Column<i32>,
    /// Height after orientation.
    pub height: Column<i32>,
    /// Where the bytes are.
    pub locations: Arc<Locations>,
    /// Caption tokens.
    pub captions: Captions,
    /// What is annotated in its images, where anything is.
    pub boxes: Option<Boxes>,
    /// Their masks.
    pub masks: Masks,
    containers: Arc<Containers>,
    spans: Arc<Spans>,
    /// Names the index's contents and the times of its files; empty where that is not known.
    pub fingerprint: String,
    /// Of spans of remote objects, and of decoded pages: apart, since pages at hand must not keep out what comes next.
    budgets: [Arc<Budget>; 2],
}

impl Source {
    /// A source over these columns.
    pub fn new(width: Column<i32>, height: Column<i32>, locations: Locations, captions: Captions) -> Self {
        let budgets: [Arc<Budget>; 2] = Default::default();
        let spans = Arc::new(Spans::new(0, budgets[0].clone()));
        let containers = Arc::new(Containers::new(budgets[1].clone(), spans.clone()));
        let (locations, fingerprint) = (Arc::new(locations), String::new());
        let (boxes, masks) = (None, Masks::None);
        Self { width, height, locations, captions, boxes, masks, containers, spans, fingerprint, budgets }
    }

    /// The same, fetching spans of this many bytes from remote containers; 0 fetches just what is wanted.
    pub fn with_spans(mut self, size: u64) -> Self {
        self.spans = Arc::new(Spans::new(size, self.budgets[0].clone()));
        self.containers = Arc::new(Containers::new(self.budgets[1].clone(), self.spans.clone()));
        self
    }

    /// Which parts of containers it holds in memory: spans of remote objects, pages of Parquet.
    pub fn holds_parts(&self) -> (bool, bool) {
        let in_pages = |shard: &String| shard.to_ascii_lowercase().ends_with(".parquet");
        let shards = &self.locations.shards;
        (shards.iter().any(|shard| is_remote(shard)), shards.iter().any(in_pages))
    }

    /// How many bytes of such parts it may hold.
    pub fn allow_parts(&self, bytes: usize) {
        let [spans, pages] = match self.holds_parts() {
            (true, true) => [bytes / 2; 2],
            (true, false) => [bytes, 0],
            _ => [0, bytes],
        };
        self.budgets[0].allow(spans);
        self.budgets[1].allow(pages);
        self.containers.keep(pages / 8);
    }

    /// Keeps what it fetches of remote objects on a disk, of which it is the `number`-th source.
    pub fn keep_in(&self, cache: &Arc<Cache>, number: u16) {
        if let Some(shelf) = Shelf::new(cache, number, self.locations.clone()) {
            self.spans.keep_on(shelf);
        }
    }

    /// Bytes that have come from servers.
    pub fn bytes_fetched(&self) -> u64 {
        self.spans.fetched()
    }

    /// Bytes of such parts at hand or on their way.
    pub fn parts_held(&self) -> usize {
        self.budgets.iter().map(|budget| budget.used()).sum()
    }

    /// Closes its containers; whatever is fetched later opens them again.
    pub fn close(&self) {
        self.containers.close();
        if let Masks::Files { files, .. } = &self.masks {
            files.close();
        }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.width.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.width.is_empty()
    }

    /// Bytes of the encoded image of `row`, as the index has it; 0 where it makes no sense, and then `fetch` fails too.
    pub fn length(&self, row: usize) -> usize {
        if row < self.locations.length.len() { usize::try_from(self.locations.length.get(row)).unwrap_or(0) } else { 0 }
    }

    /// File or container and member, for people.
    pub fn uri(&self, row: usize) -> String {
        let l = &self.locations;
        let shard = without_secrets(self.shard(row));
        let name = if row < l.name.len() { l.name.get(row) } else { "" };
        match (shard.is_empty() || shard.ends_with('/'), name.is_empty()) {
            (true, _) => format!("{shard}{name}"),
            (false, true) => shard.into_owned(),
            (false, false) => format!("{shard}#{name}"),
        }
    }

    fn shard(&self, row: usize) -> &str {
        let l = &self.locations;
        if row >= l.shard.len() {
            return "";
        }
        usize::try_from(l.shard.get(row)).ok().and_then(|s| l.shards.get(s)).map_or("", String::as_str)
    }

    /// URL and range of a row in remote storage, and how its object is cut.
    fn remote_place(&self, row: usize) -> Result<(String, Range<u64>, Cut), Fault> {
        let l = &self.locations;
        let (offset, length) = (l.offset.get(row), l.length.get(row));
        let (Ok(start), Ok(length)) = (u64::try_from(offset), u64::try_from(length)) else {
            return Err(damaged("offset", offset));
        };
        let end = start.checked_add(length).filter(|_| length > 0).ok_or_else(|| damaged("length", length as i64))?;
        let shard = self.shard(row);
        Ok(if shard.ends_with('/') {
            (format!("{shard}{}", l.name.get(row)), start..end, Cut::Whole)
        } else {
            (shard.to_owned(), start..end, Cut::From(0..u64::MAX, self.container_length(row)))
        })
    }

    /// Starts to fetch what `row` will need, where that takes long; `at` images of the run come before its batch.
    pub fn foresee(&self, row: usize, at: u64) -> Foreseen {
        if !is_remote(self.shard(row)) {
            return Foreseen::NOTHING;
        }
        used(Some(Use { row, at }), || self.foresee_remote(row))
    }

    fn foresee_remote(&self, row: usize) -> Foreseen {
        let l = &self.locations;
        if l.offset.get(row) == IN_PAGES {
            if !self.spans.coalesce() {
                return Foreseen::NOTHING;
            }
            let length = self.container_length(row);
            return self.containers.foresee(l.shard.get(row), self.shard(row), l.name.get(row), length);
        }
        match self.remote_place(row) {
            Ok((url, range, cut)) => self.spans.foresee(&url, &range, &cut),
            Err(_) => Foreseen::NOTHING,
        }
    }

    /// Reads the encoded bytes of `row` into `out`, replacing what it held. `at` images of the run come before its batch,
    /// `path` is scratch.
    pub fn fetch(&self, row: usize, at: u64, path: &mut String, out: &mut Vec<u8>) -> Result<(), Fault> {
        out.clear();
        let l = &self.locations;
        let length = usize::try_from(l.length.get(row)).map_err(|_| damaged("length", l.length.get(row)))?;
        let shard = self.shard(row);
        path.clear();
        path.push_str(shard);
        if is_remote(shard) && l.offset.get(row) != IN_PAGES {
            let (url, range, cut) = self.remote_place(row)?;
            out.reserve(length);
            return used(Some(Use { row, at }), || {
                self.spans.each(&url, &range, &cut, |bytes| out.extend_from_slice(bytes))?;
                // What is kept of another object than was indexed would be there when the right one is back.
                self.as_indexed(row, out).inspect_err(|_| self.spans.disown(&url, &range, &cut))
            });
        }
        if shard.ends_with('/') {
            path.push_str(l.name.get(row));
            let (file, found) = open_file(path)?;
            if found != length as u64 {
                return Err(changed(length as u64, found));
            }
            out.reserve(length);
            let got = (&file).take(length as u64).read_to_end(out).map_err(|e| fault(&e))?;
            return if got == length { Ok(()) } else { Err(changed(length as u64, got as u64)) };
        }
        if l.offset.get(row) == IN_PAGES {
            let (name, indexed) = (l.name.get(row), self.container_length(row));
            used(Some(Use { row, at }), || self.containers.value(l.shard.get(row), path, name, indexed, out))?;
            if out.len() != length {
                return Err(changed(length as u64, out.len() as u64));
            }
            return self.as_indexed(row, out);
        }
        let offset = u64::try_from(l.offset.get(row)).map_err(|_| damaged("offset", l.offset.get(row)))?;
        let indexed = self.container_length(row);
        let container = self.containers.get(l.shard.get(row), path, indexed)?;
        let Some(file) = &container.file else {
            return Err(damaged("offset", l.offset.get(row)));
        };
        let held = file.metadata().map_err(|e| fault(&e))?.len();
        if let Some(indexed) = indexed.filter(|&indexed| indexed != held) {
            return Err(changed(indexed, held));
        }
        // Checked before anything is allocated: a damaged index must not ask for terabytes.
        if offset.checked_add(length as u64).is_none_or(|end| end > held) {
            return Err(Failure::fetch(Reason::Changed, format!("the container has only {held} bytes")).into());
        }
        if out.capacity() < length {
            out.reserve(length);
        }
        out.resize(length, 0);
        file.read_exact_at(out, offset).map_err(|e| fault(&e))?;
        self.as_indexed(row, out)
    }

    /// Reads the file of the mask of `row`, if it has one, and appends it to `out`. Otherwise as `fetch`.
    pub fn fetch_mask(&self, row: usize, at: u64, scratch: &mut Scratch, out: &mut Vec<u8>) -> Result<(), Fault> {
        let Masks::Files { files, .. } = &self.masks else { return Ok(()) };
        if files.length(row) > 0 {
            files.fetch(row, at, &mut scratch.path, &mut scratch.mask).map_err(|fault| match fault {
                Fault::Failed(f) => Failure { detail: format!("its mask: {}", f.detail), ..f }.into(),
                other => other,
            })?;
            out.extend_from_slice(&scratch.mask);
        }
        Ok(())
    }

    /// Bytes of a row's container when it was indexed, where the index says.
    fn container_length(&self, row: usize) -> Option<u64> {
        let column = &self.locations.container_length;
        if row < column.len() { u64::try_from(column.get(row)).ok().filter(|&length| length > 0) } else { None }
    }

    /// Refuses the bytes of another member than was indexed: its container was written anew.
    fn as_indexed(&self, row: usize, bytes: &[u8]) -> Result<(), Fault> {
        let column = &self.locations.check;
        if row >= column.len() || matches!(column.get(row), 0) || column.get(row) == check(bytes) {
            return Ok(());
        }
        let said = "the container holds other bytes there than when it was indexed; index it again";
        Err(Failure::fetch(Reason::Changed, said).into())
    }
}

fn damaged(column: &str, value: i64) -> Fault {
    Failure::fetch(Reason::Index, format!("the index gives {column} {value}")).into()
}
