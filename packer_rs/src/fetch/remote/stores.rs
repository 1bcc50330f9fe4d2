//! The stores of a process and the threads that talk to them. In: the origin of a URL and the environment. Out: a
//! store, made once, and its faults as system errors.

use std::collections::HashMap;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex};

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::list::PaginatedListStore;
use object_store::{ClientConfigKey, Error, ObjectStore, RetryConfig};
use tokio::runtime::{Builder, Runtime};

use crate::sync::lock;

/// Where the environment does not say otherwise.
const DEFAULTS: [(&str, ClientConfigKey, &str); 2] =
    [("TIMEOUT", ClientConfigKey::Timeout, "30s"), ("CONNECT_TIMEOUT", ClientConfigKey::ConnectTimeout, "5s")];
const TIMED_OUT: &str = "no whole answer in the time allowed (30 s, of which 5 s to connect; AWS_TIMEOUT, GOOGLE_TIMEOUT, \
                         AZURE_TIMEOUT, HTTP_TIMEOUT and … _CONNECT_TIMEOUT set it)";
type Stores = HashMap<String, Store>;

/// One origin: its objects, and where it has a listing, the same store page by page.
#[derive(Clone)]
pub(super) struct Store {
    pub objects: Arc<dyn ObjectStore>,
    pub pages: Option<Arc<dyn PaginatedListStore>>,
}

/// Threads and connections belong to the process that made them; a forked child makes its own.
struct Process {
    id: u32,
    runtime: Arc<Runtime>,
    stores: Stores,
}

static PROCESS: Mutex<Option<Process>> = Mutex::new(None);

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

pub(super) fn runtime() -> io::Result<Arc<Runtime>> {
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

pub(super) fn invalid(url: &str, why: impl std::fmt::Display) -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, format!("'{url}' cannot be used: {why}"))
}

/// Scheme and authority, then the key.
pub(super) fn split(url: &str) -> io::Result<(&str, &str)> {
    let start = url.find("://").ok_or_else(|| invalid(url, "it has no scheme"))? + 3;
    let end = url[start..].find('/').map_or(url.len(), |at| start + at);
    if url[end..].contains(['?', '#']) {
        return Err(invalid(url, "a query or fragment is not supported"));
    }
    Ok((&url[..end], url[end..].trim_start_matches('/')))
}

pub(super) fn store(origin: &str) -> io::Result<Store> {
    with_process(|process| {
        if let Some(store) = process.stores.get(origin) {
            return Ok(store.clone());
        }
        let store = build(origin).map_err(|e| invalid(origin, reason(&e)))?;
        process.stores.insert(origin.to_owned(), store.clone());
        Ok(store)
    })
}

fn build(origin: &str) -> Result<Store, Error> {
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
            let store = Arc::new(builder.build()?);
            Store { objects: store.clone(), pages: Some(store) }
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
                let given = std::env::var(format!("HTTP_{name}"));
                builder = builder.with_config(key, given.as_deref().unwrap_or(value));
            }
            let store = builder.with_config(ClientConfigKey::AllowHttp, "true").build()?;
            Store { objects: Arc::new(store), pages: None }
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

pub(super) fn system(error: &Error) -> io::Error {
    let kind = match error {
        Error::NotFound { .. } => ErrorKind::NotFound,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => ErrorKind::PermissionDenied,
        _ => ErrorKind::Other,
    };
    io::Error::new(kind, reason(error))
}
