//! A results file's datasets as raw bytes, for comparisons to the last bit. Each room of tests uses some of it.
#![allow(dead_code)]

use hdf5::types::{FloatSize, IntSize, TypeDescriptor, VarLenUnicode};
use std::collections::BTreeMap;
use std::path::Path;

/// Shape and bytes by name.
pub type Datasets = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

/// All datasets of a file.
pub fn all(path: &Path) -> Datasets {
    let mut found = Datasets::new();
    walk(&hdf5::File::open(path).expect("a file"), &mut found);
    found
}

/// All but the timing.
pub fn untimed(path: &Path) -> Datasets {
    let mut found = all(path);
    found.retain(|name, _| !name.starts_with("/timing"));
    found
}

/// Those that may not depend on how the work was shared: all but the timing and the trace of steps.
pub fn invariant(path: &Path) -> Datasets {
    let mut found = all(path);
    found.retain(|name, _| {
        let trace = ["/attempt", "/group", "/step", "/counts"];
        let of_steps = name.starts_with("/routing") && trace.iter().any(|end| name.ends_with(end));
        !of_steps && !name.starts_with("/timing")
    });
    found
}

/// The same datasets with the same bytes.
#[track_caller]
pub fn assert_equal(found: &Datasets, wanted: &Datasets, what: &str) {
    let names = |d: &Datasets| d.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(wanted), "{what}");
    for (name, value) in found {
        assert!(value == &wanted[name], "{what}: {name} differs");
    }
}

fn walk(group: &hdf5::Group, found: &mut Datasets) {
    for data in group.datasets().expect("datasets") {
        for name in ["long_name", "units"] {
            assert!(data.attr(name).is_ok(), "{} has no {name}", data.name());
        }
        found.insert(data.name(), (data.shape(), bytes(&data)));
    }
    for inner in group.groups().expect("groups") {
        walk(&inner, found);
    }
}

fn bytes(data: &hdf5::Dataset) -> Vec<u8> {
    macro_rules! numbers {
        ($t:ty) => {{
            let values = data.read_raw::<$t>().expect("values");
            values.iter().flat_map(|value| value.to_le_bytes()).collect()
        }};
    }
    match data.dtype().and_then(|kind| kind.to_descriptor()).expect("a type") {
        TypeDescriptor::Unsigned(IntSize::U1) => numbers!(u8),
        TypeDescriptor::Unsigned(IntSize::U2) => numbers!(u16),
        TypeDescriptor::Unsigned(IntSize::U4) => numbers!(u32),
        TypeDescriptor::Unsigned(IntSize::U8) => numbers!(u64),
        TypeDescriptor::Float(FloatSize::U4) => numbers!(f32),
        TypeDescriptor::Float(FloatSize::U8) => numbers!(f64),
        TypeDescriptor::VarLenUnicode => {
            let texts = data.read_raw::<VarLenUnicode>().expect("texts");
            texts
                .iter()
                .flat_map(|text| [text.as_bytes(), b"\0"].concat())
                .collect()
        }
        other => panic!("{} has the type {other}", data.name()),
    }
}
