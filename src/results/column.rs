//! One dataset that grows row by row, and the attributes that describe it.
//!
//! Numbers are chunked, shuffled and deflated; text is HDF5's variable-length UTF-8, which its filters don't reach.

use super::attribute::{set_text, stored};
use anyhow::{Context, Result};
use hdf5::types::VarLenUnicode;
use hdf5::{Dataset, Extent, Group, H5Type, Hyperslab, SimpleExtents};
use std::ops::Range;

/// Numbers in a chunk, at most.
const CHUNK: usize = 1 << 16;
/// Texts in a chunk, at most (16 bytes of reference each).
const TEXT_CHUNK: usize = 4096;

/// What a dataset holds, for its attributes.
#[derive(Clone, Copy)]
pub(crate) struct About {
    /// `long_name`.
    pub long_name: &'static str,
    /// `units`.
    pub units: &'static str,
}

/// A dataset `[rows]` or `[rows, width]` that grows along rows.
pub(crate) struct Column {
    data: Dataset,
    rows: usize,
    width: Option<usize>,
}

impl Column {
    /// Makes an empty dataset of numbers. `expected` rows decide the size of its chunks.
    pub fn numbers<T: H5Type>(
        group: &Group,
        name: &str,
        width: Option<usize>,
        expected: u64,
        about: About,
    ) -> Result<Column> {
        let most = (CHUNK / width.unwrap_or(1)).max(1);
        let mut chunk = vec![expected.clamp(1, most as u64) as usize];
        let mut extents = vec![Extent::resizable(0)];
        if let Some(width) = width {
            chunk.push(width);
            extents.push(Extent::fixed(width));
        }
        let data = group
            .new_dataset_builder()
            .obj_track_times(false)
            .chunk(chunk)
            .shuffle()
            .deflate(4)
            .empty::<T>()
            .shape(SimpleExtents::from_vec(extents))
            .create(name)
            .with_context(|| {
                format!(
                    "cannot make the dataset {}/{name} in {}",
                    group.name(),
                    group.filename()
                )
            })?;
        Column { data, rows: 0, width }.described(about)
    }

    /// Makes an empty dataset of texts.
    pub fn texts(group: &Group, name: &str, expected: u64, about: About) -> Result<Column> {
        let data = group
            .new_dataset_builder()
            .obj_track_times(false)
            .chunk(vec![expected.clamp(1, TEXT_CHUNK as u64) as usize])
            .empty::<VarLenUnicode>()
            .shape(SimpleExtents::from_vec(vec![Extent::resizable(0)]))
            .create(name)
            .with_context(|| {
                format!(
                    "cannot make the dataset {}/{name} in {}",
                    group.name(),
                    group.filename()
                )
            })?;
        Column {
            data,
            rows: 0,
            width: None,
        }
        .described(about)
    }

    /// Opens a dataset to be read.
    pub fn open(group: &Group, name: &str) -> Result<Column> {
        let data = group.dataset(name).with_context(|| {
            format!(
                "{} has no dataset {}/{name}: is it a result of sluice?",
                group.filename(),
                group.name()
            )
        })?;
        let shape = data.shape();
        anyhow::ensure!(
            shape.len() == 1 || shape.len() == 2,
            "{}: {} has {} dimensions, expected 1 or 2",
            data.filename(),
            data.name(),
            shape.len()
        );
        Ok(Column {
            rows: shape[0],
            width: shape.get(1).copied(),
            data,
        })
    }

    /// Opens a dataset that may be missing.
    pub fn open_if_there(group: &Group, name: &str) -> Result<Option<Column>> {
        if group.link_exists(name) {
            Column::open(group, name).map(Some)
        } else {
            Ok(None)
        }
    }

    fn described(self, about: About) -> Result<Column> {
        self.attribute("long_name", about.long_name)?;
        self.attribute("units", about.units)?;
        Ok(self)
    }

    /// Adds a text attribute.
    pub fn attribute(&self, name: &str, value: &str) -> Result<()> {
        set_text(&self.data, name, value)
    }

    /// The dataset's name and that of its file, for messages.
    pub fn place(&self) -> (String, String) {
        (self.data.name(), self.data.filename())
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Numbers a row.
    pub fn width(&self) -> usize {
        self.width.unwrap_or(1)
    }

    fn slab(&self, rows: Range<usize>) -> Hyperslab {
        let mut dims = vec![rows.into()];
        if let Some(width) = self.width {
            dims.push((0..width).into());
        }
        Hyperslab::from(dims)
    }

    /// Appends numbers, `[rows, width]` row after row.
    pub fn append<T: H5Type>(&mut self, values: Vec<T>) -> Result<()> {
        if values.is_empty() {
            return Ok(());
        }
        let context = |data: &Dataset| format!("cannot write {} of {}", data.name(), data.filename());
        let added = values.len() / self.width();
        let rows = self.rows..self.rows + added;
        let mut shape = vec![added];
        shape.extend(self.width);
        let mut whole = shape.clone();
        whole[0] = rows.end;
        self.data.resize(whole).with_context(|| context(&self.data))?;
        let block = like(&self.data.read_slice_1d::<T, _>(self.first_nothing())?, values);
        let block = block
            .into_shape_with_order(shape)
            .with_context(|| context(&self.data))?;
        self.data
            .write_slice(&block, self.slab(rows.clone()))
            .with_context(|| context(&self.data))?;
        self.rows = rows.end;
        Ok(())
    }

    /// A selection of no elements in one dimension.
    fn first_nothing(&self) -> Hyperslab {
        let mut dims = vec![(0..0usize).into()];
        dims.extend(self.width.map(|_| hdf5::SliceOrIndex::from(0usize)));
        Hyperslab::from(dims)
    }

    /// Appends texts. A NUL, at which an HDF5 string would end, becomes U+2400.
    pub fn append_texts<'a>(&mut self, texts: impl Iterator<Item = &'a str>) -> Result<()> {
        let texts = texts.map(stored).collect::<Result<Vec<_>>>()?;
        self.append(texts)
    }

    /// Reads numbers, `[rows, width]`.
    pub fn read<T: H5Type>(&self, rows: Range<usize>) -> Result<Vec<T>> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let context = || format!("cannot read {} of {}", self.data.name(), self.data.filename());
        Ok(match self.width {
            None => {
                self.data
                    .read_slice_1d(self.slab(rows))
                    .with_context(context)?
                    .into_raw_vec_and_offset()
                    .0
            }
            Some(_) => {
                self.data
                    .read_slice_2d(self.slab(rows))
                    .with_context(context)?
                    .into_raw_vec_and_offset()
                    .0
            }
        })
    }

    /// Reads texts.
    pub fn read_texts(&self, rows: Range<usize>) -> Result<Vec<String>> {
        let texts: Vec<VarLenUnicode> = self.read(rows)?;
        Ok(texts
            .iter()
            .map(|text| String::from_utf8_lossy(text.as_bytes()).into_owned())
            .collect())
    }
}

/// `values` as the kind of array that `_example` is: the array crate is the HDF5 crate's own affair.
fn like<A: From<Vec<T>>, T>(_example: &A, values: Vec<T>) -> A {
    A::from(values)
}

/// Rows of varying length: all values one after the other, and where each row starts.
pub(crate) struct Ragged {
    values: Column,
    offsets: Offsets,
}

impl Ragged {
    /// Makes `name` and `offsets` in `group`.
    pub fn create<T: H5Type>(group: &Group, name: &str, expected: u64, about: About) -> Result<Ragged> {
        let values = Column::numbers::<T>(group, name, None, expected.saturating_mul(32), about)?;
        Ok(Ragged {
            values,
            offsets: Offsets::create(group, expected)?,
        })
    }

    /// Opens `name` and `offsets` in `group`, of `rows` rows.
    pub fn open(group: &Group, name: &str, rows: usize) -> Result<Ragged> {
        let (values, offsets) = (Column::open(group, name)?, Offsets::open(group, rows)?);
        offsets.check(&values)?;
        Ok(Ragged { values, offsets })
    }

    /// Refuses values that go with these, one each, if they aren't as many.
    pub fn check(&self, others: &Column) -> Result<()> {
        self.offsets.check(others)
    }

    /// Appends rows.
    pub fn append<'a, T: H5Type + Copy + 'a>(&mut self, rows: impl Iterator<Item = &'a [T]>) -> Result<()> {
        let (mut values, mut lengths) = (Vec::new(), Vec::new());
        for row in rows {
            values.extend_from_slice(row);
            lengths.push(row.len());
        }
        self.values.append(values)?;
        self.offsets.append(lengths.into_iter())
    }

    /// Where the values of `rows` begin and end, `[rows + 1]`.
    pub fn bounds(&self, rows: Range<usize>) -> Result<Vec<usize>> {
        self.offsets.read(rows)
    }

    /// How many values each of `rows` has.
    pub fn lengths(&self, rows: Range<usize>) -> Result<Vec<u64>> {
        self.offsets.lengths(rows)
    }

    /// How many values there are in all.
    pub fn values(&self) -> u64 {
        self.values.rows() as u64
    }

    /// Reads rows.
    pub fn read<T: H5Type + Copy>(&self, rows: Range<usize>) -> Result<Vec<Vec<T>>> {
        let bounds = self.offsets.read(rows)?;
        let (first, last) = (bounds[0], bounds[bounds.len() - 1]);
        let values: Vec<T> = self.values.read(first..last)?;
        Ok(bounds
            .windows(2)
            .map(|bound| values[bound[0] - first..bound[1] - first].to_vec())
            .collect())
    }
}

/// Where each row of a ragged table starts, `[rows + 1]`.
pub(crate) struct Offsets {
    column: Column,
    end: u64,
}

impl Offsets {
    /// Makes `offsets` in `group`.
    pub fn create(group: &Group, expected: u64) -> Result<Offsets> {
        let about = About {
            long_name: "start of each row among the values, and the end",
            units: "1",
        };
        let mut column = Column::numbers::<u64>(group, "offsets", None, expected.saturating_add(1), about)?;
        column.append(vec![0u64])?;
        Ok(Offsets { column, end: 0 })
    }

    /// Opens `offsets` in `group`, of `rows` rows.
    pub fn open(group: &Group, rows: usize) -> Result<Offsets> {
        let column = Column::open(group, "offsets")?;
        anyhow::ensure!(
            column.rows() == rows + 1,
            "{} is damaged: {} has {} entries, for {rows} rows it should have {}",
            column.data.filename(),
            column.data.name(),
            column.rows(),
            rows + 1
        );
        let last: Vec<u64> = column.read(rows..rows + 1)?;
        Ok(Offsets { column, end: last[0] })
    }

    /// Refuses values that don't end where the last row does.
    pub fn check(&self, values: &Column) -> Result<()> {
        anyhow::ensure!(
            values.rows() as u64 == self.end,
            "{} is damaged: {} has {} entries, {} says {}",
            values.data.filename(),
            values.data.name(),
            values.rows(),
            self.column.data.name(),
            self.end
        );
        Ok(())
    }

    /// Appends rows of these lengths.
    pub fn append(&mut self, lengths: impl Iterator<Item = usize>) -> Result<()> {
        let ends = lengths
            .map(|length| {
                self.end += length as u64;
                self.end
            })
            .collect();
        self.column.append::<u64>(ends)
    }

    /// How long each of `rows` is.
    pub fn lengths(&self, rows: Range<usize>) -> Result<Vec<u64>> {
        let bounds = self.read(rows)?;
        Ok(bounds.windows(2).map(|bound| (bound[1] - bound[0]) as u64).collect())
    }

    /// Bounds of `rows`, `[rows + 1]`; never empty, never falling, none beyond the end.
    pub fn read(&self, rows: Range<usize>) -> Result<Vec<usize>> {
        let bounds: Vec<u64> = self.column.read(rows.start..rows.end + 1)?;
        anyhow::ensure!(
            bounds.is_sorted() && bounds.last().is_some_and(|last| *last <= self.end),
            "{} is damaged: {} falls, or goes beyond its end {}",
            self.column.data.filename(),
            self.column.data.name(),
            self.end
        );
        Ok(bounds.into_iter().map(|bound| bound as usize).collect())
    }
}
