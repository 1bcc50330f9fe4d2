//! The stores of a process and the threads that talk to them. In: the origin of a URL and the environment. Out: a
//! store, made once, and its faults as system errors.

use std::collections::HashMap;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::list::PaginatedListStore;
use object_store::{ClientConfigKey, ClientOptions, Error, HeaderMap, HeaderValue, ObjectStore, RetryConfig};
use tokio::runtime::{Builder, Runtime};

use super::secrets::{Expired, authorization, query_for, without_secrets};
use crate::fetch::retry::Busy;
use crate::sync::lock;

/// Where the environment does not say otherwise.
const DEFAULTS: [(&str, ClientConfigKey, &str); 2] =
    [("TIMEOUT", ClientConfigKey::Timeout, "30s"), ("CONNECT_TIMEOUT", ClientConfigKey::ConnectTimeout, "5s")];
const TIMED_OUT: &str = "no whole answer in the time allowed (30 s, of which 5 s to connect; AWS_TIMEOUT, GOOGLE_TIMEOUT, \
                         AZURE_TIMEOUT, HTTP_TIMEOUT and … _CONNECT_TIMEOUT set it)";
/// What the crate says of a status, which follows; the error itself is private to it.
const STATUS: &str = "Server returned non-2xx status code: ";
/// The same of an answer that is the whole object.
const NO_RANGES: &str = "Range request not supported";
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

/// Does what may wait for a disk beside the tasks; None where it ended in a panic.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}

pub(super) fn invalid(url: &str, why: impl std::fmt::Display) -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, without_secrets(&format!("'{url}' cannot be used: {why}")).into_owned())
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
    // One place tries again, `fetch/retry.rs`.
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    macro_rules! from_environment {
        ($builder:expr, $prefix:literal, $key:path) => {{
            let mut builder = $builder.with_url(origin).with_retry(retry).with_http_connector(Attentive);
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
            let host = origin.rsplit(['/', '@']).next().unwrap_or_default();
            let name = if host.contains(']') { host } else { host.split(':').next().unwrap_or(host) };
            let mut options = ClientOptions::new();
            if let Some(mut said) = authorization(name).and_then(|said| HeaderValue::from_str(&said).ok()) {
                said.set_sensitive(true);
                let mut headers = HeaderMap::new();
                headers.insert("authorization", said);
                options = options.with_default_headers(headers);
            }
            let mut builder = HttpBuilder::new().with_url(origin).with_retry(retry).with_http_connector(Attentive);
            builder = builder.with_client_options(options);
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

/// Connects as the crate does, adds the signature that an address needs, and hears what a server says with a refusal, of
/// which the crate keeps the body alone.
#[derive(Debug)]
struct Attentive;

impl HttpConnector for Attentive {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Heard(ReqwestConnector::default().connect(options)?)))
    }
}

#[derive(Debug)]
struct Heard(HttpClient);

impl HttpService for Heard {
    // As the crate's macro would write it.
    fn call<'a, 'b>(&'a self, request: HttpRequest) -> Answer<'b>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let (request, signed) = sign(request);
            let mut response = self.0.execute(request).await?;
            if let Some(asked) = signed {
                let status = response.status();
                if matches!(status.as_u16(), 400 | 401 | 403) {
                    return Err(HttpError::new(HttpErrorKind::Unknown, Expired(status.to_string())));
                }
                if !status.is_success() {
                    // Many a server repeats there what it was asked.
                    *response.body_mut() = String::new().into();
                }
                if let (Asked::Meta, Some(size)) = (asked, whole_size(&response)) {
                    response.headers_mut().insert("content-length", HeaderValue::from(size));
                }
            }
            let after =
                response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.trim().parse().ok());
            match after {
                Some(seconds) if matches!(response.status().as_u16(), 429 | 503) => {
                    let said = format!("{}, and asks for {seconds} s", response.status());
                    let busy = Busy { said, after: Duration::from_secs(seconds) };
                    Err(HttpError::new(HttpErrorKind::Unknown, busy))
                }
                _ => Ok(response),
            }
        })
    }
}

/// What a signed request is for.
enum Asked {
    Bytes,
    Meta,
}

/// Adds the query that an address needs, where one is known. A signature is good for one method, so what would be asked
/// by HEAD is asked by the first byte.
fn sign(mut request: HttpRequest) -> (HttpRequest, Option<Asked>) {
    let address = request.uri().to_string();
    let Some(query) = (!address.contains('?')).then(|| query_for(&address)).flatten() else { return (request, None) };
    // What is no address is asked for as it is, and refused.
    let Ok(signed) = format!("{address}?{query}").parse() else { return (request, None) };
    *request.uri_mut() = signed;
    if request.method().as_str() != "HEAD" {
        return (request, Some(Asked::Bytes));
    }
    *request.method_mut() = Default::default();
    request.headers_mut().insert("range", HeaderValue::from_static("bytes=0-0"));
    (request, Some(Asked::Meta))
}

/// The size that an answer with a part of an object says the whole has.
fn whole_size(response: &HttpResponse) -> Option<u64> {
    response.headers().get("content-range")?.to_str().ok()?.rsplit('/').next()?.parse().ok()
}

type Answer<'b> = Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'b>>;

type Cause<'a> = &'a (dyn std::error::Error + 'static);

/// What an error was made of, the innermost last. Errors of the system hide what they wrap.
fn causes(error: &Error) -> impl Iterator<Item = Cause<'_>> {
    fn inner<'a>(cause: &Cause<'a>) -> Option<Cause<'a>> {
        let wrapped = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        wrapped.map(|inner| inner as Cause<'a>).or_else(|| cause.source())
    }
    std::iter::successors(Some(error as Cause<'_>), inner)
}

/// The innermost cause, which is what a person needs.
fn reason(error: &Error) -> String {
    let said = causes(error).last().map_or_else(|| error.to_string(), ToString::to_string);
    if said.contains("timed out") {
        return TIMED_OUT.into();
    }
    let outer = error.to_string();
    if matches!(error, Error::NotSupported { .. }) && said.contains(NO_RANGES) {
        return format!(
            "{NO_RANGES}: the server answers no ranges, and would send all of it for each image; serve it by one that does \
             (nginx, a bucket), or copy it"
        );
    }
    match error {
        Error::Generic { .. } => said,
        _ if outer.contains(&said) => outer,
        _ => format!("{outer}: {said}"),
    }
}

/// Whether a server has said no, rather than that it cannot now: no such request, no such certificate.
fn refusal(error: &Error) -> bool {
    causes(error).any(|cause| {
        let said = cause.to_string();
        let status = said.strip_prefix(STATUS).and_then(|rest| rest.get(..3)?.parse().ok()).unwrap_or(0);
        (matches!(status, 300..=499 | 501 | 505) && !matches!(status, 408 | 409 | 425 | 429))
            || said.starts_with("error following redirect")
            || matches!(cause.downcast_ref(), Some(rustls::Error::InvalidCertificate(_)))
    })
}

pub(super) fn system(error: &Error) -> io::Error {
    if let Some(busy) = causes(error).find_map(|cause| cause.downcast_ref::<Busy>()) {
        return io::Error::other(busy.clone());
    }
    if let Some(expired) = causes(error).find_map(|cause| cause.downcast_ref::<Expired>()) {
        return io::Error::new(ErrorKind::PermissionDenied, expired.clone());
    }
    let kind = match error {
        Error::NotFound { .. } => ErrorKind::NotFound,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => ErrorKind::PermissionDenied,
        Error::Generic { .. } if !refusal(error) => ErrorKind::Other,
        _ => ErrorKind::InvalidInput,
    };
    io::Error::new(kind, without_secrets(&reason(error)).into_owned())
}
