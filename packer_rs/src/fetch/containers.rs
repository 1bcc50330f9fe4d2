//! Containers kept open, and the pages of Parquet files decoded last. In: the place of a container. Out: something to read
//! from. Both are bounded: a data set may have a hundred thousand shards.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;

use super::{File, fault, open_file};
use crate::ledger::{Failure, Fault};
use crate::pages::{PageKey, Pages, Trouble};
use crate::probe::ReadAt;
use crate::remote::{Blocks, is_remote};

/// Open containers kept per source; more are opened again when they are needed.
const OPEN: usize = 64;

/// Decoded pages kept per source, in bytes. A page is about 1 MB, and block order comes back to it while its block lasts.
const KEPT: usize = 128 << 20;

type Values = Arc<OnceLock<Result<Vec<Option<Bytes>>, Fault>>>;

/// See the module.
#[derive(Default)]
pub struct Containers {
    open: Mutex<VecDeque<(i32, Arc<Container>)>>,
    decoded: Mutex<VecDeque<((i32, PageKey), Values)>>,
}

/// One open container.
pub struct Container {
    /// The file, where it is one on this machine.
    pub file: Option<Arc<File>>,
    path: String,
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
    /// The container of this number, opened at `path` where it is not open yet.
    pub fn get(&self, number: i32, path: &str) -> Result<Arc<Container>, Fault> {
        let mut open = lock(&self.open);
        if let Some((_, found)) = open.iter().find(|(n, _)| *n == number) {
            return Ok(found.clone());
        }
        let file = if is_remote(path) { None } else { Some(Arc::new(open_file(path)?.0)) };
        let container = Arc::new(Container { file, path: path.to_owned(), pages: OnceLock::new() });
        if open.len() == OPEN {
            open.pop_front();
        }
        open.push_back((number, container.clone()));
        Ok(container)
    }

    /// A value of a Parquet container: `name` is its column, `/`, its row.
    pub fn value(&self, number: i32, path: &str, name: &str, out: &mut Vec<u8>) -> Result<(), Fault> {
        let place = name.rsplit_once('/').and_then(|(column, row)| Some((column, row.parse::<u64>().ok()?)));
        let Some((column, row)) = place else {
            return Err(Failure::new("fetch", "index", format!("the index names '{name}' in a Parquet file")).into());
        };
        let container = self.get(number, path)?;
        let pages = container.pages().inspect_err(|_| lock(&self.open).retain(|(n, _)| *n != number))?;
        let (key, within) = pages.page_of(pages.leaf(column)?, row)?;
        let values = self.decoded(number, key);
        // Others that want this page meanwhile wait here, and find it done.
        let read = values.get_or_init(|| pages.read(key).map_err(Fault::from));
        match read {
            Ok(values) => match values.get(within) {
                Some(Some(value)) => {
                    out.extend_from_slice(value);
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

    fn decoded(&self, number: i32, key: PageKey) -> Values {
        let mut decoded = lock(&self.decoded);
        if let Some((_, values)) = decoded.iter().find(|(held, _)| *held == (number, key)) {
            return values.clone();
        }
        let size = |values: &Values| match values.get() {
            Some(Ok(values)) => values.iter().flatten().map(Bytes::len).sum(),
            _ => 0,
        };
        let mut held: usize = decoded.iter().map(|(_, values)| size(values)).sum();
        while held > KEPT
            && let Some((_, oldest)) = decoded.pop_front()
        {
            held -= size(&oldest).min(held);
        }
        let values = Values::default();
        decoded.push_back(((number, key), values.clone()));
        values
    }
}

impl Container {
    fn pages(&self) -> Result<&Pages, Fault> {
        let opened = self.pages.get_or_init(|| {
            let (source, length): (Arc<dyn ReadAt + Send + Sync>, u64) = match &self.file {
                Some(file) => (file.clone(), file.metadata().map_err(|e| fault(&e))?.len()),
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
