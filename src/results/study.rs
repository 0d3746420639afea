//! The file of a study, `STUDY.h5`: tables of any number of dimensions under one group.

use super::attribute::{set_text, set_texts, stored};
use super::durable::{rename, with_suffix};
use super::writer::{make_file, make_group};
use super::CREATOR;
use anyhow::{ensure, Context, Result};
use hdf5::types::VarLenUnicode;
use hdf5::{File, Group, H5Type};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// Numbers or texts of a table, the last dimension fastest.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Counts (u64).
    Counts(Vec<u64>),
    /// Figures (f64).
    Figures(Vec<f64>),
    /// Texts.
    Texts(Vec<String>),
}

/// One dataset.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// What it holds: the attribute `long_name`.
    pub long_name: &'static str,
    /// The attribute `units`.
    pub units: &'static str,
    /// Each dimension's name, outermost first: the attribute `dimensions`.
    pub dimensions: &'static [&'static str],
    /// Each dimension's extent.
    pub shape: Vec<usize>,
    /// What is in it.
    pub values: Values,
}

/// What a study leaves behind.
#[derive(Clone, Debug, PartialEq)]
pub struct StudyFile {
    /// Which study it is: the group's name, and the root attribute `study`.
    pub study: &'static str,
    /// What the group holds.
    pub long_name: &'static str,
    /// The root attribute `command`.
    pub command: String,
    /// The root attribute `config`.
    pub config: Value,
    /// Texts that describe the study, as attributes of its group.
    pub attributes: Vec<(&'static str, String)>,
    /// Datasets of its group.
    pub tables: Vec<Table>,
}

/// Writes a study's file; it appears under its name whole or not at all.
///
/// # Errors
/// A table's values are not as many as its shape says; the disk is full, or the folder not writable.
pub fn write_study(path: &Path, study: &StudyFile) -> Result<()> {
    let temporary = with_suffix(path, ".writing");
    let made = make_file(&temporary, |file| study.fill(file, path)).and_then(|()| rename(&temporary, path));
    if made.is_err() {
        // What is wrong was said; a file half written is of no use.
        let _ = fs::remove_file(&temporary);
    }
    made
}

impl StudyFile {
    fn fill(&self, file: &File, path: &Path) -> Result<()> {
        let (major, minor, patch) = hdf5::library_version();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let time = jiff::Timestamp::now().strftime("%FT%TZ").to_string();
        for (attribute, value) in [
            ("creator", CREATOR),
            ("creator_version", env!("CARGO_PKG_VERSION")),
            ("HDF5_Version", &format!("{major}.{minor}.{patch}")),
            ("file_name", &name),
            ("file_time", &time),
            ("command", &self.command),
            ("config", &self.config.to_string()),
            ("job", "study"),
            ("study", self.study),
        ] {
            set_text(file, attribute, value)?;
        }
        let group = make_group(file, self.study, self.long_name)?;
        for (attribute, value) in &self.attributes {
            set_text(&group, attribute, value)?;
        }
        self.tables.iter().try_for_each(|table| table.write(&group))
    }
}

impl Table {
    fn write(&self, group: &Group) -> Result<()> {
        match &self.values {
            Values::Counts(values) => self.put(group, values),
            Values::Figures(values) => self.put(group, values),
            Values::Texts(values) => {
                let values = values
                    .iter()
                    .map(|text| stored(text))
                    .collect::<Result<Vec<VarLenUnicode>>>()?;
                self.put(group, &values)
            }
        }
    }

    fn put<T: H5Type>(&self, group: &Group, values: &[T]) -> Result<()> {
        let wanted: usize = self.shape.iter().product();
        ensure!(
            values.len() == wanted && self.dimensions.len() == self.shape.len(),
            "{}: {} values for {:?} {:?}",
            self.name,
            values.len(),
            self.dimensions,
            self.shape
        );
        let context = || format!("cannot write {}/{} of {}", group.name(), self.name, group.filename());
        let builder = group.new_dataset_builder().obj_track_times(false).empty::<T>();
        let data = builder
            .shape(self.shape.clone())
            .create(self.name)
            .with_context(context)?;
        data.write_raw(values).with_context(context)?;
        set_text(&data, "long_name", self.long_name)?;
        set_text(&data, "units", self.units)?;
        let dimensions: Vec<String> = self.dimensions.iter().map(|name| (*name).to_owned()).collect();
        set_texts(&data, "dimensions", &dimensions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn study(counts: Vec<u64>) -> StudyFile {
        StudyFile {
            study: "buffer",
            long_name: "a test",
            command: "sluice study".to_owned(),
            config: Value::Null,
            attributes: vec![("trace", "run.h5".to_owned())],
            tables: vec![
                Table {
                    name: "loads",
                    long_name: "loads",
                    units: "loads",
                    dimensions: &["policy", "slots", "rank"],
                    shape: vec![1, 2, 3],
                    values: Values::Counts(counts),
                },
                Table {
                    name: "policies",
                    long_name: "names",
                    units: "UTF-8",
                    dimensions: &["policy"],
                    shape: vec![1],
                    values: Values::Texts(vec!["lru".to_owned()]),
                },
            ],
        }
    }

    #[test]
    fn tables_come_back_in_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.h5");
        write_study(&path, &study((0..6).collect())).unwrap();
        let file = File::open(&path).unwrap();
        let loads = file.dataset("buffer/loads").unwrap();
        assert_eq!(loads.shape(), [1, 2, 3]);
        assert_eq!(loads.read_raw::<u64>().unwrap(), [0, 1, 2, 3, 4, 5]);
        for name in ["long_name", "units", "dimensions"] {
            assert!(loads.attr(name).is_ok(), "{name}");
        }
        assert_eq!(super::super::attribute::get_text(&file, "creator").unwrap(), CREATOR);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn what_does_not_fit_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let error = write_study(&folder.path().join("s.h5"), &study(vec![1])).unwrap_err();
        assert!(format!("{error:#}").contains("1 values"), "{error:#}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
