//! Image references: which image, and where it comes from. Grammar after distribution-spec "Pulling manifests" and the
//! host rule that Docker's users know: a first part with a dot, a colon or `localhost` is a registry.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};

const TLS: &str = "https://";

/// The registry of names without a host when none is configured.
const DOCKER_HUB: &str = "docker.io";

/// One image, by name or by place.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ImageReference {
    /// `[host[:port]/]name[:tag][@digest]`.
    Registry(RegistryReference),
    /// `oci:DIR[:tag]`: a directory as image-spec image-layout.md describes it.
    OciLayout {
        /// The layout's directory.
        dir: PathBuf,
        /// None: `latest`, else the only image in it.
        tag: Option<String>,
    },
    /// `oci-archive:FILE[:tag]`: such a directory in a tar file.
    OciArchive {
        /// The tar file, perhaps compressed.
        file: PathBuf,
        /// None: `latest`, else the only image in it.
        tag: Option<String>,
    },
    /// `docker-archive:FILE[:tag]`: what `docker save` writes.
    DockerArchive {
        /// The tar file, perhaps compressed.
        file: PathBuf,
        /// A tag or a whole name; none: the only image in it, else the one tagged `latest`.
        tag: Option<String>,
    },
}

/// An image in a registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RegistryReference {
    /// Host, and port if it was given.
    pub host: String,
    /// The repository, e.g. `library/busybox`.
    pub repository: String,
    /// The tag; `latest` when neither tag nor digest was given.
    pub tag: Option<String>,
    /// The digest; it wins over the tag.
    pub digest: Option<Digest>,
    /// Whether `https://` was asked for by name: then plain HTTP is not tried on loopback either.
    pub tls_only: bool,
}

/// Where names without a host are looked for (`--docker-registry`, as Mesos' agent flag of that name).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DefaultRegistry {
    /// Host, and port if it was given; begins with `https://` when that was asked for by name.
    Url(String),
    /// A directory of `NAME[:TAG].tar` archives.
    Directory(PathBuf),
}

impl ImageReference {
    /// Parses what a user wrote; names without a host belong to `default`, or to Docker Hub.
    pub fn parse(text: &str, default: Option<&DefaultRegistry>) -> Result<Self> {
        let bad = |rule: &str| Error::Reference {
            text: text.chars().take(400).collect(),
            wanted: "an image reference",
            rule: rule.into(),
        };
        for (prefix, make) in [
            (
                "oci:",
                (|dir, tag| Self::OciLayout { dir, tag }) as fn(PathBuf, Option<String>) -> Self,
            ),
            ("oci-archive:", |file, tag| Self::OciArchive { file, tag }),
            ("docker-archive:", |file, tag| Self::DockerArchive {
                file,
                tag,
            }),
        ] {
            let Some(rest) = text.strip_prefix(prefix) else {
                continue;
            };
            let (path, tag) = match rest.split_once(':') {
                Some((path, tag)) => (path, Some(tag)),
                None => (rest, None),
            };
            if path.is_empty() || path.contains('\0') {
                return Err(bad("a path must follow the first colon"));
            }
            if tag.is_some_and(|tag| {
                tag.is_empty() || !tag.bytes().all(|byte| byte.is_ascii_graphic())
            }) {
                return Err(bad("the tag after the path must be visible characters"));
            }
            return Ok(make(path.into(), tag.map(Into::into)));
        }
        let (host, rest) = match text.split_once('/') {
            Some((host, rest)) if looks_like_host(host) => (Some(host), rest),
            _ => (None, text),
        };
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (
                rest,
                Some(digest.parse().map_err(|_| {
                    bad("after @ there must be sha256: and 64 lower-case hexadecimal digits")
                })?),
            ),
            None => (rest, None),
        };
        let (repository, tag) = match rest.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (rest, None),
        };
        if !is_repository(repository) {
            return Err(bad(
                "its name must be lower-case letters and digits, parted by single '.', '_', '__', '-' or '/'",
            ));
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(bad(
                "its tag must be up to 128 letters, digits, '_', '.' or '-'",
            ));
        }
        let mut tls_only = false;
        let host = match (host, default) {
            (Some(host), _) => {
                check_host(host).map_err(|rule| bad(&rule))?;
                host.to_owned()
            }
            (None, Some(DefaultRegistry::Directory(_))) if digest.is_some() => {
                return Err(bad(
                    "an archive of the image directory cannot be named by digest",
                ));
            }
            (None, Some(DefaultRegistry::Directory(dir))) => {
                return Ok(archive_in(dir, repository, tag));
            }
            (None, Some(DefaultRegistry::Url(url))) => {
                tls_only = url.starts_with(TLS);
                url.strip_prefix(TLS).unwrap_or(url).to_owned()
            }
            (None, None) => DOCKER_HUB.into(),
        };
        let hub = matches!(
            host.as_str(),
            "docker.io" | "index.docker.io" | "registry-1.docker.io"
        );
        let repository = match hub && !repository.contains('/') {
            true => format!("library/{repository}"),
            false => repository.into(),
        };
        if repository.len() > 255 {
            return Err(bad("its name is longer than 255 characters"));
        }
        let tag = match (tag, digest) {
            (None, None) => Some("latest".into()),
            (tag, _) => tag.map(Into::into),
        };
        let host = if hub { DOCKER_HUB.into() } else { host };
        Ok(Self::Registry(RegistryReference {
            host,
            repository,
            tag,
            digest,
            tls_only,
        }))
    }

    /// Makes a relative path of a layout or archive start at `dir`.
    pub fn relative_to(self, dir: &Path) -> Self {
        match self {
            Self::Registry(reference) => Self::Registry(reference),
            Self::OciLayout { dir: path, tag } => Self::OciLayout {
                dir: dir.join(path),
                tag,
            },
            Self::OciArchive { file, tag } => Self::OciArchive {
                file: dir.join(file),
                tag,
            },
            Self::DockerArchive { file, tag } => Self::DockerArchive {
                file: dir.join(file),
                tag,
            },
        }
    }
}

impl RegistryReference {
    /// The host and port to connect to; Docker Hub's name and address differ.
    pub(crate) fn endpoint(&self) -> &str {
        match self.host.as_str() {
            DOCKER_HUB => "registry-1.docker.io",
            host => host,
        }
    }
}

/// `DIR/NAME:TAG.tar`, else `DIR/NAME.tar`: the names of Mesos' image directory.
fn archive_in(dir: &Path, repository: &str, tag: Option<&str>) -> ImageReference {
    let tagged = dir.join(format!("{repository}:{}.tar", tag.unwrap_or("latest")));
    let plain = dir.join(format!("{repository}.tar"));
    match tagged.exists() {
        // Whatever the archive calls its image: the file's name is what was asked for.
        true => ImageReference::DockerArchive {
            file: tagged,
            tag: None,
        },
        false => ImageReference::DockerArchive {
            file: plain,
            tag: tag.map(Into::into),
        },
    }
}

fn looks_like_host(text: &str) -> bool {
    text == "localhost"
        || text.contains(['.', ':', '['])
        || text.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// Splits `host`, `host:port`, `[v6]:port`; the port is checked, the brackets are gone.
pub(crate) fn split_host(text: &str) -> std::result::Result<(&str, Option<u16>), String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or("a [ in the host needs its ]")?;
            host.parse::<Ipv6Addr>()
                .map_err(|_| format!("{host:?} is not an IPv6 address"))?;
            match port.strip_prefix(':') {
                None if !port.is_empty() => return Err("after ] only :PORT may follow".into()),
                port => (host, port),
            }
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = match port {
        Some(port) => Some(
            port.parse()
                .ok()
                .filter(|number| *number != 0 && port.bytes().all(|byte| byte.is_ascii_digit()))
                .ok_or_else(|| format!("{port:?} is not a port"))?,
        ),
        None => None,
    };
    Ok((host, port))
}

fn check_host(text: &str) -> std::result::Result<(), String> {
    let (host, _) = split_host(text)?;
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    match text.starts_with('[') || (host.len() <= 253 && host.split('.').all(label)) {
        true => Ok(()),
        false => Err(format!("{host:?} is not a host name")),
    }
}

/// True for 127.0.0.0/8, ::1 and `localhost`: the only places where plain HTTP needs no flag.
pub(crate) fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .parse::<Ipv4Addr>()
            .is_ok_and(|address| address.is_loopback())
        || host
            .parse::<Ipv6Addr>()
            .is_ok_and(|address| address.is_loopback())
}

fn is_repository(text: &str) -> bool {
    !text.is_empty() && text.split('/').all(is_path_component)
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` of distribution-spec.
fn is_path_component(text: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    alphanumeric(first)
        && alphanumeric(last)
        && bytes.split(alphanumeric).all(|separator| {
            matches!(separator, b"" | b"." | b"_" | b"__")
                || separator.iter().all(|byte| *byte == b'-')
        })
}

/// `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}` of distribution-spec.
fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=128).contains(&text.len())
        && word(text.as_bytes()[0])
        && text
            .bytes()
            .all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

impl FromStr for ImageReference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text, None)
    }
}

impl TryFrom<String> for ImageReference {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<ImageReference> for String {
    fn from(reference: ImageReference) -> Self {
        reference.to_string()
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (form, path, tag) = match self {
            Self::Registry(reference) => return reference.fmt(f),
            Self::OciLayout { dir, tag } => ("oci", dir, tag),
            Self::OciArchive { file, tag } => ("oci-archive", file, tag),
            Self::DockerArchive { file, tag } => ("docker-archive", file, tag),
        };
        write!(f, "{form}:{}", path.display())?;
        tag.iter().try_for_each(|tag| write!(f, ":{tag}"))
    }
}

impl fmt::Display for RegistryReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        self.tag.iter().try_for_each(|tag| write!(f, ":{tag}"))?;
        self.digest
            .iter()
            .try_for_each(|digest| write!(f, "@{digest}"))
    }
}

impl FromStr for DefaultRegistry {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |rule: String| Error::Reference {
            text: text.into(),
            wanted: "a registry or a directory of image archives",
            rule,
        };
        let (plain, rest) = match (text.strip_prefix("http://"), text.strip_prefix(TLS)) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ if text.starts_with('/') || Path::new(text).is_dir() => {
                return Ok(Self::Directory(text.into()));
            }
            _ => (false, text),
        };
        let host = rest.trim_end_matches('/');
        if host.is_empty() || host.contains('/') {
            return Err(bad(
                "give http(s)://HOST[:PORT], HOST[:PORT], or a directory".into(),
            ));
        }
        check_host(host).map_err(bad)?;
        if plain && !split_host(host).is_ok_and(|(host, _)| is_loopback(host)) {
            return Err(bad(
                "plain HTTP is only for 127.0.0.0/8, ::1 and localhost; use https://".into(),
            ));
        }
        let scheme = if text.starts_with(TLS) { TLS } else { "" };
        Ok(Self::Url(format!("{scheme}{host}")))
    }
}

impl TryFrom<String> for DefaultRegistry {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<DefaultRegistry> for String {
    fn from(default: DefaultRegistry) -> Self {
        default.to_string()
    }
}

impl fmt::Display for DefaultRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(host) => f.write_str(host),
            Self::Directory(path) => path.display().fmt(f),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        text.parse::<ImageReference>()
            .map_or_else(|error| error.to_string(), |it| it.to_string())
    }

    #[test]
    fn names_are_completed_as_their_users_expect() {
        let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for (given, wanted) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/team/web", "docker.io/team/web:latest"),
            ("team/web:v1.0_rc-2", "docker.io/team/web:v1.0_rc-2"),
            ("localhost/web", "localhost/web:latest"),
            ("127.0.0.1:5000/a/b/c:x", "127.0.0.1:5000/a/b/c:x"),
            ("[::1]:5000/a__b", "[::1]:5000/a__b:latest"),
            ("reg.example/a--b.c", "reg.example/a--b.c:latest"),
            ("oci:/srv/images/web", "oci:/srv/images/web"),
            ("oci:web:v1", "oci:web:v1"),
            (
                "oci-archive:web.tar:team/web:v1",
                "oci-archive:web.tar:team/web:v1",
            ),
            ("docker-archive:./web.tar", "docker-archive:./web.tar"),
        ] {
            assert_eq!(shown(given), wanted);
            assert_eq!(shown(wanted), wanted);
        }
        assert_eq!(
            shown(&format!("a@{digest}")),
            format!("docker.io/library/a@{digest}")
        );
        assert_eq!(
            shown(&format!("r.io/a:t@{digest}")),
            format!("r.io/a:t@{digest}")
        );
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let long = format!("r.io/{}", "a".repeat(256));
        let tag = format!("a:{}", "t".repeat(129));
        for text in [
            "",
            "/",
            "A",
            "a/",
            "/a",
            "a//b",
            "a:",
            "a:-t",
            "a b",
            "a@",
            "a@sha256:00",
            "a@md5:00",
            "-a",
            "a-",
            "a_",
            "a..b",
            "a___b",
            "r.io/A",
            "r.io:x/a",
            "r.io:0/a",
            "r.io:99999/a",
            "r.io:+1/a",
            "[::1/a",
            "[zz]:1/a",
            "-r.io/a",
            "r..io/a",
            "r.io/../a",
            "r.io/a?b",
            "u@r.io/a",
            "oci:",
            "oci-archive::t",
            "docker-archive:x:",
            "https://r.io/a",
            &long,
            &tag,
        ] {
            assert!(text.parse::<ImageReference>().is_err(), "{text}");
        }
    }

    #[test]
    fn names_without_a_host_go_to_the_default_registry() {
        let registry: DefaultRegistry = "http://127.0.0.1:5000/".parse().unwrap();
        let of = |text: &str, default: &DefaultRegistry| {
            ImageReference::parse(text, Some(default))
                .unwrap()
                .to_string()
        };
        assert_eq!(of("web", &registry), "127.0.0.1:5000/web:latest");
        assert_eq!(of("r.io/web", &registry), "r.io/web:latest");
        assert_eq!(
            "https://reg.example"
                .parse::<DefaultRegistry>()
                .unwrap()
                .to_string(),
            "https://reg.example"
        );
        for text in [
            "http://reg.example",
            "",
            "https://",
            "https://a/b",
            "no such dir",
            "ftp://x",
        ] {
            assert!(text.parse::<DefaultRegistry>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_directory_as_default_registry_holds_archives() {
        let dir = tempfile::tempdir().unwrap();
        let default: DefaultRegistry = dir.path().to_str().unwrap().parse().unwrap();
        std::fs::write(dir.path().join("web:v1.tar"), "").unwrap();
        let of = |text: &str| ImageReference::parse(text, Some(&default)).unwrap();
        let file = dir.path().join("web:v1.tar");
        assert_eq!(
            of("web:v1"),
            ImageReference::DockerArchive { file, tag: None }
        );
        let file = dir.path().join("web.tar");
        assert_eq!(
            of("web"),
            ImageReference::DockerArchive {
                file: file.clone(),
                tag: None
            }
        );
        assert_eq!(
            of("web:v2"),
            ImageReference::DockerArchive {
                file,
                tag: Some("v2".into())
            }
        );
    }

    #[test]
    fn relative_places_can_be_anchored() {
        let of = |text: &str| shown_at(text, "/srv");
        assert_eq!(of("oci:web:v1"), "oci:/srv/web:v1");
        assert_eq!(of("oci-archive:/abs.tar"), "oci-archive:/abs.tar");
    }

    fn shown_at(text: &str, dir: &str) -> String {
        text.parse::<ImageReference>()
            .unwrap()
            .relative_to(Path::new(dir))
            .to_string()
    }
}
