//! An image's configuration (image-spec config.md): what to run, as whom, where, and the diff ids of its layers.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};

/// The defaults an image carries for its containers; a missing or null field is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[non_exhaustive]
pub struct ImageConfig {
    /// The program and its first arguments.
    #[serde(deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    /// Default arguments, or the program itself where there is no entrypoint.
    #[serde(deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    /// `NAME=value`.
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// Where the process starts; none: `/`.
    #[serde(deserialize_with = "not_empty")]
    pub working_dir: Option<String>,
    /// `name|uid[:group|gid]`; none: root.
    #[serde(deserialize_with = "not_empty")]
    pub user: Option<String>,
    /// `SIGNAME` or a number, for a graceful end; none: SIGTERM.
    #[serde(deserialize_with = "not_empty")]
    pub stop_signal: Option<String>,
    /// Free-form labels.
    #[serde(deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    /// `port[/tcp|udp]` the process listens on.
    #[serde(deserialize_with = "keys")]
    pub exposed_ports: Vec<String>,
    /// Paths whose content is the container's own data.
    #[serde(deserialize_with = "keys")]
    pub volumes: Vec<String>,
}

/// The whole document.
#[derive(Deserialize)]
pub(crate) struct ConfigDocument {
    #[serde(default, deserialize_with = "or_default")]
    pub architecture: String,
    #[serde(default, deserialize_with = "or_default")]
    pub os: String,
    #[serde(default, deserialize_with = "or_default")]
    pub config: ImageConfig,
    pub rootfs: RootFilesystem,
}

#[derive(Deserialize)]
pub(crate) struct RootFilesystem {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(deserialize_with = "or_default")]
    pub diff_ids: Vec<Digest>,
}

impl ConfigDocument {
    /// Parses the document and checks that this node can run it.
    pub fn parse(bytes: &[u8], digest: &Digest, architecture: &str) -> Result<Self> {
        let what = format!("the image configuration {digest}");
        let document: Self = serde_json::from_slice(bytes)
            .map_err(|error| Error::refused(&what, format!("it is not valid: {error}")))?;
        if document.rootfs.kind != "layers" {
            return Err(Error::refused(
                &what,
                "the type of its rootfs is not \"layers\"",
            ));
        }
        let (os, cpu) = (document.os.as_str(), document.architecture.as_str());
        // Either may be missing in images made by hand; then there is nothing to contradict.
        if !matches!(os, "" | "linux") || !(cpu.is_empty() || cpu == architecture) {
            let rule = format!("it is for {os}/{cpu}, and this node runs linux/{architecture}");
            return Err(Error::refused(what, rule));
        }
        let values = &document.config;
        let texts = [&values.entrypoint, &values.cmd, &values.env]
            .into_iter()
            .flatten();
        if texts
            .chain(&values.working_dir)
            .chain(&values.user)
            .any(|text| text.contains('\0'))
        {
            return Err(Error::refused(what, "a value has a NUL in it"));
        }
        Ok(document)
    }
}

fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

fn not_empty<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(Option::deserialize(from)?.filter(|text: &String| !text.is_empty()))
}

/// Go writes sets as maps to empty objects.
fn keys<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let map: Option<BTreeMap<String, serde::de::IgnoredAny>> = Option::deserialize(from)?;
    Ok(map.unwrap_or_default().into_keys().collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ConfigDocument> {
        ConfigDocument::parse(text.as_bytes(), &Digest::of(b""), "amd64")
    }

    #[test]
    fn null_missing_and_empty_mean_the_same() {
        let full = parse(
            r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":null},"config":
            {"Entrypoint":null,"Cmd":["sh"],"WorkingDir":"","User":null,"Volumes":{"/data":{}},"OnBuild":null}}"#,
        );
        let config = full.unwrap().config;
        let wanted = ImageConfig {
            cmd: vec!["sh".into()],
            volumes: vec!["/data".into()],
            ..ImageConfig::default()
        };
        assert_eq!(config, wanted);
        let bare = r#"{"rootfs":{"type":"layers","diff_ids":[]}}"#;
        assert_eq!(parse(bare).unwrap().config, ImageConfig::default());
    }

    #[test]
    fn what_this_node_cannot_run_is_refused() {
        for text in [
            r#"{"os":"windows","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}"#,
            r#"{"os":"linux","architecture":"arm64","rootfs":{"type":"layers","diff_ids":[]}}"#,
            r#"{"rootfs":{"type":"layers","diff_ids":["sha256:../../x"]}}"#,
            r#"{"rootfs":{"type":"other","diff_ids":[]}}"#,
            r#"{"rootfs":{"type":"layers","diff_ids":[]},"config":{"Env":["A=\u0000"]}}"#,
            r#"{"config":{}}"#,
            "[]",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
