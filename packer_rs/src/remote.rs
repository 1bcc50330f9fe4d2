//! Objects of buckets and web servers. In: a URL. Out: bytes at offsets, or a system error whose kind says whether every replica
//! would see it. Apart, since nothing else knows of HTTP: the asynchronous crate runs on two threads here, callers wait.
//!
//! Credentials, regions and endpoints come from the environment that each store's own tools use (`AWS_…`, `GOOGLE_…`, `AZURE_…`).

use std::collections::HashMap;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::path::Path;
use object_store::{ClientConfigKey, Error, GetOptions, GetRange, ObjectMeta, ObjectStore, RetryConfig};
use tokio::runtime::{Builder, Runtime};

use crate::probe::ReadAt;

/// Attempts of whoever reads without a loop of its own, with pauses that double from the first.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Where the environment does not say otherwise.
const DEFAULTS: [(&str, ClientConfigKey, &str); 2] =
    [("TIMEOUT", ClientConfigKey::Timeout, "30s"), ("CONNECT_TIMEOUT", ClientConfigKey::ConnectTimeout, "5s")];
const TIMED_OUT: &str = "no whole answer in the time allowed (30 s, of which 5 s to connect; AWS_TIMEOUT, GOOGLE_TIMEOUT, \
                         AZURE_TIMEOUT, HTTP_TIMEOUT and … _CONNECT_TIMEOUT set it)";
/// Bytes fetched at once by `ReadAt`, and how many such blocks it keeps.
const BLOCK: u64 = 4 << 20;
const BLOCKS: usize = 3;
/// The same for single images, whose header is in the first block but for rare ones.
const HEADER: u64 = 64 << 10;

type Stores = HashMap<String, Arc<dyn ObjectStore>>;

/// Threads and connections belong to the process that made them; a forked child makes its own.
struct Process {
    id: u32,
    runtime: Arc<Runtime>,
    stores: Stores,
}

static PROCESS: Mutex<Option<Process>> = Mutex::new(None);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a shard is a URL.
pub fn is_remote(shard: &str) -> bool {
    shard.contains("://")
}

fn with_process<T>(use_it: impl FnOnce(&mut Process) -> io::Result<T>) -> io::Result<T> {
    let mut process = lock(&PROCESS);
    let id = std::process::id();
    if process.as_ref().is_none_or(|p| p.id != id) {
        // Another crate of this process may have chosen already; any choice will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = Builder::new_multi_thread().worker_threads(2).thread_name("navit-remote").enable_all().build()?;
        // What a parent left behind has no threads here and cannot be shut down.
        std::mem::forget(process.take());
        *process = Some(Process { id, runtime: Arc::new(runtime), stores: HashMap::new() });
    }
    match process.as_mut() {
        Some(process) => use_it(process),
        None => Err(io::Error::other("no threads for remote objects")),
    }
}

fn runtime() -> io::Result<Arc<Runtime>> {
    with_process(|process| Ok(process.runtime.clone()))
}

/// Runs a task in the background.
pub fn spawn(task: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
    runtime()?.spawn(task);
    Ok(())
}

/// Runs what may wait for requests in the background.
pub fn spawn_blocking(task: impl FnOnce() + Send + 'static) -> io::Result<()> {
    runtime()?.spawn_blocking(task);
    Ok(())
}

fn invalid(url: &str, why: impl std::fmt::Display) -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, format!("'{url}' cannot be used: {why}"))
}

/// Scheme and authority, then the key.
fn split(url: &str) -> io::Result<(&str, &str)> {
    let start = url.find("://").ok_or_else(|| invalid(url, "it has no scheme"))? + 3;
    let end = url[start..].find('/').map_or(url.len(), |at| start + at);
    if url[end..].contains(['?', '#']) {
        return Err(invalid(url, "a query or fragment is not supported"));
    }
    Ok((&url[..end], url[end..].trim_start_matches('/')))
}

fn store(origin: &str) -> io::Result<Arc<dyn ObjectStore>> {
    with_process(|process| {
        if let Some(store) = process.stores.get(origin) {
            return Ok(store.clone());
        }
        let store = build(origin).map_err(|e| invalid(origin, reason(&e)))?;
        process.stores.insert(origin.to_owned(), store.clone());
        Ok(store)
    })
}

fn build(origin: &str) -> Result<Arc<dyn ObjectStore>, Error> {
    // Attempts are counted in one place, by whoever asks.
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    macro_rules! from_environment {
        ($builder:expr, $prefix:literal, $key:path) => {{
            let mut builder = $builder.with_url(origin).with_retry(retry);
            for (name, key, value) in DEFAULTS {
                if std::env::var_os(format!("{}{name}", $prefix)).is_none() {
                    builder = builder.with_config($key(key), value);
                }
            }
            Arc::new(builder.build()?)
        }};
    }
    Ok(match origin.split("://").next().unwrap_or_default() {
        "s3" | "s3a" => {
            from_environment!(AmazonS3Builder::from_env(), "AWS_", object_store::aws::AmazonS3ConfigKey::Client)
        }
        "gs" => from_environment!(
            GoogleCloudStorageBuilder::from_env(),
            "GOOGLE_",
            object_store::gcp::GoogleConfigKey::Client
        ),
        "az" | "azure" | "abfs" | "abfss" => {
            from_environment!(MicrosoftAzureBuilder::from_env(), "AZURE_", object_store::azure::AzureConfigKey::Client)
        }
        "http" | "https" => {
            let mut builder = HttpBuilder::new().with_url(origin).with_retry(retry);
            for (name, key, value) in DEFAULTS {
                let told = std::env::var(format!("HTTP_{name}"));
                builder = builder.with_config(key, told.as_deref().unwrap_or(value));
            }
            Arc::new(builder.with_config(ClientConfigKey::AllowHttp, "true").build()?)
        }
        scheme => {
            let why = format!("the scheme '{scheme}' is none of s3, gs, az, http, https");
            return Err(Error::NotSupported { source: why.into() });
        }
    })
}

/// The innermost cause, which is what a person needs.
fn reason(error: &Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    if cause.to_string().contains("timed out") {
        return TIMED_OUT.into();
    }
    match (cause.to_string(), error) {
        (said, Error::Generic { .. }) => said,
        (said, _) => {
            let outer = error.to_string();
            if outer.contains(&said) { outer } else { format!("{outer}: {said}") }
        }
    }
}

fn system(error: &Error) -> io::Error {
    let kind = match error {
        Error::NotFound { .. } => ErrorKind::NotFound,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => ErrorKind::PermissionDenied,
        _ => ErrorKind::Other,
    };
    io::Error::new(kind, reason(error))
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
}

impl Object {
    /// The object at a URL; nothing is asked of the server yet.
    pub fn new(url: &str) -> io::Result<Self> {
        let (origin, key) = split(url)?;
        // Web addresses are written with escapes, keys of buckets are not.
        let path = if origin.starts_with("http") { Path::from_url_path(key) } else { Path::parse(key) };
        Ok(Self { store: store(origin)?, path: path.map_err(|e| invalid(url, e))? })
    }

    /// Size and time.
    pub fn meta(&self) -> io::Result<Meta> {
        let object = self.clone();
        patiently(|| {
            let object = object.clone();
            async move { object.head().await }
        })
    }

    /// A range, tried again after faults that may pass.
    pub fn fetch(&self, range: Range<u64>) -> io::Result<Bytes> {
        let object = self.clone();
        patiently(|| {
            let (object, range) = (object.clone(), range.clone());
            async move { object.read(range, Expect::Range).await }
        })
    }

    async fn head(&self) -> io::Result<Meta> {
        let options = GetOptions { head: true, ..GetOptions::default() };
        self.store.get_opts(&self.path, options).await.map(|found| found.meta.into()).map_err(|e| system(&e))
    }

    /// One request for a range.
    ///
    /// # Errors
    /// `UnexpectedEof` where the object has another size than it must have; `NotFound`; anything else may pass.
    pub async fn read(&self, range: Range<u64>, expect: Expect) -> io::Result<Bytes> {
        let wanted = range.end - range.start;
        let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
        let resized = |size: u64| {
            let message = format!("the object has {size} bytes now, wanted {} to {}", range.start, range.end);
            io::Error::new(ErrorKind::UnexpectedEof, message)
        };
        let found = match self.store.get_opts(&self.path, options).await {
            Ok(found) => found,
            Err(e @ Error::NotFound { .. }) => return Err(system(&e)),
            Err(e) => {
                // A server says in words of its own that there is no such range.
                return Err(match self.head().await {
                    Ok(meta) if meta.length <= range.start || meta.length < range.end && expect != Expect::UpTo => {
                        resized(meta.length)
                    }
                    _ => system(&e),
                });
            }
        };
        let size = found.meta.size;
        let fits = match expect {
            Expect::Whole => size == wanted,
            Expect::Range => size >= range.end,
            Expect::UpTo => size > range.start,
        };
        if !fits {
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

/// The objects beneath a URL that ends in `/`; their keys are relative to it, by rising bytes.
pub fn list(url: &str) -> io::Result<Vec<Meta>> {
    let (origin, prefix) = split(url)?;
    let (store, prefix) = (store(origin)?, prefix.trim_end_matches('/').to_owned());
    let path = Path::parse(&prefix).map_err(|e| invalid(url, e))?;
    let mut found: Vec<Meta> = patiently(|| {
        let (store, path) = (store.clone(), path.clone());
        async move {
            let mut pages = store.list(Some(&path));
            let mut found = Vec::new();
            while let Some(meta) = next(&mut pages).await {
                found.push(meta.map_err(|e| system(&e))?.into());
            }
            Ok(found)
        }
    })?;
    for meta in &mut found {
        let relative = meta.key.strip_prefix(&prefix).unwrap_or(&meta.key).trim_start_matches('/').to_owned();
        meta.key = relative;
    }
    found.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(found)
}

async fn next<S: futures_core::Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    std::future::poll_fn(|context| std::pin::Pin::new(&mut *stream).poll_next(context)).await
}

/// Asks again after a fault that may pass, and waits for the answer.
fn patiently<T: Send + 'static, F: Future<Output = io::Result<T>> + Send + 'static>(
    ask: impl Fn() -> F,
) -> io::Result<T> {
    let runtime = runtime()?;
    let mut pause = FIRST_PAUSE;
    for _ in 1..ATTEMPTS {
        match wait(&runtime, ask()) {
            Err(e)
                if !matches!(
                    e.kind(),
                    ErrorKind::NotFound | ErrorKind::UnexpectedEof | ErrorKind::PermissionDenied
                ) =>
            {
                std::thread::sleep(pause);
                pause *= 2;
            }
            other => return other,
        }
    }
    wait(&runtime, ask())
}

/// Runs to the end on the runtime's own threads: `block_on` would poll on a thread that may be another runtime's.
fn wait<T: Send + 'static>(
    runtime: &Runtime,
    task: impl Future<Output = io::Result<T>> + Send + 'static,
) -> io::Result<T> {
    let (send, receive) = std::sync::mpsc::sync_channel(1);
    runtime.spawn(async move {
        let _ = send.send(task.await);
    });
    receive.recv().unwrap_or_else(|_| Err(io::Error::other("the request was given up")))
}

/// An object read in large blocks, for scans that go through it from start to end.
pub struct Blocks {
    object: Object,
    length: u64,
    size: u64,
    held: Mutex<Vec<(u64, Bytes)>>,
}

impl Blocks {
    /// Opens an object and learns its size and time.
    pub fn open(url: &str) -> io::Result<(Self, Meta)> {
        let object = Object::new(url)?;
        let meta = object.meta()?;
        Ok((Self { object, length: meta.length, size: BLOCK, held: Mutex::default() }, meta))
    }

    /// An object of known length, of which little more than its header is wanted.
    pub fn header(url: &str, length: u64) -> io::Result<Self> {
        Ok(Self { object: Object::new(url)?, length, size: HEADER, held: Mutex::default() })
    }

    fn block(&self, number: u64) -> io::Result<Bytes> {
        let mut held = lock(&self.held);
        if let Some(at) = held.iter().position(|(n, _)| *n == number) {
            let found = held.remove(at);
            held.push(found);
            return Ok(held[held.len() - 1].1.clone());
        }
        let start = number * self.size;
        let range = start..(start + self.size).min(self.length);
        let bytes = self.object.fetch(range)?;
        if held.len() == BLOCKS {
            held.remove(0);
        }
        held.push((number, bytes.clone()));
        Ok(bytes)
    }
}

impl ReadAt for Blocks {
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < into.len() && offset + (done as u64) < self.length {
            let at = offset + done as u64;
            let block = self.block(at / self.size)?;
            let part = &block[(at % self.size) as usize..];
            let n = part.len().min(into.len() - done);
            into[done..done + n].copy_from_slice(&part[..n]);
            done += n;
        }
        Ok(done)
    }
}
