//! OCI layouts (image-spec image-layout.md), as directories or inside archives.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::archive::Archive;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{CONFIG_LIMIT, Descriptor, Document, MANIFEST_LIMIT, Manifest, choose};
use crate::source::{Blob, LocalImage, LocalLayer};

/// Names of an image in an index.
const NAMES: [&str; 2] = [
    "org.opencontainers.image.ref.name",
    "io.containerd.image.name",
];

/// Indexes within indexes; more is not worth following.
const DEPTH: usize = 4;

/// Where a layout's files are.
#[derive(Clone)]
pub(crate) enum Layout {
    Directory(PathBuf),
    Archive(Arc<Archive>),
}

impl Layout {
    /// Finds the image with this tag for this architecture.
    pub fn resolve(self, tag: Option<&str>, architecture: &str) -> Result<LocalImage> {
        let place = self.place().to_path_buf();
        let index = self
            .open("index.json")?
            .document("index.json", MANIFEST_LIMIT)?;
        let Document::Index(entries) = Document::parse(&index, None)? else {
            return Err(Error::refused(
                format!("{}", place.display()),
                "its index.json is not an index",
            ));
        };
        let chosen = tagged(&entries, tag, &place, architecture)?;
        let (digest, manifest) = self.descend(chosen.clone(), architecture)?;
        let config = self.document(&manifest.config, CONFIG_LIMIT)?;
        let layers = manifest.layers.into_iter().map(|layer| {
            let layout = self.clone();
            LocalLayer {
                promise: Some((layer.digest, layer.size)),
                open: Box::new(move || layout.blob(&layer.digest)),
            }
        });
        Ok(LocalImage {
            digest,
            config,
            layers: layers.collect(),
        })
    }

    /// From a descriptor, perhaps through indexes, to the manifest.
    fn descend(
        &self,
        mut descriptor: Descriptor,
        architecture: &str,
    ) -> Result<(Digest, Manifest)> {
        for _ in 0..DEPTH {
            let bytes = self.document(&descriptor, MANIFEST_LIMIT)?;
            match Document::parse(&bytes, Some(&descriptor.media_type))? {
                Document::Manifest(manifest) => return Ok((descriptor.digest, manifest)),
                Document::Index(entries) => {
                    let chosen = choose(&entries, architecture);
                    descriptor = chosen
                        .map_err(|present| no_platform(self.place(), architecture, present))?
                        .clone();
                }
            }
        }
        Err(Error::refused(
            format!("{}", self.place().display()),
            "its indexes are nested too deeply",
        ))
    }

    /// A document by its descriptor, size and digest checked.
    fn document(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>> {
        let what = format!("the document {}", descriptor.digest);
        let bytes = self.blob(&descriptor.digest)?.document(&what, limit)?;
        check_document(&what, descriptor, &bytes)?;
        Ok(bytes)
    }

    fn blob(&self, digest: &Digest) -> Result<Blob> {
        self.open(&format!("blobs/sha256/{}", digest.hex()))
    }

    fn open(&self, name: &str) -> Result<Blob> {
        match self {
            Self::Directory(directory) => Blob::open(&directory.join(name)),
            Self::Archive(archive) => archive.member(name),
        }
    }

    fn place(&self) -> &Path {
        match self {
            Self::Directory(directory) => directory,
            Self::Archive(archive) => archive.path(),
        }
    }
}

/// Size and digest of a document against what its descriptor promises.
pub(crate) fn check_document(what: &str, descriptor: &Descriptor, bytes: &[u8]) -> Result<()> {
    if bytes.len() as u64 != descriptor.size {
        let rule = format!(
            "it has {} bytes, but {} were promised",
            bytes.len(),
            descriptor.size
        );
        return Err(Error::refused(what, rule));
    }
    let found = Digest::of(bytes);
    match found == descriptor.digest {
        true => Ok(()),
        false => Err(Error::Mismatch {
            what: what.into(),
            expected: descriptor.digest,
            found,
        }),
    }
}

pub(crate) fn no_platform(place: &Path, architecture: &str, present: Vec<String>) -> Error {
    Error::Missing {
        place: place.into(),
        wanted: format!("for linux/{architecture}"),
        present,
    }
}

fn tagged<'a>(
    entries: &'a [Descriptor],
    tag: Option<&str>,
    place: &Path,
    architecture: &str,
) -> Result<&'a Descriptor> {
    let names = |entry: &'a Descriptor| {
        let annotations = entry.annotations.iter();
        annotations.flat_map(|map| NAMES.iter().filter_map(|name| map.get(*name)))
    };
    let with = |tag: &str| -> Vec<Descriptor> {
        entries
            .iter()
            .filter(|entry| names(entry).any(|name| name == tag))
            .cloned()
            .collect()
    };
    let find = |tag: &str| {
        // One tag may stand at the images of several platforms.
        let digest = choose(&with(tag), architecture)
            .ok()
            .map(|entry| entry.digest)?;
        entries.iter().find(|entry| entry.digest == digest)
    };
    let found = match tag {
        Some(tag) => find(tag),
        None => match entries {
            [only] => Some(only),
            _ => find("latest"),
        },
    };
    found.ok_or_else(|| Error::Missing {
        place: place.into(),
        wanted: tag.map_or("tagged latest, nor only one image".into(), |tag| {
            format!("tagged {tag:?}")
        }),
        present: entries.iter().flat_map(names).cloned().collect(),
    })
}
