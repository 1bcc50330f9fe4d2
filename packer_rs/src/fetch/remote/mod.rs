//! Objects of buckets and web servers. In: a URL. Out: bytes at offsets, or a system error whose kind says whether
//! every replica would see it. Apart, since nothing else knows of HTTP: the asynchronous crate runs on two threads
//! here, callers wait. The crate's own attempts are switched off: it neither tells what it waits for nor honours
//! `Retry-After` (`fetch/retry.rs` does).
//!
//! Credentials, regions and endpoints come from the environment that each store's own tools use (`AWS_…`, `GOOGLE_…`,
//! `AZURE_…`), and for web servers from `.netrc`.

mod blocks;
mod listing;
mod secrets;
mod stores;

use std::future::Future;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};

use bytes::Bytes;
use object_store::path::Path;
use object_store::{Error, GetOptions, GetRange, ObjectMeta, ObjectStore};
use tokio::runtime::Runtime;

pub use blocks::Blocks;
pub use listing::{Listing, list};
pub use secrets::without_secrets;
pub use stores::{blocking, spawn, spawn_blocking};
use stores::{invalid, runtime, split, store, system};

use crate::fetch::retry::{self, Patience, patiently};
use crate::fetch::waits::Awaited;

/// Whether a shard is a URL.
pub fn is_remote(shard: &str) -> bool {
    shard.contains("://")
}

/// Size and time of an object.
#[derive(Clone, Debug)]
pub struct Meta {
    /// Key, from the bucket's or server's root on.
    pub key: String,
    /// Bytes.
    pub length: u64,
    /// Modification time in nanoseconds since 1970.
    pub mtime_ns: i64,
}

impl From<ObjectMeta> for Meta {
    fn from(meta: ObjectMeta) -> Self {
        let mtime_ns = meta.last_modified.timestamp_nanos_opt().unwrap_or(-1);
        Self { key: meta.location.to_string(), length: meta.size, mtime_ns }
    }
}

/// How a range lies in its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// It is all of the object.
    Whole,
    /// The object holds all of it.
    Range,
    /// The object may end in it.
    UpTo,
}

/// One object.
#[derive(Clone)]
pub struct Object {
    store: Arc<dyn ObjectStore>,
    path: Path,
    /// As it is shown.
    url: Arc<str>,
}

impl Object {
    /// The object at a URL; nothing is asked of the server yet.
    pub fn new(url: &str) -> io::Result<Self> {
        let (origin, key) = split(url)?;
        // Web addresses are written with escapes, keys of buckets are not.
        let path = if origin.starts_with("http") { Path::from_url_path(key) } else { Path::parse(key) };
        let path = path.map_err(|e| invalid(url, e))?;
        Ok(Self { store: store(origin)?.objects, path, url: Arc::from(&*without_secrets(url)) })
    }

    /// Size and time, asked for until a fault has lasted too long.
    pub fn meta(&self) -> io::Result<Meta> {
        self.patiently(|object| async move { object.head().await })
    }

    /// A range, asked for in the same way.
    pub fn fetch(&self, range: Range<u64>) -> io::Result<Bytes> {
        self.patiently(|object| {
            let range = range.clone();
            async move { object.read(range, Expect::Range, None).await }
        })
    }

    fn patiently<T: Send + 'static, F: Future<Output = io::Result<T>> + Send + 'static>(
        &self,
        ask: impl Fn(Self) -> F,
    ) -> io::Result<T> {
        let runtime = runtime()?;
        patiently(Patience::new(None), || self.url.to_string(), || wait(&runtime, &self.url, ask(self.clone())))
    }

    async fn head(&self) -> io::Result<Meta> {
        let options = GetOptions { head: true, ..GetOptions::default() };
        self.store.get_opts(&self.path, options).await.map(|found| found.meta.into()).map_err(|e| system(&e))
    }

    /// One request for a range, of an object of `length` bytes where that is known.
    ///
    /// # Errors
    /// `UnexpectedEof` where the object has another size than it must have; `NotFound`; anything else may pass.
    pub async fn read(&self, range: Range<u64>, expect: Expect, length: Option<u64>) -> io::Result<Bytes> {
        let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
        let resized = |size: u64| {
            let message = match length {
                Some(length) => format!("{size} bytes, but {length} when it was indexed"),
                None => format!("the object has {size} bytes now, wanted {} to {}", range.start, range.end),
            };
            io::Error::new(ErrorKind::UnexpectedEof, message)
        };
        let fits = |size: u64| {
            length.is_none_or(|length| size == length)
                && match expect {
                    Expect::Whole => size == range.end - range.start,
                    Expect::Range => size >= range.end,
                    Expect::UpTo => size > range.start,
                }
        };
        let found = match self.store.get_opts(&self.path, options).await {
            Ok(found) => found,
            Err(e @ Error::NotFound { .. }) => return Err(system(&e)),
            Err(e) => {
                // A server says in words of its own that there is no such range.
                return Err(match self.head().await {
                    Ok(meta) if !fits(meta.length) => resized(meta.length),
                    _ => system(&e),
                });
            }
        };
        let size = found.meta.size;
        if !fits(size) {
            return Err(resized(size));
        }
        let wanted = size.min(range.end) - range.start;
        let bytes = found.bytes().await.map_err(|e| system(&e))?;
        if bytes.len() as u64 == wanted {
            Ok(bytes)
        } else {
            Err(io::Error::other(format!("{} bytes came of {wanted}", bytes.len())))
        }
    }
}

/// Runs to the end on the runtime's own threads: `block_on` would poll on a thread that may be another runtime's.
fn wait<T: Send + 'static>(
    runtime: &Runtime,
    what: &str,
    task: impl Future<Output = io::Result<T>> + Send + 'static,
) -> io::Result<T> {
    if retry::ended() {
        return Err(retry::given_up());
    }
    let mut awaited = Awaited::new();
    let (send, receive) = sync_channel(1);
    let task = runtime.spawn(async move {
        let _ = send.send(task.await);
    });
    loop {
        match receive.recv_timeout(retry::SLICE) {
            Ok(answer) => {
                if answer.is_ok() {
                    awaited.came();
                }
                return answer;
            }
            Err(RecvTimeoutError::Disconnected) => return Err(io::Error::other("the request was given up")),
            Err(RecvTimeoutError::Timeout) if retry::ended() => {
                task.abort();
                return Err(retry::given_up());
            }
            Err(RecvTimeoutError::Timeout) => awaited.late(|| what.to_owned()),
        }
    }
}
