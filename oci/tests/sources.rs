//! Layouts, archives, compression, integrity, and the store they end in.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use serde_json::{Value, json};
use support::{
    Bench, Compression, Member, chain, docker_archive, gzip, member, pull_into, tar, tar_of,
    write_layout, write_manifest,
};
use tepui_oci::{Digest, PullOptions, Store, pull, rootfs};

/// Owned by us, so that the tests that need no root run without.
fn mine(members: &[Member]) -> Vec<u8> {
    let (uid, gid) = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    tar(&members
        .iter()
        .map(|member| member.clone().owner(uid.into(), gid.into()))
        .collect::<Vec<_>>())
}

fn two_layers() -> Vec<Vec<u8>> {
    let passwd = "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n";
    let lower = mine(&[
        Member::dir("etc"),
        Member::file("etc/passwd", passwd),
        Member::symlink("link", "/etc/../etc"),
    ]);
    vec![
        lower,
        mine(&[
            Member::dir("etc"),
            Member::file("etc/group", "extra:x:50:web\n"),
            Member::file("bin", "2"),
        ]),
    ]
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, serde_json::to_vec(&value).unwrap()).unwrap();
}

#[test]
fn every_form_of_an_image_becomes_the_same_layers() {
    let layers = two_layers();
    let bench = Bench::new();
    let mut seen = Vec::new();
    for (name, compression) in [
        ("plain", Compression::None),
        ("gzip", Compression::Gzip),
        ("zstd", Compression::Zstd),
    ] {
        let dir = bench.path(name);
        write_layout(
            &dir,
            &layers,
            compression,
            json!({"User": "web", "Env": ["A=b"], "StopSignal": "SIGINT"}),
        );
        let archive = tar_of(&dir);
        std::fs::write(bench.path(&format!("{name}.tar")), &archive).unwrap();
        std::fs::write(bench.path(&format!("{name}.tar.gz")), gzip(&archive)).unwrap();
        let path = dir.display();
        seen.extend([
            format!("oci:{path}:v1"),
            format!("oci:{path}"),
            format!("oci-archive:{path}.tar:v1"),
            format!("oci-archive:{path}.tar.gz"),
        ]);
    }
    let saved = docker_archive(&layers, &["web:v1"]);
    std::fs::write(bench.path("saved.tar"), &saved).unwrap();
    let saved = bench.path("saved.tar");
    seen.extend(
        ["", ":v1", ":web:v1", ":docker.io/library/web:v1"]
            .map(|tag| format!("docker-archive:{}{tag}", saved.display())),
    );
    let mut names = Vec::new();
    for (at, reference) in seen.iter().enumerate() {
        // Each in a store of its own, so that each is really unpacked.
        let store = Store::open(&bench.path(&format!("store-{at}"))).unwrap();
        let image =
            pull_into(&store, reference).unwrap_or_else(|error| panic!("{}", chain(&error)));
        let top = store.layers_directory().join(&image.layers[0]);
        assert_eq!(std::fs::read_to_string(top.join("bin")).unwrap(), "2");
        let group = rootfs::read_file(&store, &image, "link/group").unwrap();
        assert_eq!(group.as_deref(), Some(&b"extra:x:50:web\n"[..]));
        let ids = rootfs::resolve_user(&store, &image, "web").unwrap();
        assert_eq!((ids.uid, ids.gid, ids.additional_gids), (33, 34, vec![50]));
        names.push(image.layers);
    }
    assert!(names.windows(2).all(|pair| pair[0] == pair[1]), "{names:?}");
    assert!(names[0].iter().all(|name| name.as_str().len() <= 24));
}

#[test]
fn what_is_there_is_neither_read_nor_unpacked_again() {
    let bench = Bench::new();
    let layers = two_layers();
    write_layout(&bench.path("image"), &layers, Compression::Gzip, json!({}));
    let reference = format!("oci:{}", bench.path("image").display());
    let first = bench.pull(&reference).unwrap();
    let inode = |image: &tepui_oci::Image| std::fs::metadata(bench.layer(image, 0)).unwrap().ino();
    let before = inode(&first);
    // Without the layers' blobs only what is in the store can serve.
    for entry in std::fs::read_dir(bench.path("image/blobs/sha256")).unwrap() {
        let path = entry.unwrap().path();
        if std::fs::read(&path).unwrap().starts_with(&[0x1f, 0x8b]) {
            std::fs::remove_file(path).unwrap();
        }
    }
    let second = bench.pull(&reference).unwrap();
    assert_eq!(
        (second.layers.clone(), inode(&second)),
        (first.layers, before)
    );
}

#[test]
fn content_that_is_not_what_was_promised_is_never_published() {
    let layers = two_layers();
    let blob_of = |bench: &Bench, at: usize| {
        let digest = Digest::of(&gzip(&layers[at]));
        bench.path("image/blobs/sha256").join(digest.hex())
    };
    type Damage<'a> = Box<dyn Fn(&Bench) + 'a>;
    let cases: Vec<(&str, Damage)> = vec![
        (
            "has the digest",
            Box::new(|bench| {
                let mut blob = std::fs::read(blob_of(bench, 1)).unwrap();
                let at = blob.len() / 2;
                blob[at] ^= 1;
                std::fs::write(blob_of(bench, 1), blob).unwrap();
            }),
        ),
        (
            "bytes",
            Box::new(|bench| std::fs::write(blob_of(bench, 1), &gzip(&layers[1])[..100]).unwrap()),
        ),
        (
            "bytes",
            Box::new(|bench| {
                std::fs::write(blob_of(bench, 1), [gzip(&layers[1]), gzip(b"")].concat()).unwrap()
            }),
        ),
        // A good blob, but not the content that the configuration promises.
        (
            "content has the digest",
            Box::new(|bench| {
                std::fs::remove_dir_all(bench.path("image")).unwrap();
                let other = [layers[0].clone(), mine(&[Member::file("evil", "")])];
                write_layout(&bench.path("image"), &layers, Compression::Gzip, json!({}));
                write_layout(&bench.path("other"), &other, Compression::Gzip, json!({}));
                let manifest = |name: &str| -> Value {
                    let index: Value = serde_json::from_slice(
                        &std::fs::read(bench.path(name).join("index.json")).unwrap(),
                    )
                    .unwrap();
                    let hex = index["manifests"][0]["digest"].as_str().unwrap()[7..].to_owned();
                    serde_json::from_slice(
                        &std::fs::read(bench.path(name).join("blobs/sha256").join(hex)).unwrap(),
                    )
                    .unwrap()
                };
                let mut mixed = manifest("image");
                mixed["layers"] = manifest("other")["layers"].clone();
                let blobs = bench.path("other/blobs/sha256");
                for entry in std::fs::read_dir(blobs).unwrap() {
                    let path = entry.unwrap().path();
                    std::fs::copy(
                        &path,
                        bench
                            .path("image/blobs/sha256")
                            .join(path.file_name().unwrap()),
                    )
                    .unwrap();
                }
                write_manifest(&bench.path("image"), &mixed);
            }),
        ),
        (
            "diff ids for",
            Box::new(|bench| {
                write_layout(&bench.path("image"), &layers, Compression::Gzip, json!({}));
                let index: Value =
                    serde_json::from_slice(&std::fs::read(bench.path("image/index.json")).unwrap())
                        .unwrap();
                let hex = index["manifests"][0]["digest"].as_str().unwrap()[7..].to_owned();
                let path = bench.path("image/blobs/sha256").join(hex);
                let mut manifest: Value =
                    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
                manifest["layers"].as_array_mut().unwrap().pop();
                write_manifest(&bench.path("image"), &manifest);
            }),
        ),
        (
            "has the digest",
            Box::new(|bench| {
                let index: Value =
                    serde_json::from_slice(&std::fs::read(bench.path("image/index.json")).unwrap())
                        .unwrap();
                let hex = index["manifests"][0]["digest"].as_str().unwrap()[7..].to_owned();
                let path = bench.path("image/blobs/sha256").join(hex);
                let text = std::fs::read_to_string(&path)
                    .unwrap()
                    .replacen(' ', "", 1)
                    .replace("2,", "2 ,")
                    .replace("2 ,", " 2,");
                let text = text.replacen(" 2,", "2,", 1);
                let mut bytes = text.into_bytes();
                let end = bytes.len() - 1;
                bytes.swap(end - 5, end - 6);
                std::fs::write(path, bytes).unwrap();
            }),
        ),
        (
            "is not a digest",
            Box::new(|bench| {
                edit(&bench.path("image/index.json"), |index| {
                    index["manifests"][0]["digest"] = json!("sha256:../../../../etc/passwd");
                    index["config"] = index["manifests"][0].clone();
                    index["manifests"] = json!(null);
                    index["layers"] = json!([]);
                })
            }),
        ),
    ];
    for (wanted, damage) in cases {
        let bench = Bench::new();
        write_layout(&bench.path("image"), &layers, Compression::Gzip, json!({}));
        damage(&bench);
        let error = bench
            .pull(&format!("oci:{}:v1", bench.path("image").display()))
            .unwrap_err();
        assert!(
            chain(&error).contains(wanted),
            "{wanted}: {}",
            chain(&error)
        );
        let left: Vec<_> = std::fs::read_dir(bench.store.layers_directory())
            .unwrap()
            .collect();
        // At most the first layer, which was right.
        assert!(
            left.len() <= 1
                && left
                    .iter()
                    .all(|entry| entry.as_ref().unwrap().file_name().len() == 24),
            "{left:?}"
        );
    }
}

#[test]
fn an_unknown_tag_is_answered_with_what_there_is() {
    let bench = Bench::new();
    write_layout(
        &bench.path("image"),
        &two_layers(),
        Compression::Gzip,
        json!({}),
    );
    let error = bench
        .pull(&format!("oci:{}:v2", bench.path("image").display()))
        .unwrap_err();
    assert!(
        chain(&error).contains(r#"has no image tagged "v2" (it has v1)"#),
        "{}",
        chain(&error)
    );
    std::fs::write(
        bench.path("saved.tar"),
        docker_archive(&two_layers(), &["web:v1"]),
    )
    .unwrap();
    let error = bench
        .pull(&format!(
            "docker-archive:{}:v2",
            bench.path("saved.tar").display()
        ))
        .unwrap_err();
    assert!(chain(&error).contains("web:v1"), "{}", chain(&error));
    let error = bench
        .pull(&format!("oci:{}", bench.path("none").display()))
        .unwrap_err();
    assert!(chain(&error).contains("index.json"), "{}", chain(&error));
}

#[test]
fn archives_that_end_early_or_link_in_circles_are_refused() {
    let bench = Bench::new();
    let whole = docker_archive(&two_layers(), &["web:v1"]);
    for length in [whole.len() / 2, 700, 100] {
        std::fs::write(bench.path("cut.tar"), &whole[..length]).unwrap();
        assert!(
            bench
                .pull(&format!(
                    "docker-archive:{}",
                    bench.path("cut.tar").display()
                ))
                .is_err()
        );
    }
    let circle = tar(&[
        Member::symlink("manifest.json", "other"),
        Member::symlink("other", "manifest.json"),
    ]);
    std::fs::write(bench.path("circle.tar"), circle).unwrap();
    assert!(
        bench
            .pull(&format!(
                "docker-archive:{}",
                bench.path("circle.tar").display()
            ))
            .is_err()
    );
}

#[test]
fn layers_of_a_docker_archive_may_be_links_to_each_other() {
    let bench = Bench::new();
    let layer = two_layers().remove(0);
    let whole = [layer.clone(), layer.clone()];
    let config = support::config(&whole, json!({}));
    let manifest = json!([{"Config": "config.json", "RepoTags": null, "Layers": ["a/layer.tar", "b/layer.tar"]}]);
    let members = [
        member("config.json", &config),
        member("a/layer.tar", &layer),
        Member::symlink("b/layer.tar", "../a/layer.tar"),
        member("./manifest.json", manifest.to_string().as_bytes()),
    ];
    std::fs::write(bench.path("saved.tar"), tar(&members)).unwrap();
    let image = bench
        .pull(&format!(
            "docker-archive:{}",
            bench.path("saved.tar").display()
        ))
        .unwrap();
    assert_eq!(image.layers.len(), 2);
}

#[test]
fn the_store_is_closed_to_others_and_cleans_up_after_the_killed() {
    let bench = Bench::new();
    let store = bench.path("store");
    assert_eq!(
        std::fs::metadata(&store).unwrap().permissions().mode() & 0o777,
        0o700
    );
    let name = "a".repeat(24);
    let unfinished = store.join("layers").join(format!(".unpack-{name}"));
    std::fs::create_dir_all(unfinished.join("deep/er")).unwrap();
    // While somebody holds its lock, it is somebody's.
    let lock = std::fs::File::create(store.join("locks").join(&name)).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    Store::open(&store).unwrap();
    assert!(unfinished.exists());
    drop(lock);
    Store::open(&store).unwrap();
    assert!(!unfinished.exists());
    std::fs::set_permissions(store.join("layers"), std::fs::Permissions::from_mode(0o755)).unwrap();
    assert!(chain(&Store::open(&store).unwrap_err()).contains("0700"));
}

#[test]
fn one_layer_is_unpacked_once_however_many_ask() {
    let bench = Bench::new();
    let files: Vec<Member> = (0..500)
        .map(|at| Member::file(&format!("f{at}"), "x"))
        .collect();
    write_layout(
        &bench.path("image"),
        &[mine(&files)],
        Compression::Gzip,
        json!({}),
    );
    let reference = format!("oci:{}", bench.path("image").display());
    let pulls: Vec<_> = (0..4)
        .map(|_| {
            let (store, reference) = (bench.path("store"), reference.clone());
            std::thread::spawn(move || {
                pull_into(&Store::open(&store).unwrap(), &reference)
                    .unwrap()
                    .layers
            })
        })
        .collect();
    let layers: Vec<_> = pulls.into_iter().map(|pull| pull.join().unwrap()).collect();
    assert!(layers.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(
        std::fs::read_dir(bench.store.layers_directory())
            .unwrap()
            .count(),
        1
    );
}

#[test]
fn a_dropped_pull_leaves_nothing_visible() {
    let bench = Bench::new();
    let files: Vec<Member> = (0..20_000)
        .map(|at| Member::file(&format!("f{at}"), "x"))
        .collect();
    write_layout(
        &bench.path("image"),
        &[mine(&files)],
        Compression::Gzip,
        json!({}),
    );
    let reference = format!("oci:{}", bench.path("image").display())
        .parse()
        .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let layers = bench.store.layers_directory();
    let count = || std::fs::read_dir(&layers).unwrap().count();
    runtime.block_on(async {
        let options = PullOptions::default();
        let pulling = pull(&bench.store, &reference, &options);
        tokio::pin!(pulling);
        // Until the half-done directory is there.
        loop {
            tokio::select! {
                biased;
                _ = &mut pulling => panic!("the pull was over before it could be dropped"),
                () = tokio::task::yield_now() => if count() > 0 { break },
            }
        }
    });
    // Waits for the threads of blocking work, which notice that nobody waits for them.
    drop(runtime);
    assert_eq!(count(), 0);
    assert_eq!(
        bench
            .pull(&format!("oci:{}", bench.path("image").display()))
            .unwrap()
            .layers
            .len(),
        1
    );
}
