//! Images made by hand, and their root file systems seen through a real overlay mount.
#![allow(dead_code, clippy::unwrap_used)]

#[path = "../../src/tar/writer.rs"]
pub mod writer;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tepui_oci::{Digest, Error, Image, ImageReference, PullOptions, Store, pull};
pub use writer::{Member, tar};

/// True if we are root; else says that the test is skipped, or fails with REQUIRE_ALL=1.
pub fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        assert!(
            std::env::var_os("REQUIRE_ALL").is_none(),
            "this test needs root"
        );
        eprintln!("skipped: this test needs root");
    }
    root
}

#[derive(Clone, Copy)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    fn apply(self, data: &[u8]) -> (Vec<u8>, &'static str) {
        match self {
            Self::None => (data.to_vec(), "application/vnd.oci.image.layer.v1.tar"),
            Self::Gzip => (gzip(data), "application/vnd.oci.image.layer.v1.tar+gzip"),
            Self::Zstd => (
                zstd::encode_all(data, 1).unwrap(),
                "application/vnd.oci.image.layer.v1.tar+zstd",
            ),
        }
    }
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// A directory with a store in it; gone with the test.
pub struct Bench {
    pub dir: tempfile::TempDir,
    pub store: Store,
}

impl Bench {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        Self { dir, store }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn pull(&self, reference: &str) -> Result<Image, Error> {
        pull_into(&self.store, reference)
    }

    /// Writes the layers as an OCI layout and pulls it.
    pub fn unpack(&self, layers: &[Vec<u8>]) -> Result<Image, Error> {
        let dir = self.path(&format!("layout-{}", Digest::of(&layers.concat()).hex()));
        write_layout(&dir, layers, Compression::Gzip, json!({}));
        self.pull(&format!("oci:{}", dir.display()))
    }

    pub fn layer(&self, image: &Image, at: usize) -> PathBuf {
        self.store.layers_directory().join(&image.layers[at])
    }

    /// Runs a shell script with the image mounted, read-write, at its working directory.
    pub fn in_overlay(&self, image: &Image, script: &str) -> String {
        let base = self.path("mount");
        for name in ["upper", "work", "root"] {
            let path = base.join(name);
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir_all(path).unwrap();
        }
        let lower: Vec<&str> = image.layers.iter().map(|layer| layer.as_str()).collect();
        let base = base.display();
        let script = format!(
            "set -e; mount -t overlay none -o lowerdir={},upperdir={base}/upper,workdir={base}/work {base}/root; \
             cd {base}/root; {script}",
            lower.join(":")
        );
        let output = Command::new("unshare")
            .args(["--mount", "sh", "-c", &script])
            .current_dir(self.store.layers_directory())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{script}: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }

    /// Names in the mounted image, in order, one space between.
    pub fn names(&self, image: &Image) -> String {
        let text = self.in_overlay(image, "find . -mindepth 1 | LC_ALL=C sort");
        text.lines()
            .map(|line| &line[2..])
            .collect::<Vec<_>>()
            .join(" ")
    }
}

pub fn pull_into(store: &Store, reference: &str) -> Result<Image, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let reference: ImageReference = reference.parse().unwrap();
    runtime.block_on(pull(store, &reference, &PullOptions::default()))
}

/// The error and its causes, as `main` prints them.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}

pub fn config(layers: &[Vec<u8>], config: Value) -> Vec<u8> {
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|layer| Digest::of(layer).to_string())
        .collect();
    serde_json::to_vec(&json!({
        "architecture": "amd64", "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }))
    .unwrap()
}

fn put_blob(dir: &Path, bytes: &[u8], media_type: &str) -> Value {
    let digest = Digest::of(bytes);
    std::fs::write(dir.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
    json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
}

/// An OCI layout with one image, tagged `v1`.
pub fn write_layout(dir: &Path, layers: &[Vec<u8>], compression: Compression, values: Value) {
    std::fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    let descriptors: Vec<Value> = layers
        .iter()
        .map(|layer| {
            let (blob, media_type) = compression.apply(layer);
            put_blob(dir, &blob, media_type)
        })
        .collect();
    let config = put_blob(
        dir,
        &config(layers, values),
        "application/vnd.oci.image.config.v1+json",
    );
    write_manifest(
        dir,
        &json!({"schemaVersion": 2, "config": config, "layers": descriptors}),
    );
}

/// Writes this manifest, and an index that tags it.
pub fn write_manifest(dir: &Path, manifest: &Value) {
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let mut descriptor = put_blob(dir, &serde_json::to_vec(manifest).unwrap(), media_type);
    descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": "v1"});
    let index = json!({"schemaVersion": 2, "manifests": [descriptor]});
    std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// What `docker save` writes for one image.
pub fn docker_archive(layers: &[Vec<u8>], tags: &[&str]) -> Vec<u8> {
    let config = config(layers, json!({"Cmd": ["sh"]}));
    let name = format!("{}.json", Digest::of(&config).hex());
    let mut members = vec![member(&name, &config)];
    let paths: Vec<String> = (0..layers.len())
        .map(|at| format!("{at}/layer.tar"))
        .collect();
    for (path, layer) in paths.iter().zip(layers) {
        members.push(member(path, layer));
    }
    let manifest = json!([{"Config": name, "RepoTags": tags, "Layers": paths}]);
    members.push(member("manifest.json", manifest.to_string().as_bytes()));
    tar(&members)
}

pub fn member(name: &str, data: &[u8]) -> Member {
    Member {
        data: data.to_vec(),
        ..Member::file(name, "")
    }
}

/// A directory as a tar stream, names relative to it.
pub fn tar_of(dir: &Path) -> Vec<u8> {
    fn walk(root: &Path, dir: &Path, members: &mut Vec<Member>) {
        let mut entries: Vec<PathBuf> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        entries.sort();
        for path in entries {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap();
            if path.is_dir() {
                members.push(Member::dir(name));
                walk(root, &path, members);
            } else {
                members.push(member(name, &std::fs::read(&path).unwrap()));
            }
        }
    }
    let mut members = Vec::new();
    walk(dir, dir, &mut members);
    tar(&members)
}
