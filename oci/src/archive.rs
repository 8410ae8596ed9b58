//! Image archives: a tar file's members by name, and the form that `docker save` writes (manifest.json beside
//! configurations and layers).

use std::collections::HashMap;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{CONFIG_LIMIT, MANIFEST_LIMIT};
use crate::source::{Blob, LocalImage, LocalLayer};
use crate::store::Store;
use crate::tar::{Kind, Reader};
use crate::unpack::{Decoder, LayerError, Limits};

/// Members of one archive; the largest images have some hundreds.
const MEMBERS: usize = 100_000;
/// Links between members: older `docker save` writes equal layers as links.
const LINKS: usize = 8;

/// A tar file whose members can be read in any order.
pub(crate) struct Archive {
    path: PathBuf,
    members: HashMap<String, Member>,
}

enum Member {
    File(Blob),
    Link(String),
}

impl Archive {
    /// Notes where each member is. A compressed archive is uncompressed into the store first, under no name.
    pub fn open(path: &Path, store: &Store) -> Result<Self> {
        let mut blob = Blob::open(path)?;
        let decoder =
            Decoder::new(BufReader::new(blob.reader())).map_err(Error::file("read", path))?;
        if !decoder.is_plain() {
            blob = uncompressed(decoder, path, store)?;
        }
        let members = members(&blob).map_err(|source| Error::Layer {
            layer: path.display().to_string(),
            source,
        })?;
        Ok(Self {
            path: path.into(),
            members,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A member by name, through links between members.
    pub fn member(&self, name: &str) -> Result<Blob> {
        let mut name = name.to_owned();
        for _ in 0..LINKS {
            match self.members.get(&name) {
                Some(Member::File(blob)) => return Ok(blob.clone()),
                Some(Member::Link(target)) => name = target.clone(),
                None => break,
            }
        }
        Err(Error::refused(
            self.path.display().to_string(),
            format!("it has no file {name:?}"),
        ))
    }
}

fn uncompressed(decoder: Decoder<impl io::BufRead>, path: &Path, store: &Store) -> Result<Blob> {
    let limit = Limits::default().bytes;
    let mut file = store.unnamed_file()?;
    let length = io::copy(&mut decoder.take(limit + 1), &mut file)
        .map_err(Error::file("uncompress", path))?;
    match length > limit {
        true => Err(Error::refused(
            path.display().to_string(),
            format!("it has more than {limit} bytes"),
        )),
        false => Ok(Blob {
            file: Arc::new(file),
            offset: 0,
            length,
        }),
    }
}

fn members(archive: &Blob) -> Result<HashMap<String, Member>, LayerError> {
    let mut reader = Reader::new(BufReader::new(archive.reader()));
    let mut members = HashMap::new();
    while let Some(entry) = reader.next().map_err(LayerError::Tar)? {
        if members.len() >= MEMBERS {
            return Err(LayerError::Limit {
                what: "members",
                limit: MEMBERS as u64,
            });
        }
        let name = String::from_utf8_lossy(&entry.path).into_owned();
        let refused = |rule: &str| LayerError::Entry {
            name: name.clone(),
            rule: rule.into(),
        };
        let link = String::from_utf8_lossy(&entry.link).into_owned();
        let member = match entry.kind {
            Kind::File if entry.pieces.is_some() => {
                return Err(refused("an image archive has no sparse files"));
            }
            Kind::File => {
                let (offset, length) = (reader.offset(), reader.remaining());
                // What follows is skipped by its position, so nobody else would notice that it is cut off.
                if offset
                    .checked_add(length)
                    .is_none_or(|end| end > archive.length)
                {
                    return Err(refused("the archive ends inside it"));
                }
                Member::File(Blob {
                    file: archive.file.clone(),
                    offset: archive.offset + offset,
                    length,
                })
            }
            Kind::HardLink => Member::Link(normal(&link)),
            Kind::Symlink => {
                let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
                Member::Link(normal(&format!("{parent}/{link}")))
            }
            _ => continue,
        };
        reader.seek_past_data().map_err(LayerError::Tar)?;
        members.insert(normal(&name), member);
    }
    Ok(members)
}

/// The name without `.`, `..` and double slashes: only ever a key of the map.
fn normal(name: &str) -> String {
    let mut parts = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// Finds an image in what `docker save` wrote.
pub(crate) fn resolve_docker(archive: Archive, tag: Option<&str>) -> Result<LocalImage> {
    let place = archive.path().to_path_buf();
    let refused = |rule: String| Error::refused(place.display().to_string(), rule);
    let text = archive
        .member("manifest.json")?
        .document("manifest.json", MANIFEST_LIMIT)?;
    let images: Vec<SavedImage> = serde_json::from_slice(&text)
        .map_err(|error| refused(format!("its manifest.json is not valid: {error}")))?;
    let image = choose(images, tag, &place)?;
    let config = archive
        .member(&normal(&image.config))?
        .document(&image.config, CONFIG_LIMIT)?;
    let digest = Digest::of(&config);
    // Its file is named by the image's id; where it is, the name is a promise.
    let stem = image
        .config
        .trim_end_matches(".json")
        .rsplit('/')
        .next()
        .unwrap_or_default();
    if let Some(expected) = Digest::from_hex(stem).filter(|expected| *expected != digest) {
        return Err(Error::Mismatch {
            what: "the image configuration".into(),
            expected,
            found: digest,
        });
    }
    let archive = Arc::new(archive);
    let layers = image.layers.unwrap_or_default().into_iter().map(|name| {
        let archive = archive.clone();
        LocalLayer {
            promise: None,
            open: Box::new(move || archive.member(&normal(&name))),
        }
    });
    Ok(LocalImage {
        digest,
        config,
        layers: layers.collect(),
    })
}

fn choose(mut images: Vec<SavedImage>, tag: Option<&str>, place: &Path) -> Result<SavedImage> {
    let present: Vec<String> = images
        .iter()
        .flat_map(|image| image.repo_tags.iter().flatten())
        .cloned()
        .collect();
    let matches = |name: &String| match tag {
        Some(tag) => {
            let short = |name: &str| {
                name.trim_start_matches("docker.io/")
                    .trim_start_matches("library/")
                    .to_owned()
            };
            // A whole name, a name without its tag, or only the tag.
            name == tag
                || short(name) == short(tag)
                || short(name) == format!("{}:latest", short(tag))
                || name.rsplit_once(':').is_some_and(|(_, last)| last == tag)
        }
        None => name.ends_with(":latest"),
    };
    let matching = |image: &SavedImage| image.repo_tags.iter().flatten().any(&matches);
    let at: Vec<usize> = (0..images.len())
        .filter(|at| matching(&images[*at]))
        .collect();
    match (images.len(), at.as_slice(), tag) {
        (1, _, None) => Ok(images.remove(0)),
        (_, [at], _) => Ok(images.remove(*at)),
        (_, [], _) => Err(Error::Missing {
            place: place.into(),
            wanted: tag.map_or("tagged latest, nor only one image".into(), |tag| {
                format!("tagged {tag:?}")
            }),
            present,
        }),
        _ => Err(Error::refused(
            place.display().to_string(),
            "several of its images have this tag; give the whole name",
        )),
    }
}
