//! Manifests and indexes (image-spec manifest.md, image-index.md; Docker's schema 2 has the same shape), and the choice
//! of one image for this node from an index.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};

/// The largest manifest or index that is read: what registries must accept at least (distribution-spec "Pushing manifests").
pub(crate) const MANIFEST_LIMIT: u64 = 4 << 20;
/// The largest image configuration that is read.
pub(crate) const CONFIG_LIMIT: u64 = 8 << 20;

const INDEXES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
const MANIFESTS: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
const CONFIGS: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];
const LAYERS: [&str; 7] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
];
const MORE_LAYERS: [&str; 3] = [
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];

/// For the Accept header: a registry answers 404 when it has only types that are not in it.
pub(crate) fn accepted_types() -> String {
    [INDEXES, MANIFESTS].concat().join(", ")
}

/// Points to a blob (image-spec descriptor.md).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default)]
    pub annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub platform: Option<Platform>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub variant: Option<String>,
}

/// One image: its configuration and layers, lowest first.
#[derive(Debug)]
pub(crate) struct Manifest {
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

/// Either kind of document, told apart by its own content.
#[derive(Debug)]
pub(crate) enum Document {
    Manifest(Manifest),
    Index(Vec<Descriptor>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<serde_json::Value>>,
    manifests: Option<Vec<serde_json::Value>>,
    #[serde(default)]
    fs_layers: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Parses a manifest or index; `media_type` is what the descriptor or the registry calls it.
    ///
    /// A document that could be read as either kind is refused (CVE-2021-41190).
    pub fn parse(bytes: &[u8], media_type: Option<&str>) -> Result<Self> {
        let what = || format!("the manifest {}", Digest::of(bytes));
        let bad = |rule: String| Error::refused(what(), rule);
        let raw: Raw = serde_json::from_slice(bytes)
            .map_err(|error| bad(format!("it is not valid: {error}")))?;
        if raw.schema_version == 1 || raw.fs_layers.is_some() {
            return Err(bad(
                "it is of Docker's schema 1, which no longer serves; push the image again".into(),
            ));
        }
        if raw.schema_version != 2 {
            return Err(bad(format!(
                "its schemaVersion is {}, not 2",
                raw.schema_version
            )));
        }
        let known = |text: &str| INDEXES.contains(&text) || MANIFESTS.contains(&text);
        // A registry's generic label (application/json, text/plain) says nothing; a known one must agree.
        let outer = media_type.filter(|text| known(text));
        let inner = raw.media_type.as_deref().filter(|text| !text.is_empty());
        if let (Some(outer), Some(inner)) = (outer, inner)
            && outer != inner
        {
            return Err(bad(format!(
                "it calls itself {inner}, but was announced as {outer}"
            )));
        }
        let index = match (
            raw.layers.is_some() || raw.config.is_some(),
            raw.manifests.is_some(),
        ) {
            (true, true) => return Err(bad("it is manifest and index at once".into())),
            (false, false) => return Err(bad("it is neither a manifest nor an index".into())),
            (_, index) => index,
        };
        if let Some(label) = inner.or(outer)
            && !(if index { INDEXES } else { MANIFESTS }).contains(&label)
        {
            return Err(bad(format!(
                "its media type {label} does not fit its content"
            )));
        }
        let descriptor = |value: serde_json::Value| serde_json::from_value::<Descriptor>(value);
        if let Some(manifests) = raw.manifests {
            // Entries of unknown kinds may be there, with other digests too; they are not for us (image-index.md).
            return Ok(Self::Index(
                manifests
                    .into_iter()
                    .filter_map(|value| descriptor(value).ok())
                    .collect(),
            ));
        }
        let layers = raw.layers.unwrap_or_default().into_iter().map(descriptor);
        let layers = layers
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(|error| bad(format!("a layer of it is not valid: {error}")))?;
        let config = raw.config.ok_or_else(|| bad("it has no config".into()))?;
        if !CONFIGS.contains(&config.media_type.as_str()) {
            return Err(bad(format!(
                "it is no container image: its config is {:?}",
                config.media_type
            )));
        }
        for layer in &layers {
            let label = layer.media_type.as_str();
            if !LAYERS.contains(&label) && !MORE_LAYERS.contains(&label) {
                return Err(bad(format!(
                    "the type of its layer {} is unknown: {label:?}",
                    layer.digest
                )));
            }
        }
        Ok(Self::Manifest(Manifest { config, layers }))
    }
}

/// The entry of an index that fits `linux` and this architecture best, or what there is instead.
pub(crate) fn choose<'a>(
    entries: &'a [Descriptor],
    architecture: &str,
) -> std::result::Result<&'a Descriptor, Vec<String>> {
    let usable = entries.iter().filter(|entry| {
        let label = entry.media_type.as_str();
        (INDEXES.contains(&label) || MANIFESTS.contains(&label)) && !is_attestation(entry)
    });
    let usable: Vec<&Descriptor> = usable.collect();
    let rank = |entry: &Descriptor| match &entry.platform {
        Some(platform) if platform.os == "linux" && platform.architecture == architecture => {
            variant_rank(architecture, platform.variant.as_deref())
        }
        Some(_) => None,
        // Its configuration still says what it is for.
        None => Some(100),
    };
    usable
        .iter()
        .filter_map(|entry| Some((rank(entry)?, *entry)))
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, entry)| entry)
        .ok_or_else(|| {
            usable
                .iter()
                .filter_map(|entry| entry.platform.as_ref())
                .map(Platform::to_string)
                .collect()
        })
}

/// Lower is better; none is what the CPU cannot run.
fn variant_rank(architecture: &str, variant: Option<&str>) -> Option<u32> {
    let Some(variant) = variant.filter(|text| !text.is_empty()) else {
        return Some(10);
    };
    match (architecture, variant) {
        ("amd64", "v1") => Some(10),
        ("amd64", level) => amd64_level_fits(level).then_some(20),
        ("arm64", "v8") => Some(10),
        _ => Some(50),
    }
}

#[cfg(target_arch = "x86_64")]
fn amd64_level_fits(level: &str) -> bool {
    let v2 = std::arch::is_x86_feature_detected!("sse4.2")
        && std::arch::is_x86_feature_detected!("popcnt");
    match level {
        "v2" => v2,
        "v3" => {
            v2 && std::arch::is_x86_feature_detected!("avx2")
                && std::arch::is_x86_feature_detected!("bmi2")
        }
        _ => false,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn amd64_level_fits(_: &str) -> bool {
    false
}

/// Build tools put attestations beside the images, for the platform unknown/unknown.
fn is_attestation(entry: &Descriptor) -> bool {
    let unknown =
        |platform: &Platform| platform.os == "unknown" || platform.architecture == "unknown";
    entry.platform.as_ref().is_some_and(unknown)
        || entry.annotations.as_ref().is_some_and(|map| {
            map.get("vnd.docker.reference.type")
                .is_some_and(|kind| kind == "attestation-manifest")
        })
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant
            .iter()
            .try_for_each(|variant| write!(f, "/{variant}"))
    }
}

/// This node's architecture in the words of images (Go's GOARCH).
pub(crate) fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const HEX: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn entry(platform: &str, size: u64) -> Descriptor {
        let mut parts = platform.split('/').map(String::from);
        let text = format!(
            r#"{{"mediaType":"{}","digest":"{HEX}","size":{size}}}"#,
            MANIFESTS[0]
        );
        let mut entry: Descriptor = serde_json::from_str(&text).unwrap();
        if !platform.is_empty() {
            let (os, architecture) = (parts.next().unwrap(), parts.next().unwrap());
            entry.platform = Some(Platform {
                architecture,
                os,
                variant: parts.next(),
            });
        }
        entry
    }

    #[test]
    fn the_choice_fits_the_node_and_is_never_an_attestation() {
        let chosen = |platforms: &[&str]| {
            let entries: Vec<_> = platforms
                .iter()
                .enumerate()
                .map(|(n, platform)| entry(platform, n as u64))
                .collect();
            choose(&entries, "amd64")
                .map(|entry| entry.size as usize)
                .map_err(|list| list.join(" "))
        };
        assert_eq!(
            chosen(&["unknown/unknown", "linux/arm64", "linux/amd64"]),
            Ok(2)
        );
        assert_eq!(chosen(&["linux/amd64/v9", "linux/amd64/v1"]), Ok(1));
        assert_eq!(chosen(&["", "linux/amd64"]), Ok(1));
        assert_eq!(chosen(&["unknown/unknown", ""]), Ok(1));
        assert_eq!(
            chosen(&["windows/amd64", "linux/arm64/v8"]),
            Err("windows/amd64 linux/arm64/v8".into())
        );
    }

    #[test]
    fn a_document_has_one_kind() {
        let config = format!(
            r#"{{"mediaType":"{}","digest":"{HEX}","size":1}}"#,
            CONFIGS[0]
        );
        let good = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[]}}"#);
        assert!(matches!(
            Document::parse(good.as_bytes(), Some(MANIFESTS[1])),
            Ok(Document::Manifest(_))
        ));
        assert!(matches!(
            Document::parse(good.as_bytes(), Some("application/json")),
            Ok(Document::Manifest(_))
        ));
        let index = r#"{"schemaVersion":2,"manifests":[{"mediaType":"odd","digest":"sha512:00","size":-1}]}"#;
        assert!(
            matches!(Document::parse(index.as_bytes(), None), Ok(Document::Index(list)) if list.is_empty())
        );
        for (text, label) in [
            (good.as_str(), Some(INDEXES[0])),
            (index, Some(MANIFESTS[0])),
            (
                &good.replace("\"layers\"", "\"manifests\":[],\"layers\""),
                None,
            ),
            (
                &good.replace("\"layers\"", "\"layers\":[],\"layers\""),
                None,
            ),
            (&good.replace(":2,", ":1,"), None),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#, None),
            (r#"{"schemaVersion":2}"#, None),
            (
                &good.replace(CONFIGS[0], "application/vnd.cncf.helm.config.v1+json"),
                None,
            ),
            (
                &good.replace(
                    "[]",
                    &format!(r#"[{{"mediaType":"x","digest":"{HEX}","size":1}}]"#),
                ),
                None,
            ),
            (&"[".repeat(100_000), None),
        ] {
            assert!(
                Document::parse(text.as_bytes(), label).is_err(),
                "{}",
                &text[..text.len().min(200)]
            );
        }
    }
}
