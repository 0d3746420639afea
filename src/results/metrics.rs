//! `/metrics`: figures that say how good the results are, as attributes.

use super::attribute::{get_number, get_text, set_number, set_text};
use super::writer::make_group;
use anyhow::{Context, Result};
use hdf5::types::TypeDescriptor;
use hdf5::File;

/// A figure or text under `/metrics`.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// Its name, such as `BLEU` or `BLEU_signature`.
    pub name: String,
    /// What it is.
    pub value: MetricValue,
}

/// What a metric holds.
#[derive(Clone, Debug, PartialEq)]
pub enum MetricValue {
    /// A figure (f64).
    Number(f64),
    /// A count (u64).
    Count(u64),
    /// A text, such as a signature.
    Text(String),
}

/// Writes metrics into an open file.
pub(crate) fn put_metrics(file: &File, metrics: &[Metric]) -> Result<()> {
    let group = match file.link_exists("metrics") {
        true => file.group("metrics").context("cannot open the group /metrics")?,
        false => make_group(file, "metrics", "figures of quality over all rows")?,
    };
    for metric in metrics {
        match &metric.value {
            MetricValue::Number(value) => set_number(&group, &metric.name, *value)?,
            MetricValue::Count(value) => set_number(&group, &metric.name, *value)?,
            MetricValue::Text(value) => set_text(&group, &metric.name, value)?,
        }
    }
    Ok(())
}

/// What a file has under `/metrics`, by name.
pub(crate) fn read_metrics(file: &File) -> Result<Vec<Metric>> {
    if !file.link_exists("metrics") {
        return Ok(Vec::new());
    }
    let group = file.group("metrics").context("cannot open the group /metrics")?;
    let mut names = group.attr_names().context("cannot read the attributes of /metrics")?;
    names.retain(|name| name != "long_name");
    names.sort();
    let mut metrics = Vec::new();
    for name in names {
        let kind = group
            .attr(&name)
            .and_then(|attribute| attribute.dtype())
            .and_then(|kind| kind.to_descriptor());
        let value = match kind.with_context(|| format!("cannot read /metrics, attribute {name}"))? {
            TypeDescriptor::Float(_) => MetricValue::Number(get_number(&group, &name)?),
            TypeDescriptor::Integer(_) | TypeDescriptor::Unsigned(_) => MetricValue::Count(get_number(&group, &name)?),
            TypeDescriptor::VarLenUnicode => MetricValue::Text(get_text(&group, &name)?),
            _ => continue,
        };
        metrics.push(Metric { name, value });
    }
    Ok(metrics)
}
