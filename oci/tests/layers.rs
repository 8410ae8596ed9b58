//! What layers become: seen through a real overlay mount, and from the host where a hostile layer would have reached.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use support::{Bench, Member, chain, root, tar};

fn refused(layers: &[Vec<Member>]) -> String {
    let bench = Bench::new();
    let outside = bench.path("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("file"), "host").unwrap();
    let layers: Vec<Vec<u8>> = layers.iter().map(|members| tar(members)).collect();
    let error = bench
        .unpack(&layers)
        .expect_err("the layer should be refused");
    assert_eq!(
        std::fs::read_to_string(outside.join("file")).unwrap(),
        "host"
    );
    let left: Vec<_> = std::fs::read_dir(bench.store.layers_directory())
        .unwrap()
        .filter(|entry| {
            entry
                .as_ref()
                .unwrap()
                .file_name()
                .to_str()
                .unwrap()
                .starts_with('.')
        })
        .collect();
    assert!(left.is_empty(), "{left:?}");
    chain(&error)
}

fn names(layers: &[Vec<Member>]) -> String {
    let bench = Bench::new();
    let layers: Vec<Vec<u8>> = layers.iter().map(|members| tar(members)).collect();
    let image = bench
        .unpack(&layers)
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    bench.names(&image)
}

fn file(name: &str) -> Member {
    Member::file(name, name)
}

fn dir(name: &str) -> Member {
    Member::dir(name)
}

#[test]
fn whiteouts_hide_what_is_below_and_nothing_else() {
    if !root() {
        return;
    }
    let below = vec![dir("d"), file("d/x"), file("d/y"), file("a"), file("b")];
    assert_eq!(
        names(&[below.clone(), vec![file(".wh.a"), file("d/.wh.x")]]),
        "b d d/y"
    );
    assert_eq!(names(&[below.clone(), vec![file(".wh.d")]]), "a b");
    // Nothing below: no broken device may be left.
    assert_eq!(
        names(&[
            below.clone(),
            vec![file(".wh.none"), file("d/.wh.none"), file("e/.wh.none")]
        ]),
        "a b d d/x d/y"
    );
    // A mark speaks of the layers below, wherever it stands in its own.
    for layer in [
        vec![file(".wh.d"), dir("d"), file("d/z")],
        vec![dir("d"), file("d/z"), file(".wh.d")],
    ] {
        assert_eq!(names(&[below.clone(), layer]), "a b d d/z");
    }
    assert_eq!(
        names(&[below.clone(), vec![file("a"), file(".wh.a")]]),
        "a b d d/x d/y"
    );
    // Gone, and back, and gone.
    let (gone, back) = (vec![file(".wh.d")], vec![dir("d"), file("d/z")]);
    assert_eq!(
        names(&[below.clone(), gone.clone(), back.clone()]),
        "a b d d/z"
    );
    assert_eq!(
        names(&[
            below.clone(),
            gone.clone(),
            back,
            vec![file("d/.wh.x"), file("d/.wh.z")]
        ]),
        "a b d"
    );
    assert_eq!(names(&[below, gone.clone(), gone]), "a b");
}

#[test]
fn opaque_directories_hide_what_is_below_and_nothing_else() {
    if !root() {
        return;
    }
    let below = vec![dir("d"), dir("d/s"), file("d/s/x"), file("d/y"), file("a")];
    for layer in [
        vec![dir("d"), file("d/.wh..wh..opq"), file("d/z")],
        vec![dir("d"), file("d/z"), file("d/.wh..wh..opq")],
        // Whiteouts inside it have nothing to hide any more.
        vec![
            file("d/s/.wh.x"),
            file("d/.wh.y"),
            file("d/z"),
            file("d/.wh..wh..opq"),
            file("d/.wh.s"),
        ],
        vec![file("d/.wh..wh..opq"), file("d/.wh.y"), file("d/z")],
    ] {
        let seen = names(&[below.clone(), layer]);
        assert!(matches!(seen.as_str(), "a d d/z" | "a d d/s d/z"), "{seen}");
    }
    // At the root, overlayfs cannot say it; the chain ends there.
    assert_eq!(
        names(&[below.clone(), vec![file("n"), file(".wh..wh..opq")]]),
        "n"
    );
    assert_eq!(
        names(&[
            below.clone(),
            vec![file("n"), file(".wh..wh..opq")],
            vec![file(".wh.a"), file("m")]
        ]),
        "m n"
    );
    // Nothing below.
    assert_eq!(
        names(&[below, vec![dir("e"), file("e/.wh..wh..opq"), file("e/x")]]),
        "a d d/s d/s/x d/y e e/x"
    );
}

#[test]
fn kinds_replace_each_other_between_and_within_layers() {
    if !root() {
        return;
    }
    let link = |name: &str, target: &str| Member::symlink(name, target);
    let below = vec![dir("d"), file("d/x"), file("f"), link("l", "d")];
    assert_eq!(
        names(&[
            below.clone(),
            vec![file("d"), dir("f"), file("f/y"), dir("l"), file("l/z")]
        ]),
        "d f f/y l l/z"
    );
    // A directory that comes after something else hid it starts empty.
    assert_eq!(
        names(&[below.clone(), vec![file("d"), dir("d"), file("d/n")]]),
        "d d/n f l"
    );
    assert_eq!(
        names(&[below.clone(), vec![link("d", "f"), dir("d")]]),
        "d f l"
    );
    // Within one layer.
    assert_eq!(
        names(&[vec![
            dir("d"),
            dir("d/e"),
            file("d/e/x"),
            file("d"),
            dir("d"),
            file("d/y")
        ]]),
        "d d/y"
    );
    // A parent that is a link below is followed (merged /usr).
    assert_eq!(
        names(&[below.clone(), vec![file("l/via-link")]]),
        "d d/via-link d/x f l"
    );
    assert_eq!(names(&[below, vec![file("l/.wh.x")]]), "d f l");
}

#[test]
fn hard_links_reach_into_lower_layers() {
    if !root() {
        return;
    }
    let bench = Bench::new();
    let below = tar(&[
        dir("d"),
        Member::file("d/x", "data").owner(5, 6).mode(0o4750),
    ]);
    let image = bench
        .unpack(&[
            below,
            tar(&[Member::hard_link("y", "d/x"), Member::hard_link("z", "/y")]),
        ])
        .unwrap();
    assert_eq!(
        bench.in_overlay(&image, "stat -c '%h %u %g %a' y; cat z d/x"),
        "3 5 6 4750\ndatadata"
    );
    let copied = std::fs::metadata(bench.layer(&image, 0).join("d")).unwrap();
    assert_eq!(copied.mode() & 0o7777, 0o755);
}

#[test]
fn files_have_what_their_entries_say() {
    if !root() {
        return;
    }
    let bench = Bench::new();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let image = bench
        .unpack(&[tar(&[
            Member {
                mtime: 5,
                ..Member::dir("./").mode(0o751).owner(3, 4)
            },
            Member {
                mtime: -7,
                ..Member::dir("d").mode(0o2770).owner(1, 2)
            },
            Member::file("d/setuid", "x").owner(10, 20).mode(0o4755),
            Member::file("d/cap", "x").record("SCHILY.xattr.security.capability", &capability),
            Member::file("d/note", "x")
                .record("SCHILY.xattr.user.note", b"a\0b")
                .record("mtime", b"9.5"),
            Member::symlink("d/link", "setuid").owner(7, 8),
            Member::new(b'6', "d/fifo").mode(0o600),
            Member {
                device: (1, 3),
                ..Member::new(b'3', "d/null")
            }
            .mode(0o666),
            Member::file("implied/f", "x"),
        ])])
        .unwrap();
    let layer = bench.layer(&image, 0);
    let seen = |name: &str| {
        let meta = std::fs::symlink_metadata(layer.join(name)).unwrap();
        (
            meta.mode() & 0o7777,
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec(),
        )
    };
    assert_eq!(seen("."), (0o751, 3, 4, 5, 0));
    assert_eq!(seen("d"), (0o2770, 1, 2, -7, 0));
    assert_eq!(seen("d/setuid"), (0o4755, 10, 20, 1_000_000_000, 0));
    assert_eq!(seen("d/link").1, 7);
    assert_eq!((seen("d/note").3, seen("d/note").4), (9, 500_000_000));
    assert_eq!(seen("implied").0, 0o755);
    let mut value = [0; 64];
    let length =
        rustix::fs::getxattr(layer.join("d/cap"), "security.capability", &mut value[..]).unwrap();
    assert_eq!(value[..length], capability);
    let length = rustix::fs::getxattr(layer.join("d/note"), "user.note", &mut value[..]).unwrap();
    assert_eq!(value[..length], *b"a\0b");
    assert!(
        std::fs::metadata(layer.join("d/fifo"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
    assert_eq!(
        std::fs::metadata(layer.join("d/null")).unwrap().rdev(),
        0x103
    );
}

#[test]
fn no_entry_leaves_the_layer() {
    let me = (
        u64::from(rustix::process::geteuid().as_raw()),
        u64::from(rustix::process::getegid().as_raw()),
    );
    let bench = Bench::new();
    let outside = bench.path("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("file"), "host").unwrap();
    let host = outside.to_str().unwrap();
    let mine = |member: Member| member.owner(me.0, me.1);
    let image = bench
        .unpack(&[tar(&[
            // Absolute names and links mean the layer's root.
            mine(file(&format!("{host}/absolute"))),
            mine(Member::symlink("out", host)),
            mine(file("out/through-absolute-link")),
            mine(Member::symlink("up", "../../../../../../../../../..")),
            mine(file(&format!("up{host}/through-relative-link"))),
            // A file is never written through a link of its own name.
            mine(Member::symlink("file", &format!("{host}/file"))),
            mine(Member::file("file", "image")),
            // A directory that was replaced by a link after it was used.
            mine(dir("cached")),
            mine(file("cached/x")),
            mine(Member::symlink("cached", host)),
            mine(file("cached/after-replacement")),
            // Hard links are resolved inside, too.
            mine(Member::hard_link("inside", &format!("{host}/absolute"))),
        ])])
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    let found: Vec<_> = std::fs::read_dir(&outside)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(found, ["file"]);
    assert_eq!(
        std::fs::read_to_string(outside.join("file")).unwrap(),
        "host"
    );
    let inside = bench.layer(&image, 0).join(host.trim_start_matches('/'));
    for name in [
        "absolute",
        "through-absolute-link",
        "through-relative-link",
        "after-replacement",
    ] {
        assert!(inside.join(name).exists(), "{name}");
    }
    assert_eq!(
        std::fs::read_to_string(bench.layer(&image, 0).join("file")).unwrap(),
        "image"
    );
}

#[test]
fn replacing_a_hard_link_leaves_its_brothers_alone() {
    let (uid, gid) = (
        rustix::process::geteuid().as_raw().into(),
        rustix::process::getegid().as_raw().into(),
    );
    let bench = Bench::new();
    let members = [
        Member::file("a", "old"),
        Member::hard_link("b", "a"),
        Member::file("b", "new"),
    ];
    let image = bench
        .unpack(&[tar(&members.map(|member| member.owner(uid, gid)))])
        .unwrap();
    assert_eq!(
        std::fs::read_to_string(bench.layer(&image, 0).join("a")).unwrap(),
        "old"
    );
    assert_eq!(
        std::fs::read_to_string(bench.layer(&image, 0).join("b")).unwrap(),
        "new"
    );
}

#[test]
fn hostile_entries_are_refused_by_name() {
    for (members, wanted) in [
        (vec![file("../x")], "leads upwards"),
        (vec![file("a/../../x")], "leads upwards"),
        (
            vec![Member::hard_link("x", "../../outside/file")],
            "leads upwards",
        ),
        (vec![Member::hard_link("x", "/etc/passwd")], "is not there"),
        (
            vec![
                Member::symlink("p", "/etc"),
                Member::hard_link("x", "p/passwd"),
            ],
            "is not there",
        ),
        (vec![Member::symlink(".", "/")], "root of a layer"),
        (vec![Member::new(b'3', "zero")], "taken for a whiteout"),
        (vec![file(".wh..")], "must name a file"),
        (
            vec![Member::symlink("l", "l"), file("l/x")],
            "too many symbolic links",
        ),
        (vec![Member::symlink("e", "")], "target is empty"),
        (vec![Member::new(b'Z', "z")], "unknown"),
        (
            vec![Member::file("root", "").owner(1 << 32, 0).mode(0o4755)],
            "out of range",
        ),
    ] {
        let name = String::from_utf8_lossy(&members[0].name).into_owned();
        let (uid, gid) = (
            rustix::process::geteuid().as_raw().into(),
            rustix::process::getegid().as_raw().into(),
        );
        let own = |member: Member| {
            if member.uid > 0 {
                member
            } else {
                member.owner(uid, gid)
            }
        };
        let error = refused(&[members.into_iter().map(own).collect()]);
        assert!(error.contains(wanted), "{name}: {error}");
    }
}

#[test]
fn a_layer_cannot_speak_to_overlayfs() {
    if !root() {
        return;
    }
    let bench = Bench::new();
    let evil = Member::dir("d")
        .record("SCHILY.xattr.trusted.overlay.opaque", b"y")
        .record("SCHILY.xattr.trusted.overlay.redirect", b"/etc")
        .record("SCHILY.xattr.user.overlay.opaque", b"y");
    let image = bench
        .unpack(&[tar(&[dir("d"), file("d/x")]), tar(&[evil])])
        .unwrap();
    assert_eq!(bench.names(&image), "d d/x");
}

#[test]
fn very_deep_trees_are_refused_or_removed_but_never_overflow() {
    let (uid, gid) = (
        rustix::process::geteuid().as_raw().into(),
        rustix::process::getegid().as_raw().into(),
    );
    let deep = "d/".repeat(1500);
    let members = [dir(&deep), file("d"), file("x")];
    let bench = Bench::new();
    let image = bench
        .unpack(&[tar(&members.map(|member| member.owner(uid, gid)))])
        .unwrap();
    assert!(bench.layer(&image, 0).join("d").is_file());
    // Links make the real path longer than any name.
    let long = "a/".repeat(1000);
    let members = [
        dir(&long),
        Member::symlink("l", &long),
        Member::symlink(&format!("{long}l"), &long),
        file(&format!("l/{}", "b/".repeat(1500))),
    ];
    let error = refused(&[members.map(|member| member.owner(uid, gid)).to_vec()]);
    assert!(
        error.contains("longer than") || error.contains("too long"),
        "{error}"
    );
}
