//! The numbers of one tensor, in the type that the checkpoint stores.

use half::{bf16, f16};

/// A floating-point type in which weights are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoredDtype {
    /// IEEE 754 single precision, 4 bytes.
    F32,
    /// bfloat16, 2 bytes.
    Bf16,
    /// IEEE 754 half precision, 2 bytes.
    F16,
}

impl StoredDtype {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            StoredDtype::F32 => 4,
            StoredDtype::Bf16 | StoredDtype::F16 => 2,
        }
    }

    /// PyTorch's name: `float32`, `bfloat16` or `float16`.
    pub fn name(self) -> &'static str {
        match self {
            StoredDtype::F32 => "float32",
            StoredDtype::Bf16 => "bfloat16",
            StoredDtype::F16 => "float16",
        }
    }

    /// The type that PyTorch (or `config.json`) calls `name`, with or without the prefix `torch.`.
    pub fn from_name(name: &str) -> Option<StoredDtype> {
        match name.strip_prefix("torch.").unwrap_or(name) {
            "float32" => Some(StoredDtype::F32),
            "bfloat16" => Some(StoredDtype::Bf16),
            "float16" => Some(StoredDtype::F16),
            _ => None,
        }
    }
}

/// A tensor's elements in row-major order, as stored.
#[derive(Clone, Debug, PartialEq)]
pub enum TensorData {
    /// Single precision.
    F32(Vec<f32>),
    /// bfloat16.
    Bf16(Vec<bf16>),
    /// Half precision.
    F16(Vec<f16>),
}

impl TensorData {
    /// How many elements there are.
    pub fn len(&self) -> usize {
        match self {
            TensorData::F32(values) => values.len(),
            TensorData::Bf16(values) => values.len(),
            TensorData::F16(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The type of the elements.
    pub fn dtype(&self) -> StoredDtype {
        match self {
            TensorData::F32(_) => StoredDtype::F32,
            TensorData::Bf16(_) => StoredDtype::Bf16,
            TensorData::F16(_) => StoredDtype::F16,
        }
    }

    /// The elements in single precision; exact from every stored type.
    pub fn to_f32(self) -> Vec<f32> {
        match self {
            TensorData::F32(values) => values,
            TensorData::Bf16(values) => values.into_iter().map(bf16::to_f32).collect(),
            TensorData::F16(values) => values.into_iter().map(f16::to_f32).collect(),
        }
    }

    /// The elements in bfloat16, rounded to nearest even where the stored type is finer.
    pub fn to_bf16(self) -> Vec<bf16> {
        match self {
            TensorData::F32(values) => values.into_iter().map(bf16::from_f32).collect(),
            TensorData::Bf16(values) => values,
            TensorData::F16(values) => values.into_iter().map(|v| bf16::from_f32(v.to_f32())).collect(),
        }
    }
}
