//! Debian's docker-registry on loopback, with its storage in the test's directory.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::ground::Ground;
use crate::image::Image;
use crate::{output, wait};

/// A running registry; it ends with this value.
#[derive(Debug)]
pub struct Registry {
    process: Child,
    address: String,
}

impl Registry {
    /// Starts one on a free port.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(ground: &Ground) -> Self {
        let address = format!("127.0.0.1:{}", free_port());
        let directory = ground.path("registry");
        std::fs::create_dir(&directory).expect("the registry's directory");
        let config = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{address}\"}}\n",
            directory.display()
        );
        let file = ground.path("registry.yml");
        std::fs::write(&file, config).expect("the registry's configuration");
        let log = std::fs::File::create(ground.path("registry.log")).expect("the registry's log");
        let process = ground
            .command("docker-registry")
            .arg("serve")
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("docker-registry starts");
        let registry = Self { process, address };
        wait::until("docker-registry listens", Duration::from_secs(10), || {
            TcpStream::connect(&registry.address).ok()
        });
        registry
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Pushes `image` and says its reference: `127.0.0.1:PORT/NAME`.
    ///
    /// # Panics
    /// When skopeo fails.
    pub fn push(&self, image: &Image, name: &str) -> String {
        let layout = tempfile::tempdir().expect("a temporary directory");
        image.write_layout(layout.path(), "latest");
        self.push_layout(layout.path(), name)
    }

    fn push_layout(&self, layout: &Path, name: &str) -> String {
        let reference = format!("{}/{name}", self.address);
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["--insecure-policy", "copy", "--dest-tls-verify=false"]);
        skopeo
            .arg(format!("oci:{}:latest", layout.display()))
            .arg(format!("docker://{reference}"));
        output::finish(&mut skopeo, Duration::from_secs(60)).success();
        reference
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A port that nobody listened on a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener
        .local_addr()
        .expect("a bound socket has an address")
        .port()
}
