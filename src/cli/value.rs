//! Values that several commands share, and their parsers.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// An upper bound that only catches slips of the keyboard.
pub const MANY: usize = 1 << 30;

/// A parser of whole numbers from `least` to `most`.
pub fn count(least: usize, most: usize) -> impl Fn(&str) -> Result<usize, String> + Clone + Send + Sync + 'static {
    move |text| match text.parse::<usize>() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        Ok(_) => Err(format!("it must be from {least} to {most}")),
        Err(_) => Err(format!("it must be a whole number from {least} to {most}")),
    }
}

/// A parser of finite numbers.
pub fn finite(text: &str) -> Result<f32, String> {
    text.parse()
        .ok()
        .filter(|number: &f32| number.is_finite())
        .ok_or_else(|| "it must be a number, e.g. 1.0".to_owned())
}

/// A parser of times: from a tenth of a second to a day.
pub fn seconds(text: &str) -> Result<f64, String> {
    let number = text
        .parse::<f64>()
        .ok()
        .filter(|number| (0.1..=86_400.0).contains(number));
    number.ok_or_else(|| "it must be a number of seconds from 0.1 to 86400".to_owned())
}

/// A parser of language codes. Which codes a model knows is the tokenizer's to say; here only slips are caught.
pub fn code(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("a language code is missing, e.g. fra_Latn".to_owned()),
        code if code.contains(char::is_whitespace) => {
            Err("write several codes with commas: fra_Latn,deu_Latn".to_owned())
        }
        code => Ok(code.to_owned()),
    }
}

/// An amount of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Memory {
    /// As much as is fastest.
    Auto,
    /// This many bytes.
    #[serde(untagged)]
    Bytes(u64),
}

/// Letters that stand behind numbers of bytes, and what they mean.
const UNITS: [(char, u64); 4] = [('K', 1 << 10), ('M', 1 << 20), ('G', 1 << 30), ('T', 1 << 40)];

impl FromStr for Memory {
    type Err = String;

    fn from_str(text: &str) -> Result<Memory, String> {
        if text == "auto" {
            return Ok(Memory::Auto);
        }
        let upper = text.to_ascii_uppercase();
        let plain = upper.trim_end_matches("IB").trim_end_matches('B');
        let unit = UNITS.iter().find(|(letter, _)| plain.ends_with(*letter));
        let number = plain.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let bytes = number
            .parse::<f64>()
            .ok()
            .filter(|n| n.is_finite() && plain.len() - number.len() == unit.iter().count());
        let bytes = bytes.map(|n| n * unit.map_or(1.0, |u| u.1 as f64));
        match bytes {
            Some(bytes) if (1.0..1e18).contains(&bytes) => Ok(Memory::Bytes(bytes as u64)),
            _ => Err("it must be an amount of memory such as 512M or 2G, or auto".to_owned()),
        }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Memory::Bytes(bytes) = self else {
            return f.write_str("auto");
        };
        match UNITS.iter().rev().find(|(_, unit)| bytes % unit == 0) {
            Some((letter, unit)) => write!(f, "{}{letter}", bytes / unit),
            None => write!(f, "{bytes}"),
        }
    }
}

/// A parser of amounts of memory in bytes.
pub fn bytes(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(Memory::Bytes(bytes)) => Ok(bytes),
        _ => Err("it must be an amount of memory such as 512M or 2G".to_owned()),
    }
}

/// Whole numbers, rising, each once: `1..16` (both ends count), `1,2,4,8`, or both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Numbers(Vec<usize>);

impl Numbers {
    /// The numbers, rising.
    pub fn numbers(&self) -> &[usize] {
        &self.0
    }

    /// A parser of numbers from `least` to `most`.
    pub fn parser(
        least: usize,
        most: usize,
    ) -> impl Fn(&str) -> Result<Numbers, String> + Clone + Send + Sync + 'static {
        let number = count(least, most);
        move |text| {
            let mut numbers = BTreeSet::new();
            for part in text.split(',') {
                let (first, last) = part.split_once("..").unwrap_or((part, part));
                let ends = number(first.trim()).and_then(|first| Ok((first, number(last.trim())?)));
                let (first, last) =
                    ends.map_err(|why| format!("{why}, or a list or range of them: 1,2,4,8 or 1..16"))?;
                if first > last {
                    return Err(format!("{part} is an empty range: write the smaller number first"));
                }
                numbers.extend(first..=last);
            }
            Ok(Numbers(numbers.into_iter().collect()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_lists_and_ranges() {
        let parse = Numbers::parser(1, 99);
        for (text, numbers) in [
            ("7", &[7][..]),
            ("1..4", &[1, 2, 3, 4]),
            ("3..3", &[3]),
            ("8,1,2, 4", &[1, 2, 4, 8]),
            ("1..3,2..4,9", &[1, 2, 3, 4, 9]),
        ] {
            assert_eq!(parse(text).unwrap().numbers(), numbers, "{text}");
        }
        for (text, said) in [
            ("", "whole number"),
            ("1,", "whole number"),
            ("1..", "whole number"),
            ("..4", "whole number"),
            ("1..=4", "1..16"),
            ("0..4", "from 1 to 99"),
            ("1..100", "from 1 to 99"),
            ("4..1", "4..1 is an empty range"),
        ] {
            assert!(parse(text).unwrap_err().contains(said), "{text}");
        }
    }

    #[test]
    fn memory_has_units() {
        for (text, bytes, shown) in [
            ("2G", 2u64 << 30, "2G"),
            ("1.5g", 3 << 29, "1536M"),
            ("512MiB", 512 << 20, "512M"),
            ("64KB", 64 << 10, "64K"),
            ("1000", 1000, "1000"),
        ] {
            let memory: Memory = text.parse().unwrap();
            assert_eq!(
                (memory, memory.to_string().as_str()),
                (Memory::Bytes(bytes), shown),
                "{text}"
            );
        }
        assert_eq!("auto".parse(), Ok(Memory::Auto));
        for text in ["", "G", "-1G", "2X", "2GG", "nanG", "0", "1e300T"] {
            assert!(text.parse::<Memory>().unwrap_err().contains("512M"), "{text}");
        }
    }
}
