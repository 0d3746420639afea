//! Attributes of files, groups and datasets; and how a text is stored.

use anyhow::{Context, Result};
use hdf5::types::VarLenUnicode;
use hdf5::{H5Type, Location};
use std::str::FromStr;

/// A text as HDF5 keeps it.
pub(crate) fn stored(text: &str) -> Result<VarLenUnicode> {
    let kept = if text.contains('\0') {
        VarLenUnicode::from_str(&text.replace('\0', "\u{2400}"))
    } else {
        VarLenUnicode::from_str(text)
    };
    kept.context("a text can't be stored in HDF5")
}

/// Sets a text attribute, replacing one of that name.
pub(crate) fn set_text(at: &Location, name: &str, value: &str) -> Result<()> {
    write_attribute(at, name, &stored(value)?)
}

/// Sets a number attribute, replacing one of that name.
pub(crate) fn set_number<T: H5Type>(at: &Location, name: &str, value: T) -> Result<()> {
    write_attribute(at, name, &value)
}

fn write_attribute<T: H5Type>(at: &Location, name: &str, value: &T) -> Result<()> {
    let write = || -> hdf5::Result<()> {
        if at.attr_names()?.iter().any(|there| there == name) {
            at.delete_attr(name)?;
        }
        at.new_attr::<T>().create(name)?.write_scalar(value)
    };
    write().with_context(|| {
        format!(
            "cannot write the attribute {name} of {} in {}",
            at.name(),
            at.filename()
        )
    })
}

/// Sets an attribute that holds a list of texts.
pub(crate) fn set_texts(at: &Location, name: &str, values: &[String]) -> Result<()> {
    let values = values.iter().map(|value| stored(value)).collect::<Result<Vec<_>>>()?;
    at.new_attr::<VarLenUnicode>()
        .shape(values.len())
        .create(name)
        .and_then(|attribute| attribute.write(&values))
        .with_context(|| {
            format!(
                "cannot write the attribute {name} of {} in {}",
                at.name(),
                at.filename()
            )
        })
}

/// Reads a text attribute.
pub(crate) fn get_text(at: &Location, name: &str) -> Result<String> {
    let text: VarLenUnicode = get_number(at, name)?;
    Ok(String::from_utf8_lossy(text.as_bytes()).into_owned())
}

/// Reads a number attribute.
pub(crate) fn get_number<T: H5Type>(at: &Location, name: &str) -> Result<T> {
    at.attr(name)
        .and_then(|attribute| attribute.read_scalar())
        .with_context(|| format!("cannot read the attribute {name} of {} in {}", at.name(), at.filename()))
}

/// Reads an attribute that holds a list of texts.
pub(crate) fn get_texts(at: &Location, name: &str) -> Result<Vec<String>> {
    let texts: Vec<VarLenUnicode> = at
        .attr(name)
        .and_then(|attribute| attribute.read_raw())
        .with_context(|| format!("cannot read the attribute {name} of {} in {}", at.name(), at.filename()))?;
    Ok(texts
        .iter()
        .map(|text| String::from_utf8_lossy(text.as_bytes()).into_owned())
        .collect())
}
