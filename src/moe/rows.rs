//! The form in which an expert's input rows travel: as the experts' products round them anyway, so that sending them
//! changes no bit.

use crate::device::{dequantise, quantise, Dtype};
use half::bf16;

/// Bytes of a row of `d` elements: float32, bfloat16, or int8 with its scale.
pub(super) fn row_bytes(dtype: Dtype, d: usize) -> usize {
    match dtype {
        Dtype::F32 => 4 * d,
        Dtype::Bf16 => 2 * d,
        Dtype::Int8 => d + 4,
    }
}

/// Writes `row` into `to`, which has [`row_bytes`].
pub(super) fn pack(dtype: Dtype, row: &[f32], to: &mut [u8]) {
    match dtype {
        Dtype::F32 => to.copy_from_slice(bytemuck::cast_slice(row)),
        Dtype::Bf16 => {
            let (pairs, _) = to.as_chunks_mut::<2>();
            pairs
                .iter_mut()
                .zip(row)
                .for_each(|(to, x)| *to = bf16::from_f32(*x).to_ne_bytes());
        }
        Dtype::Int8 => {
            let (to, scale) = to.split_at_mut(row.len());
            let found = quantise(row, bytemuck::cast_slice_mut(to));
            scale.copy_from_slice(&found.to_ne_bytes());
        }
    }
}

/// Reads what [`pack`] has written into `row`; the experts' products round it to the same again.
pub(super) fn unpack(dtype: Dtype, from: &[u8], row: &mut [f32]) {
    match dtype {
        Dtype::F32 => bytemuck::cast_slice_mut(row).copy_from_slice(from),
        Dtype::Bf16 => {
            let (pairs, _) = from.as_chunks::<2>();
            row.iter_mut()
                .zip(pairs)
                .for_each(|(x, from)| *x = bf16::from_ne_bytes(*from).to_f32());
        }
        Dtype::Int8 => {
            let (from, scale) = from.split_at(row.len());
            let scale = scale.first_chunk().map_or(f32::NAN, |bytes| f32::from_ne_bytes(*bytes));
            dequantise(bytemuck::cast_slice(from), scale, row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_rounded_once_however_often_it_travels() {
        let rows = [
            vec![],
            vec![0.0, 0.0],
            vec![1e-40; 3],
            vec![0.1, -77.3, 5e-5, 1e30, 0.7],
        ];
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::Int8] {
            for row in &rows {
                let mut bytes = vec![0; row_bytes(dtype, row.len())];
                let (mut once, mut twice) = (vec![0.0; row.len()], vec![0.0; row.len()]);
                pack(dtype, row, &mut bytes);
                unpack(dtype, &bytes, &mut once);
                let largest = row.iter().fold(0.0, |m: f32, x| m.max(x.abs()));
                let near = |(x, y): (&f32, &f32)| (x - y).abs() <= largest / 200.0 + 1e-30;
                assert!(row.iter().zip(&once).all(near), "{dtype:?}: {row:?}, {once:?}");
                assert!(dtype != Dtype::F32 || &once == row);
                pack(dtype, &once, &mut bytes);
                unpack(dtype, &bytes, &mut twice);
                assert_eq!(once, twice, "{dtype:?}");
            }
        }
    }
}
