//! Tests of `store` and `entry`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tepui_isolators::{CgroupPlacement, Declaration, RootFilesystem};

use super::store::{Entry, Error, NewContainer, Result, Status, Store};

fn new_container() -> NewContainer {
    let spec = serde_json::json!({ "ociVersion": "1.2.0", "annotations": { "a": "b" } });
    NewContainer {
        bundle: "/bundle".into(),
        rootfs: "/bundle/rootfs".into(),
        declaration: Declaration {
            spec: serde_json::from_value(spec).unwrap(),
            rootfs: RootFilesystem::Directory("/bundle/rootfs".into()),
            cgroups: CgroupPlacement {
                parent: "/tepui-test-runtime-store".into(),
                nested: BTreeMap::new(),
                name: None,
            },
            init: false,
            executable: None,
            keep_keyring: false,
            reset_cpu_affinity: false,
        },
        no_new_keyring: false,
        systemd_cgroup: false,
    }
}

fn create(store: &Store, id: &str) -> Result<Entry> {
    store.create(&id.parse().unwrap(), new_container())
}

#[test]
fn the_status_follows_the_process_and_the_socket() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(&root.path().join("new"));
    let mut entry = create(&store, "web").unwrap();
    assert_eq!(entry.status().unwrap(), Status::Creating);
    let mut process = Command::new("sleep").arg("60").spawn().unwrap();
    std::fs::write(entry.start_socket(), "").unwrap();
    entry.set_process(process.id()).unwrap();
    drop(entry);

    let entry = store.load("web").unwrap();
    assert_eq!(entry.status().unwrap(), Status::Created);
    assert_eq!(entry.state.annotations["a"], "b");
    assert_eq!(
        entry.declaration().unwrap().cgroups,
        entry.state.identity.cgroups
    );
    std::fs::remove_file(entry.start_socket()).unwrap();
    assert_eq!(entry.status().unwrap(), Status::Running);
    let init = entry.init().unwrap().unwrap();
    rustix::process::pidfd_send_signal(&init, rustix::process::Signal::KILL).unwrap();
    assert!(crate::pidfd::ended_within(&init, Duration::from_secs(5)).unwrap());
    // It is a zombie, which has ended.
    assert_eq!(entry.status().unwrap(), Status::Stopped);
    assert!(entry.init().unwrap().is_none());
    process.wait().unwrap();
    assert_eq!(entry.status().unwrap(), Status::Stopped);
}

#[test]
fn an_id_is_taken_until_it_is_removed() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path());
    let entry = create(&store, "web+1").unwrap();
    let again = create(&store, "web+1").unwrap_err();
    assert!(again.to_string().contains("already exists"), "{again}");
    drop(entry);
    let entry = store.load("web+1").unwrap();
    assert_eq!(
        entry.status().unwrap(),
        Status::Stopped,
        "its maker is gone"
    );
    let names: Vec<_> = store
        .list()
        .unwrap()
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, ["web+1"]);
    entry.remove().unwrap();
    let gone = store.load("web+1").unwrap_err();
    assert!(gone.to_string().contains("does not exist"), "{gone}");
    assert!(root.path().read_dir().unwrap().next().is_none());
    std::fs::create_dir(root.path().join("web+1")).unwrap();
    store.clear("web+1").unwrap();
    drop(create(&store, "web+1").unwrap());
    store.clear("web+1").unwrap();
    assert!(store.load("web+1").is_ok(), "it is a container");
    for bad in ["..", "a/b", "", ".new-x"] {
        assert!(matches!(store.load(bad), Err(Error::InvalidId(_))), "{bad}");
    }
}

#[test]
fn what_another_version_wrote_can_be_released() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path());
    drop(create(&store, "old").unwrap());
    let path = root.path().join("old/state.json");
    let text = std::fs::read(&path).unwrap();
    let mut state: serde_json::Value = serde_json::from_slice(&text).unwrap();
    state["stateVersion"] = 99.into();
    state["annotations"] = "changed".into();
    std::fs::write(&path, state.to_string()).unwrap();
    std::fs::write(root.path().join("old/declaration.json"), "{}").unwrap();
    let entry = store.load("old").unwrap();
    let cgroups = entry.declaration_to_release().cgroups;
    assert_eq!(cgroups.parent, Path::new("/tepui-test-runtime-store"));
    entry.remove().unwrap();
}

#[test]
fn a_lock_that_another_process_holds_is_given_up_on() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path());
    drop(create(&store, "web").unwrap());
    let entry = store.load("web").unwrap();
    drop(entry.lock().unwrap());
    // flock(1) knows another kind of lock; Python has record locks.
    let program = "import fcntl,sys;f=open(sys.argv[1],'r+');fcntl.lockf(f,fcntl.LOCK_EX);print(1,flush=True);sys.stdin.read()";
    let mut other = Command::new("python3")
        .args(["-c", program])
        .arg(entry.directory.join("lock"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0u8; 2];
    io::Read::read_exact(other.stdout.as_mut().unwrap(), &mut ready).unwrap();
    assert_eq!(entry.status().unwrap(), Status::Creating);
    assert!(matches!(entry.lock(), Err(Error::Busy(_))));
    drop(other.stdin.take());
    other.wait().unwrap();
    drop(entry.lock().unwrap());
}
