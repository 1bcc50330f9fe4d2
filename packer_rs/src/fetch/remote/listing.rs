//! What lies beneath a prefix. In: a URL. Out: its objects, and the keys that no object can be asked for by.
//!
//! Apart, since the crate refuses a whole page for one key that is no path to it (an empty part, `.`, `..`, a control
//! character). Such keys are legal; they come from joined paths. Where one is met the listing is gone through again in
//! pages that shrink until the key stands alone, which is passed over.

use std::future::Future;
use std::io;
use std::sync::Arc;

use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path;
use object_store::{Error, ObjectStore};

use super::secrets::without_secrets;
use super::stores::{invalid, runtime, split, store, system};
use super::{Meta, wait};
use crate::fetch::retry::{Patience, patiently};

/// Keys of a page, as servers give at most.
const PAGE: usize = 1000;

/// The objects beneath a URL.
#[derive(Debug, Default)]
pub struct Listing {
    /// Their keys are relative to it, by rising bytes.
    pub objects: Vec<Meta>,
    /// Keys, relative too, that cannot be asked for.
    pub odd: Vec<String>,
}

/// The objects beneath a URL that ends in `/`.
///
/// # Errors
/// The bucket refuses, or the server has no listing.
pub fn list(url: &str) -> io::Result<Listing> {
    let (origin, prefix) = split(url)?;
    let (store, prefix) = (store(origin)?, prefix.trim_end_matches('/').to_owned());
    let path = path::Path::parse(&prefix).map_err(|e| invalid(url, e))?;
    let whole = asked(url, || all(store.objects.clone(), path.clone()))?;
    let mut found = match (whole, store.pages) {
        (Some(objects), _) => Listing { objects, odd: Vec::new() },
        (None, Some(pages)) => around(url, &pages, (!prefix.is_empty()).then(|| format!("{prefix}/")))?,
        (None, None) => return Err(invalid(url, "its listing has keys that are no paths")),
    };
    let relative = |key: &str| key.strip_prefix(&prefix).unwrap_or(key).trim_start_matches('/').to_owned();
    for meta in &mut found.objects {
        meta.key = relative(&meta.key);
    }
    // Of these the slashes are what is odd.
    let beneath = if prefix.is_empty() { 0 } else { prefix.len() + 1 };
    found.odd = found.odd.iter().map(|key| key.get(beneath..).unwrap_or(key).to_owned()).collect();
    found.objects.sort_by(|a, b| a.key.cmp(&b.key));
    found.objects.dedup_by(|a, b| a.key == b.key);
    Ok(found)
}

/// Asks until a fault has lasted too long.
fn asked<T: Send + 'static, F: Future<Output = io::Result<T>> + Send + 'static>(
    url: &str,
    ask: impl Fn() -> F,
) -> io::Result<T> {
    let runtime = runtime()?;
    patiently(Patience::new(None), || without_secrets(url).into(), || wait(&runtime, &without_secrets(url), ask()))
}

/// All objects; None where a key among them is no path.
async fn all(store: Arc<dyn ObjectStore>, prefix: path::Path) -> io::Result<Option<Vec<Meta>>> {
    let mut pages = store.list(Some(&prefix));
    let mut found = Vec::new();
    while let Some(meta) = std::future::poll_fn(|context| pages.as_mut().poll_next(context)).await {
        match meta {
            Ok(meta) => found.push(meta.into()),
            Err(e) if odd_key(&e).is_some() => return Ok(None),
            Err(e) => return Err(system(&e)),
        }
    }
    Ok(Some(found))
}

/// The same around keys that are no paths: by halves up to the first of them, then on behind it.
fn around(url: &str, store: &Arc<dyn PaginatedListStore>, prefix: Option<String>) -> io::Result<Listing> {
    let (mut found, mut after, mut most) = (Listing::default(), None::<String>, PAGE);
    loop {
        let page = asked(url, || {
            let (store, prefix, offset) = (store.clone(), prefix.clone(), after.clone());
            let options = PaginatedListOptions { offset, max_keys: Some(most), ..PaginatedListOptions::default() };
            async move {
                match store.list_paginated(prefix.as_deref(), options).await {
                    Ok(page) => Ok(Ok(page)),
                    Err(e) => odd_key(&e).map(Err).ok_or_else(|| system(&e)),
                }
            }
        })?;
        let page = match page {
            Ok(page) => page,
            Err(key) if most == 1 => {
                found.odd.push(key.clone());
                after = Some(key);
                continue;
            }
            Err(_) => {
                most /= 2;
                continue;
            }
        };
        let Some(last) = page.result.objects.last().map(|meta| meta.location.to_string()) else { return Ok(found) };
        found.objects.extend(page.result.objects.into_iter().map(Meta::from));
        if page.page_token.is_none() {
            return Ok(found);
        }
        after = match after {
            Some(before) if before > last => {
                return Err(io::Error::other("the server does not begin its listing where it is asked to"));
            }
            // A key that ends in a slash, which paths leave away.
            Some(before) if before == last => Some(format!("{last}/")),
            _ => Some(last),
        };
        most = (2 * most).min(PAGE);
    }
}

/// The key for which a page is refused.
fn odd_key(error: &Error) -> Option<String> {
    match error {
        Error::InvalidPath { source: path::Error::EmptySegment { path } | path::Error::BadSegment { path, .. } } => {
            Some(path.clone())
        }
        _ => None,
    }
}
