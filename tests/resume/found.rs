//! What a results file holds, as bytes.

use hdf5::types::{FloatSize, IntSize, TypeDescriptor, VarLenUnicode};
use std::path::Path;

/// A dataset or attribute: its name and its bytes.
pub type Found = (String, Vec<u8>);

/// All that must not depend on how the work was done: everything but the time, and the steps behind the expert counts.
pub fn found(path: &Path) -> Vec<Found> {
    let file = hdf5::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut all = Vec::new();
    for name in ["input", "output", "tokens", "scores", "routing"] {
        walk(&file.group(name).expect(name), &mut all);
    }
    let metrics = file.group("metrics").expect("metrics");
    for name in metrics.attr_names().expect("names") {
        let value = metrics.attr(&name).expect("an attribute");
        let bytes = match value.dtype().and_then(|kind| kind.to_descriptor()).expect("a type") {
            TypeDescriptor::Unsigned(IntSize::U8) => {
                value.read_scalar::<u64>().expect("a number").to_le_bytes().to_vec()
            }
            TypeDescriptor::Float(FloatSize::U8) => {
                value.read_scalar::<f64>().expect("a number").to_le_bytes().to_vec()
            }
            _ => value
                .read_scalar::<VarLenUnicode>()
                .expect("a text")
                .as_bytes()
                .to_vec(),
        };
        all.push((format!("/metrics/{name}"), bytes));
    }
    assert!(
        all.iter().any(|(name, _)| name.ends_with("totals")),
        "{} has no routing",
        path.display()
    );
    all
}

fn walk(group: &hdf5::Group, all: &mut Vec<Found>) {
    for data in group.datasets().expect("datasets") {
        let name = data.name();
        if name.starts_with("/routing")
            && ["attempt", "group", "step", "counts"]
                .iter()
                .any(|end| name.ends_with(&format!("/{end}")))
        {
            continue;
        }
        macro_rules! bytes {
            ($t:ty) => {
                data.read_raw::<$t>()
                    .expect("values")
                    .iter()
                    .flat_map(|value| value.to_le_bytes())
                    .collect()
            };
        }
        let bytes = match data.dtype().and_then(|kind| kind.to_descriptor()).expect("a type") {
            TypeDescriptor::Unsigned(IntSize::U1) => bytes!(u8),
            TypeDescriptor::Unsigned(IntSize::U2) => bytes!(u16),
            TypeDescriptor::Unsigned(IntSize::U4) => bytes!(u32),
            TypeDescriptor::Unsigned(IntSize::U8) => bytes!(u64),
            TypeDescriptor::Float(FloatSize::U4) => bytes!(f32),
            TypeDescriptor::Float(FloatSize::U8) => bytes!(f64),
            _ => {
                let texts = data.read_raw::<VarLenUnicode>().expect("texts");
                texts
                    .iter()
                    .flat_map(|text| [text.as_bytes(), b"\0"].concat())
                    .collect()
            }
        };
        all.push((name, bytes));
    }
    group
        .groups()
        .expect("groups")
        .iter()
        .for_each(|inner| walk(inner, all));
}
