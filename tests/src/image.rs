//! A small real image, made of Debian's static busybox: as an OCI layout, an OCI archive and a docker archive.
//!
//! image-spec "image-layout", "manifest" and "config"; the docker archive as `docker save` writes it. The same image
//! always has the same digests.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::tarball::{Entry, archive};

/// Where Debian's busybox-static has its only file.
pub const BUSYBOX: &str = "/bin/busybox";

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000:web:/home/web:/bin/sh\n";
const GROUP: &str = "root:x:0:\nweb:x:1000:\nextra:x:2000:web\n";

/// What an image is to hold.
#[derive(Debug, Clone)]
pub struct Image {
    layers: Vec<Vec<Entry>>,
    config: Value,
}

impl Image {
    /// busybox with a link for each of its commands, the users `root` and `web` (1000, also in group 2000), `/bin/sh` as Cmd.
    ///
    /// # Panics
    /// When busybox is not there.
    pub fn busybox() -> Self {
        let program = std::fs::read(BUSYBOX).expect("/bin/busybox of Debian's busybox-static");
        let list = Command::new(BUSYBOX)
            .arg("--list")
            .output()
            .expect("busybox lists its commands");
        let mut entries = vec![
            Entry::directory("bin", 0o755),
            Entry::file("bin/busybox", 0o755, program),
            Entry::directory("etc", 0o755),
            Entry::file("etc/passwd", 0o644, PASSWD),
            Entry::file("etc/group", 0o644, GROUP),
            Entry::directory("home", 0o755),
            Entry::directory("home/web", 0o755).owned_by(1000),
            Entry::directory("root", 0o700),
            Entry::directory("tmp", 0o1777),
        ];
        let commands = String::from_utf8_lossy(&list.stdout).into_owned();
        let links = commands.lines().filter(|name| *name != "busybox");
        entries.extend(links.map(|name| Entry::symlink(&format!("bin/{name}"), "busybox")));
        let config = json!({"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"]});
        Self {
            layers: vec![entries],
            config,
        }
    }

    /// One more layer on top. A file named `.wh.NAME` in it takes NAME away, `.wh..wh..opq` all below its directory.
    pub fn layer(mut self, entries: Vec<Entry>) -> Self {
        self.layers.push(entries);
        self
    }

    /// Sets a field of the image's `config`: `Entrypoint`, `Cmd`, `Env`, `User`, `WorkingDir` …
    pub fn with(mut self, field: &str, value: Value) -> Self {
        self.config[field] = value;
        self
    }

    /// Adds this image to the OCI layout in `directory`, which is made when missing.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write_layout(&self, directory: &Path, tag: &str) {
        let blobs = directory.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).expect("the layout's directory");
        let put = |content: &[u8], media_type: &str| {
            let digest = sha256(content);
            std::fs::write(blobs.join(&digest), content).expect("a blob");
            json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": content.len()})
        };
        let layers: Vec<Vec<u8>> = self.layers.iter().map(|layer| archive(layer)).collect();
        let packed = |tar: &Vec<u8>| put(&gzip(tar), "application/vnd.oci.image.layer.v1.tar+gzip");
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": put(self.config_file(&layers).as_bytes(), "application/vnd.oci.image.config.v1+json"),
            "layers": layers.iter().map(packed).collect::<Vec<_>>(),
        });
        let mut named = put(
            manifest.to_string().as_bytes(),
            "application/vnd.oci.image.manifest.v1+json",
        );
        named["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        let index_file = directory.join("index.json");
        let mut index = match std::fs::read(&index_file) {
            Ok(text) => serde_json::from_slice(&text).expect("an index of ours"),
            Err(_) => json!({"schemaVersion": 2, "manifests": []}),
        };
        index["manifests"]
            .as_array_mut()
            .expect("an index of ours")
            .push(named);
        std::fs::write(index_file, index.to_string()).expect("the index");
        let version = json!({"imageLayoutVersion": "1.0.0"}).to_string();
        std::fs::write(directory.join("oci-layout"), version).expect("the version file");
    }

    /// Writes the image as the tar of an OCI layout.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write_oci_archive(&self, file: &Path, tag: &str) {
        let layout = tempfile::tempdir().expect("a temporary directory");
        self.write_layout(layout.path(), tag);
        let mut tar = Command::new("tar");
        tar.arg("-cf").arg(file).arg("-C").arg(layout.path());
        let status = tar.args(["oci-layout", "index.json", "blobs"]).status();
        assert!(
            status.expect("tar runs").success(),
            "tar could not write {}",
            file.display()
        );
    }

    /// Writes the image as `docker save NAME` would.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write_docker_archive(&self, file: &Path, name: &str) {
        let layers: Vec<Vec<u8>> = self.layers.iter().map(|layer| archive(layer)).collect();
        let config = self.config_file(&layers);
        let config_name = format!("{}.json", sha256(config.as_bytes()));
        let mut entries = vec![Entry::file(&config_name, 0o644, config)];
        let mut names = Vec::new();
        for tar in layers {
            let name = format!("{}.tar", sha256(&tar));
            entries.push(Entry::file(&name, 0o644, tar));
            names.push(name);
        }
        let manifest = json!([{"Config": config_name, "RepoTags": [name], "Layers": names}]);
        entries.push(Entry::file("manifest.json", 0o644, manifest.to_string()));
        std::fs::write(file, archive(&entries)).expect("the archive");
    }

    /// Unpacks the first layer, for programs that want a directory.
    ///
    /// # Panics
    /// When tar fails.
    pub fn write_rootfs(&self, directory: &Path) {
        std::fs::create_dir(directory).expect("a new directory");
        let mut tar = Command::new("tar");
        tar.args(["-xpf", "-", "-C"])
            .arg(directory)
            .stdin(Stdio::piped());
        let mut process = tar.spawn().expect("tar starts");
        let mut input = process.stdin.take().expect("stdin is a pipe");
        input
            .write_all(&archive(&self.layers[0]))
            .expect("tar reads");
        drop(input);
        let status = process.wait().expect("it is our child");
        assert!(
            status.success(),
            "tar could not write {}",
            directory.display()
        );
        for mount_point in ["proc", "sys", "dev"] {
            std::fs::create_dir(directory.join(mount_point)).expect("not in the image");
        }
    }

    fn config_file(&self, layers: &[Vec<u8>]) -> String {
        let diff_ids: Vec<String> = layers
            .iter()
            .map(|l| format!("sha256:{}", sha256(l)))
            .collect();
        json!({
            "architecture": "amd64", "os": "linux", "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        })
        .to_string()
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzBuilder::new()
        .mtime(0)
        .write(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("memory takes it");
    encoder.finish().expect("memory takes it")
}
