//! A model folder, opened: names, shapes, and tensors read one at a time.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::OnceLock;

use anyhow::{anyhow, bail, ensure, Context, Result};
use half::{bf16, f16};

use super::fingerprint;
use super::folder::{self, Shard};
use super::fp8;
use super::header::{Dtype, TensorInfo};
use super::tensor::{StoredDtype, TensorData};

/// Bytes asked for at once: large enough for a parallel file system, and all that a read needs beside its result.
pub const READ_BLOCK: usize = 4 << 20;

/// An opened model folder. Only headers are in memory; files stay open, and reads may come from several threads.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    source: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, TensorInfo>,
    bytes_read: AtomicU64,
    sha256: OnceLock<String>,
}

/// How a tensor's numbers are stored.
enum Weights<'a> {
    Float(StoredDtype),
    /// See [`fp8`].
    Fp8 {
        scales: &'a TensorInfo,
    },
}

impl Checkpoint {
    /// Opens `model.safetensors`, or `model.safetensors.index.json` with its shards, in `dir`.
    ///
    /// # Errors
    /// If there is no such checkpoint, or any of its files is torn, missing, not safetensors, or at odds with the
    /// index or with its own header. No weight is read.
    pub fn open(dir: &Path) -> Result<Checkpoint> {
        let folder::Contents {
            source,
            shards,
            tensors,
        } = folder::open(dir)?;
        Ok(Checkpoint {
            dir: dir.to_path_buf(),
            source,
            shards,
            tensors,
            bytes_read: AtomicU64::new(0),
            sha256: OnceLock::new(),
        })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Bytes that an element of a tensor takes as it is read.
    pub fn bytes_an_element(&self, name: &str) -> usize {
        match self.info(name).map(|info| &info.dtype) {
            Some(Dtype::Float(dtype)) => dtype.bytes(),
            // A byte at most, beside what it stands for.
            Some(Dtype::Other(_)) | None => 5,
        }
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Type, shape and size of a tensor; `None` if it isn't there.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// The file that holds a tensor or, if it isn't there, the file that ought to list it.
    pub fn file_of(&self, name: &str) -> &Path {
        self.tensors
            .get(name)
            .map_or(&self.source, |info| &self.shards[info.shard].path)
    }

    /// Makes sure that a tensor is there, of a type that [`read`](Self::read) takes and of the given shape.
    ///
    /// # Errors
    /// Names the file, the tensor, what was found and what was expected.
    pub fn expect(&self, name: &str, shape: &[usize]) -> Result<()> {
        self.weights(name)?;
        self.expect_shape(name, shape)
    }

    /// As [`expect`](Self::expect), of bytes.
    pub(super) fn expect_bytes(&self, name: &str, shape: &[usize]) -> Result<()> {
        self.bytes(name)?;
        self.expect_shape(name, shape)
    }

    fn expect_shape(&self, name: &str, shape: &[usize]) -> Result<()> {
        let info = self.found(name)?;
        ensure!(
            info.shape == shape,
            "{}: tensor `{name}` has shape {:?}, but config.json calls for {shape:?}; weights and config.json are not \
             of one model: download both again",
            self.file_of(name).display(),
            info.shape
        );
        Ok(())
    }

    /// Reads one tensor as stored: exactly its bytes, nothing around them. What FP8 weights stand for is read in single
    /// precision.
    ///
    /// # Errors
    /// If it isn't there, isn't of a float type, can't be read, or holds a NaN (named by its element).
    pub fn read(&self, name: &str) -> Result<TensorData> {
        match self.weights(name)? {
            (info, Weights::Float(dtype)) => self.floats(&format!("tensor `{name}`"), info, dtype),
            (info, Weights::Fp8 { scales }) => Ok(TensorData::F32(self.fp8(name, info, scales)?)),
        }
    }

    /// Like [`read`](Self::read), but in single precision, without holding the stored form beside it.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let what = format!("tensor `{name}`");
        match self.weights(name)? {
            (info, Weights::Float(dtype)) => self.floats_f32(&what, info, dtype),
            (info, Weights::Fp8 { scales }) => self.fp8(name, info, scales),
        }
    }

    /// Reads one index of a tensor's first dimension, as stored (an expert of a tensor that holds all): no other bytes.
    ///
    /// # Errors
    /// As for [`read`](Self::read); and if there is no such index, or the tensor is FP8.
    pub fn read_part(&self, name: &str, index: usize) -> Result<TensorData> {
        let (part, dtype) = self.float_part(name, index)?;
        self.floats(&format!("part {index} of tensor `{name}`"), &part, dtype)
    }

    /// Like [`read_part`](Self::read_part), but in single precision, without holding the stored form beside it.
    ///
    /// # Errors
    /// As for [`read_part`](Self::read_part).
    pub fn read_part_f32(&self, name: &str, index: usize) -> Result<Vec<f32>> {
        let (part, dtype) = self.float_part(name, index)?;
        self.floats_f32(&format!("part {index} of tensor `{name}`"), &part, dtype)
    }

    /// Reads one index of the first dimension of a tensor of bytes.
    pub(super) fn read_bytes(&self, name: &str, index: usize) -> Result<Vec<u8>> {
        let part = self.part(name, self.bytes(name)?, index)?;
        self.elements(
            &format!("part {index} of tensor `{name}`"),
            &part,
            |[byte]| byte,
            |_| false,
        )
    }

    /// The float type that takes most of the bytes (float32 if no tensor is of a float type).
    pub fn stored_dtype(&self) -> StoredDtype {
        let bytes_of = |dtype: StoredDtype| -> u64 {
            self.tensors
                .values()
                .filter(|info| info.dtype == Dtype::Float(dtype))
                .map(|info| info.bytes)
                .sum()
        };
        let mut most = (StoredDtype::F32, bytes_of(StoredDtype::F32));
        for dtype in [StoredDtype::Bf16, StoredDtype::F16] {
            if bytes_of(dtype) > most.1 {
                most = (dtype, bytes_of(dtype));
            }
        }
        most.0
    }

    /// Bytes of all tensors together, as stored.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|info| info.bytes).sum()
    }

    /// A fingerprint of the model, in hexadecimal: SHA-256 over configs, tokenizer, index, every file's name, size and
    /// header, and blocks sampled from its weights. Not over every byte: hundreds of gigabytes would take minutes.
    ///
    /// # Errors
    /// If a file can't be read.
    pub fn sha256(&self) -> Result<String> {
        if let Some(known) = self.sha256.get() {
            return Ok(known.clone());
        }
        let found = fingerprint::sha256(&self.dir, &self.shards)?;
        Ok(self.sha256.get_or_init(|| found).clone())
    }

    /// Bytes of tensors read so far (headers and [`sha256`](Self::sha256) not counted).
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    fn found(&self, name: &str) -> Result<&TensorInfo> {
        self.tensors.get(name).with_context(|| {
            format!(
                "{}: tensor `{name}` is missing; the checkpoint is incomplete, or of another model",
                self.file_of(name).display()
            )
        })
    }

    /// A tensor that can be computed with.
    fn weights(&self, name: &str) -> Result<(&TensorInfo, Weights<'_>)> {
        let info = self.found(name)?;
        let found = match &info.dtype {
            Dtype::Float(dtype) => return Ok((info, Weights::Float(*dtype))),
            Dtype::Other(found) => found,
        };
        let file = self.file_of(name).display();
        ensure!(
            found == "F8_E4M3",
            "{file}: tensor `{name}` is of type {found}, but weights must be float32, bfloat16, float16 or F8_E4M3; \
             take the checkpoint's unquantised form"
        );
        let scales = fp8::scales_of(name);
        let of_scales = self.found(&scales)?;
        let expected = fp8::scales_shape(&info.shape);
        ensure!(
            of_scales.dtype == Dtype::Float(StoredDtype::F32) && expected.is_some_and(|shape| of_scales.shape == shape),
            "{}: tensor `{scales}` is {:?} of {}, but for `{name}` {:?} it must be float32, one for each block of {} x {} \
             of a matrix; take the checkpoint's unquantised form",
            self.file_of(&scales).display(),
            of_scales.shape,
            of_scales.dtype,
            info.shape,
            fp8::BLOCK,
            fp8::BLOCK
        );
        Ok((info, Weights::Fp8 { scales: of_scales }))
    }

    /// A tensor of bytes.
    fn bytes(&self, name: &str) -> Result<&TensorInfo> {
        let info = self.found(name)?;
        ensure!(
            info.dtype == Dtype::Other("U8".into()),
            "{}: tensor `{name}` is of type {}, expected U8; the checkpoint is of another model, or in another format",
            self.file_of(name).display(),
            info.dtype
        );
        Ok(info)
    }

    fn float_part(&self, name: &str, index: usize) -> Result<(TensorInfo, StoredDtype)> {
        match self.weights(name)? {
            (info, Weights::Float(dtype)) => Ok((self.part(name, info, index)?, dtype)),
            (_, Weights::Fp8 { .. }) => bail!(
                "{}: tensor `{name}` is of type F8_E4M3, of which parts cannot be read; take the checkpoint's unquantised \
                 form",
                self.file_of(name).display()
            ),
        }
    }

    fn part(&self, name: &str, info: &TensorInfo, index: usize) -> Result<TensorInfo> {
        info.part(index).with_context(|| {
            format!(
                "{}: tensor `{name}` has shape {:?}, so there is no part {index}; weights and config.json are not of one \
                 model: download both again",
                self.file_of(name).display(),
                info.shape
            )
        })
    }

    fn floats(&self, what: &str, info: &TensorInfo, dtype: StoredDtype) -> Result<TensorData> {
        Ok(match dtype {
            StoredDtype::F32 => TensorData::F32(self.elements(what, info, f32::from_le_bytes, f32::is_nan)?),
            StoredDtype::Bf16 => TensorData::Bf16(self.elements(what, info, bf16::from_le_bytes, bf16::is_nan)?),
            StoredDtype::F16 => TensorData::F16(self.elements(what, info, f16::from_le_bytes, f16::is_nan)?),
        })
    }

    fn floats_f32(&self, what: &str, info: &TensorInfo, dtype: StoredDtype) -> Result<Vec<f32>> {
        match dtype {
            StoredDtype::F32 => self.elements(what, info, f32::from_le_bytes, f32::is_nan),
            StoredDtype::Bf16 => self.elements(what, info, |b| bf16::from_le_bytes(b).to_f32(), f32::is_nan),
            StoredDtype::F16 => self.elements(what, info, |b| f16::from_le_bytes(b).to_f32(), f32::is_nan),
        }
    }

    /// The numbers that an FP8 matrix stands for.
    fn fp8(&self, name: &str, info: &TensorInfo, scales: &TensorInfo) -> Result<Vec<f32>> {
        let of_scales = format!("tensor `{}`", fp8::scales_of(name));
        let scales = self.floats_f32(&of_scales, scales, StoredDtype::F32)?;
        // NaN of either sign.
        let is_nan = |byte| byte & 0x7f == 0x7f;
        let bytes = self.elements(&format!("tensor `{name}`"), info, |[byte]| byte, is_nan)?;
        Ok(fp8::decode(&bytes, info.shape[1], &scales))
    }

    /// Reads and decodes a tensor of a file that is still the one that was opened.
    fn elements<const WIDTH: usize, T: Copy>(
        &self,
        what: &str,
        info: &TensorInfo,
        decode: impl Fn([u8; WIDTH]) -> T,
        is_nan: impl Fn(T) -> bool,
    ) -> Result<Vec<T>> {
        let shard = &self.shards[info.shard];
        let read = self.blocks(shard, what, info, decode, is_nan);
        // Looked at afterwards, so that nothing can change in between; it also explains a read past the end, or a NaN.
        shard.is_unchanged().with_context(|| format!("reading {what}"))?;
        read
    }

    /// Reads and decodes block by block, looking for NaN while the block is in the cache.
    fn blocks<const WIDTH: usize, T: Copy>(
        &self,
        shard: &Shard,
        what: &str,
        info: &TensorInfo,
        decode: impl Fn([u8; WIDTH]) -> T,
        is_nan: impl Fn(T) -> bool,
    ) -> Result<Vec<T>> {
        let context = || format!("{}: reading {what}", shard.path.display());
        let mut values = Vec::new();
        values
            .try_reserve_exact(info.bytes as usize / WIDTH)
            .with_context(context)?;
        let mut block = vec![0; READ_BLOCK.min(info.bytes as usize)];
        let (mut at, end) = (info.start, info.start + info.bytes);
        while at < end {
            let bytes = &mut block[..(end - at).min(READ_BLOCK as u64) as usize];
            (shard.file.read_exact_at(bytes, at)).with_context(|| format!("{} at byte {at}", context()))?;
            at += bytes.len() as u64;
            self.bytes_read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            let first = values.len();
            values.extend(bytes.chunks_exact(WIDTH).map(|chunk| {
                let mut element = [0; WIDTH];
                element.copy_from_slice(chunk);
                decode(element)
            }));
            // All elements are looked at before any is judged: that loop is vectorised, a search is not.
            if values[first..]
                .iter()
                .fold(false, |found, &value| found | is_nan(value))
            {
                let element = values.iter().position(|&value| is_nan(value)).unwrap_or(first);
                return Err(anyhow!(
                    "{}: NaN in {what} at element {element} of shape {:?}: the checkpoint is damaged; \
                     download it again",
                    shard.path.display(),
                    info.shape
                ));
            }
        }
        Ok(values)
    }
}
