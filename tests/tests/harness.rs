//! The harness itself: other programs read its image, and its look at the host finds what it must find.

use std::fs;
use std::process::Command;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use tepui_tests::tarball::Entry;
use tepui_tests::{Ground, Image, Registry, host, output, requires};

fn skopeo_inspect(image: &str) -> serde_json::Value {
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["inspect", "--config", "--tls-verify=false", image]);
    let found = output::finish(&mut skopeo, Duration::from_secs(60)).success();
    serde_json::from_str(&found.stdout).expect("skopeo prints JSON")
}

#[test]
fn skopeo_reads_the_image_in_each_form() {
    requires!(busybox(), registry());
    let ground = Ground::new();
    let image = Image::busybox()
        .with("Entrypoint", serde_json::json!(["/bin/echo"]))
        .layer(vec![
            Entry::directory("etc", 0o755),
            Entry::file("etc/.wh.group", 0o644, ""),
        ]);
    let layout = ground.layout(&image);
    let (oci, docker) = (ground.path("oci.tar"), ground.path("docker.tar"));
    image.write_oci_archive(&oci, "latest");
    image.write_docker_archive(&docker, "busybox:latest");
    let registry = Registry::start(&ground);
    let pushed = registry.push(&image, "team/busybox:1");

    let first = skopeo_inspect(&format!("{layout}:latest"));
    assert_eq!(first["config"]["Entrypoint"][0], "/bin/echo");
    assert_eq!(
        first["rootfs"]["diff_ids"].as_array().map(Vec::len),
        Some(2)
    );
    let others = [
        format!("oci-archive:{}:latest", oci.display()),
        format!("docker-archive:{}", docker.display()),
        format!("docker://{pushed}"),
    ];
    for other in others {
        assert_eq!(skopeo_inspect(&other), first, "{other}");
    }
}

#[test]
fn the_same_image_has_the_same_digest() {
    requires!(busybox());
    let (one, two) = (Ground::new(), Ground::new());
    one.layout(&Image::busybox());
    two.layout(&Image::busybox());
    let index = |ground: &Ground| fs::read_to_string(ground.path("layout/index.json"));
    assert_eq!(
        index(&one).expect("an index"),
        index(&two).expect("an index")
    );
}

#[test]
fn a_leftover_of_each_kind_is_found_and_removed_at_the_end() {
    requires!(root());
    let ground = Ground::new();
    let name = ground.name().to_owned();
    ground.assert_clean();

    let target = ground.path("mount");
    fs::create_dir(&target).expect("a directory");
    mount(
        Some("tmpfs"),
        &target,
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .expect("root may mount");
    let hierarchy = host::hierarchies().remove(0);
    fs::create_dir_all(hierarchy.join(&name).join("web.1")).expect("root may make cgroups");
    fs::create_dir_all(ground.path("state/web.1")).expect("a directory");
    fs::create_dir_all(ground.path("store/containers/web.1/upper")).expect("a directory");
    fs::create_dir_all(ground.path("store/containers/web.1/work")).expect("a directory");
    let path = format!("/run/{name}x");
    fs::create_dir(&path).expect("root may write to /run");
    let mut sleep = ground
        .command("unshare")
        .args(["--uts", "sleep", "1000"])
        .spawn()
        .expect("unshare starts");
    let unshared = || {
        host::namespaces(sleep.id().cast_signed())
            .into_iter()
            .next()
    };
    let namespace = tepui_tests::wait::until("a namespace", Duration::from_secs(5), unshared);
    ground.remember_namespaces(sleep.id().cast_signed());

    let found = ground.leftovers().join("\n");
    for expected in [
        "/mount",
        "web.1",
        "state/web.1",
        "containers/web.1",
        &path,
        "sleep",
        &namespace,
    ] {
        assert!(found.contains(expected), "{expected} is not in:\n{found}");
    }
    fs::remove_dir(&path).expect("it is ours");
    drop(ground);
    sleep.wait().expect("it is our child");
    assert_eq!(host::mounts_of(&name), [""; 0]);
    assert_eq!(
        host::cgroups_of(&name),
        [""; 0].map(std::path::PathBuf::from)
    );
    assert_eq!(host::paths_of(&name), [""; 0].map(std::path::PathBuf::from));
    assert!(host::processes_of(&name).is_empty());
}
