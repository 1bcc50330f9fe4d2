//! What must not be seen of addresses, and where it comes from instead. In: a text that may hold URLs, or a host. Out: the
//! text without passwords and signatures, or the header that shows who we are.
//!
//! Addresses are printed, logged, written into indexes and hashed into ids, so a secret in one has no place to hide:
//! nothing takes one that holds any, and what is said of one goes through here.

use std::borrow::Cow;
use std::path::PathBuf;

use base64::prelude::{BASE64_STANDARD, Engine as _};

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

#[cfg(test)]
mod tests {
    use super::*;

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
