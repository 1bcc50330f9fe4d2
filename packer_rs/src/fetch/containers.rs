//! Containers kept open, and the pages of Parquet files decoded last. In: the place of a container. Out: something to read
//! from. Both are bounded: a data set may have a hundred thousand shards.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::budget::{Budget, Counted};
use super::spans::{Read, Spanned, Spans};
use super::{File, fault, open_file};
use parquet::data_type::ByteArray;

use crate::ledger::{Failure, Fault};
use crate::pages::{PageKey, Pages, Trouble};
use crate::probe::ReadAt;
use crate::remote::{Blocks, Object, is_remote, spawn_blocking};

/// Open containers kept per source; more are opened again when they are needed.
const OPEN: usize = 64;

/// A decoded page, counted while it is held. A page is about 1 MB, and block order comes back to it while its block lasts.
type Page = Arc<OnceLock<Result<(Vec<Option<ByteArray>>, Counted), Fault>>>;

/// See the module.
pub struct Containers {
    open: Mutex<VecDeque<(i32, Arc<Container>)>>,
    decoded: Mutex<VecDeque<((i32, PageKey), Page)>>,
    /// What `foresee` looks for in the background.
    looking: Mutex<HashSet<(i32, String)>>,
    budget: Arc<Budget>,
    spans: Arc<Spans>,
}

/// One open container.
pub struct Container {
    /// The file, where it is one on this machine.
    pub file: Option<Arc<File>>,
    number: i32,
    path: String,
    spans: Arc<Spans>,
    pages: OnceLock<Result<Pages, Fault>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl From<Trouble> for Fault {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Io(e) => fault(&e),
            Trouble::File(what) => Failure::new("fetch", "corrupt", what).into(),
        }
    }
}

impl Containers {
    /// Nothing is open yet; decoded pages count against `budget`, and remote containers are read by `spans`.
    pub fn new(budget: Arc<Budget>, spans: Arc<Spans>) -> Self {
        Self { open: Mutex::default(), decoded: Mutex::default(), looking: Mutex::default(), budget, spans }
    }

    /// The container of this number, opened at `path` where it is not open yet.
    pub fn get(&self, number: i32, path: &str) -> Result<Arc<Container>, Fault> {
        let mut open = lock(&self.open);
        if let Some((_, found)) = open.iter().find(|(n, _)| *n == number) {
            return Ok(found.clone());
        }
        let file = if is_remote(path) { None } else { Some(Arc::new(open_file(path)?.0)) };
        let (path, spans) = (path.to_owned(), self.spans.clone());
        let container = Arc::new(Container { file, number, path, spans, pages: OnceLock::new() });
        if open.len() == OPEN {
            open.pop_front();
        }
        open.push_back((number, container.clone()));
        Ok(container)
    }

    /// Starts to read the page of a value in a remote Parquet container. Where its pages are not known yet, they are looked up in
    /// the background, once.
    pub fn foresee(self: &Arc<Self>, number: i32, path: &str, name: &str) -> Vec<Arc<Read>> {
        // What is wrong is said when the value is wanted.
        let Ok((column, row)) = place_of(name) else { return Vec::new() };
        let known = lock(&self.open).iter().find(|(n, _)| *n == number).map(|(_, container)| container.clone());
        let pages = known.as_ref().and_then(|container| container.pages.get()?.as_ref().ok());
        if let Some(pages) = pages
            && let Ok(leaf) = pages.leaf(column)
            && pages.knows(leaf, row)
        {
            let key = pages.page_of(leaf, row).map(|(key, _)| key);
            let at_hand =
                |key| lock(&self.decoded).iter().any(|(held, page)| *held == (number, key) && page.get().is_some());
            return match key.map(|key| (at_hand(key), pages.range_of(key))) {
                Ok((false, Ok(range))) => self.spans.foresee(number, path, &range, false),
                _ => Vec::new(),
            };
        }
        let (what, place) = (self.clone(), (number, path.to_owned()));
        // One at a time for each container: the next batch's call goes on with the next row group.
        if lock(&self.looking).insert(place.clone()) {
            let (column, url) = (column.to_owned(), path.to_owned());
            let look = move || {
                let pages = what.get(number, &url).and_then(|container| {
                    let pages = container.pages()?;
                    let (key, _) = pages.page_of(pages.leaf(&column)?, row)?;
                    Ok(pages.range_of(key)?)
                });
                if let Ok(range) = pages {
                    what.spans.foresee(number, &url, &range, false);
                }
                lock(&what.looking).remove(&place);
            };
            let _ = spawn_blocking(look);
        }
        Vec::new()
    }

    /// A value of a Parquet container: `name` is its column, `/`, its row.
    pub fn value(&self, number: i32, path: &str, name: &str, out: &mut Vec<u8>) -> Result<(), Fault> {
        let (column, row) = place_of(name)?;
        let container = self.get(number, path)?;
        let pages = container.pages().inspect_err(|_| lock(&self.open).retain(|(n, _)| *n != number))?;
        let (key, within) = pages.page_of(pages.leaf(column)?, row)?;
        let page = self.decoded(number, key);
        // Others that want this page meanwhile wait here, and find it done.
        let read = page.get_or_init(|| {
            let values = pages.read(key)?;
            // What it was decoded from is no use any more.
            if container.file.is_none()
                && let Ok(range) = pages.range_of(key)
            {
                self.spans.let_go(number, &range);
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
                _ => Err(Failure::new("fetch", "missing", "the row holds no bytes").into()),
            },
            Err(fault) => {
                // A fault may pass, so it is not kept.
                lock(&self.decoded).retain(|(held, _)| *held != (number, key));
                if matches!(fault, Fault::Passing(_)) {
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

/// The column and the row that a name in a Parquet container stands for.
fn place_of(name: &str) -> Result<(&str, u64), Fault> {
    let place = name.rsplit_once('/').and_then(|(column, row)| Some((column, row.parse::<u64>().ok()?)));
    place.ok_or_else(|| Failure::new("fetch", "index", format!("the index names '{name}' in a Parquet file")).into())
}

impl Container {
    fn pages(&self) -> Result<&Pages, Fault> {
        let opened = self.pages.get_or_init(|| {
            let (source, length): (Arc<dyn ReadAt + Send + Sync>, u64) = match &self.file {
                Some(file) => (file.clone(), file.metadata().map_err(|e| fault(&e))?.len()),
                None if self.spans.coalesce() => {
                    let length =
                        Object::new(&self.path).and_then(|object| object.meta()).map_err(|e| fault(&e))?.length;
                    let (spans, url) = (self.spans.clone(), self.path.clone());
                    (Arc::new(Spanned { spans, shard: self.number, url, length }), length)
                }
                None => {
                    let (blocks, meta) = Blocks::open(&self.path).map_err(|e| fault(&e))?;
                    (Arc::new(blocks), meta.length)
                }
            };
            Ok(Pages::open(source, length)?)
        });
        opened.as_ref().map_err(Clone::clone)
    }
}
