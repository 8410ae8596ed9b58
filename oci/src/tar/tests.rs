#![allow(clippy::unwrap_used)]

use super::writer::{Member, record, seal, tar};
use super::*;

fn read(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut reader = Reader::new(bytes);
    let mut out = Vec::new();
    while let Some(entry) = reader.next()? {
        let mut data = Vec::new();
        let mut buffer = [0; 100];
        loop {
            match reader.read_data(&mut buffer)? {
                0 => break,
                length => data.extend_from_slice(&buffer[..length]),
            }
        }
        out.push((entry, data));
    }
    Ok(out)
}

fn one(member: &Member) -> Result<(Entry, Vec<u8>), TarError> {
    Ok(read(&tar(std::slice::from_ref(member)))?.remove(0))
}

fn rule(bytes: &[u8]) -> String {
    read(bytes).unwrap_err().to_string()
}

#[test]
fn what_was_written_is_read() {
    let (entry, data) = one(&Member::file("a/b", "hello").owner(7, 8).mode(0o4751)).unwrap();
    assert_eq!(
        (entry.path.as_slice(), data.as_slice(), entry.size),
        (&b"a/b"[..], &b"hello"[..], 5)
    );
    assert_eq!(
        (entry.mode, entry.uid, entry.gid, entry.mtime),
        (0o4751, 7, 8, (1_000_000_000, 0))
    );
    let long = "d/".repeat(200) + "f";
    assert_eq!(
        one(&Member::file(&long, "")).unwrap().0.path,
        long.as_bytes()
    );
    let negative = Member {
        mtime: -5,
        ..Member::file("a", "")
    };
    assert_eq!(one(&negative).unwrap().0.mtime, (-5, 0));
}

#[test]
fn pax_records_win_over_the_header_block() {
    let member = Member::file("short", "12345678")
        .record("path", b"long name")
        .record("size", b"5")
        .record("uid", b"70000")
        .record("mtime", b"12.5")
        .record("unknown.key", b"x")
        .record("SCHILY.xattr.user.note", b"a\0b\n=");
    // The size in the header block is 8, and the padding is the same: a reader that ignores the record sees "12345678".
    let (entry, data) = one(&member).unwrap();
    assert_eq!(entry.path, b"long name");
    assert_eq!(data, b"12345");
    assert_eq!((entry.uid, entry.mtime), (70000, (12, 500_000_000)));
    assert_eq!(entry.xattrs, [(b"user.note".to_vec(), b"a\0b\n=".to_vec())]);
}

#[test]
fn owners_that_a_cast_would_turn_into_root_are_refused() {
    for id in [u64::from(u32::MAX), 1 << 32, (1 << 32) + 1000] {
        assert!(one(&Member::file("a", "").owner(id, 0)).is_err(), "{id}");
        assert!(one(&Member::file("a", "").owner(0, id)).is_err(), "{id}");
        let in_record = Member::file("a", "").record("uid", id.to_string().as_bytes());
        assert!(one(&in_record).is_err(), "{id}");
    }
    assert_eq!(
        one(&Member::file("a", "").owner(u64::from(u32::MAX) - 1, 0))
            .unwrap()
            .0
            .uid,
        u32::MAX - 1
    );
}

#[test]
fn names_use_the_prefix_of_ustar_but_not_of_gnu() {
    let mut block = Member::file("name", "").bytes();
    block[345..351].copy_from_slice(b"prefix");
    seal(&mut block);
    assert_eq!(read(&block).unwrap()[0].0.path, b"prefix/name");
    block[257..265].copy_from_slice(b"ustar  \0");
    seal(&mut block);
    assert_eq!(read(&block).unwrap()[0].0.path, b"name");
    block[257..265].fill(0);
    block[0..5].copy_from_slice(b"name/");
    block[156] = 0;
    seal(&mut block);
    assert_eq!(read(&block).unwrap()[0].0.kind, Kind::Directory);
}

#[test]
fn nothing_is_parsed_after_the_end_mark() {
    let mut bytes = tar(&[Member::file("a", "x")]);
    bytes.extend(tar(&[Member::file("b", "y")]));
    assert_eq!(read(&bytes).unwrap().len(), 1);
    let no_mark = Member::file("a", "x").bytes();
    assert_eq!(read(&no_mark).unwrap().len(), 1);
}

#[test]
fn a_damaged_stream_is_refused() {
    let good = Member::file("a", "data").bytes();
    assert!(
        rule(&good[..700]).contains("inside the data") || rule(&good[..700]).contains("inside")
    );
    assert!(rule(&good[..100]).contains("inside a block"));
    let mut flipped = good.clone();
    flipped[0] ^= 1;
    assert!(rule(&flipped).contains("sum"));
    let hole = [vec![0; 512], good.clone()].concat();
    assert!(rule(&hole).contains("zeros"));
    let lonely = Member {
        data: record("path", b"a"),
        ..Member::new(b'x', "pax")
    }
    .bytes();
    assert!(rule(&lonely).contains("no entry after it"));
    assert!(one(&Member::new(b'M', "a")).is_err());
}

#[test]
fn headers_cannot_ask_for_more_than_their_bounds() {
    let mut huge = Member::new(b'x', "pax").bytes();
    huge[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0x7f, 255, 255, 255, 255, 255, 255, 255]);
    seal(&mut huge);
    assert!(rule(&huge).contains("1 MiB"));
    let many: Vec<u8> = (0..3000)
        .flat_map(|_| {
            Member {
                data: b"a\0".into(),
                ..Member::new(b'L', "l")
            }
            .bytes()
        })
        .collect();
    assert!(rule(&many).contains("1 MiB"));
    let mut negative = Member::file("a", "").bytes();
    negative[124..136].fill(0xff);
    seal(&mut negative);
    assert!(rule(&negative).contains("negative"));
    let overflow = Member::file("a", "").record("size", b"18446744073709551615");
    assert!(rule(&tar(&[overflow])).contains("too large"));
}

#[test]
fn links_and_devices_have_no_data() {
    let link = Member {
        data: b"not data".into(),
        ..Member::hard_link("b", "a")
    };
    let mut header = link.bytes();
    header.truncate(512);
    let bytes = [header, tar(&[Member::file("c", "")])].concat();
    let names: Vec<_> = read(&bytes)
        .unwrap()
        .into_iter()
        .map(|(entry, _)| entry.path)
        .collect();
    assert_eq!(names, [b"b".to_vec(), b"c".to_vec()]);
    let null = Member {
        device: (1, 3),
        ..Member::new(b'3', "null")
    };
    assert_eq!(
        one(&null).unwrap().0.kind,
        Kind::CharDevice { major: 1, minor: 3 }
    );
}

#[test]
fn sparse_files_of_every_dialect_say_where_their_data_belongs() {
    let base = |name: &str, data: &str| Member::file(name, data);
    let v00 = base("x", "abcd")
        .record("GNU.sparse.size", b"100")
        .record("GNU.sparse.numblocks", b"2")
        .record("GNU.sparse.offset", b"10")
        .record("GNU.sparse.numbytes", b"3")
        .record("GNU.sparse.offset", b"50")
        .record("GNU.sparse.numbytes", b"1");
    let v01 = base("x", "abcd")
        .record("GNU.sparse.size", b"100")
        .record("GNU.sparse.map", b"10,3,50,1");
    let list = format!("{:\0<512}abcd", "2\n10\n3\n50\n1\n");
    let v10 = base("GNUSparseFile.1/x", &list)
        .record("GNU.sparse.major", b"1")
        .record("GNU.sparse.minor", b"0")
        .record("GNU.sparse.name", b"x")
        .record("GNU.sparse.realsize", b"100");
    for member in [v00, v01, v10] {
        let (entry, data) = one(&member).unwrap();
        assert_eq!(
            (entry.path.as_slice(), entry.size, data.as_slice()),
            (&b"x"[..], 100, &b"abcd"[..])
        );
        assert_eq!(entry.pieces, Some(vec![(10, 3), (50, 1)]));
    }
    let mut old = Member {
        kind: b'S',
        ..base("x", "abcd")
    }
    .bytes();
    old[257..265].copy_from_slice(b"ustar  \0");
    for (at, value) in [(386, 10), (398, 3), (410, 50), (422, 1), (483, 100)] {
        old[at..at + 12].copy_from_slice(format!("{value:011o}\0").as_bytes());
    }
    seal(&mut old);
    assert_eq!(
        read(&old).unwrap()[0].0.pieces,
        Some(vec![(10, 3), (50, 1)])
    );
    for map in [
        "10,3",
        "10,3,5,1",
        "10,3,99,2",
        "10,3,x,1",
        "10,3,50",
        "18446744073709551615,4",
    ] {
        let lie = base("x", "abcd")
            .record("GNU.sparse.size", b"100")
            .record("GNU.sparse.map", map.as_bytes());
        assert!(one(&lie).is_err(), "{map}");
    }
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..3000), kind in 0u8..=255) {
        if bytes.len() >= 512 {
            bytes[100..148].fill(b'1');
            bytes[156] = kind;
            seal(&mut bytes);
        }
        let _ = read(&bytes);
    }
}
