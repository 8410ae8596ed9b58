//! Addresses that a registry's answers lead to: redirects and token servers. Only what HTTP clients of registries meet.

use std::fmt;

use crate::reference::{is_loopback, split_host};

/// Whom a connection is made to; credentials never leave it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Origin {
    pub tls: bool,
    pub host: String,
    pub port: u16,
}

/// An address, as far as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Url {
    pub origin: Origin,
    /// Path and query, with its leading slash.
    pub path: String,
}

impl Origin {
    /// From `host[:port]`, brackets around IPv6 addresses.
    pub fn new(tls: bool, authority: &str) -> Result<Self, String> {
        let (host, port) = split_host(authority)?;
        if host.is_empty()
            || !host
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte))
        {
            return Err(format!("{host:?} is not a host"));
        }
        Ok(Self {
            tls,
            host: host.to_ascii_lowercase(),
            port: port.unwrap_or(if tls { 443 } else { 80 }),
        })
    }

    /// On this machine's loopback, by address or as `localhost`.
    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.host)
    }

    /// `host[:port]` for the Host header, and for people.
    pub fn authority(&self) -> String {
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        };
        match (self.tls, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

impl Url {
    /// Parses an absolute `http:` or `https:` address.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lower = text.get(..8).unwrap_or(text).to_ascii_lowercase();
        let (tls, rest) = match (lower.starts_with("https://"), lower.starts_with("http://")) {
            (true, _) => (true, &text[8..]),
            (_, true) => (false, &text[7..]),
            _ => return Err(format!("{text:?} is not an http or https address")),
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if !path.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!(
                "{text:?} has characters that do not belong in an address"
            ));
        }
        let path = if path.starts_with('/') {
            path.into()
        } else {
            format!("/{path}")
        };
        Ok(Self {
            origin: Origin::new(tls, authority)?,
            path,
        })
    }

    /// Where a Location header leads from here (RFC 9110 section 10.2.2).
    pub fn join(&self, location: &str) -> Result<Self, String> {
        let scheme = if self.origin.tls { "https" } else { "http" };
        let base = format!("{scheme}://{}", self.origin.authority());
        if location.contains("://") && !location.starts_with('/') {
            return Self::parse(location);
        }
        if location.starts_with("//") {
            return Self::parse(&format!("{scheme}:{location}"));
        }
        if location.starts_with('/') {
            return Self::parse(&format!("{base}{location}"));
        }
        let path = self.path.split('?').next().unwrap_or_default();
        let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
        Self::parse(&format!("{base}{directory}/{location}"))
    }

    /// May a request from `from` be sent on to here? Not in the clear, but on loopback; not from outside to this
    /// machine's own services.
    pub fn allowed_from(&self, from: &Origin) -> Result<(), String> {
        if self.origin.is_loopback() && !from.is_loopback() {
            return Err(format!(
                "it leads from {} to this machine's loopback",
                from.authority()
            ));
        }
        if !self.origin.tls && !self.origin.is_loopback() {
            return Err("it leads to plain HTTP".into());
        }
        Ok(())
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.origin.tls { "https" } else { "http" };
        // Queries of redirects are signed: they are credentials, and do not belong in messages.
        let path = self.path.split('?').next().unwrap_or_default();
        write!(f, "{scheme}://{}{path}", self.origin.authority())
    }
}

/// Escapes a value of a query (RFC 3986 section 2.3: all but unreserved characters; `/` and `:` may stay).
pub(crate) fn query_value(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte.is_ascii_alphanumeric() || b"-._~/:".contains(&byte) {
            true => out.push(char::from(byte)),
            false => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_resolved_and_their_queries_hidden() {
        let base = Url::parse("https://reg.example:8443/v2/a/blobs/x?y=1").unwrap();
        for (location, wanted) in [
            (
                "https://CDN.example/data?sig=secret",
                "https://cdn.example/data",
            ),
            ("//cdn.example/data", "https://cdn.example/data"),
            ("/other", "https://reg.example:8443/other"),
            ("z?next=http://a/", "https://reg.example:8443/v2/a/blobs/z"),
        ] {
            let found = base.join(location).map(|url| url.to_string());
            match location.starts_with('z') {
                true => assert!(found.is_err() || found.as_deref() == Ok(wanted)),
                false => assert_eq!(found.as_deref(), Ok(wanted)),
            }
        }
        assert_eq!(
            base.join("https://cdn.example/data?sig=secret")
                .unwrap()
                .path,
            "/data?sig=secret"
        );
        for location in [
            "ftp://a/",
            "https://",
            "https://a b/",
            "https://a/\r\nX: y",
            "https://u@a/",
            "https://a:0/",
        ] {
            assert!(base.join(location).is_err(), "{location}");
        }
    }

    #[test]
    fn nobody_is_led_into_the_clear_or_onto_this_machine() {
        let outside = Origin::new(true, "reg.example").unwrap();
        let here = Origin::new(false, "127.0.0.1:5000").unwrap();
        let allowed = |to: &str, from: &Origin| Url::parse(to).unwrap().allowed_from(from).is_ok();
        assert!(allowed("https://cdn.example/", &outside));
        assert!(allowed("http://127.0.0.1:5001/", &here));
        assert!(!allowed("http://cdn.example/", &outside));
        assert!(!allowed("http://169.254.169.254/", &outside));
        assert!(!allowed("https://127.0.0.1/", &outside));
        assert!(!allowed("http://localhost/", &outside));
        assert!(!allowed("http://cdn.example/", &here));
    }

    #[test]
    fn queries_are_escaped() {
        assert_eq!(
            query_value("repository:a/b:pull&x= "),
            "repository:a/b:pull%26x%3D%20"
        );
    }
}
