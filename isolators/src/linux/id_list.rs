//! Lists of CPUs and memory nodes as cpuset(7) writes them: `0-3,7`.

/// The highest number that is taken: a typing error must not become a gigabyte.
const HIGHEST: u32 = 65_536;

/// The numbers of a list as a bit mask, bit n of the words being number n. Spaces around parts and empty parts are
/// taken; an empty text has no numbers.
///
/// # Errors
/// What is wrong with it, in words that follow "but".
pub fn parse(text: &str) -> Result<Vec<u64>, String> {
    let mut mask = Vec::new();
    let parts = text.split(',').map(str::trim);
    for part in parts.filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |digits: &str| {
            let plain = !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit());
            plain
                .then(|| digits.parse().ok())
                .flatten()
                .filter(|number: &u32| *number <= HIGHEST)
                .ok_or_else(|| format!("{part:?} is no number or range up to {HIGHEST}"))
        };
        let (first, last): (u32, u32) = (number(first)?, number(last)?);
        if first > last {
            return Err(format!("the range {part:?} ends before it begins"));
        }
        for number in first..=last {
            let word = (number / u64::BITS) as usize;
            if mask.len() <= word {
                mask.resize(word + 1, 0);
            }
            mask[word] |= 1 << (number % u64::BITS);
        }
    }
    match mask.is_empty() && !text.is_empty() {
        true => Err("it has no number".to_owned()),
        false => Ok(mask),
    }
}

/// How many numbers a mask has.
pub fn count(mask: &[u64]) -> u32 {
    mask.iter().map(|word| word.count_ones()).sum()
}

/// Whether all numbers of one mask are in another.
pub fn contains(mask: &[u64], part: &[u64]) -> bool {
    let word = |index: usize| mask.get(index).copied().unwrap_or_default();
    let mut words = part.iter().enumerate();
    words.all(|(index, part)| part & !word(index) == 0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lists_become_masks() {
        let cases: [(&str, &[u64]); 8] = [
            ("", &[]),
            ("0", &[1]),
            ("0-3,7", &[0x8f]),
            (",0,1,", &[3]),
            (" 1 , 3 ,  5-7, ", &[0xea]),
            ("63-64", &[1 << 63, 1]),
            ("2,2,1-2", &[6]),
            ("128", &[0, 0, 1]),
        ];
        for (text, mask) in cases {
            assert_eq!(parse(text).unwrap(), mask, "{text:?}");
        }
        assert_eq!(count(&parse("65536").unwrap()), 1);
        for bad in [
            "-",
            "1-",
            "-3",
            ",",
            " ",
            "54-53",
            "1 - 2",
            "65537",
            "0-9876543210",
            "+1",
            "a",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_part_is_found_in_a_longer_or_shorter_mask() {
        assert!(contains(&[0b111], &[0b101]));
        assert!(contains(&[1], &[1, 0]));
        assert!(!contains(&[1], &[1, 1]));
        assert!(!contains(&[0b101], &[0b010]));
    }
}
