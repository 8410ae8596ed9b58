//! Tests of `device_rules`: the program against a plain reading of the rules, by an interpreter of the instructions.

use oci_spec::runtime::LinuxDeviceCgroup;
use proptest::prelude::*;

use super::*;

/// What the list says: each bit of the access is decided by the last rule that names it.
fn meaning(rules: &[Rule], device: Devices, access: u8) -> bool {
    [1, 2, 4]
        .iter()
        .filter(|bit| access & **bit != 0)
        .all(|bit| {
            let names = |rule: &&Rule| {
                rule.access.0 & bit != 0 && rule.devices.is_none_or(|some| some.contains(&device))
            };
            rules
                .iter()
                .rev()
                .find(names)
                .is_some_and(|rule| rule.allow)
        })
}

/// What v1's devcgroup does with a table: one exception must cover an access, or any exception refuses it.
fn meaning_of_table(table: &Table, device: Devices, access: u8) -> bool {
    let mut named = table
        .exceptions
        .iter()
        .filter(|(some, _)| some.contains(&device));
    match table.allow {
        true => !named.any(|(_, denied)| denied.0 & access != 0),
        false => named.any(|(_, allowed)| access & !allowed.0 == 0),
    }
}

/// Runs a program as the kernel does.
fn run(program: &[Instruction], device: Devices, access: u8) -> bool {
    let context = [
        (u32::from(access) << 16) | device.kind as u32,
        device.major.expect("a number"),
        device.minor.expect("a number"),
    ];
    let mut registers = [0_u32; 6];
    let mut at = 0;
    loop {
        let step = program[at];
        let to = usize::from(step.registers & 0xf);
        let from = usize::from(step.registers >> 4);
        let constant = step.constant.cast_unsigned();
        at += 1;
        let jump = usize::try_from(step.offset).expect("only forward");
        match step.code {
            0x61 => registers[to] = context[jump / 4],
            0xbc => registers[to] = registers[from],
            0xb4 => registers[to] = constant,
            0x54 => registers[to] &= constant,
            0x74 => registers[to] >>= constant,
            0x16 if registers[to] == constant => at += jump,
            0x56 if registers[to] != constant => at += jump,
            0x16 | 0x56 => {}
            0x95 => return registers[0] == 1,
            other => panic!("unknown instruction {other:#x}"),
        }
    }
}

fn small() -> BoxedStrategy<Option<u32>> {
    prop_oneof![Just(None), (0..3_u32).prop_map(Some)].boxed()
}

fn devices(number: impl Strategy<Value = Option<u32>> + Clone) -> impl Strategy<Value = Devices> {
    (
        prop_oneof![Just(Kind::Block), Just(Kind::Character)],
        number.clone(),
        number,
    )
        .prop_map(|(kind, major, minor)| Devices { kind, major, minor })
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let rule = (
        any::<bool>(),
        prop::option::weighted(0.8, devices(small())),
        1..8_u8,
    );
    let rule = rule.prop_map(|(allow, devices, access)| Rule {
        allow,
        devices,
        access: Access(access),
    });
    prop::collection::vec(rule, 0..8)
}

proptest! {
    #[test]
    fn the_program_decides_as_the_list_says(
        rules in rules(),
        device in devices((0..3_u32).prop_map(Some)),
        access in 1..8_u8,
    ) {
        prop_assert_eq!(run(&program(&rules), device, access), meaning(&rules, device, access));
    }

    #[test]
    fn the_table_never_allows_what_the_list_refuses(
        rules in rules(),
        device in devices((0..3_u32).prop_map(Some)),
        access in 1..8_u8,
    ) {
        if let Ok(table) = Table::of(&rules) {
            let listed = meaning(&rules, device, access);
            let kept = meaning_of_table(&table, device, access);
            prop_assert!(listed || !kept, "{table:?}");
            // One bit at a time they agree; of several, v1 wants one exception to cover all.
            if access.count_ones() == 1 {
                prop_assert_eq!(listed, kept, "{:?}", table);
            }
        }
    }
}

fn from_json(text: &str) -> Vec<LinuxDeviceCgroup> {
    serde_json::from_str(text).expect("rules")
}

#[test]
fn a_part_of_a_wider_rule_is_refused_on_v1_with_both_rules_named() {
    let list = from_json(
        r#"[{"allow":true,"type":"c","major":1,"access":"rwm"},
            {"allow":false,"type":"c","major":1,"minor":1,"access":"r"}]"#,
    );
    let rules = parse(&list).expect("valid rules");
    let error = Table::of(&rules).expect_err("refused").to_string();
    assert!(error.contains("deny c 1:1 r after c 1:* rwm"), "{error}");
}

#[test]
fn the_letter_a_denies_and_allows_nothing() {
    let rule = |allow: bool| {
        let text =
            format!(r#"[{{"allow":{allow},"type":"c","major":1,"minor":11,"access":"rwa"}}]"#);
        parse(&from_json(&text))
    };
    let denied = rule(false).expect("a rule that denies");
    assert_eq!(denied[0].access, Access::ALL);
    assert!(rule(true).is_err());
}

#[test]
fn odd_rules_are_refused_by_field() {
    for bad in [
        r#"[{"allow":true,"type":"p","access":"r"}]"#,
        r#"[{"allow":true,"type":"c","major":-7,"access":"r"}]"#,
        r#"[{"allow":true,"type":"c","access":"rx"}]"#,
    ] {
        let error = parse(&from_json(bad)).expect_err("refused").to_string();
        assert!(error.contains(FIELD), "{error}");
    }
}

#[test]
fn the_list_of_the_kernel_is_read_back() {
    let table = Table::parse_list("c 1:3 rwm\nb *:* m\nc 136:* rw").expect("valid");
    let rules = parse(&from_json(
        r#"[{"allow":false},{"allow":true,"type":"c","major":1,"minor":3,"access":"mrw"},
            {"allow":true,"type":"b","access":"m"},
            {"allow":true,"type":"c","major":136,"minor":-1,"access":"rw"}]"#,
    ));
    assert_eq!(table, Table::of(&rules.expect("valid")).expect("for v1"));
    assert!(Table::parse_list("a *:* rwm").expect("valid").allow);
    assert_eq!(Table::parse_list("c 1 rwm"), None);
}

#[test]
fn the_usual_rules_fit_v1() {
    let rules = parse(&usual_rules()).expect("valid");
    let table = Table::of(&rules).expect("for v1");
    assert!(!table.allow);
    assert_eq!(table.exceptions.len(), 10);
    // In the order of the rules, as others read them.
    let last = table.exceptions.last().expect("ten of them");
    assert_eq!(format!("{} {}", last.0, last.1), "c 5:2 rwm");
}
