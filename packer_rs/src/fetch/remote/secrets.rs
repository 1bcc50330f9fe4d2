//! What must not be seen of addresses, and where it comes from instead. In: a text that may hold URLs, or a host. Out: the
//! text without passwords and signatures, or the header that shows who we are.
//!
//! Addresses are printed, logged, written into indexes and hashed into ids, so a secret in one has no place to hide:
//! nothing takes one that holds any, and what is said of one goes through here.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use object_store::path::Path;

use crate::sync::lock;

/// The file that holds signed addresses is named by this.
const SIGNED: &str = "NAVIT_SIGNED";

/// A text as it may be shown: of each URL in it, without user and password and without its query.
pub fn without_secrets(text: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, url) = rest.split_at(at + 3);
        out.push_str(before);
        let end = url.find(|c: char| c.is_whitespace() || matches!(c, '\'' | '"' | '<' | '>')).unwrap_or(url.len());
        let (url, after) = url.split_at(end);
        let authority = url.find(['/', '?', '#']).unwrap_or(url.len());
        let host = url[..authority].rfind('@').map_or(0, |at| {
            out.push('…');
            at
        });
        let query = url.find('?').unwrap_or(url.len());
        out.push_str(&url[host..query]);
        if query < url.len() {
            out.push_str("?…");
        }
        rest = after;
    }
    if out.is_empty() {
        return Cow::Borrowed(text);
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// What an `Authorization` header says to a host, from the file that `curl --netrc` reads: `NETRC`, or `~/.netrc`. None
/// where it knows nothing of the host.
pub(super) fn authorization(host: &str) -> Option<String> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".netrc"));
    let path = std::env::var_os("NETRC").map(PathBuf::from).or_else(home)?;
    let (user, password) = login(&std::fs::read_to_string(path).ok()?, host)?;
    Some(format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))))
}

/// User and password of a host: those of its `machine`, or of `default`, which stands last.
fn login(netrc: &str, host: &str) -> Option<(String, String)> {
    let (mut ours, mut user, mut password) = (false, "", None);
    let mut words = netrc.lines().filter(|line| !line.trim_start().starts_with('#')).flat_map(str::split_whitespace);
    while let Some(word) = words.next() {
        match word {
            "machine" | "default" if password.is_some() => break,
            "machine" => ours = words.next() == Some(host),
            "default" => ours = true,
            "login" if ours => user = words.next()?,
            "password" if ours => password = words.next(),
            "login" | "password" | "account" => drop(words.next()),
            _ => {}
        }
    }
    password.map(|password| (user.to_owned(), password.to_owned()))
}

/// A file, as it was when it was read: when it was written and how long it was, and the query of each address in it.
type Signed = (PathBuf, Option<SystemTime>, u64, Arc<HashMap<String, String>>);

static READ: Mutex<Option<Signed>> = Mutex::new(None);

/// The query by which a web server gives an object to us, a signature most often: from the file that `NAVIT_SIGNED`
/// names, where the whole address stands in a line of its own. The file is read again whenever it was written.
pub(super) fn query_for(address: &str) -> Option<String> {
    let path = PathBuf::from(std::env::var_os(SIGNED)?);
    let stat = std::fs::metadata(&path).ok()?;
    let (written, length) = (stat.modified().ok(), stat.len());
    let mut read = lock(&READ);
    let known = read.as_ref().filter(|known| (&known.0, known.1, known.2) == (&path, written, length));
    let queries = match known {
        Some(known) => known.3.clone(),
        None => {
            let queries = Arc::new(queries(&std::fs::read_to_string(&path).ok()?));
            *read = Some((path, written, length, queries.clone()));
            queries
        }
    };
    queries.get(&plain(address)?).cloned()
}

fn queries(file: &str) -> HashMap<String, String> {
    let lines = file.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once('?')).filter_map(|(url, query)| Some((plain(url)?, query.into()))).collect()
}

/// An address in the one way of several to write it.
fn plain(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let (host, path) = rest.split_once('/')?;
    Some(format!("{scheme}://{}/{}", host.to_ascii_lowercase(), Path::from_url_path(path).ok()?))
}

/// A server has refused an address that we signed.
#[derive(Clone, Debug)]
pub(super) struct Expired(pub String);

impl fmt::Display for Expired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: the signature that the file of {SIGNED} has for it has expired, or is of something else; write the \
             address there with a new one, which is read at once",
            self.0
        )
    }
}

impl std::error::Error for Expired {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signed_address_is_found_however_it_is_written() {
        let found = queries(
            "# mine\nhttps://Host/a%20b/x.tar?sig=1%2F&e=2\n\n  http://h:80/y.tar?only\nhttps://h/unsigned.tar\nodd",
        );
        let query = |url| plain(url).and_then(|url| found.get(&url)).map(String::as_str);
        assert_eq!(query("https://host/a b/x.tar"), Some("sig=1%2F&e=2"));
        assert_eq!(query("https://host/a%20b/x.tar"), Some("sig=1%2F&e=2"));
        assert_eq!(query("http://h:80/y.tar"), Some("only"));
        assert_eq!(query("http://host/a%20b/x.tar"), None);
        assert_eq!(query("https://h/unsigned.tar"), None);
    }

    #[test]
    fn no_secret_of_an_address_is_shown() {
        for (text, expected) in [
            ("'http://user:s3cret@host/a.tar' cannot be read", "'http://…@host/a.tar' cannot be read"),
            ("https://host/a.tar?X-Amz-Signature=s3cret&b=c", "https://host/a.tar?…"),
            ("GET http://u:s3cr@t@host?sig=s3cret in 3 ms", "GET http://…@host?… in 3 ms"),
            ("a http://u:s3cret@h/x, b https://s3cret@h#x?y", "a http://…@h/x, b https://…@h#x?…"),
            ("s3://bucket/a@b.tar#c.jpg", "s3://bucket/a@b.tar#c.jpg"),
            ("/images/why?.jpg and a@b", "/images/why?.jpg and a@b"),
            ("://", "://"),
            ("://s3cret@", "://…@"),
        ] {
            assert_eq!(without_secrets(text), expected);
        }
    }

    #[test]
    fn a_netrc_gives_each_host_its_own() {
        let file = "# machine h password no\nmachine a login x password y\nmachine h\n  login me\n  password p:w\n\
                    machine h login late password late\ndefault login d password e";
        assert_eq!(login(file, "h"), Some(("me".into(), "p:w".into())));
        assert_eq!(login(file, "a"), Some(("x".into(), "y".into())));
        assert_eq!(login(file, "other"), Some(("d".into(), "e".into())));
        assert_eq!(login("machine a login x password y", "other"), None);
        assert_eq!(login("machine h login x\nmachine b login z password y", "h"), None);
        assert_eq!(login("machine h login", "h"), None);
    }
}
