//! What a results file holds, as bytes.

use super::datasets;
use hdf5::types::{FloatSize, IntSize, TypeDescriptor, VarLenUnicode};
use std::path::Path;

/// A dataset or attribute: its name and its bytes.
pub type Found = (String, Vec<u8>);

/// All that must not depend on how the work was done: everything but the time, and the steps behind the expert counts.
pub fn found(path: &Path) -> Vec<Found> {
    let mut all: Vec<Found> = (datasets::invariant(path).into_iter())
        .map(|(name, (_, bytes))| (name, bytes))
        .collect();
    let file = hdf5::File::open(path).expect("a file");
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
