//! What is made of declared mounts, and which are refused.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::declaration::CgroupPlacement;
use crate::launch_info::DeviceNode;
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

fn declaration(spec: Spec) -> Declaration {
    Declaration {
        spec,
        rootfs: RootFilesystem::Host,
        cgroups: CgroupPlacement {
            parent: "/tepui".into(),
            nested: Default::default(),
            name: None,
        },
        init: false,
        executable: None,
        keep_keyring: false,
        reset_cpu_affinity: false,
    }
}

fn parse(mount: Value) -> Result<Declared> {
    let spec = json!({ "mounts": [mount] });
    let spec = serde_json::from_value(spec).unwrap();
    Ok(declared(&declaration(spec))?.remove(0))
}

fn mount(value: Value) -> Mount {
    match parse(value).unwrap() {
        Declared::Mount(mount) => mount,
        Declared::Cgroups(_) => panic!("no cgroup was declared"),
    }
}

#[test]
fn the_usual_mounts_of_a_container_are_understood() {
    let declared = declared(&declaration(Spec::default())).unwrap();
    let targets: Vec<_> = declared
        .iter()
        .map(|d| d.target().to_str().unwrap())
        .collect();
    assert_eq!(
        targets,
        [
            "/proc",
            "/dev",
            "/dev/pts",
            "/dev/shm",
            "/dev/mqueue",
            "/sys",
            "/sys/fs/cgroup"
        ]
    );
    let plain = |d: &&Declared| matches!(d, Declared::Mount(mount) if mount.plain_target);
    assert_eq!(declared.iter().filter(plain).count(), 3);
    let Declared::Mount(Mount {
        kind: MountKind::Devices { nodes, options, .. },
        ..
    }) = &declared[1]
    else {
        panic!("/dev is a tmpfs with devices");
    };
    assert_eq!(nodes.len(), 6);
    let mode = (c"mode".into(), Some(c"755".into()));
    let size = (c"size".into(), Some(c"65536k".into()));
    assert_eq!(*options, [mode, size]);
    let read_only = Cgroups {
        target: c"/sys/fs/cgroup".into(),
        read_write: false,
        read_only: true,
        own_namespace: true,
    };
    assert_eq!(declared[6], Declared::Cgroups(read_only));
}

#[test]
fn a_bind_mount_keeps_its_source_flags_and_propagation() {
    let bind = mount(json!({
        "destination": "/data/./x/../y", "type": "none", "source": "/srv/data",
        "options": ["rbind", "rslave", "ro", "nosuid"]
    }));
    assert_eq!(bind.target.as_c_str(), c"/data/y");
    assert_eq!(
        bind.kind,
        MountKind::Bind {
            source: "/srv/data".into(),
            recursive: true,
            plain_source: false,
            id_map: None,
            keeps_peers: false,
        }
    );
    assert_eq!(
        bind.attributes.set,
        libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID
    );
    assert_eq!(bind.propagation, libc::MS_SLAVE | libc::MS_REC);
    let by_type = mount(json!({ "destination": "/d", "type": "bind", "source": "/s" }));
    assert_eq!(
        by_type.kind,
        MountKind::Bind {
            source: "/s".into(),
            recursive: false,
            plain_source: false,
            id_map: None,
            keeps_peers: false,
        }
    );
}

#[test]
fn mounts_that_cannot_be_honoured_or_are_dangerous_are_refused() {
    let cases = [
        json!({ "destination": "/", "type": "tmpfs" }),
        json!({ "destination": "/a/..", "type": "tmpfs" }),
        json!({ "destination": "/d" }),
        json!({ "destination": "/d", "type": "bind", "source": "relative" }),
        json!({ "destination": "/d", "type": "bind" }),
        json!({ "destination": "/d", "source": "/s", "options": ["bind", "size=1m"] }),
        json!({ "destination": "/d", "source": "/s", "options": ["bind", "rslave", "private"] }),
        json!({ "destination": "/proc", "type": "tmpfs" }),
        json!({ "destination": "/x/../proc/./", "type": "tmpfs" }),
        json!({ "destination": "/proc/self/attr", "type": "tmpfs" }),
        json!({ "destination": "/proc/sys", "source": "/s", "options": ["bind"] }),
        json!({ "destination": "/d", "type": "proc", "options": ["tmpcopyup"] }),
        json!({ "destination": "/d", "source": "/s", "options": ["bind", "tmpcopyup"] }),
        json!({ "destination": "/d", "type": "tmpfs", "options": ["idmap"] }),
        json!({
            "destination": "/d", "source": "/s", "options": ["bind"],
            "uidMappings": [{ "containerID": 0, "hostID": 1, "size": 1 }]
        }),
    ];
    for case in cases {
        let error = parse(case.clone())
            .expect_err(&case.to_string())
            .to_string();
        assert!(
            error.starts_with("mounts is ") && error.contains(", but "),
            "{error}"
        );
    }
    parse(json!({ "destination": "/proc/uptime", "source": "/s", "options": ["bind"] })).unwrap();
    parse(json!({ "destination": "/procfs", "type": "tmpfs" })).unwrap();
    // Its source is looked at when it is open.
    parse(json!({ "destination": "/proc", "source": "/p", "options": ["bind"] })).unwrap();
}

#[test]
fn a_relative_destination_starts_at_the_root() {
    let relative = mount(json!({ "destination": "tmp/../data", "type": "tmpfs" }));
    assert_eq!(relative.target.as_c_str(), c"/data");
}

#[test]
fn paths_in_the_root_directory_are_the_containers_own() {
    let spec = json!({ "mounts": [
        { "destination": "/r/root/mnt/x", "source": "/r/root/mnt", "options": ["rbind"] },
        { "destination": "/y", "source": "/r/rootless", "options": ["bind"] }
    ] });
    let declaration = Declaration {
        rootfs: RootFilesystem::Directory("/r/root".into()),
        ..declaration(serde_json::from_value(spec).unwrap())
    };
    let declared = declared(&declaration).unwrap();
    assert_eq!(declared[0].target().as_c_str(), c"/mnt/x");
    let Declared::Mount(mount) = &declared[0] else {
        panic!("no cgroup was declared");
    };
    let inside = MountKind::BindInside {
        source: c"/mnt".into(),
        recursive: true,
        id_map: None,
    };
    assert_eq!(mount.kind, inside);
    let Declared::Mount(mount) = &declared[1] else {
        panic!("no cgroup was declared");
    };
    assert!(matches!(mount.kind, MountKind::Bind { .. }));
}

#[test]
fn id_maps_are_the_mounts_own_or_the_containers() {
    let map = |value: Value| match mount(value).kind {
        MountKind::Bind { id_map, .. } => id_map,
        other => panic!("{other:?}"),
    };
    let bind =
        |options: &[&str]| json!({ "destination": "/d", "source": "/s", "options": options });
    assert_eq!(map(bind(&["bind"])), None);
    let implied = MountIdMap {
        maps: None,
        recursive: true,
    };
    assert_eq!(map(bind(&["rbind", "ridmap"])), Some(implied));
    let mut own = bind(&["bind"]);
    let line = json!([{ "containerID": 0, "hostID": 100_000, "size": 10 }]);
    own["uidMappings"] = line.clone();
    own["gidMappings"] = line;
    let line = IdMap {
        inside: 0,
        outside: 100_000,
        count: 10,
    };
    let maps = IdMaps {
        users: vec![line],
        groups: vec![line],
    };
    let expected = MountIdMap {
        maps: Some(maps),
        recursive: false,
    };
    assert_eq!(map(own), Some(expected));
}

#[test]
fn the_host_is_a_peer_only_when_root_and_mount_say_so() {
    let keeps = |root: &str, mount: &str| {
        let spec = json!({
            "mounts": [{ "destination": "/d", "source": "/s", "options": ["rbind", mount] }],
            "linux": { "rootfsPropagation": root }
        });
        let declaration = declaration(serde_json::from_value(spec).unwrap());
        let declared = declared(&declaration).unwrap();
        matches!(
            &declared[0],
            Declared::Mount(Mount {
                kind: MountKind::Bind {
                    keeps_peers: true,
                    ..
                },
                ..
            })
        )
    };
    assert!(keeps("rshared", "rshared"));
    assert!(!keeps("rshared", "rslave") && !keeps("rslave", "rshared") && !keeps("", "rshared"));
}

fn devices(device: Value, mounts: Value) -> Result<(Vec<DeviceNode>, Vec<DeviceNode>)> {
    let spec = json!({ "mounts": mounts, "linux": { "devices": [device] } });
    let declaration = Declaration {
        rootfs: RootFilesystem::Directory("/r/root".into()),
        ..declaration(serde_json::from_value(spec).unwrap())
    };
    let declared = declared(&declaration)?;
    let (in_place, _) = devices::in_place(&declaration, &declared)?;
    let in_dev = declared.into_iter().find_map(|declared| match declared {
        Declared::Mount(Mount {
            kind: MountKind::Devices { nodes, .. },
            ..
        }) => Some(nodes),
        _ => None,
    });
    Ok((in_dev.unwrap_or_default(), in_place))
}

#[test]
fn devices_are_made_in_the_tmpfs_and_replace_the_default_ones() {
    let parse = |device: Value| {
        let mounts = json!([{ "destination": "/dev", "type": "tmpfs" }]);
        devices(device, mounts)
    };
    let fuse = json!({ "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 384, "uid": 5 });
    let (nodes, in_place) = parse(fuse).unwrap();
    assert_eq!((nodes.len(), in_place.len()), (7, 0));
    let fuse = &nodes[6];
    assert_eq!(
        (
            fuse.path.as_c_str(),
            fuse.major,
            fuse.minor,
            fuse.mode,
            fuse.uid
        ),
        (c"fuse", 10, 229, libc::S_IFCHR | 0o600, 5)
    );
    let null = json!({ "path": "/dev/null", "type": "c", "major": 1, "minor": 5 });
    assert_eq!(parse(null).unwrap().0.len(), 6);
    let tun = json!({ "path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200 });
    assert_eq!(parse(tun).unwrap().0[6].path.as_c_str(), c"net/tun");
    let fifo = json!({ "path": "/dev/x", "type": "p", "major": 0, "minor": 0 });
    assert_eq!(parse(fifo).unwrap().0[6].mode, libc::S_IFIFO | 0o666);
    // The link to the container's own devpts stays.
    let ptmx = json!({ "path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2 });
    assert_eq!(parse(ptmx).unwrap().0.len(), 6);
    let elsewhere = json!({ "path": "/etc/x", "type": "c", "major": 10, "minor": 200 });
    assert_eq!(parse(elsewhere).unwrap().1[0].path.as_c_str(), c"/etc/x");
    let bad: [Result<_>; 3] = [
        parse(json!({ "path": "x", "type": "c", "major": 10, "minor": 200 })),
        parse(json!({ "path": "/dev/x", "type": "c", "major": -1, "minor": 0 })),
        parse(json!({ "path": "/dev/pts", "type": "c", "major": 1, "minor": 1 })),
    ];
    for nodes in bad {
        let error = nodes.unwrap_err().to_string();
        assert!(error.starts_with("linux.devices is "), "{error}");
    }
}

#[test]
fn without_a_tmpfs_at_dev_devices_are_made_in_place() {
    let tun = || json!({ "path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200 });
    let (in_dev, in_place) = devices(tun(), json!([])).unwrap();
    assert_eq!((in_dev.len(), in_place.len()), (0, 7));
    assert_eq!(in_place[6].path.as_c_str(), c"/dev/net/tun");
    // A /dev of the host's has what it has.
    let bound = json!([{ "destination": "/dev", "source": "/dev", "options": ["rbind"] }]);
    assert!(devices(tun(), bound).unwrap().1.is_empty());
    // A mount over the directory hides what is made below it.
    let covered = json!([
        { "destination": "/dev", "type": "tmpfs" },
        { "destination": "/dev/net", "type": "tmpfs" }
    ]);
    assert_eq!(devices(tun(), covered).unwrap().1.len(), 1);
    let spec = json!({ "linux": { "devices": [tun()] } });
    let host = declaration(serde_json::from_value(spec).unwrap());
    assert!(devices::in_place(&host, &[]).is_err());
}
