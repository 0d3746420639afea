//! The header of a safetensors file: which tensors it holds and where their bytes lie.
//!
//! A file is 8 bytes of header length `n` (little endian), `n` bytes of JSON
//! (`{"name": {"dtype", "shape", "data_offsets": [begin, end]}, ...}`), then the tensors' bytes without holes
//! (<https://github.com/huggingface/safetensors>, "Format"). The `safetensors` crate checks the same rules, but wants
//! the whole file in memory and mostly doesn't say which tensor broke one; here nothing but the header is read, and
//! every refusal names its tensor.

use std::fmt;

use anyhow::{anyhow, bail, ensure, Result};
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::tensor::StoredDtype;

/// The longest header that the format allows, in bytes.
pub(super) const MAX_HEADER: u64 = 100_000_000;

/// A tensor's element type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// One of the types in which weights are accepted.
    Float(StoredDtype),
    /// Any other, by the name that the file gives it (`I64`, `U8`, `F8_E4M3`, ...).
    Other(String),
}

impl Dtype {
    fn parse(name: &str) -> Dtype {
        match name {
            "F32" => Dtype::Float(StoredDtype::F32),
            "BF16" => Dtype::Float(StoredDtype::Bf16),
            "F16" => Dtype::Float(StoredDtype::F16),
            other => Dtype::Other(other.to_string()),
        }
    }

    /// Bits of one element; `None` for a type that isn't known here.
    fn bits(&self) -> Option<u64> {
        Some(match self {
            Dtype::Float(dtype) => 8 * dtype.bytes() as u64,
            Dtype::Other(name) => match name.as_str() {
                "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" => 8,
                "U16" | "I16" => 16,
                "U32" | "I32" => 32,
                "U64" | "I64" | "F64" | "C64" => 64,
                _ => return None,
            },
        })
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dtype::Float(dtype) => f.write_str(dtype.name()),
            Dtype::Other(name) => f.write_str(name),
        }
    }
}

/// What a header says about one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type.
    pub dtype: Dtype,
    /// Extents, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Bytes that the tensor takes in its file.
    pub bytes: u64,
    /// Where they begin, counted from the start of the file.
    pub(super) start: u64,
    /// Which of the checkpoint's files holds them.
    pub(super) shard: usize,
}

impl TensorInfo {
    /// What is stored of one index of the first dimension; nothing if there is no such index.
    pub(super) fn part(&self, index: usize) -> Option<TensorInfo> {
        let (&parts, shape) = self.shape.split_first()?;
        let bytes = self.bytes.checked_div(parts as u64)?;
        (index < parts).then(|| TensorInfo {
            dtype: self.dtype.clone(),
            shape: shape.to_vec(),
            bytes,
            start: self.start + index as u64 * bytes,
            shard: self.shard,
        })
    }
}

/// Reads the JSON of a header whose file has `data_len` bytes behind it.
///
/// Starts are counted from the start of the file, `shard` is left 0.
///
/// # Errors
/// Names the tensor (or line and column) at fault: bad JSON, a name given twice, offsets that run backwards, overlap,
/// leave a hole, reach beyond the file or don't fit shape and element type.
pub(super) fn parse(json: &[u8], data_len: u64) -> Result<Vec<(String, TensorInfo)>> {
    let Listed(listed) = serde_json::from_slice(json)
        .map_err(|e| anyhow!("the safetensors header is damaged ({e}); download the file again"))?;
    let mut tensors = Vec::with_capacity(listed.len());
    for (name, raw) in listed {
        let info = raw.check().map_err(|e| e.context(format!("tensor `{name}`")))?;
        tensors.push((name, info));
    }
    // Empty tensors sort before the one that begins where they do.
    tensors.sort_by_key(|(_, info)| (info.start, info.bytes));
    check_layout(&tensors, data_len)?;
    let data_start = 8 + json.len() as u64;
    for (_, info) in &mut tensors {
        info.start += data_start;
    }
    Ok(tensors)
}

/// Bytes follow each other without overlap or hole and end where the file ends.
fn check_layout(tensors: &[(String, TensorInfo)], data_len: u64) -> Result<()> {
    let (mut end, mut last) = (0, "");
    for (name, info) in tensors {
        ensure!(
            info.start >= end,
            "tensors `{last}` and `{name}` overlap: `{name}` begins at byte {} of the data, `{last}` ends at {end}; \
             the file is damaged: download it again",
            info.start
        );
        ensure!(
            info.start == end,
            "{} bytes before tensor `{name}` belong to no tensor; the file is damaged: download it again",
            info.start - end
        );
        (end, last) = (info.start + info.bytes, name);
    }
    if end > data_len {
        let torn = tensors
            .iter()
            .find(|(_, t)| t.start + t.bytes > data_len)
            .map_or(last, |(name, _)| name);
        bail!(
            "the file is torn: {} bytes are missing at its end, from tensor `{torn}` on (data of {data_len} bytes \
             where the header tells of {end}); download it again",
            end - data_len
        );
    }
    ensure!(
        end == data_len,
        "{} bytes follow the last tensor (`{last}`); the file is not what its header tells: download it again",
        data_len - end
    );
    Ok(())
}

/// One entry of a header as it stands there.
#[derive(serde::Deserialize)]
struct Raw {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl Raw {
    fn check(self) -> Result<TensorInfo> {
        let (begin, end) = self.data_offsets;
        ensure!(
            begin <= end,
            "its bytes end ({end}) before they begin ({begin}): the file is damaged"
        );
        let dtype = Dtype::parse(&self.dtype);
        let elements = self
            .shape
            .iter()
            .try_fold(1u64, |product, &extent| product.checked_mul(extent));
        let overflow = || anyhow!("shape {:?} is larger than any file: the file is damaged", self.shape);
        let elements = elements.ok_or_else(overflow)?;
        if let Some(bits) = dtype.bits() {
            let bytes = elements.checked_mul(bits / 8).ok_or_else(overflow)?;
            ensure!(
                bytes == end - begin,
                "shape {:?} of {dtype} takes {bytes} bytes, but {} are set aside for it: the file is damaged",
                self.shape,
                end - begin
            );
        }
        let shape = self
            .shape
            .iter()
            .map(|&extent| usize::try_from(extent))
            .collect::<Result<_, _>>();
        Ok(TensorInfo {
            dtype,
            shape: shape.map_err(|_| overflow())?,
            bytes: end - begin,
            start: begin,
            shard: 0,
        })
    }
}

/// All entries in the order of the file. A plain map would let a name that comes twice pass unseen.
struct Listed(Vec<(String, Raw)>);

impl<'de> Deserialize<'de> for Listed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Listed, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Listed;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object that lists tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Listed, A::Error> {
                let mut names = std::collections::HashSet::new();
                let mut listed = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let raw = map
                        .next_value()
                        .map_err(|e| A::Error::custom(format!("tensor `{name}`: {e}")))?;
                    if !names.insert(name.clone()) {
                        return Err(A::Error::custom(format!("tensor `{name}` is listed twice")));
                    }
                    listed.push((name, raw));
                }
                Ok(Listed(listed))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(json: &str, data_len: u64) -> String {
        format!("{:#}", parse(json.as_bytes(), data_len).unwrap_err())
    }

    #[test]
    fn entries_come_in_the_order_of_their_bytes() {
        let json = r#"{"__metadata__":{"format":"pt"},
            "b":{"dtype":"BF16","shape":[2,3],"data_offsets":[8,20]},
            "none":{"dtype":"F32","shape":[0,7],"data_offsets":[8,8]},
            "a":{"dtype":"I64","shape":[],"data_offsets":[0,8]}}   "#;
        let tensors = parse(json.as_bytes(), 20).unwrap();
        let data_start = 8 + json.len() as u64;
        let rows: Vec<_> = tensors
            .iter()
            .map(|(n, t)| (n.as_str(), t.start - data_start, t.bytes))
            .collect();
        assert_eq!(rows, [("a", 0, 8), ("none", 8, 0), ("b", 8, 12)]);
        assert_eq!(tensors[0].1.dtype, Dtype::Other("I64".into()));
        assert_eq!(tensors[2].1.shape, [2, 3]);
        assert!(parse(b"{}", 0).unwrap().is_empty());
    }

    #[test]
    fn a_type_from_the_future_is_no_error_until_it_is_asked_for() {
        let json = r#"{"a":{"dtype":"F6_E3M2","shape":[8],"data_offsets":[0,6]}}"#;
        assert_eq!(
            parse(json.as_bytes(), 6).unwrap()[0].1.dtype,
            Dtype::Other("F6_E3M2".into())
        );
    }

    #[test]
    fn each_refusal_names_its_tensor() {
        let two = |a: &str, b: &str| {
            format!(r#"{{"left":{{"dtype":"F32","shape":[2],{a}}},"right":{{"dtype":"F32","shape":[2],{b}}}}}"#)
        };
        let cases = [
            (
                two(r#""data_offsets":[0,8]"#, r#""data_offsets":[4,12]"#),
                12,
                "`left` and `right` overlap",
            ),
            (two(r#""data_offsets":[0,8]"#, r#""data_offsets":[0,8]"#), 8, "overlap"),
            (
                two(r#""data_offsets":[0,8]"#, r#""data_offsets":[12,20]"#),
                20,
                "4 bytes before tensor `right`",
            ),
            (
                two(r#""data_offsets":[0,8]"#, r#""data_offsets":[8,16]"#),
                13,
                "3 bytes are missing",
            ),
            (
                two(r#""data_offsets":[0,8]"#, r#""data_offsets":[8,16]"#),
                13,
                "from tensor `right` on",
            ),
            (
                two(r#""data_offsets":[0,8]"#, r#""data_offsets":[8,16]"#),
                3,
                "from tensor `left` on",
            ),
            (
                two(r#""data_offsets":[0,8]"#, r#""data_offsets":[8,16]"#),
                17,
                "1 bytes follow the last tensor (`right`)",
            ),
            (
                two(r#""data_offsets":[8,0]"#, r#""data_offsets":[8,16]"#),
                16,
                "tensor `left`: its bytes end (0)",
            ),
            (
                two(r#""data_offsets":[0,8]"#, r#""data_offsets":[8,15]"#),
                15,
                "tensor `right`: shape [2] of float32",
            ),
            (
                two(r#""data_offsets":[0,8]"#, r#""data_offsets":[-8,16]"#),
                16,
                "tensor `right`: invalid value",
            ),
            (
                two(r#""data_offsets":[0,8]"#, r#""data_offsets":[8]"#),
                16,
                "tensor `right`: invalid length",
            ),
            (
                two(r#""data_offsets":[0,8]"#, r#""offsets":[8,16]"#),
                16,
                "tensor `right`: missing field",
            ),
            (
                two(r#""data_offsets":[0,8]"#, r#""data_offsets":[8,16]"#).replace("right", "left"),
                16,
                "listed twice",
            ),
            (
                two(r#""data_offsets":[0,8]"#, r#""data_offsets":[8,18446744073709551615]"#).replace("[2]", "[2,1]"),
                16,
                "tensor `right`",
            ),
            (
                two(r#""data_offsets":[0,8]"#, r#""data_offsets":[8,16]"#)
                    .replace("[2]", "[9223372036854775807,9223372036854775807]"),
                16,
                "tensor `left`: shape [9223372036854775807, 9223372036854775807] is larger",
            ),
        ];
        for (json, data_len, want) in cases {
            let found = error(&json, data_len);
            assert!(found.contains(want), "{want:?} is not in {found:?}");
        }
        assert!(error("{\"a\": ", 0).contains("line 1 column"));
        assert!(error("[]", 0).contains("an object that lists tensors"));
        assert!(error("\u{0}\u{1}", 0).contains("header is damaged"));
    }
}
