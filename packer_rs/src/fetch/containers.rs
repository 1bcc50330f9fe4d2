//! Containers kept open, and the pages of Parquet files decoded last. In: the place of a container. Out: something to
//! read from. Both are bounded: a data set may have a hundred thousand shards.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::sync::{Arc, Mutex, OnceLock};

use super::budget::{Budget, Counted};
use super::cache::{used, user};
use super::file::{changed, open_file};
use super::retry::{fault, once};
use super::spans::{Cut, Foreseen, Spanned, Spans};
use parquet::data_type::ByteArray;

use crate::failure::{Failure, Fault, Reason};
use crate::fetch::pages::{Buffers, PageKey, Pages, Trouble};
use crate::fetch::remote::{Blocks, Object, is_remote, spawn_blocking};
use crate::fetch::window::ReadAt;
use crate::sync::lock;

/// Open containers kept per source, and the share of the files that this process may open, if that is less; more are
/// opened again when they are needed.
const OPEN: usize = 64;
const SHARE_OF_FILES: u64 = 4;

/// A row group whose pages take no more is fetched whole before it is known where each of them lies: finding that out
/// takes as many requests, one after the other.
const WHOLE: u64 = 32 << 20;

/// Containers and row groups of them that are looked into in the background at once.
const LOOKING: usize = 16;

/// A decoded page, counted while it is held. A page is about 1 MB, and block order comes back to it while its block
/// lasts.
type Page = Arc<OnceLock<Result<(Vec<Option<ByteArray>>, Counted), Fault>>>;

/// What is looked into in the background: a container, and which row group of it once its footer is known. The values
/// of it that were foreseen since.
type Looking = HashMap<(i32, Option<usize>), HashSet<String>>;

/// See the module.
pub struct Containers {
    open: Mutex<VecDeque<(i32, Arc<Container>)>>,
    most_open: usize,
    decoded: Mutex<VecDeque<((i32, PageKey), Page)>>,
    looking: Mutex<Looking>,
    budget: Arc<Budget>,
    buffers: Arc<Buffers>,
    spans: Arc<Spans>,
}

/// One open container.
pub struct Container {
    /// The file, where it is one on this machine.
    pub file: Option<Arc<File>>,
    path: String,
    /// Its bytes when it was indexed, where that is known.
    length: Option<u64>,
    spans: Arc<Spans>,
    buffers: Arc<Buffers>,
    pages: OnceLock<Result<Pages, Fault>>,
    /// The remote object that `pages` reads.
    remote: OnceLock<Arc<Spanned>>,
}

impl From<Trouble> for Fault {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Io(e) => fault(&e),
            Trouble::File(what) => Failure::fetch(Reason::Corrupt, what).into(),
        }
    }
}

impl Containers {
    /// Nothing is open yet; decoded pages count against `budget`, and remote containers are read by `spans`.
    pub fn new(budget: Arc<Budget>, spans: Arc<Spans>) -> Self {
        let buffers = Buffers::keeping(0);
        let most_open = files_allowed().map_or(OPEN, |files| ((files / SHARE_OF_FILES) as usize).clamp(1, OPEN));
        let (open, decoded, looking) = Default::default();
        Self { open, most_open, decoded, looking, budget, buffers, spans }
    }

    /// Closes what nobody reads. It is opened again if it is wanted.
    pub fn close(&self) {
        lock(&self.open).clear();
        lock(&self.decoded).clear();
    }

    /// Keeps at most so many bytes of idle memory for pages.
    pub fn keep(&self, bytes: usize) {
        self.buffers.keep(bytes);
    }

    /// The container of this number, opened at `path` where it is not open yet.
    pub fn get(&self, number: i32, path: &str, length: Option<u64>) -> Result<Arc<Container>, Fault> {
        let mut open = lock(&self.open);
        if let Some((_, found)) = open.iter().find(|(n, _)| *n == number) {
            return Ok(found.clone());
        }
        let file = if is_remote(path) { None } else { Some(Arc::new(open_file(path)?.0)) };
        let container = Arc::new(Container {
            file,
            path: path.to_owned(),
            length,
            spans: self.spans.clone(),
            buffers: self.buffers.clone(),
            pages: OnceLock::new(),
            remote: OnceLock::new(),
        });
        if open.len() >= self.most_open {
            open.pop_front();
        }
        open.push_back((number, container.clone()));
        Ok(container)
    }

    /// Starts to read the page of a value in a remote Parquet container. What has to be known for that is looked up in
    /// the background, once.
    pub fn foresee(self: &Arc<Self>, number: i32, path: &str, name: &str, length: Option<u64>) -> Foreseen {
        // What is wrong is said when the value is wanted.
        let Ok((column, row)) = place_of(name) else { return Foreseen::NOTHING };
        let known = lock(&self.open).iter().find(|(n, _)| *n == number).map(|(_, container)| container.clone());
        let Some(container) = known.filter(|container| container.pages.get().is_some()) else {
            self.look(number, None, path, name, length);
            return Foreseen::LATER;
        };
        let Ok((pages, leaf)) = container.pages(column) else { return Foreseen::NOTHING };
        let Ok(group) = pages.group_of(row) else { return Foreseen::NOTHING };
        let chunk = pages.chunk(leaf, group);
        if pages.knows(leaf, group) {
            let key = pages.page_of(leaf, row).map(|(key, _)| key);
            let at_hand =
                |key| lock(&self.decoded).iter().any(|(held, page)| *held == (number, key) && page.get().is_some());
            return match key.map(|key| (at_hand(key), pages.range_of(key))) {
                Ok((false, Ok(range))) => self.spans.foresee(path, &range, &Cut::From(chunk, Some(pages.length()))),
                _ => Foreseen::NOTHING,
            };
        }
        if chunk.end - chunk.start <= WHOLE {
            return self.spans.foresee(path, &chunk, &Cut::From(chunk.clone(), Some(pages.length())));
        }
        self.look(number, Some(group), path, name, length);
        Foreseen::LATER
    }

    /// Finds out in the background where pages lie, and then starts to read those of all values that were foreseen
    /// meanwhile.
    fn look(self: &Arc<Self>, number: i32, group: Option<usize>, path: &str, name: &str, length: Option<u64>) {
        let what = (number, group);
        {
            let mut looking = lock(&self.looking);
            if let Some(waiting) = looking.get_mut(&what) {
                waiting.insert(name.to_owned());
                return;
            }
            if looking.len() >= LOOKING {
                return;
            }
            looking.insert(what, HashSet::from([name.to_owned()]));
        }
        let (containers, path, name) = (self.clone(), path.to_owned(), name.to_owned());
        let look = move || {
            let found = place_of(&name).and_then(|(column, row)| {
                let container = containers.get(number, &path, length)?;
                let (pages, leaf) = container.pages(column)?;
                // The footer was the first thing to find; most row groups need nothing more.
                if group.is_some() {
                    pages.page_of(leaf, row).map(drop)?
                }
                Ok(())
            });
            let waiting = lock(&containers.looking).remove(&what).unwrap_or_default();
            if found.is_ok() {
                for name in waiting {
                    containers.foresee(number, &path, &name, length);
                }
            }
        };
        // Whoever wants a value will try again, not this.
        let by = user();
        if spawn_blocking(move || used(by, || once(look))).is_err() {
            lock(&self.looking).remove(&what);
        }
    }

    /// A value of a Parquet container: `name` is its column, `/`, its row.
    pub fn value(
        &self,
        number: i32,
        path: &str,
        name: &str,
        length: Option<u64>,
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        let (column, row) = place_of(name)?;
        let container = self.get(number, path, length)?;
        let (pages, leaf) = container.pages(column).inspect_err(|_| lock(&self.open).retain(|(n, _)| *n != number))?;
        let (key, within) = pages.page_of(leaf, row)?;
        let page = self.decoded(number, key);
        // Others that want this page meanwhile wait here, and find it done.
        let read = page.get_or_init(|| {
            let values = pages.read(key)?;
            // What it was decoded from is no use any more.
            if container.file.is_none()
                && let Ok(range) = pages.range_of(key)
            {
                self.spans.let_go(path, &range, &Cut::From(pages.chunk(leaf, key.1), None));
            }
            let bytes = values.iter().flatten().map(ByteArray::len).sum();
            let counted = self.budget.need(bytes);
            self.make_room();
            Ok((values, counted))
        });
        match read {
            Ok((values, _)) => match values.get(within) {
                Some(Some(value)) => {
                    out.extend_from_slice(value.data());
                    Ok(())
                }
                _ => Err(Failure::fetch(Reason::Missing, "the row holds no bytes").into()),
            },
            Err(fault) => {
                // A fault may pass, so it is not kept.
                lock(&self.decoded).retain(|(held, _)| *held != (number, key));
                if !matches!(fault, Fault::Failed(_)) {
                    lock(&self.open).retain(|(n, _)| *n != number);
                }
                Err(fault.clone())
            }
        }
    }

    fn decoded(&self, number: i32, key: PageKey) -> Page {
        let mut decoded = lock(&self.decoded);
        if let Some((_, page)) = decoded.iter().find(|(held, _)| *held == (number, key)) {
            return page.clone();
        }
        let page = Page::default();
        decoded.push_back(((number, key), page.clone()));
        page
    }

    /// Lets go of the pages that were decoded first, but for those in use.
    fn make_room(&self) {
        let mut decoded = lock(&self.decoded);
        while self.budget.exceeded()
            && let Some(at) = decoded.iter().position(|(_, page)| Arc::strong_count(page) == 1)
        {
            decoded.remove(at);
        }
    }
}

/// How many files this process may open; None where that is not to be told.
fn files_allowed() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call writes into the struct that it is given, and into nothing else.
    let told = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    (told == 0).then_some(limit.rlim_cur)
}

/// The column and the row that a name in a Parquet container stands for.
fn place_of(name: &str) -> Result<(&str, u64), Fault> {
    let place = name.rsplit_once('/').and_then(|(column, row)| Some((column, row.parse::<u64>().ok()?)));
    place.ok_or_else(|| Failure::fetch(Reason::Index, format!("the index names '{name}' in a Parquet file")).into())
}

impl Container {
    /// Its pages, and the leaf of this column.
    fn pages(&self, column: &str) -> Result<(&Pages, usize), Fault> {
        let opened = self.pages.get_or_init(|| {
            let (source, length): (Arc<dyn ReadAt + Send + Sync>, u64) = match &self.file {
                Some(file) => (file.clone(), file.metadata().map_err(|e| fault(&e))?.len()),
                None if self.spans.coalesce() => {
                    let length =
                        Object::new(&self.path).and_then(|object| object.meta()).map_err(|e| fault(&e))?.length;
                    let (spans, url) = (self.spans.clone(), self.path.clone());
                    let stretches = OnceLock::new();
                    let spanned = Arc::new(Spanned { spans, url, length, stretches });
                    (self.remote.get_or_init(|| spanned).clone(), length)
                }
                None => {
                    let (blocks, meta) = Blocks::open(&self.path).map_err(|e| fault(&e))?;
                    (Arc::new(blocks), meta.length)
                }
            };
            if self.length.is_some_and(|indexed| indexed != length) {
                return Err(changed(self.length.unwrap_or_default(), length));
            }
            Ok(Pages::open(source, length, self.buffers.clone())?)
        });
        let pages = opened.as_ref().map_err(Clone::clone)?;
        let leaf = pages.leaf(column)?;
        if let Some(remote) = self.remote.get() {
            remote.stretches.get_or_init(|| {
                let mut chunks = pages.chunks(leaf);
                chunks.retain(|chunk| !chunk.is_empty());
                chunks.sort_by_key(|chunk| chunk.start);
                // A file that is right has none that overlap.
                if chunks.is_sorted_by(|a, b| a.end <= b.start) { chunks } else { Vec::new() }
            });
        }
        Ok((pages, leaf))
    }
}
